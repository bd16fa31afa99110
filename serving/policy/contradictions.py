"""Contradictions: conditions that no person, no request and no moment can fulfil, found when they are written.

What is found is certain; not everything that can never hold is found. Each comparison is tried with the very code that
answers requests, on the values that the others leave possible.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from itertools import chain, pairwise

from serving.policy.columns import DAY_S
from serving.policy.conditions import AllOf, AnyOf, Comparison, Condition, Did, Not, Scalar, bounds

DATE = "time.date"
EPOCH = date(1970, 1, 1)
LAST_DAY = (date.max - EPOCH).days
LISTED = ("eq", "in", "contains")


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """What is known of an attribute that has one value at most: `says` which values there are.

    `values` are all of them, or they are numbers from `low` on, `whole` or not. `always`: it is never missing.
    """

    says: str
    values: Sequence[Scalar] = ()
    low: float = -math.inf
    whole: bool = False
    always: bool = True


DOMAINS: Mapping[str, Domain] = {
    "time.hour": Domain(values=range(24), says="is a whole number from 0 to 23, in UTC"),
    "time.weekday": Domain(values=range(7), says="is a whole number from 0, Monday, to 6"),
    "time.local_hour": Domain(values=range(24), says="is a whole number from 0 to 23, where the person is"),
    "time.local_weekday": Domain(values=range(7), says="is a whole number from 0, Monday, to 6, where the person is"),
    DATE: Domain(says="is a date such as 2026-03-01, from today on"),
    "user.events": Domain(low=0, whole=True, says="is a whole number from 0"),
    "history.cart": Domain(low=0, whole=True, says="is a whole number from 0"),
    "history.visits": Domain(low=1, whole=True, says="is a whole number from 1, the first visit"),
    "available": Domain(values=(True, False), says="is true or false"),
    "price": Domain(low=0, always=False, says="is one number, from 0"),
    "created_at": Domain(always=False, says="is one moment"),
    "item_id": Domain(says="is one text"),
    "title": Domain(always=False, says="is one text"),
}
"""Facts of which the values are known, and the fields of an item that hold one."""

TEXTS = ("item_id", "title", DATE)
LONGEST = 300
"""Characters of a condition that are told."""

MOST = 20_000
"""So many pairs of a value and a comparison are tried for one attribute; what needs more is taken to be possible."""

OPEN = Domain(says="has one value", always=False)


def contradiction(*conditions: Condition | None, now: float | None = None) -> str | None:
    """Why these conditions can never hold together, in a few words; None where that is not known.

    From `now` on (seconds since 1970), where it is given: days before it do not come again.
    """
    found = _impossible([one for one in conditions if one is not None], now)
    return found and f"{found}; change that part, or leave it out"


def _impossible(conditions: Iterable[Condition], now: float | None) -> str | None:
    """The same for a conjunction: first what it asks for and what it rules out, then each of its choices among those."""
    held, ruled_out, choices = _sorted(conditions)
    for one in held:
        if one in ruled_out:
            return f"nothing fulfils {_told(one)} and its opposite"
        if isinstance(one, Did) and (why := _never_done(one, ruled_out, now)) is not None:
            return why
    by_name: defaultdict[str, list[Comparison]] = defaultdict(list)
    for leaf in held:
        if isinstance(leaf, Comparison):
            by_name[leaf.attribute].append(leaf)
    for name, leaves in by_name.items():
        without = [leaf for leaf in ruled_out if isinstance(leaf, Comparison) and leaf.attribute == name]
        if not _possible(name, leaves, without, now):
            said = " and ".join([*map(_told, leaves), *(f"not {_told(leaf)}" for leaf in without)])
            known = DOMAINS.get(name)
            return f"nothing fulfils {said}" + (f": '{name}' {known.says}" if known else "")
    sure = [(one, one.attributes()) for one in (*held, *map(Not, ruled_out))]
    for choice in choices:
        found = [
            _impossible([*(one for one, names in sure if names & child.attributes()), child], now)
            for child in choice.children
        ]
        if None not in found:
            return found[0]
    return None


def _sorted(conditions: Iterable[Condition]) -> tuple[list[Condition], list[Condition], list[AnyOf]]:
    """What must hold, what must not, and of what some must, of a conjunction."""
    held: list[Condition] = []
    ruled_out: list[Condition] = []
    choices: list[AnyOf] = []
    waiting = list(conditions)
    while waiting:
        match waiting.pop(0):
            case AllOf(children=children):
                waiting += children
            case AnyOf() as choice:
                choices.append(choice)
            case Not(child=Not(child=child)):
                waiting.append(child)
            case Not(child=AnyOf(children=children)):
                waiting += map(Not, children)
            case Not(child=AllOf(children=children)):
                waiting.append(AnyOf(tuple(map(Not, children))))
            case Not(child=Comparison(op="exists") as leaf):
                held.append(Comparison(leaf.attribute, "exists", not leaf.value))
            case Not(child=leaf):
                ruled_out.append(leaf)
            case leaf:
                held.append(leaf)
    return held, ruled_out, choices


def _told(condition: Condition) -> str:
    text = json.dumps(condition.to_json())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _never_done(one: Did, ruled_out: Iterable[Condition], now: float | None) -> str | None:
    if one.items is not None and (why := _impossible([one.items], now)) is not None:
        return why
    for other in ruled_out:
        if isinstance(other, Did) and one.at_least >= other.at_least and replace(one, at_least=other.at_least) == other:
            return f"nothing fulfils {_told(one)} and not {_told(other)}"
    return None


def _possible(name: str, leaves: Sequence[Comparison], without: Sequence[Comparison], now: float | None) -> bool:
    domain = DOMAINS.get(name, OPEN)
    missing = any(leaf.op == "exists" and not leaf.value for leaf in leaves)
    asked = [leaf for leaf in leaves if leaf.op != "exists"]
    if missing:
        return not domain.always and not asked and not any(leaf.op == "exists" and leaf.value for leaf in leaves)
    asked = [leaf for leaf in asked if leaf.op != "within_days"]
    without = [leaf for leaf in without if leaf.op != "within_days"]
    named = [leaf.values for leaf in asked if leaf.op in LISTED]
    # What is known of a person may have several values at once, a fact of the request or of the time has one.
    if name not in DOMAINS and not name.startswith("context."):
        unequal = [leaf for leaf in asked if leaf.op == "ne"]
        return all(any(_fulfils(name, value, unequal, without) for value in values) for values in named)
    every = [*asked, *without]
    if len(every) * sum(len(leaf.values) for leaf in every) > MOST:
        return True  # nobody waits for that
    tried = _candidates(name, domain, every, named, now)
    return tried is None or any(_fulfils(name, value, asked, without) for value in tried)


def _fulfils(name: str, value: Scalar, leaves: Iterable[Comparison], without: Iterable[Comparison]) -> bool:
    row = {name: value}
    return all(leaf.matches(row, now=0.0) for leaf in leaves) and not any(
        leaf.matches(row, now=0.0) for leaf in without
    )


def _candidates(
    name: str, domain: Domain, leaves: Sequence[Comparison], named: Sequence[Sequence[Scalar]], now: float | None
) -> Iterable[Scalar] | None:
    """Values of which one fulfils the comparisons if any does; None where there is no such list."""
    values = [one for leaf in leaves for one in leaf.values]
    if domain.values:
        return domain.values
    numbers = [one for value in values for one in bounds(value).get(float, ())]
    if name == DATE:
        return None if any(isinstance(one, str) and float not in bounds(one) for one in values) else _days(numbers, now)
    if name in TEXTS or (domain is OPEN and named):
        return [*chain.from_iterable(named), *_numbers(numbers, domain)] if named else None
    if domain is OPEN and any(isinstance(one, str) for one in values):
        return None  # between two texts there are too many others
    return _numbers(numbers, domain)


def _numbers(critical: Iterable[float], domain: Domain) -> Iterator[float]:
    """Between two neighbours of these numbers every comparison says the same: them, and one of each gap."""
    points = sorted({*critical} - {math.inf, -math.inf} or {0.0})
    gaps = [first / 2 + last / 2 for first, last in pairwise(points)]
    ends = [points[0] - 1, points[-1] + 1, math.nextafter(points[0], -math.inf), math.nextafter(points[-1], math.inf)]
    for point in (*points, *gaps, *ends, domain.low):
        rounded = [math.floor(point), math.ceil(point)] if domain.whole and math.isfinite(point) else [point]
        yield from (one for one in rounded if one >= domain.low)
    if domain.whole:
        yield from (one + step for one in map(math.floor, points) for step in (-1, 1, 2) if one + step >= domain.low)


def _days(moments: Iterable[float], now: float | None) -> Iterator[str]:
    """The days of these moments, those beside them, and the first and the last that there is."""
    first = 0 if now is None else int(now // DAY_S)
    days = {first, LAST_DAY}
    for moment in moments:
        days |= {int(moment // DAY_S) + step for step in (-1, 0, 1)}
    return ((EPOCH + timedelta(days=day)).isoformat() for day in sorted(days) if first <= day <= LAST_DAY)
