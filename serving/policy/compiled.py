"""The compiled policy: every document of one version, validated and in order, and bound to the items it speaks about.

`Policy` is immutable, so that a replica swaps it with one assignment. `Policy.bind` computes each rule's item mask for
one segment of the item table; a request then only picks the masks of the rules that apply to it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import numpy as np

from embeddings.arrays import Mask
from embeddings.errors import Conflict, InputError, unknown_name
from serving.policy.arms import NOTHING, Changes
from serving.policy.columns import ItemColumns
from serving.policy.conditions import Condition
from serving.policy.contents import CONTENTS, Content
from serving.policy.kinds import C, D, Kind, PolicyDocument, References
from serving.policy.layers import EXPERIMENTS
from serving.policy.layouts import LAYOUTS, Layout, layout_of
from serving.policy.moments import check_time
from serving.policy.placements import DEFAULT, PLACEMENTS, READY_MADE, Placement
from serving.policy.rules import RULES, Boost, Bury, Cap, Exclude, Include, Pin, Rule
from serving.policy.segments import SEGMENTS, Segments
from serving.policy.uses import Key, need, users

KINDS: tuple[Kind[Any, Any], ...] = (PLACEMENTS, SEGMENTS, RULES, CONTENTS, LAYOUTS, EXPERIMENTS)
"""Every kind of documents. A document may speak of those of its own kind and of the kinds before it."""

REFRESH_S = 60.0
"""Masks that depend on the time are computed again after this long."""

MAX_COMBINATIONS = 16


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
    """Every valid document of one version by kind and id, what its kind made of them, and the problems of the others."""

    version: int
    documents: Mapping[str, Mapping[str, PolicyDocument]]
    made: Mapping[str, Any]
    problems: tuple[Problem, ...]

    @classmethod
    def compile(
        cls,
        documents: Mapping[str, Sequence[Mapping[str, Any]]],
        *,
        version: int,
        item_attributes: Iterable[str] | None,
    ) -> Policy:
        """Compile stored documents by the name of their kind; never raises for what a document contains.

        `item_attributes` are those of today's catalogue (None: there is none yet). A document that does not validate
        against them, one whose id was there already, and one that its kind's hook reports, is listed in `problems`. An
        include or exclude rule whose attribute no item has (any more) is listed too, but stays in force as it reads: an
        include rule then lets nothing pass, because what it asks for cannot be shown to hold.
        """
        known = None if item_attributes is None else frozenset(item_attributes)
        names = [kind.name for kind in KINDS]
        strangers = sorted(set(map(str, documents)) - set(names))
        problems = [Problem(name, "", unknown_name("kind", name, names).message) for name in strangers]
        valid: dict[str, Mapping[str, PolicyDocument]] = {}
        made: dict[str, Any] = {}
        for kind in KINDS:
            references = References(item_attributes=known, documents=valid)
            found = {**kind.ready_made, **_valid(kind, documents.get(kind.name, ()), references, problems)}
            made[kind.name], wrong = _compiled(kind, found, references)
            problems += wrong
            left_out = {problem.id for problem in wrong}
            valid[kind.name] = MappingProxyType({name: one for name, one in found.items() if name not in left_out})
        return cls(version, MappingProxyType(valid), MappingProxyType(made), tuple(problems))

    def of(self, kind: Kind[D, C]) -> C:
        """What a kind made of its documents."""
        return cast(C, self.made[kind.name])

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Every rule, in order."""
        return self.of(RULES)

    @property
    def placements(self) -> Mapping[str, Placement]:
        """Every placement, by id."""
        return self.of(PLACEMENTS)

    def admit(self, kind: Kind[D, C], raw: Mapping[str, Any], *, item_attributes: Iterable[str] | None) -> D:
        """Validate a raw document as it would stand among those in force from now on.

        Raises `InputError`, and `Conflict` where one of those that need it would not hold any more.
        """
        known = None if item_attributes is None else frozenset(item_attributes)
        references = References(item_attributes=known, documents=self.documents)
        document = kind.parse(raw, references)
        of_kind = cast(Mapping[str, D], self.documents[kind.name])
        check_time(document, of_kind.get(document.id), time.time())
        among = {**of_kind, document.id: document}
        for problem in _compiled(kind, among, references)[1]:
            if problem.id == document.id:
                raise InputError(problem.message, field=problem.field)
        self._check_users(kind, document.id, References(documents={**self.documents, kind.name: among}))
        return document

    def _check_users(self, kind: Kind[Any, Any], name: str, references: References) -> None:
        """Raise `Conflict` where a document that needs another one would not hold any more as that is now."""
        kinds = {one.name: one for one in KINDS}
        for user, user_id in users((kind.name, name), self.documents):
            if self.problem(kinds[user], user_id) is not None:
                continue
            try:
                kinds[user].parse(self.documents[user][user_id].model_dump(mode="json"), references)
            except InputError as error:
                raise Conflict(
                    f"the {user} '{user_id}' would not hold any more: {error.message}; change it first", field="id"
                ) from None

    def check_needed(self, kind: Kind[Any, Any], name: str) -> None:
        """Raise `Conflict` where others need a document that is to be removed; one that is ready-made stays for layouts."""
        needing = [key for key in users((kind.name, name), self.documents) if not _stays(kind, name, key)]
        if needing:
            raise Conflict(
                f"{need(needing)} the {kind.name} '{name}'; stop experiments that run, take it out of the others, "
                "then remove it",
                field="id",
            )

    def with_rules(self, rules: Iterable[Rule]) -> Policy:
        """The same policy with some rules in place of those of the same id, or beside the others."""
        among = {**cast(Mapping[str, Rule], self.documents[RULES.name]), **{rule.id: rule for rule in rules}}
        made = {**self.made, RULES.name: tuple(sorted(among.values(), key=lambda rule: rule.order))}
        documents = {**self.documents, RULES.name: MappingProxyType(among)}
        return Policy(self.version, MappingProxyType(documents), MappingProxyType(made), self.problems)

    def problem(self, kind: Kind[D, C], name: str) -> str | None:
        """What is wrong with a stored document, in a sentence; None if nothing is."""
        return next((one.message for one in self.problems if (one.kind, one.id) == (kind.name, name)), None)

    @property
    def segments(self) -> Segments:
        """Every segment."""
        return self.of(SEGMENTS)

    def placement(self, name: str) -> Placement:
        """Return the placement of this id, stored or ready-made, else the stored one called "default", else `DEFAULT`."""
        return self.placements.get(name) or READY_MADE.get(name) or self.placements.get(DEFAULT.id) or DEFAULT

    @property
    def contents(self) -> Mapping[str, Content]:
        """Every content and every alert, by id."""
        return self.of(CONTENTS)

    @property
    def guards_people(self) -> bool:
        """Whether any rule takes items away, depending on who asks."""
        return any(rule.guards_people for rule in self.rules)

    def layout(self, name: str) -> Layout:
        """Return the layout of a page; raises `NotFound` that lists those there are."""
        return layout_of(self.of(LAYOUTS), name)

    def applicable(
        self,
        placement: str,
        row: Mapping[str, Any],
        now: float,
        *,
        stranger: bool = False,
        guarding: Mapping[str, Any] | None = None,
        whose: str | None = None,
        changes: Changes = NOTHING,
    ) -> tuple[Rule, ...]:
        """Return the rules in force whose `when` holds for the facts in `row`, in order.

        `stranger`: the facts about the person could not be read. An include or exclude rule that asks for one is in
        force then: it may be there to protect just this person. `guarding` are the facts that such rules are asked of,
        if they may know more than the others. `whose` is the person's id, for rules that are for a share of the people.
        `changes` switch rules on and off.
        """
        known = row if guarding is None else guarding
        on, off = changes.rules_on, changes.rules_off
        return tuple(
            rule
            for rule in self.rules
            if rule.in_force(placement, now, enabled=rule.enabled or rule.id in on)
            and rule.id not in off
            and rule.reaches(whose)
            and (
                rule.when is None
                or rule.when.matches(known if rule.guards_people else row, now=now)
                or (stranger and rule.guards_people)
            )
        )

    def bind(self, columns: ItemColumns, *, now: float | None = None) -> BoundPolicy:
        """Compute every enabled rule's item mask over a segment; `now` in seconds since 1970 (default: the clock)."""
        return BoundPolicy(self, columns, now=time.time() if now is None else now)


def _stays(kind: Kind[Any, Any], name: str, user: Key) -> bool:
    """Whether there is one without being written that will do; an experiment needs the one that it began with."""
    return name in kind.ready_made and user[0] != EXPERIMENTS.name


def _valid(
    kind: Kind[D, C], documents: Sequence[Mapping[str, Any]], references: References, problems: list[Problem]
) -> dict[str, D]:
    valid: dict[str, D] = {}
    refused = []
    for raw in documents:
        name = str(raw.get("id", "")) if isinstance(raw, Mapping) else ""
        try:
            document = kind.parse(raw, references)
            if document.id in valid:
                raise InputError(f"id: '{document.id}' occurs more than once", field="id")
            valid[document.id] = document
        except InputError as error:
            problems.append(Problem(kind.name, name, error.message, error.field))
            refused.append(raw)
    for raw in refused:
        if (still := kind.despite(raw)) is not None:
            valid.setdefault(still.id, still)
    return valid


def _compiled(kind: Kind[D, C], documents: Mapping[str, D], references: References) -> tuple[C, list[Problem]]:
    problems: list[Problem] = []

    def report(name: str, error: InputError) -> None:
        problems.append(Problem(kind.name, name, error.message, error.field))

    return kind.compile(documents, references, report), problems


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
        tested = policy.of(EXPERIMENTS).rules_on
        enabled = (rule for rule in policy.rules if rule.enabled or rule.id in tested)
        rules = [rule for rule in enabled if rule.items is not None]
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
