"""The state of one request on its way through the stages."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from embeddings.arrays import Floats, Mask, unit
from embeddings.explore import CANDIDATES
from embeddings.ids import Rows
from embeddings.schema import allows
from serving.policy.arms import Changes
from serving.policy.conditions import HISTORY
from serving.policy.facts import Facts, facts
from serving.policy.layers import EXPERIMENTS, Running
from serving.policy.placements import Placement
from serving.policy.rules import SEGMENT
from serving.request.assignment import assigned
from serving.request.behaviour import Done
from serving.request.candidates import Candidates
from serving.request.catalogue import Catalogue
from serving.request.history import History
from serving.request.query import Anchor, Query, Reason
from serving.request.replenishment import Repeat, due
from serving.request.snapshot import Rules, Snapshot
from serving.store.persons import HistoryEvent, Profile

ANCHORS = 20
REFUSED = "this person does not allow personalization: the list is everybody's"
NOBODY = Profile(user_id="", attributes={}, history=[], events=0, last_seen=None)


@dataclass(frozen=True, slots=True)
class Place:
    """One place of the slate; `propensity` is the probability with which chance put this item here."""

    row: int
    score: float
    reasons: tuple[Reason, ...]
    propensity: float = 1.0


class Work:
    """Everything a stage may read, and what it may change: allowed, candidates, finds, slate, effects, trace, arms."""

    def __init__(
        self,
        query: Query,
        snapshot: Snapshot,
        profile: Profile | None,
        *,
        stranger: bool = False,
        hurry_at: float = math.inf,
        arms: Mapping[str, str] | None = None,
    ) -> None:
        """`stranger`: the store could not say who this is; `hurry_at`: from when on optional stages are left out.

        `arms` are those of the person where they are known already.
        """
        self.snapshot = snapshot = snapshot.with_rules(query.rules) if query.rules else snapshot
        self.profile = profile or NOBODY
        self.stranger, self.hurry_at = stranger, hurry_at
        self.refused = not allows(self.profile.consent, "personalization")
        # Who refuses is nobody's in particular from the start: arms may ask what somebody did.
        self.query = query = replace(query, personalized=False) if self.refused and query.personalized else query
        self.arms: dict[str, str] = self._arms() if arms is None else dict(arms)
        self.changes: Changes = snapshot.policy.of(EXPERIMENTS).changes(self.arms)
        changed = self.changes.placements.get(query.placement)
        self.placement: Placement = query.draft or changed or snapshot.policy.placement(query.placement)
        self.query = query = _completed(query, self.placement)
        self.wanted = max(CANDIDATES, 2 * query.k)
        self.allowed: Mask = ~snapshot.catalogue.retired_rows
        self._found: dict[int, int] = {}
        self._candidates: Candidates | None = None
        self.finds: dict[str, Rows] = {}
        self.slate: list[Place] = []
        self.effects: dict[int, list[Reason]] = {}
        self.trace: list[dict[str, object]] = []
        self.degraded: list[str] = []
        self.unserved: dict[str, str] = {"personalization": REFUSED} if self.refused else {}
        self.milliseconds: dict[str, float] = {}
        self.exhausted = False
        if self.placement.id != query.placement and query.draft is None and changed is None:
            self.unserved["placement"] = (
                f"nobody has described a placement '{query.placement}'; the default one answers"
            )
        if stranger:
            self.degrade("profile")

    @property
    def candidates(self) -> Candidates:
        """The candidates as one batch; while sources still join rows, made of what they have found so far."""
        if self._candidates is None:
            rows = np.fromiter(self._found, dtype=np.int64, count=len(self._found))
            found_by = np.fromiter(self._found.values(), dtype=np.uint32, count=len(rows))
            scores = self.relevance(rows) if len(rows) else np.zeros(0, dtype=np.float32)
            self._candidates = Candidates(rows=rows, found_by=found_by, retrieval=scores, score=scores)
        return self._candidates

    @candidates.setter
    def candidates(self, candidates: Candidates) -> None:
        self._candidates = candidates

    @property
    def late(self) -> bool:
        """Whether there is only time left for what the list cannot do without."""
        return time.monotonic() > self.hurry_at

    @property
    def catalogue(self) -> Catalogue:
        """The catalogue this request reads, the same in every stage."""
        return self.snapshot.catalogue

    @cached_property
    def seconds(self) -> float:
        """Time of the request, in seconds since 1970."""
        return self.query.now.timestamp()

    @cached_property
    def facts(self) -> Facts:
        """What a rule's `when` may ask; without consent to personalization nothing of the person."""
        profile = NOBODY if self.refused else self.profile
        done = Done(self.past, self.catalogue, self.seconds)
        later: dict[str, Callable[[], Any]] = {
            HISTORY: lambda: done,
            "history.cart": done.cart,
            "history.visits": done.visits,
        }
        if self.snapshot.policy.segments.ordered:
            later[SEGMENT] = lambda: self.snapshot.policy.segments.of(row, self.seconds, self._near)
        row = facts(profile.attributes, profile.events, self.query.context, self.seconds, later)
        return row

    @cached_property
    def truth(self) -> Facts:
        """The facts of the person as they are, also for a request that may not use them: for what protects people alone."""
        profile = replace(self.profile, consent={})
        return Work(
            replace(self.query, personalized=True, rules=()), self.snapshot, profile, stranger=self.stranger, arms={}
        ).facts

    @property
    def _guarded(self) -> bool:
        """Whether there are rules that must know more of the person than the request may use."""
        return not self.query.personalized and self.snapshot.policy.guards_people

    def permits(self, row: int) -> bool:
        """Whether no include or exclude rule keeps an item from the person."""
        return self.rules.removed_by(row) is None

    @property
    def segments(self) -> list[str]:
        """The segments that the person is in now, by id."""
        return list(self.facts.get(SEGMENT) or ())

    def _near(self) -> Mapping[str, float]:
        """The cosine of the person to each segment that is one of likeness; nothing of whom nothing is known."""
        if not self.history:
            return {}
        person = unit(self.person_vector)
        return {name: float(centre @ person) for name, centre in self.snapshot.centres.items()}

    @cached_property
    def rules(self) -> Rules:
        """The rules in force for this request; those that keep items from people whom nobody knows at the moment, too.

        Whose list is not personal is protected all the same: rules that keep items from people know the person.
        """
        return self.snapshot.rules(
            self.query.placement,
            self.facts,
            self.seconds,
            stranger=self.stranger,
            guarding=self.truth if self._guarded else None,
            changes=self.changes,
            without=self.query.without_rules,
            whose=self.profile.user_id or self.query.user_id,
        )

    def _arms(self) -> dict[str, str]:
        query, policy = self.query, self.snapshot.policy.of(EXPERIMENTS)
        return self.arms_of(policy.on_placement(query.placement) if query.page is None else policy.on_page(query.page))

    def arms_of(self, running: Running) -> dict[str, str]:
        """The arms of the person: nobody without an id, or whose behaviour may not be analysed, takes part.

        Nor does whom the store cannot name: an alias might be given another arm than its person.
        """
        person = self.profile.user_id or self.query.user_id
        if not running or not person or self.stranger or not allows(self.profile.consent, "analytics"):
            return {}
        return assigned(running, person, self._facts_as_it_is, self.seconds)

    def _facts_as_it_is(self) -> Facts:
        """What a condition may ask of the request as it is without experiments: this one has no placement yet."""
        return Work(self.query, self.snapshot, self.profile, stranger=self.stranger, arms={}).facts

    @cached_property
    def past(self) -> History:
        """What the person did with items that exist now; nothing for a request without personalization."""
        return History.of(self.profile.history if self.query.personalized else (), self.catalogue)

    @property
    def history(self) -> tuple[HistoryEvent, ...]:
        """The events of `past` that say something about the person's taste, oldest first."""
        return self.past.telling.events

    @property
    def history_rows(self) -> Rows:
        """Rows [L] of `history`."""
        return self.past.telling.rows

    @property
    def interests(self) -> Rows:
        """Places [M] in `history` of what interested the person, oldest first."""
        return self.past.telling.interests

    @cached_property
    def history_vectors(self) -> Floats:
        """Vectors [L, D] of the latest events, as many as the user tower reads."""
        return self.catalogue.vectors(self.history_rows[-self.snapshot.bundle.manifest.towers.max_history :])

    @cached_property
    def due(self) -> Mapping[int, Repeat]:
        """What the person will need again now, by row, the longest due first; nothing without personalization."""
        found = due(self.snapshot, self.profile, self.seconds) if self.query.personalized else []
        return {one.row: one for one in found}

    @cached_property
    def anchors(self) -> tuple[Anchor, ...]:
        """The latest items that interested the person, each once, the last one first."""
        found: dict[str, Anchor] = {}
        for at in reversed(self.interests.tolist()):
            event, row = self.history[at], int(self.history_rows[at])
            if event.item_id not in found:
                title = self.catalogue.title(row)
                found[event.item_id] = Anchor(item_id=event.item_id, title=title, event_type=event.event_type)
                if len(found) == ANCHORS:
                    break
        return tuple(found.values())

    @cached_property
    def anchor(self) -> Anchor | None:
        """The item that this list starts from: the one of the request, or the person's latest where a source needs one."""
        query = self.query
        named = query.similar_to or query.anchor
        if query.candidates is not None or (query.similar_to is None and not self.placement.anchored):
            return None
        if named is None:
            return next(iter(self.anchors), None)
        if query.similar_to is None:
            for one in self.anchors:
                if one.item_id == named:
                    return one
        row = self.catalogue.row(named)
        return Anchor(item_id=named, title=self.catalogue.title(row) if row >= 0 else named)

    @cached_property
    def user_vector(self) -> Floats:
        """Query vector [D]: the person as the user tower sees them now, or the item that others are to resemble."""
        if self.query.similar_to is not None:
            itself: Floats = self.catalogue.vectors(self.catalogue.rows([self.query.similar_to]))[0]
            return itself
        return self.person_vector

    @cached_property
    def person_vector(self) -> Floats:
        """The person as the user tower sees them now [D]."""
        bundle = self.snapshot.bundle
        events = self.history[-bundle.manifest.towers.max_history :]
        return bundle.encode_user(
            self.history_vectors,
            np.array([bundle.spec.event_row(event.event_type) for event in events], dtype=np.int64),
            np.array([event.timestamp for event in events], dtype=np.float64),
            bundle.spec.context_tokens(
                self.profile.attributes if self.query.personalized else {},
                self.query.context,
                self.seconds,
                events[-1].timestamp if events else None,
            ),
        )

    @property
    def complete(self) -> bool:
        """Whether the slate is as long as asked, or as long as it can be."""
        return len(self.slate) >= self.query.k or self.exhausted

    @property
    def as_found(self) -> bool:
        """Whether the sources say the order."""
        return self.placement.order == "found" and self.query.candidates is None

    def sibling(self, query: Query, *, arms: Mapping[str, str] | None = None) -> Work:
        """Another list for the same person at the same moment; what is known of them by now is not computed again."""
        other = Work(query, self.snapshot, self.profile, stranger=self.stranger, hurry_at=self.hurry_at, arms=arms)
        shared = {"seconds"}
        if other.query.context == self.query.context:
            shared |= {"facts", "truth"}
            if other._guarded:
                _ = self.truth  # once for all siblings
        if other.query.personalized == self.query.personalized:
            shared |= {"past", "anchors"}
            if "facts" in shared:
                shared.add("person_vector")
            if other.query.similar_to == self.query.similar_to and "facts" in shared:
                shared.add("user_vector")
        other.__dict__.update({name: value for name, value in self.__dict__.items() if name in shared})
        return other

    def again(self) -> None:
        """Start over with a fourfold search: late rules left the list short, and there is more to be had."""
        self.wanted *= 4
        self.allowed = ~self.catalogue.retired_rows
        self._found, self._candidates, self.finds = {}, None, {}
        self.slate, self.effects, self.trace = [], {}, []

    def keep_shown(self) -> None:
        """Let go of the candidates that did not come on the slate: nobody asks for them any more."""
        shown = np.fromiter((place.row for place in self.slate), dtype=np.int64, count=len(self.slate))
        self.candidates = self.candidates.take(np.isin(self.candidates.rows, shown))

    def relevance(self, rows: Rows) -> Floats:
        """Retrieval scores of rows: their dot product with the query vector."""
        scores: Floats = self.catalogue.vectors(rows) @ self.user_vector
        return scores

    def by_relevance(self, rows: Rows) -> Rows:
        """Rows, the most relevant first."""
        return rows[np.argsort(-self.relevance(rows), kind="stable")]

    def degrade(self, stage: str) -> None:
        """Note that the answer had to do without a stage."""
        if stage not in self.degraded:
            self.degraded.append(stage)

    def join(self, rows: Rows, source: str) -> None:
        """Add the rows a source found; one that is there already only gets the source's bit."""
        # A dictionary keeps the order and knows every row once; sorting arrays after each source cost several times that.
        bit, found = 1 << self.snapshot.sources.index(source), self._found
        for row in rows.tolist():
            found[row] = found.get(row, 0) | bit
        self._candidates = None

    def found_by(self, found: int) -> list[str]:
        """Names of the sources behind the bits of one candidate."""
        return [name for bit, name in enumerate(self.snapshot.sources) if found >> bit & 1]


def _completed(query: Query, placement: Placement) -> Query:
    """A query with what the placement says where the request says nothing."""
    channel = placement.channel is not None and "channel" not in query.context
    if query.k and not channel:
        return query
    context = {**query.context, "channel": placement.channel} if channel else query.context
    return replace(query, k=query.k or placement.k, context=context)
