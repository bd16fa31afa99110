"""Contents: a headline, a banner, an offer, a push text or a next action, in variants of which each person gets one.

A content says who may get which variant, how often, and what counts as success; which variant somebody gets now is chosen
by what has been learned (`serving/decisions/bandit.py`) or by weights. A content with a trigger is an alert: it comes when
something has happened, once for each such thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, ConfigDict, Field, JsonValue, Strict, StrictBool, ValidationError, model_validator

from embeddings.errors import InputError, unknown_name
from embeddings.schema import Id, Label, Name, Row, first_error
from embeddings.sentences import sentence
from serving.policy.conditions import Comparison
from serving.policy.contact import Cap, Quiet
from serving.policy.contradictions import contradiction
from serving.policy.kinds import Kind, PolicyDocument, References, by_id, check_distinct
from serving.policy.placements import Share
from serving.policy.rules import Instant, Tree, check_segments

MAX_VARIANTS = 50
MAX_CAPS = 4
LEAST_EXPLORATION = 0.01
"""It gives the logged probability of a variant a floor, so that estimates from the log stay sound."""

MAX_PAYLOAD = 8_192
"""Bytes of a payload as JSON; a picture or a video is an address in it."""

HERE = ("exit_intent", "idle")
"""Triggers that only the application sees; it asks when they happen."""

KNOWN = ("cart_abandonment", "back_in_stock", "price_drop", "replenishment")
"""Triggers that the service sees by itself."""

TRIGGERS = (*HERE, *KNOWN)


def _is_empty(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(_is_empty, value.values() if isinstance(value, dict) else value))
    return value is None or (isinstance(value, str) and not value.strip())


def _payload(payload: dict[str, Any]) -> dict[str, Any]:
    if not payload:
        raise InputError("payload: is empty; a variant is what it shows, so put that here", field="payload")
    try:
        size = len(orjson.dumps(payload))
    except orjson.JSONEncodeError as error:
        raise InputError(f"payload: is not JSON: {error}", field="payload") from None
    if _is_empty(payload):
        raise InputError(
            "payload: holds nothing but empty values; a variant without content is left out, not shown", field="payload"
        )
    if size > MAX_PAYLOAD:
        raise InputError(f"payload: has {size} bytes as JSON, at most {MAX_PAYLOAD} are allowed", field="payload")
    return payload


Payload = Annotated[dict[str, JsonValue], Field(min_length=1), AfterValidator(_payload)]
Whole = Annotated[int, Strict()]


class Variant(Row):
    """One form of a content: `payload` is what the application shows, `when` says to whom it may be shown.

    `weight` is its share of what is left to chance, and of everybody where choice is by weights, beside the weights of the
    other variants: 2 is shown twice as often as 1, and 0 takes it out.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    id: Id
    payload: Payload
    when: Tree = None
    weight: Annotated[float, Strict(), Field(ge=0, le=1_000_000, allow_inf_nan=False)] = 1.0


class Trigger(Row):
    """What an alert waits for.

    `exit_intent`, `idle`: the application says so. `cart_abandonment`: something was put into the cart, and for
    `after_minutes` nothing was bought or added. `back_in_stock`, `price_drop`: of what the person looked at before; a price
    must fall by `percent`. `replenishment`: it is time to buy something again. What happened more than `within_days` ago
    is no longer told.
    """

    type: Literal["exit_intent", "idle", "cart_abandonment", "back_in_stock", "price_drop", "replenishment"]
    after_minutes: Annotated[float, Strict(), Field(gt=0, le=43_200, allow_inf_nan=False)] = 60.0
    within_days: Annotated[float, Strict(), Field(gt=0, le=365, allow_inf_nan=False)] = 7.0
    percent: Annotated[float, Strict(), Field(gt=0, le=100, allow_inf_nan=False)] = 5.0


class Content(PolicyDocument):
    """One content, as stored and as answered by the service.

    It is in force if `enabled`, from `starts_at` until just before `ends_at`, for people and requests that fulfil `when`;
    with a `channel` only for requests whose context names that channel. `choice`: `learned`, by what people like this one
    responded to, or by `weights` alone. `exploration` is the share of the choices that is left to the weights, so that
    every variant goes on being tried: at least 0.01. A `holdout` of the people, always the same, is shown none, to be
    compared with. `caps`: at most so many times to one person within so many days, on all channels together; contents of
    one `group` count together. `goal` is the event type that counts as success, if it comes within `goal_hours` and names
    the decision.

    A `trigger` makes it an alert; of several that are due the one with the highest `priority` comes first. It leaves people
    in peace during `quiet` hours.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    enabled: StrictBool = True
    when: Tree = None
    variants: Annotated[tuple[Variant, ...], Field(min_length=1, max_length=MAX_VARIANTS)]
    choice: Literal["learned", "weights"] = "learned"
    exploration: Share = 0.05
    holdout: Annotated[float, Strict(), Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    caps: Annotated[tuple[Cap, ...], Field(max_length=MAX_CAPS)] = ()
    group: Id | None = None
    goal: Name = "click"
    goal_hours: Annotated[float, Strict(), Field(gt=0, le=24 * 90, allow_inf_nan=False)] = 24.0
    channel: Label | None = None
    trigger: Trigger | None = None
    quiet: Quiet | None = None
    priority: Annotated[Whole, Field(ge=-1_000_000, le=1_000_000)] = 0
    starts_at: Instant | None = None
    ends_at: Instant | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> Content:
        check_distinct((variant.id for variant in self.variants), field="variants", what="variant")
        if not sum(variant.weight for variant in self.variants):
            raise InputError(
                "variants: every weight is 0, so nothing could ever be shown; give one of them a weight above 0, or "
                "say enabled: false",
                field="variants.0.weight",
            )
        if self.starts_at and self.ends_at and self.starts_at >= self.ends_at:
            raise InputError("ends_at: must lie after starts_at", field="ends_at")
        self._goes_on_learning()
        self._can_match()
        self._is_an_alert_or_not()
        return self

    def _goes_on_learning(self) -> None:
        several = sum(variant.weight > 0 for variant in self.variants) > 1
        if self.choice == "learned" and several and self.exploration < LEAST_EXPLORATION:
            raise InputError(
                f"exploration: is {self.exploration:g}; among several variants at least {LEAST_EXPLORATION:g} is left to "
                "chance, or one that began badly is never tried again",
                field="exploration",
            )

    def _can_match(self) -> None:
        channel = None if self.channel is None else Comparison("context.channel", "eq", self.channel)
        if (why := contradiction(channel, self.when)) is not None:
            raise InputError(f"when: can never hold: {why}", field="when")
        for place, variant in enumerate(self.variants):
            if (why := contradiction(channel, self.when, variant.when)) is not None:
                field = f"variants.{place}.when"
                beside = "" if self.when is None else " beside the 'when' of the content"
                raise InputError(f"{field}: can never hold{beside}: {why}", field=field)

    def _is_an_alert_or_not(self) -> None:
        if self.trigger is None:
            if self.quiet is not None:
                raise InputError(
                    "quiet: is for alerts; give the content a trigger, or leave 'quiet' out", field="quiet"
                )
        elif self.trigger.type in HERE and not self.caps:
            raise InputError(
                f"caps: an alert on '{self.trigger.type}' would come each time; say how often it may come, such as "
                '{"limit": 1, "days": 1}',
                field="caps",
            )

    @property
    def counted(self) -> str:
        """The name under which what was shown is counted: contents of a group share one."""
        return f"group {self.group}" if self.group is not None else f"content {self.id}"

    def on_channel(self, context: Mapping[str, Any]) -> bool:
        """Whether a request with these facts is on its channel."""
        return self.channel is None or context.get("channel") == self.channel

    def in_force(self, now: float) -> bool:
        """Whether it is enabled and within its dates at `now` (seconds since 1970)."""
        started = self.starts_at is None or self.starts_at.timestamp() <= now
        over = self.ends_at is not None and self.ends_at.timestamp() <= now
        return self.enabled and started and not over


def check_no_alert(content: Content, field: str) -> None:
    """Raise `InputError` where a content is asked for by its name and is an alert."""
    if content.trigger is not None:
        raise InputError(
            f"{field}: '{content.id}' is an alert: it comes when its trigger '{content.trigger.type}' has happened, "
            "outside of quiet hours and with consent to marketing; /v1/alerts and the alert slots of layouts have it",
            field=field,
        )


def check_alert_of_state(content: Content, field: str) -> None:
    """Raise `InputError` where a page names a content that is no alert, or one of a moment that no page knows ahead."""
    if content.trigger is None:
        raise InputError(
            f"{field}: '{content.id}' is no alert, it has no trigger; a slot of the type 'content' shows it",
            field=field,
        )
    if content.trigger.type in HERE:
        raise InputError(
            f"{field}: '{content.id}' waits for '{content.trigger.type}', which happens after the page was made; the "
            "application asks /v1/alerts for it at that moment, as /bespoke.js does",
            field=field,
        )


def parse_content(raw: Mapping[str, Any]) -> Content:
    """Validate one raw document; raises `InputError` whose field is a path such as "variants.1.when.all.0.value"."""
    if not isinstance(raw, Mapping):
        raise InputError("a content must be an object")
    try:
        return Content.model_validate(raw)
    except ValidationError as error:
        raise _first_wrong(error) from None


def _first_wrong(error: ValidationError) -> InputError:
    detail = error.errors(include_url=False)[0]
    place = list(map(str, detail["loc"]))
    field = ".".join(place)
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        within, _, rest = (cause.field or "").partition(".")
        path = ".".join(filter(None, (field, rest))) if place and within == place[-1] else cause.field or field
        said = cause.message.removeprefix(f"{cause.field}: ")
        return InputError(cause.message if path == cause.field else f"{path}: {said}", field=path or None)
    if place[-1:] == ["payload"] and detail["type"] in ("missing", "too_short"):
        return InputError(f"{field}: a variant must have one: a JSON object with what is to be shown", field=field)
    if detail["type"] == "literal_error" and place[-2:] == ["trigger", "type"]:
        return unknown_name("trigger", str(error.errors()[0]["input"])[:64], TRIGGERS, field=field)
    if detail["type"] == "extra_forbidden" and len(place) > 1:
        return InputError(f"unknown field '{field}'", field=field)
    if len(place) < 2:
        return first_error(error, known=Content.model_fields)
    return InputError(f"{field}: {sentence(detail)}", field=field)


def _parsed(raw: Mapping[str, Any], references: References) -> Content:
    content = parse_content(raw)
    check_segments(content.when, references, field="when")
    for place, variant in enumerate(content.variants):
        check_segments(variant.when, references, field=f"variants.{place}.when")
    return content


CONTENTS = Kind(name="content", plural="contents", model=Content, parse=_parsed, compile=by_id)
"""Contents, compiled to themselves by id."""
