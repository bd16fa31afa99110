"""Contradictions: conditions that no person, no request and no moment can fulfil, found when they are written.

What is found is certain; not everything that can never hold is found. Each comparison is tried with the very code that
answers requests, on the values that the others leave possible.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from serving.policy.conditions import AllOf, AnyOf, Comparison, Condition, Not, Scalar

FINITE: dict[str, Sequence[Scalar]] = {
    "time.hour": range(24),
    "time.local_hour": range(24),
    "time.local_weekday": range(7),
    "time.weekday": range(7),
}
"""Facts of which all values are known."""

LOWEST = {"user.events": 0.0}
SINGLE = ("context.", "time.", "user.events")


def contradiction(*conditions: Condition | None) -> str | None:
    """Why these conditions can never hold together, in a few words; None where that is not known."""
    return _impossible([one for one in conditions if one is not None])


def _impossible(conditions: Iterable[Condition]) -> str | None:
    """The same for a conjunction: first its comparisons, then each of its choices among those."""
    together: defaultdict[str, list[Comparison]] = defaultdict(list)
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
            case Not(child=Comparison(op="exists") as leaf):
                together[leaf.attribute].append(Comparison(leaf.attribute, "exists", not leaf.value))
            case Comparison() as leaf:
                together[leaf.attribute].append(leaf)
    for name, leaves in together.items():
        if not _possible(name, leaves):
            return f"nothing fulfils {' and '.join(json.dumps(leaf.to_json()) for leaf in leaves)}"
    sure = [leaf for leaves in together.values() for leaf in leaves]
    for choice in choices:
        found = [_impossible([*sure, child]) for child in choice.children]
        if None not in found:
            return found[0]
    return None


def _possible(name: str, leaves: Sequence[Comparison]) -> bool:
    missing = any(leaf.op == "exists" and not leaf.value for leaf in leaves)
    asked = [leaf for leaf in leaves if leaf.op != "exists"]
    if missing:
        return not asked and not any(leaf.op == "exists" and leaf.value for leaf in leaves)
    # What is known of a person may have several values at once, a fact of the request or of the time has one.
    several = not name.startswith(SINGLE)
    named = [values for leaf in asked if (values := _named(leaf)) is not None]
    if name in FINITE:
        named.append(tuple(FINITE[name]))
    if several:
        unequal = [leaf for leaf in asked if leaf.op == "ne"]
        return all(any(_fulfils(name, value, unequal) for value in values) for values in named)
    if named:
        return any(_fulfils(name, value, asked) for value in min(named, key=len))
    return _range(asked, LOWEST.get(name, -math.inf))


def _named(leaf: Comparison) -> tuple[Scalar, ...] | None:
    """The values of which one must be there; None where they are not listed."""
    if leaf.op not in ("eq", "in", "contains"):
        return None
    return leaf.value if isinstance(leaf.value, tuple) else (leaf.value,)


def _fulfils(name: str, value: Scalar, leaves: Iterable[Comparison]) -> bool:
    return all(leaf.op == "within_days" or leaf.matches({name: value}, now=0.0) for leaf in leaves)


def _range(leaves: Iterable[Comparison], low: float) -> bool:
    """Whether any number lies within all bounds that are numbers."""
    high, low_open, high_open = math.inf, False, False
    for leaf in leaves:
        lows: list[tuple[float, bool]] = []
        highs: list[tuple[float, bool]] = []
        match leaf.op, leaf.value:
            case "between", (int() | float() as first, int() | float() as last):
                lows, highs = [(first, False)], [(last, False)]
            case "gt" | "ge" as op, int() | float() as bound:
                lows = [(bound, op == "gt")]
            case "lt" | "le" as op, int() | float() as bound:
                highs = [(bound, op == "lt")]
        for bound, is_open in lows:
            low, low_open = max((low, low_open), (bound, is_open))
        for bound, is_open in highs:
            high, closed = min((high, not high_open), (bound, not is_open))
            high_open = not closed
    return low < high or (low == high and not low_open and not high_open)
