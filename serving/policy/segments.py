"""Segments: groups of people by name, by what is known of them or by what they are like; who is in one is told at request.

A segment is a condition over the person and the time (`when`), or people like those who like some items (`prototypes`), or
both. It may name other segments in `when`, as long as none leads back to itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import ConfigDict, Field, Strict, StrictBool, ValidationError, model_validator

from embeddings.errors import InputError
from embeddings.schema import Id, first_error
from serving.policy.columns import FIELDS
from serving.policy.contradictions import contradiction
from serving.policy.kinds import Kind, PolicyDocument, References, Report
from serving.policy.rules import SEGMENT, SEGMENT_KIND, FactNames, Tree, segments_named

MAX_PROTOTYPES = 50
NAMING = ("eq", "in", "contains")
"""How a segment may ask for others."""


class PersonNames(FactNames):
    """The same without the context of a request: a segment is the same wherever somebody is."""

    _open = re.compile(FactNames._open.pattern.replace("(user|context)", "(user)"))

    def __iter__(self) -> Iterator[str]:
        return (name for name in super().__iter__() if not name.startswith("context"))

    def __len__(self) -> int:
        return super().__len__() - 1


PERSON = PersonNames()
Cosine = Annotated[float, Strict(), Field(ge=-1, le=1, allow_inf_nan=False)]


class Segment(PolicyDocument):
    """One segment, as stored and as answered by the service.

    `prototypes` are items: in the segment is whom the model sees in their direction, with a cosine of at least
    `min_cosine`. Of the segments of one `partition` a person is only in the one that is nearest.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    enabled: StrictBool = True
    when: Tree = None
    prototypes: Annotated[tuple[Id, ...], Field(max_length=MAX_PROTOTYPES)] = ()
    min_cosine: Cosine = 0.0
    partition: Id | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Segment:
        if self.when is None and not self.prototypes:
            raise InputError("when: a segment needs a condition, or prototypes", field="when")
        if self.partition is not None and not self.prototypes:
            raise InputError("partition: only segments with prototypes can be near or far", field="partition")
        if (why := contradiction(self.when)) is not None:
            raise InputError(f"when: nobody can ever be in it: {why}", field="when")
        # Anything else would depend on which segments were asked before, and on this one itself.
        for leaf in [] if self.when is None else self.when.comparisons(SEGMENT):
            if leaf.op not in NAMING or not all(isinstance(one, str) for one in leaf.values):
                raise InputError(
                    f"when: a segment names the segments it asks for: '{SEGMENT}' takes {', '.join(NAMING)} with ids here; "
                    "for people who are not in one, put that into 'not'",
                    field="when",
                )
        return self

    @property
    def named(self) -> frozenset[str]:
        """The segments that its condition names."""
        return frozenset(segments_named(self.when))


Near = Callable[[], Mapping[str, float]]
"""Finds out the cosine of a person to each segment with prototypes, by id; missing where it cannot be told."""


class Segments:
    """Every segment in an order in which each comes after those that it names."""

    def __init__(self, ordered: tuple[Segment, ...]) -> None:
        self.ordered = ordered
        self.by_id: Mapping[str, Segment] = MappingProxyType({one.id: one for one in ordered})
        self.like: tuple[Segment, ...] = tuple(one for one in ordered if one.enabled and one.prototypes)

    def of(self, row: Any, now: float, near: Near) -> list[str]:
        """The segments of a person, by id; `row` are facts as `compiled.facts` builds them."""
        found: list[str] = []
        cosines: Mapping[str, float] = near() if self.like else {}
        best = self._nearest(cosines)
        known = row.with_fact(SEGMENT, found)  # it grows: each is asked after those that it names
        for one in self.ordered:
            if not one.enabled or (one.prototypes and not self._alike(one, cosines, best)):
                continue
            if one.when is None or one.when.matches(known, now=now):
                found.append(one.id)
        return sorted(found)

    def _nearest(self, cosines: Mapping[str, float]) -> dict[str, str]:
        """The nearest segment of each partition."""
        best: dict[str, str] = {}
        for one in self.like:
            if one.partition is not None and one.id in cosines:
                other = best.get(one.partition)
                if other is None or cosines[one.id] > cosines[other]:
                    best[one.partition] = one.id
        return best

    @staticmethod
    def _alike(one: Segment, cosines: Mapping[str, float], best: Mapping[str, str]) -> bool:
        if cosines.get(one.id, -2.0) < one.min_cosine:
            return False
        return one.partition is None or best.get(one.partition) == one.id


def parse_segment(raw: Mapping[str, Any], references: References) -> Segment:
    """Validate one raw document; raises `InputError` that names the first wrong field."""
    if not isinstance(raw, Mapping):
        raise InputError("a segment must be an object")
    attributes = references.item_attributes
    known = None if attributes is None else frozenset(attributes) | FIELDS.keys()
    try:
        return Segment.model_validate(raw, context={"item_attributes": known, "facts": PERSON})
    except ValidationError as error:
        cause = error.errors(include_url=False)[0].get("ctx", {}).get("error")
        raise cause if isinstance(cause, InputError) else first_error(error, known=Segment.model_fields) from None


def _in_order(segments: Mapping[str, Segment], references: References, report: Report) -> Segments:
    """Each after those that it names; what names nothing that is there, or leads back to itself, is reported."""
    waiting = dict(sorted(segments.items()))
    ordered: dict[str, Segment] = {}
    while ready := [name for name, one in waiting.items() if one.named <= ordered.keys()]:
        ordered |= {name: waiting.pop(name) for name in ready}
    for name in waiting:
        report(name, InputError(f"when: {_astray(name, segments, waiting)}", field="when"))
    return Segments(tuple(ordered.values()))


def _astray(name: str, segments: Mapping[str, Segment], waiting: Mapping[str, Segment]) -> str:
    """Where a segment that has no place in the order leads, and what to change."""
    way = [name]
    while True:
        if missing := sorted(waiting[way[-1]].named - segments.keys()):
            gone = f"there is no segment '{missing[0]}'"
            return (
                gone if len(way) == 1 else f"'{way[-2]}' names '{way[-1]}', and {gone}: write it, or change '{way[-1]}'"
            )
        onward = min(waiting[way[-1]].named & waiting.keys())
        if onward == name == way[-1]:
            return f"'{name}' refers to itself; take it out of its own condition"
        if onward in way:
            loop = " -> ".join([*way, onward])
            return f"'{onward}' leads back to itself: {loop}; take one of these names out of a condition"
        way.append(onward)


SEGMENTS = Kind(name=SEGMENT_KIND, plural="segments", model=Segment, parse=parse_segment, compile=_in_order)
"""Segments, compiled to all of them in order; one that leads back to itself is left out."""
