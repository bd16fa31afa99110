"""The state of one request on its way through the stages, and its form on the wire between deployments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
import orjson

from embeddings.explore import CANDIDATES
from embeddings.features import Floats
from embeddings.ids import Rows
from serving.pipeline.candidates import Candidates, Mask
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.query import Query, Reason
from serving.pipeline.snapshot import Rules, Snapshot
from serving.policy.compiled import facts
from serving.policy.placements import Placement
from serving.store.profiles import HistoryEvent, Profile

NOBODY = Profile(user_id="", attributes={}, history=[], events=0, last_seen=None)


@dataclass(frozen=True, slots=True)
class Place:
    """One place of the slate."""

    row: int
    score: float
    reasons: tuple[Reason, ...]


class Work:
    """Everything a stage may read, and the few things it may change: allowed, candidates, slate, effects, trace."""

    def __init__(self, query: Query, snapshot: Snapshot, profile: Profile | None) -> None:
        self.query, self.snapshot = query, snapshot
        self.profile = profile or NOBODY
        self.placement: Placement = snapshot.policy.placement(query.placement)
        self.wanted = max(CANDIDATES, 2 * query.k)
        self.allowed: Mask = ~snapshot.catalogue.retired_rows
        self.candidates = Candidates.empty()
        self.slate: list[Place] = []
        self.effects: dict[int, list[Reason]] = {}
        self.trace: list[dict[str, object]] = []
        self.degraded: list[str] = []
        self.milliseconds: dict[str, float] = {}
        self.exhausted = False

    @property
    def catalogue(self) -> Catalogue:
        """The catalogue this request reads, the same in every stage."""
        return self.snapshot.catalogue

    @cached_property
    def seconds(self) -> float:
        """Time of the request, in seconds since 1970."""
        return self.query.now.timestamp()

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """What a rule's `when` may ask."""
        return facts(self.profile.attributes, self.profile.events, self.query.context, self.seconds)

    @cached_property
    def rules(self) -> Rules:
        """The rules in force for this request."""
        return self.snapshot.rules(self.query.placement, self.facts, self.seconds)

    @cached_property
    def history(self) -> tuple[HistoryEvent, ...]:
        """The person's events with items that exist now, oldest first; empty for a request without personalization."""
        if not self.query.personalized:
            return ()
        row = self.catalogue.row
        return tuple(event for event in self.profile.history if row(event.item_id) >= 0)

    @cached_property
    def history_rows(self) -> Rows:
        """Rows [L] of `history`."""
        return self.catalogue.rows(event.item_id for event in self.history)

    @cached_property
    def user_vector(self) -> Floats:
        """Query vector [D]: the person as the user tower sees them now, or the item that others are to resemble."""
        bundle = self.snapshot.bundle
        if self.query.similar_to is not None:
            itself: Floats = self.catalogue.vectors(self.catalogue.rows([self.query.similar_to]))[0]
            return itself
        events = self.history[-bundle.manifest.towers.max_history :]
        rows = self.history_rows[len(self.history) - len(events) :]
        return bundle.encode_user(
            self.catalogue.vectors(rows),
            np.array([bundle.spec.event_row(event.event_type) for event in events], dtype=np.int64),
            np.array([event.timestamp for event in events], dtype=np.float64),
            bundle.spec.context_tokens(
                self.profile.attributes,
                self.query.context,
                self.seconds,
                events[-1].timestamp if events else None,
            ),
        )

    @property
    def complete(self) -> bool:
        """Whether the slate is as long as asked, or as long as it can be."""
        return len(self.slate) >= self.query.k or self.exhausted

    def again(self) -> None:
        """Start over with a fourfold search: late rules left the list short, and there is more to be had."""
        self.wanted *= 4
        self.allowed = ~self.catalogue.retired_rows
        self.candidates = Candidates.empty()
        self.slate, self.effects, self.trace = [], {}, []

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
        bit = np.uint32(1 << self.snapshot.sources.index(source))
        rows = rows[np.sort(np.unique(rows, return_index=True)[1])]
        known = np.isin(self.candidates.rows, rows)
        old = replace(self.candidates, found_by=self.candidates.found_by | (known * bit))
        new = rows[~np.isin(rows, old.rows)]
        scores = self.relevance(new)
        self.candidates = Candidates(
            rows=np.concatenate([old.rows, new]),
            found_by=np.concatenate([old.found_by, np.full(len(new), bit, dtype=np.uint32)]),
            retrieval=np.concatenate([old.retrieval, scores]),
            score=np.concatenate([old.score, scores]),
        )

    def found_by(self, found: int) -> list[str]:
        """Names of the sources behind the bits of one candidate."""
        return [name for bit, name in enumerate(self.snapshot.sources) if found >> bit & 1]

    def to_wire(self, needs: Sequence[int]) -> bytes:
        """Everything another deployment needs to go on; rows become ids, because rows are private to a replica.

        `needs` are the catalogue revision and policy version the far side must have caught up with.
        """
        one = self.candidates
        return orjson.dumps(
            {
                "needs": needs,
                "query": asdict(self.query),
                "profile": [
                    self.profile.user_id,
                    self.profile.attributes,
                    self.profile.events,
                    self.profile.last_seen,
                    [tuple(event) for event in self.profile.history],
                ],
                "model": self.snapshot.bundle.name,
                "user": self.user_vector if self.candidates or self.slate else None,
                "ids": [self.catalogue.id(row) for row in one.rows.tolist()],
                "found_by": one.found_by,
                "retrieval": one.retrieval,
                "score": one.score,
                "slate": [
                    [self.catalogue.id(place.row), place.score, [asdict(reason) for reason in place.reasons]]
                    for place in self.slate
                ],
                "effects": [
                    [self.catalogue.id(row), [asdict(reason) for reason in reasons]]
                    for row, reasons in self.effects.items()
                ],
                "trace": self.trace,
                "degraded": self.degraded,
                "milliseconds": self.milliseconds,
                "wanted": self.wanted,
                "exhausted": self.exhausted,
            },
            option=orjson.OPT_SERIALIZE_NUMPY,
        )

    @staticmethod
    def degraded_wire(payload: bytes, stage: str) -> bytes:
        """The same request, noted to have done without a stage."""
        raw = orjson.loads(payload)
        raw["degraded"].append(stage)
        return orjson.dumps(raw)

    @classmethod
    def from_wire(cls, raw: Mapping[str, Any], snapshot: Snapshot) -> Work:
        """Take up the request where the other deployment left it; items this replica does not have are left out.

        `raw` is the decoded form of what `to_wire` made.
        """
        query = Query(**raw["query"] | {"now": datetime.fromisoformat(raw["query"]["now"]).astimezone(UTC)})
        user_id, attributes, events, last_seen, history = raw["profile"]
        profile = Profile(
            user_id=user_id,
            attributes=attributes,
            events=events,
            last_seen=last_seen,
            history=[HistoryEvent(*event) for event in history],
        )
        work = cls(query, snapshot, profile)
        if raw["user"] is not None and raw["model"] == snapshot.bundle.name:
            work.__dict__["user_vector"] = np.asarray(raw["user"], dtype=np.float32)
        rows = snapshot.catalogue.rows(raw["ids"])
        work.candidates = Candidates(
            rows=rows,
            found_by=np.asarray(raw["found_by"], dtype=np.uint32),
            retrieval=np.asarray(raw["retrieval"], dtype=np.float32),
            score=np.asarray(raw["score"], dtype=np.float32),
        ).take(rows >= 0)
        work.slate = [
            Place(row, score, tuple(Reason(**reason) for reason in reasons))
            for row, score, reasons in _with_rows(raw["slate"], snapshot.catalogue)
        ]
        work.effects = {
            row: [Reason(**reason) for reason in reasons]
            for row, reasons in _with_rows(raw["effects"], snapshot.catalogue)
        }
        work.trace, work.degraded = raw["trace"], raw["degraded"]
        work.milliseconds, work.wanted, work.exhausted = raw["milliseconds"], raw["wanted"], raw["exhausted"]
        return work


def _with_rows(entries: Iterable[list[Any]], catalogue: Catalogue) -> Iterable[tuple[Any, ...]]:
    for item_id, *rest in entries:
        row = catalogue.row(item_id)
        if row >= 0:
            yield row, *rest
