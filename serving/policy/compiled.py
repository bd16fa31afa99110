"""The compiled policy: every document of one version, validated and in order, and bound to the items it speaks about.

`Policy` is immutable, so that a replica swaps it with one assignment. `Policy.bind` computes each rule's item mask for
one segment of the item table; a request then only picks the masks of the rules that apply to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np

from embeddings.errors import InputError, unknown_name
from serving.policy.columns import ItemColumns, Mask
from serving.policy.conditions import Condition
from serving.policy.placements import DEFAULT, Placement, parse_placement
from serving.policy.rules import Boost, Bury, Cap, Exclude, Include, Pin, Rule, parse_rule

RULE = "rule"
PLACEMENT = "placement"
KINDS = (RULE, PLACEMENT)
REFRESH_S = 60.0
"""Masks that depend on the time are computed again after this long."""

MAX_COMBINATIONS = 16
Document = TypeVar("Document", Rule, Placement)


def facts(
    user_attributes: Mapping[str, Any], events_count: int, context: Mapping[str, Any], now: float
) -> dict[str, Any]:
    """Build the row that `when` is asked of; `now` in seconds since 1970, hours and days are those of UTC.

    `user.events` is always the number of events, even if the person has an attribute of that name.
    """
    moment = datetime.fromtimestamp(now, UTC)
    return {
        **{f"user.{name}": value for name, value in user_attributes.items()},
        **{f"context.{name}": value for name, value in context.items()},
        "user.events": events_count,
        "time.hour": moment.hour,
        "time.weekday": moment.weekday(),
        "time.date": moment.date().isoformat(),
    }


@dataclass(frozen=True, slots=True)
class Problem:
    """A stored document that was left out, and why; `field` is the path of the culprit in it."""

    kind: str
    id: str
    message: str
    field: str | None = None


class Boosted(NamedTuple):
    """Items whose score is multiplied: above 1 boosts, below 1 buries."""

    rule: Rule
    mask: Mask
    factor: float


class Pinned(NamedTuple):
    """Items of which the best goes to a position."""

    rule: Rule
    mask: Mask
    position: int


class Capped(NamedTuple):
    """At most `limit` items of an answer share a value of the attribute."""

    rule: Rule
    attribute: str
    limit: int


@dataclass(frozen=True, slots=True)
class ActiveRules:
    """The rules of one request over one segment, each list by priority (highest first), then id.

    `allow` [n] is what include and exclude rules leave, None if they leave everything; masks are shared and read-only.
    """

    allow: Mask | None
    limits: tuple[tuple[Rule, Mask], ...]
    boosts: tuple[Boosted, ...]
    pins: tuple[Pinned, ...]
    caps: tuple[Capped, ...]

    def removed_by(self, row: int) -> str | None:
        """Id of the first include or exclude rule that removes a row, None if the row stays."""
        return next((rule.id for rule, kept in self.limits if not kept[row]), None)


@dataclass(frozen=True, slots=True)
class Policy:
    """Every valid document of one version: rules in order, placements by id, and the problems of the others."""

    version: int
    rules: tuple[Rule, ...]
    placements: Mapping[str, Placement]
    problems: tuple[Problem, ...]

    @classmethod
    def compile(
        cls, documents: Mapping[str, Sequence[Mapping[str, Any]]], *, version: int, item_attributes: Iterable[str]
    ) -> Policy:
        """Compile stored documents by kind (`KINDS`); never raises for what a document contains.

        A document that does not validate against today's catalogue, and one whose id was there already, is left out
        and listed in `problems`.
        """
        known = frozenset(item_attributes)
        strangers = sorted(set(map(str, documents)) - set(KINDS))
        problems = [Problem(kind, "", unknown_name("kind", kind, KINDS).message) for kind in strangers]
        rules = _valid(RULE, documents.get(RULE, ()), lambda raw: parse_rule(raw, item_attributes=known), problems)
        placements = _valid(PLACEMENT, documents.get(PLACEMENT, ()), parse_placement, problems)
        ordered = tuple(sorted(rules.values(), key=lambda rule: rule.order))
        return cls(version, ordered, MappingProxyType(placements), tuple(problems))

    def placement(self, name: str) -> Placement:
        """Return the placement of this id, else the stored one called "default", else `DEFAULT`."""
        return self.placements.get(name) or self.placements.get(DEFAULT.id) or DEFAULT

    def applicable(self, placement: str, row: Mapping[str, Any], now: float) -> tuple[Rule, ...]:
        """Return the rules in force whose `when` holds for the facts in `row`, in order."""
        return tuple(
            rule
            for rule in self.rules
            if rule.in_force(placement, now) and (rule.when is None or rule.when.matches(row, now=now))
        )

    def bind(self, columns: ItemColumns, *, now: float | None = None) -> BoundPolicy:
        """Compute every enabled rule's item mask over a segment; `now` in seconds since 1970 (default: the clock)."""
        return BoundPolicy(self, columns, now=time.time() if now is None else now)


def _valid(
    kind: str,
    documents: Sequence[Mapping[str, Any]],
    parse: Callable[[Mapping[str, Any]], Document],
    problems: list[Problem],
) -> dict[str, Document]:
    valid: dict[str, Document] = {}
    for raw in documents:
        name = str(raw.get("id", "")) if isinstance(raw, Mapping) else ""
        try:
            document = parse(raw)
            if document.id in valid:
                raise InputError(f"id: '{document.id}' occurs more than once", field="id")
            valid[document.id] = document
        except InputError as error:
            problems.append(Problem(kind, name, error.message, error.field))
    return valid


class _State:
    """What each rule with items leaves or touches, as of one moment, and the combinations asked for since."""

    __slots__ = ("allowed", "at", "masks")

    def __init__(self, masks: Mapping[str, Mask], at: float) -> None:
        self.masks = masks
        self.at = at
        self.allowed: dict[tuple[str, ...], Mask] = {}

    def allow(self, limits: Sequence[tuple[Rule, Mask]]) -> Mask | None:
        if not limits:
            return None
        key = tuple(rule.id for rule, _ in limits)
        found = self.allowed.get(key)
        if found is None:
            found = _shared(reduce(np.logical_and, (kept for _, kept in limits)))
            if len(self.allowed) >= MAX_COMBINATIONS:
                self.allowed.clear()
            self.allowed[key] = found
        return found


class BoundPolicy:
    """A policy over one segment of items. Any number of threads may use it at once."""

    def __init__(self, policy: Policy, columns: ItemColumns, *, now: float) -> None:
        self.policy = policy
        self.columns = columns
        rules = [rule for rule in policy.rules if rule.enabled and rule.items is not None]
        self._timed = tuple(rule for rule in rules if rule.items is not None and rule.items.timed)
        self._state = _State(self._masks(rules, now), now)

    def active(self, placement: str, facts: Mapping[str, Any], now: float) -> ActiveRules:
        """Return what holds for one request: `facts` as built by `facts`, `now` in seconds since 1970."""
        return self.select(self.policy.applicable(placement, facts, now), now)

    def select(self, rules: Iterable[Rule], now: float) -> ActiveRules:
        """Return the masks of rules that `Policy.applicable` named; saves asking every segment for the facts."""
        state = self._fresh(now)
        limits: list[tuple[Rule, Mask]] = []
        boosts: list[Boosted] = []
        pins: list[Pinned] = []
        caps: list[Capped] = []
        for rule in rules:
            match rule.action:
                case Include() | Exclude():
                    limits.append((rule, state.masks[rule.id]))
                case Boost(factor=factor) | Bury(factor=factor):
                    boosts.append(Boosted(rule, state.masks[rule.id], factor))
                case Pin(position=position):
                    pins.append(Pinned(rule, state.masks[rule.id], position))
                case Cap(attribute=attribute, limit=limit):
                    caps.append(Capped(rule, attribute, limit))
        return ActiveRules(state.allow(limits), tuple(limits), tuple(boosts), tuple(pins), tuple(caps))

    def _fresh(self, now: float) -> _State:
        state = self._state
        if self._timed and abs(now - state.at) >= REFRESH_S:
            # one assignment: a request that runs meanwhile keeps the state it has read
            state = self._state = _State({**state.masks, **self._masks(self._timed, now)}, now)
        return state

    def _masks(self, rules: Iterable[Rule], now: float) -> dict[str, Mask]:
        found: dict[Condition, Mask] = {}
        masks: dict[str, Mask] = {}
        for rule in rules:
            assert rule.items is not None
            if rule.items not in found:
                found[rule.items] = _shared(rule.items.mask(self.columns, now=now))
            mask = found[rule.items]
            masks[rule.id] = _shared(~mask) if isinstance(rule.action, Exclude) else mask
        return masks


def _shared(mask: Mask) -> Mask:
    mask.flags.writeable = False
    return mask
