"""Experiments: who gets which of several arms, on which share of the traffic, from when to when, and what stops an arm.

Experiments of one layer share its people out among them: each has a slice, and nobody is in two. Layers are drawn
independently, so experiments of different layers meet in all combinations. `serving/request/assignment.py` draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, Strict, ValidationError

from embeddings.errors import InputError
from embeddings.schema import Name, Row, first_error
from serving.policy.arms import Arm, Names, changes_of, touched
from serving.policy.contradictions import contradiction
from serving.policy.kinds import PolicyDocument, References
from serving.policy.placements import Share
from serving.policy.rules import Instant, Tree, check_segments

HOLDOUT = "holdout"
"""The arm of those who are kept out of an experiment for good."""

RELEASE = "release"
"""The name under which answers say in which arm of a canary they were given; no experiment may take it."""

State = Literal["draft", "running", "stopped"]
Metric = Literal[
    "clicks", "conversion", "orders", "revenue", "average_order", "retention_7", "retention_28", "lifetime_value"
]
METRICS: tuple[Metric, ...] = get_args(Metric)
MAY_CHANGE = ("state", "traffic", "ends_at", "guardrails", "primary", "description")
"""What may change once an experiment has run, beside `stopped` of an arm: its figures stay comparable, and hold."""

MAX_ARMS = 10
MAX_GUARDRAILS = 10


class Slice(Row):
    """A part of a layer: the people whose place in it, from 0 to 1, is at least `start` and below `end`."""

    start: Share = 0.0
    end: Share = 1.0

    def meets(self, other: Slice) -> bool:
        """Whether anybody is in both."""
        return self.start < other.end and other.start < self.end

    def __str__(self) -> str:
        return f"{self.start:g} to {self.end:g}"


class Guardrail(Row):
    """Stops an arm when its `metric` surely lies more than the share `margin` below that of the first arm."""

    metric: Metric
    margin: Share = 0.0


class EventTypes(Row):
    """Which events count as a click and as a purchase; the value of a purchase is what it brought."""

    click: Name = "click"
    purchase: Name = "purchase"


class Experiment(PolicyDocument):
    """One experiment, as stored and as answered by the service. The first arm is the one that others are compared with.

    `traffic` is the share of the slice that takes part: raised step by step, it leaves everybody in their arm. `holdout` is
    the share of all people that is kept out, the same people in every experiment. `when` says who may take part at all.
    People are part of it from the first answer on in which arms differ: on the placements, pages, contents and rules that
    any arm changes, and on `placements`. An experiment is a draft until it is `running`; then its arms stay as they are.
    Intervals hold with probability 1 - `alpha` however often one looks; they are narrowest, in proportion, after `people`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    state: State = "draft"
    layer: Name = "default"
    slice: Slice = Slice()
    traffic: Share = 1.0
    holdout: Share = 0.0
    arms: Annotated[tuple[Arm, ...], Field(min_length=2, max_length=MAX_ARMS)]
    placements: Names = ()
    when: Tree = None
    starts_at: Instant | None = None
    ends_at: Instant | None = None
    primary: Metric = "conversion"
    events: EventTypes = EventTypes()
    guardrails: Annotated[tuple[Guardrail, ...], Field(max_length=MAX_GUARDRAILS)] = ()
    alpha: Annotated[float, Strict(), Field(ge=1e-6, le=0.5, allow_inf_nan=False)] = 0.05
    people: Annotated[int, Strict(), Field(ge=100, le=10**10)] = 10_000

    @property
    def control(self) -> Arm:
        """The arm that others are compared with."""
        return self.arms[0]

    @property
    def switched(self) -> frozenset[str]:
        """The rules that any arm switches on or off."""
        return frozenset(name for arm in self.arms for name in (*arm.rules_on, *arm.rules_off))

    @property
    def weights(self) -> tuple[float, ...]:
        """Share of each arm."""
        return tuple(1 / len(self.arms) if arm.weight is None else arm.weight for arm in self.arms)

    def running(self, now: float) -> bool:
        """Whether people take part at `now` (seconds since 1970)."""
        starts, ends = self.span
        return self.state == "running" and starts <= now < ends

    @property
    def span(self) -> tuple[float, float]:
        """From when to when, in seconds since 1970; infinite where nothing is said."""
        starts = -math.inf if self.starts_at is None else self.starts_at.timestamp()
        return starts, math.inf if self.ends_at is None else self.ends_at.timestamp()

    def without(self, arm: str, why: str) -> Experiment:
        """The same with one arm stopped."""
        arms = tuple(one.model_copy(update={"stopped": why}) if one.id == arm else one for one in self.arms)
        return self.model_copy(update={"arms": arms})


PARTS: Mapping[str, type[Row]] = {"arms": Arm, "slice": Slice, "guardrails": Guardrail, "events": EventTypes}


def parse_experiment(raw: Mapping[str, Any], *, references: References) -> Experiment:
    """Validate one raw document; raises `InputError` whose field is a path such as "arms.1.placements.home.diversity"."""
    if not isinstance(raw, Mapping):
        raise InputError("an experiment must be an object")
    try:
        experiment = Experiment.model_validate(raw)
    except ValidationError as error:
        raise _first_wrong(error) from None
    for field, message in _wrong(experiment):
        raise InputError(f"{field}: {message}", field=field)
    if experiment.state != "stopped":  # what a stopped one was about may be gone
        check_segments(experiment.when, references, field="when")
        for place, arm in enumerate(experiment.arms):
            changes_of(arm, references, path=f"arms.{place}")
    for other in references.documents.get("experiment", {}).values():
        if isinstance(other, Experiment) and other.id == experiment.id:
            _check_step(other, experiment)
        elif isinstance(other, Experiment) and (wrong := clash(experiment, other)) is not None:
            raise wrong
    return experiment


def clash(one: Experiment, other: Experiment) -> InputError | None:
    """Why two experiments cannot run together, None if they can; the error speaks to whoever writes `one`."""
    if one.state != "running" or other.state != "running":
        return None
    (starts, ends), (other_starts, other_ends) = one.span, other.span
    if starts >= other_ends or other_starts >= ends:
        return None
    if one.layer == other.layer:
        if not one.slice.meets(other.slice):
            return None
        return InputError(
            f"slice: {one.slice} of layer '{one.layer}' meets {other.slice}, which '{other.id}' has; take another part "
            f"of the layer or another layer, or stop '{other.id}'",
            field="slice",
        )
    taken = {(kind, name) for kind, name, _ in touched(other.arms)}
    for kind, name, path in touched(one.arms):
        if (kind, name) in taken:
            return InputError(
                f"arms.{path}: '{other.id}' of layer '{other.layer}' changes {kind} '{name}' too; put both into one "
                "layer, with a slice each",
                field=f"arms.{path}",
            )
    return None


def _wrong(one: Experiment) -> Iterator[tuple[str, str]]:
    """What does not fit within an experiment: the field, and what is wrong with it."""
    if one.id == RELEASE:
        yield "id", f"'{RELEASE}' is what answers call the arm of a canary; take another name"
    if one.slice.start >= one.slice.end:
        yield "slice", f"start {one.slice.start:g} must lie below end {one.slice.end:g}"
    if one.span[0] >= one.span[1]:
        yield "ends_at", "must lie after starts_at"
    if (why := contradiction(one.when)) is not None:
        yield "when", f"nobody could ever take part: {why}"
    yield from _wrong_arms(one)


def _wrong_arms(one: Experiment) -> Iterator[tuple[str, str]]:
    """The same within its arms."""
    ids = [arm.id for arm in one.arms]
    for place, name in enumerate(ids):
        if name == HOLDOUT:
            yield f"arms.{place}.id", f"'{HOLDOUT}' is the arm of those who are kept out; take another name"
        if name in ids[:place]:
            yield f"arms.{place}.id", f"'{name}' is the id of another arm"
    given = [arm.weight for arm in one.arms if arm.weight is not None]
    if given and len(given) < len(ids):
        yield "arms", f"{len(given)} of {len(ids)} arms have a weight; give all of them one, or none for equal shares"
    if given and not math.isclose(math.fsum(given), 1.0, abs_tol=1e-6):
        yield "arms", f"weights add up to {math.fsum(given):g}; they must add up to 1"
    if one.control.stopped is not None:
        yield "arms.0.stopped", "the first arm is what others are compared with; stop the experiment instead"
    for place, arm in enumerate(one.arms):
        for name, fields in arm.placements.items():
            if not fields:
                yield f"arms.{place}.placements.{name}", "changes no field; say what is other, or leave it out"
    if not one.placements and not any(touched(one.arms)):
        yield "arms", "no arm changes anything and 'placements' names none: nobody would ever be part of it"


def _check_step(before: Experiment, after: Experiment) -> None:
    """Raise `InputError` for a change that would mix up what was counted with what will be."""
    if before.state == "draft":
        return
    if after.state == "draft":
        raise InputError("state: it has run and is no draft any more; use another id for another one", field="state")
    for name in Experiment.model_fields:
        old, new = (_plain(one, name) for one in (before, after))
        if name not in MAY_CHANGE and old != new:
            raise InputError(
                f"{name}: may not change once an experiment has run; stop it and make another one. What may: "
                f"{', '.join(MAY_CHANGE)}, and 'stopped' of an arm",
                field=name,
            )


def _plain(one: Experiment, name: str) -> Any:
    value = getattr(one, name)
    return tuple(arm.model_copy(update={"stopped": None}) for arm in value) if name == "arms" else value


def _first_wrong(error: ValidationError) -> InputError:
    detail = error.errors(include_url=False, include_input=False)[0]
    cause, place = detail.get("ctx", {}).get("error"), detail["loc"]
    if isinstance(cause, InputError) and cause.field:
        return cause
    model = PARTS.get(str(place[0]), Experiment) if len(place) > 1 else Experiment
    return first_error(error, known=model.model_fields)
