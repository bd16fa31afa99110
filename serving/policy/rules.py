"""Rules: one document says when, for which items, and what happens to them.

A rule is `when` (a condition over the person, the request and the time), `items` (a condition over items) and an action.
`parse_rule` validates a raw document against the attributes that the catalogue has.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    Strict,
    StrictBool,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from embeddings.errors import InputError, unknown_name
from embeddings.ids import bucket
from embeddings.schema import Id, Row, first_error
from embeddings.sentences import near, sentence
from serving.policy.columns import FIELDS
from serving.policy.conditions import HISTORY, Condition
from serving.policy.contradictions import contradiction
from serving.policy.kinds import Kind, PolicyDocument, References, Report
from serving.policy.syntax import parse

MAX_PLACEMENTS = 100
BUCKETS = 1_000_000
_NAME = r"[A-Za-z_][A-Za-z0-9_.-]{0,63}"


class FactNames(Collection[str]):
    """The names that `when` may use: some are fixed, and any attribute of the user and of the context."""

    fixed = (
        "history.cart",
        "history.visits",
        "time.date",
        "time.hour",
        "time.local_hour",
        "time.local_weekday",
        "time.weekday",
        "user.events",
        "user.segment",
    )
    _open = re.compile(rf"(user|context)\.{_NAME}")

    def __contains__(self, name: object) -> bool:
        return name in self.fixed or (isinstance(name, str) and self._open.fullmatch(name) is not None)

    def __iter__(self) -> Iterator[str]:
        return iter(("context.<name>", *self.fixed, "user.<attribute>"))

    def __len__(self) -> int:
        return len(self.fixed) + 2


FACTS = FactNames()
SEGMENT, SEGMENT_KIND = "user.segment", "segment"
"""The fact that holds the segments a person is in, and the name of that kind of documents."""

Whole = Annotated[int, Strict()]
Factor = Annotated[float, Strict(), Field(allow_inf_nan=False)]


class Include(Row):
    """Only items that match stay."""

    type: Literal["include"]


class Exclude(Row):
    """Items that match go."""

    type: Literal["exclude"]


class Boost(Row):
    """The score of items that match is multiplied by `factor`, above 1."""

    type: Literal["boost"]
    factor: Annotated[Factor, Field(gt=1, le=100)]


class Bury(Row):
    """The score of items that match is multiplied by `factor`, below 1."""

    type: Literal["bury"]
    factor: Annotated[Factor, Field(ge=0, lt=1)]


class Pin(Row):
    """The best item that matches is put on `position`, counted from 0."""

    type: Literal["pin"]
    position: Annotated[Whole, Field(ge=0, le=199)]


class Cap(Row):
    """At most `limit` items of an answer share a value of `attribute`; those that are pinned count first, and stay."""

    type: Literal["cap"]
    attribute: Annotated[str, Field(min_length=1, max_length=64)]
    limit: Annotated[Whole, Field(ge=1, le=200)]


Action = Annotated[Include | Exclude | Boost | Bury | Pin | Cap, Field(discriminator="type")]
ACTIONS: Mapping[str, type[Row]] = {
    "include": Include,
    "exclude": Exclude,
    "boost": Boost,
    "bury": Bury,
    "pin": Pin,
    "cap": Cap,
}


def _condition(raw: Any, info: ValidationInfo) -> Condition | None:
    if raw is None or isinstance(raw, Condition):
        return raw
    name = str(info.field_name)
    items: Collection[str] | None = (info.context or {}).get("item_attributes")
    if name != "when":
        return parse(raw, known=items, field=name)
    return parse(raw, known=(info.context or {}).get("facts", FACTS), field=name, behaviour=True, items=items)


def _in_utc(moment: datetime) -> datetime:
    if not 1970 <= moment.year < 3000:
        raise ValueError("must lie between the years 1970 and 2999")
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)


Tree = Annotated[
    Condition | None,
    BeforeValidator(_condition),
    PlainSerializer(lambda tree: tree and tree.to_json()),
    WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "null"}], "description": "A condition tree."}),
]
Instant = Annotated[datetime, AfterValidator(_in_utc)]


class Rule(PolicyDocument):
    """One rule, as stored and as answered by the service (`model_dump(mode="json")`).

    Rules with a higher `priority` come first, equal ones in order of `id`. No `placements` means all of them; no `when`
    means always. It is in force from `starts_at` until just before `ends_at`, for a `share` of the people, always the same;
    with a larger share more are added, and nobody drops out.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    enabled: StrictBool = True
    priority: Annotated[Whole, Field(ge=-1_000_000, le=1_000_000)] = 0
    placements: Annotated[tuple[Id, ...], Field(max_length=MAX_PLACEMENTS)] = ()
    when: Tree = None
    items: Tree = None
    action: Action
    starts_at: Instant | None = None
    ends_at: Instant | None = None
    share: Annotated[float, Strict(), Field(gt=0, le=1, allow_inf_nan=False)] = 1.0

    @model_validator(mode="after")
    def _parts_fit(self, info: ValidationInfo) -> Rule:
        kind = self.action.type
        if isinstance(self.action, Cap):
            known = (info.context or {}).get("item_attributes")
            if known is not None and self.action.attribute not in known:
                raise unknown_name("attribute", self.action.attribute, known, field="action.attribute")
            if self.items is not None:
                raise InputError("items: a cap counts every item of the answer; leave 'items' out", field="items")
        elif self.items is None:
            raise InputError(f"items: '{kind}' needs a condition that says which items", field="items")
        if self.starts_at and self.ends_at and self.starts_at >= self.ends_at:
            raise InputError("ends_at: must lie after starts_at", field="ends_at")
        for name, condition in (("when", self.when), ("items", self.items)):
            if (why := contradiction(condition)) is not None:
                raise InputError(f"{name}: can never hold: {why}", field=name)
        return self

    def reaches(self, user_id: str | None) -> bool:
        """Whether a person is in its share; a rule for some people reaches nobody whose id is not known."""
        if self.share >= 1:
            return True
        return bool(user_id) and bucket(str(user_id), BUCKETS, salt=f"rule {self.id}") < self.share * BUCKETS

    @property
    def order(self) -> tuple[int, str]:
        """Sort key: higher priority first, then by id."""
        return -self.priority, self.id

    @property
    def guards_people(self) -> bool:
        """Whether it takes items away, depending on who asks."""
        limits = isinstance(self.action, Include | Exclude)
        return limits and self.when is not None and asks_for_people(self.when)

    def in_force(self, placement: str, now: float, *, enabled: bool) -> bool:
        """Whether it is meant for the placement and, if `enabled`, within its dates at `now` (seconds since 1970)."""
        started = self.starts_at is None or self.starts_at.timestamp() <= now
        over = self.ends_at is not None and self.ends_at.timestamp() <= now
        return enabled and started and not over and (not self.placements or placement in self.placements)


def asks_for_people(when: Condition) -> bool:
    """Whether a condition asks for anything that is known of a person; where they are is, by their clock."""
    return any(name.startswith(("user.", HISTORY, "time.local_")) for name in when.attributes())


def segments_named(when: Condition | None) -> Iterator[str]:
    """The segments that a condition names."""
    for leaf in [] if when is None else when.comparisons(SEGMENT):
        if leaf.op in ("eq", "ne", "in", "contains"):
            yield from map(str, leaf.values)


def check_segments(when: Condition | None, references: References, *, field: str) -> None:
    """Raise `InputError` where a condition names a segment that there is none of."""
    known = references.ids(SEGMENT_KIND)
    for name in segments_named(when) if SEGMENT_KIND in references.documents else ():
        if name not in known:
            raise unknown_name("segment", name, known, field=field)


def parse_rule(raw: Mapping[str, Any], *, item_attributes: Iterable[str] | None) -> Rule:
    """Validate one raw document.

    `item_attributes` are the catalogue's own attributes (None: any name passes); the fields of every item are always
    known. Raises `InputError`; its `field` is a path such as "items.all.1.value" or "action.factor".
    """
    if not isinstance(raw, Mapping):
        raise InputError("a rule must be an object")
    known = None if item_attributes is None else frozenset(item_attributes) | FIELDS.keys()
    try:
        return Rule.model_validate(raw, context={"item_attributes": known})
    except ValidationError as error:
        raise _first_wrong(error) from None


def _first_wrong(error: ValidationError) -> InputError:
    detail = error.errors(include_url=False)[0]
    context, place = detail.get("ctx", {}), detail["loc"]
    cause = context.get("error")
    if isinstance(cause, InputError):
        return cause
    if detail["type"] == "union_tag_invalid":
        return unknown_name("action", context["tag"][:64], ACTIONS, field="action.type")
    if place[:1] != ("action",) or len(place) < 3:
        return first_error(error, known=Rule.model_fields)
    # pydantic's path through the union names the action in between, which no document has
    path = f"action.{place[2]}"
    if detail["type"] == "extra_forbidden":
        known = ACTIONS[str(place[1])].model_fields
        hint = near(str(place[-1]), known) or ";"
        return InputError(f"unknown field '{path}'{hint} known: {', '.join(known)}", field=path)
    return InputError(f"{path}: {sentence(detail)}", field=path)


def _parsed(raw: Mapping[str, Any], references: References) -> Rule:
    rule = parse_rule(raw, item_attributes=references.item_attributes)
    check_segments(rule.when, references, field="when")
    return rule


def _in_order(rules: Mapping[str, Rule], references: References, report: Report) -> tuple[Rule, ...]:
    return tuple(sorted(rules.values(), key=lambda rule: rule.order))


def _limit(raw: Mapping[str, Any]) -> Rule | None:
    """The rule, if it includes or excludes and is sound apart from the attributes it names."""
    try:
        rule = parse_rule(raw, item_attributes=None)
    except InputError:
        return None
    return rule if isinstance(rule.action, Include | Exclude) else None


RULES = Kind(name="rule", plural="rules", model=Rule, parse=_parsed, compile=_in_order, despite=_limit)
"""Rules, compiled to all of them in order; one that includes or excludes stays in force when its attribute is gone."""
