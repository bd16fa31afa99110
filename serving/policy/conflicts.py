"""Conflicts: rules that stand in each other's way for some person and some moment, found by their items and conditions.

Two rules meet if one placement may have both, at one time, for one person and request. What is found is about the items
that there are now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from embeddings.arrays import Mask
from serving.policy.contradictions import contradiction
from serving.policy.rules import Boost, Bury, Exclude, Include, Pin, Rule


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two rules, and in a sentence what is wrong with them together."""

    rule: str
    other: str
    text: str


def conflicts(rule: Rule, others: Iterable[Rule], mask: Callable[[Rule], Mask]) -> Iterator[Conflict]:
    """Conflicts of a rule with others; `mask` [N] says which items a rule names. A rule that is off has none."""
    for other in others:
        if other.id != rule.id and rule.enabled and other.enabled and _meet(rule, other):
            for text in _against(rule, other, mask):
                yield Conflict(rule.id, other.id, text)


def _meet(rule: Rule, other: Rule) -> bool:
    """Whether both may be in force for one answer."""
    if rule.placements and other.placements and not set(rule.placements) & set(other.placements):
        return False
    if rule.ends_at and other.starts_at and rule.ends_at <= other.starts_at:
        return False
    if other.ends_at and rule.starts_at and other.ends_at <= rule.starts_at:
        return False
    return contradiction(rule.when, other.when) is None


def _against(rule: Rule, other: Rule, mask: Callable[[Rule], Mask]) -> Iterator[str]:
    match rule.action, other.action:
        case Pin(position=mine), Pin(position=theirs) if mine == theirs:
            first, second = sorted((rule, other), key=lambda one: one.order)
            yield f"both pin position {mine}; '{first.id}' wins, '{second.id}' gets the next place"
        case (Boost(), Bury()) | (Bury(), Boost()):
            shared = int((mask(rule) & mask(other)).sum())
            if shared:
                yield f"one boosts and the other buries the same {shared} items"
        case (Exclude(), _) if not isinstance(other.action, Exclude) and other.items is not None:
            yield from _taken(rule, other, mask(other) & mask(rule), mask(other))
        case (_, Exclude()) if not isinstance(rule.action, Exclude) and rule.items is not None:
            yield from _taken(other, rule, mask(rule) & mask(other), mask(rule))
        case Include(), Include():
            if not (mask(rule) & mask(other)).any():
                yield "no item passes both, so nothing is left to show"
        case (Include(), _) if other.items is not None:
            yield from _taken(rule, other, mask(other) & ~mask(rule), mask(other))
        case (_, Include()) if rule.items is not None:
            yield from _taken(other, rule, mask(rule) & ~mask(other), mask(rule))


def _taken(by: Rule, whose: Rule, gone: Mask, all_of_them: Mask) -> Iterator[str]:
    """What a filter leaves of the items of another rule."""
    if not all_of_them.any() or not (gone == all_of_them).all():
        return
    if isinstance(whose.action, Include):
        yield f"'{by.id}' takes away everything that '{whose.id}' leaves, so nothing is left to show"
    else:
        yield f"'{by.id}' takes away every item that '{whose.id}' {whose.action.type}s, so it has no effect"
