"""Effects: what is done with an answer after it went out. They run in a thread, in batches, and never delay an answer.

A request leaves behind references to what it has made; whatever must be computed from them is computed here. When answers
come faster than effects are done, the newest are left out and counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from embeddings.ids import bucket
from embeddings.schema import allows
from serving import metrics
from serving.request.candidates import Candidates
from serving.request.query import Answer, Query
from serving.request.work import Place, Work
from serving.settings import Settings
from serving.store import Decision, Store

logger = logging.getLogger("bespoke.effects")

WAITING_LIMIT = 10_000
"""Answers that may wait; each holds about 10 kB of what its request had anyway."""

AT_ONCE = 500
GATHER_S = 0.25
"""A batch is begun when so many answers wait, or so long after the first of them: commits are few, a log is fresh."""

STOP_S = 10.0
SHARES = 1_000_000
REPLAYED = ("k", "context", "filter", "exclude", "similar_to", "candidates", "personalized", "anchor", "shown")
"""What a logged request has of its query, beside person, placement and time."""


class Made(Protocol):
    """An answer that went out, of whichever kind."""

    @property
    def recommendation_id(self) -> str:
        """Its id."""

    def decision(self) -> Decision:
        """It as a row of the decision log; called in the thread of the effects."""


class Listed(NamedTuple):
    """A list that went out, and the little of its making that tells where its items came from."""

    query: Query
    answer: Answer
    slate: Sequence[Place]
    candidates: Candidates
    sources: tuple[str, ...]
    user_id: str | None

    @classmethod
    def of(cls, work: Work, answer: Answer) -> Listed:
        """What to keep of a request; references only, and none to a mask of the catalogue."""
        return cls(work.query, answer, work.slate, work.candidates, work.snapshot.sources, logged_as(work))

    @property
    def recommendation_id(self) -> str:
        """The id of the answer."""
        return self.answer.recommendation_id

    def decision(self) -> Decision:
        """The row of the log."""
        query, answer = self.query, self.answer
        channel = query.context.get("channel")
        return Decision(
            recommendation_id=answer.recommendation_id,
            user_id=self.user_id,
            at=query.now,
            kind="list",
            placement=query.placement,
            channel=channel if isinstance(channel, str) else None,
            request={name: value for name in REPLAYED if (value := getattr(query, name)) not in (None, (), [], {})},
            items=[one.item_id for one in answer.items],
            scores=[one.score for one in answer.items],
            propensities=[place.propensity for place in self.slate],
            sources=found_by(self.slate, self.candidates, self.sources),
            arms=answer.experiment,
            model_version=answer.model_version,
            policy_version=answer.policy_version,
            degraded=answer.degraded,
        )


def logged_as(work: Work) -> str | None:
    """The id under which an answer is logged: none if they do not allow analytics, or if that could not be read.

    It is the id that was asked with: whoever reads the log looks up whose it is, and ids that are parted take theirs along.
    """
    named = not work.stranger and allows(work.profile.consent, "analytics")
    return work.query.user_id if named else None


def found_by(slate: Sequence[Place], candidates: Candidates, sources: Sequence[str]) -> list[list[str]]:
    """Names of the sources that found each place of a slate."""
    bits = dict(zip(candidates.rows.tolist(), candidates.found_by.tolist(), strict=True))
    return [[name for bit, name in enumerate(sources) if bits.get(place.row, 0) >> bit & 1] for place in slate]


def query_of(decision: Decision) -> Query:
    """The query behind a logged list: what to ask to see what another policy or another release answers."""
    request: dict[str, Any] = dict(decision.request)
    return Query(now=decision.at, user_id=decision.user_id, placement=decision.placement, **request)


class Effect:
    """Base of all effects; one that fails costs nobody their answer, and the others are done all the same."""

    name: ClassVar[str]
    kind: ClassVar[str] = "effect"

    def applies(self, made: Made, settings: Settings) -> bool:
        """Whether the effect has anything to do for this answer; asked on the event loop, so it only looks."""
        return True

    def work(self, made: Sequence[Made], store: Store) -> None:
        """Do what there is to do for some answers."""
        raise NotImplementedError

    def lost(self, count: int, outcome: str) -> None:
        """Count answers that the effect was not done for: `dropped` when too many waited, `failed` when it raised."""


class DecisionLog(Effect):
    """Writes answers into the store's decision log."""

    name = "decision_log"

    def applies(self, made: Made, settings: Settings) -> bool:
        """Only for the share of answers that is to be kept."""
        share = settings.decisions
        return share >= 1 or bucket(made.recommendation_id, SHARES, salt=self.name) < share * SHARES

    def work(self, made: Sequence[Made], store: Store) -> None:
        """Encode and store them."""
        metrics.DECISIONS.labels("logged").inc(store.decisions.write(_unhurried(made)))

    def lost(self, count: int, outcome: str) -> None:
        """Show it in the metrics."""
        metrics.DECISIONS.labels(outcome).inc(count)


def _unhurried(made: Sequence[Made]) -> Iterator[Decision]:
    """Each as a decision; in between, the threads of requests may have the interpreter."""
    for one in made:
        yield one.decision()
        time.sleep(0)


class Effects:
    """The queue of answers and the thread that runs the effects; it starts with the first answer."""

    def __init__(self, effects: Sequence[Effect], store: Store, settings: Settings) -> None:
        self._effects, self._store, self._settings = tuple(effects), store, settings
        self._waiting: deque[tuple[Made, list[Effect]]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._busy = False
        self._flushing = 0
        self._stopped = False

    def take(self, made: Made) -> None:
        """Have the effects that apply done with an answer, soon."""
        wanted = [effect for effect in self._effects if effect.applies(made, self._settings)]
        if not wanted:
            return
        with self._changed:
            full = self._stopped or len(self._waiting) >= WAITING_LIMIT
            if not full:
                self._waiting.append((made, wanted))
                # It is woken to begin a batch and when one is full; while it gathers it is left alone.
                if len(self._waiting) in (1, AT_ONCE):
                    self._changed.notify_all()
            if self._thread is None and not self._stopped:
                self._thread = threading.Thread(target=self._run, name="effects", daemon=True)
                self._thread.start()
        if full:
            for effect in wanted:
                effect.lost(1, "dropped")

    def flush(self, timeout_s: float = STOP_S) -> bool:
        """Wait until everything taken so far is done; False if it takes longer than that."""
        with self._changed:
            self._flushing += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: not self._waiting and not self._busy, timeout_s)
            finally:
                self._flushing -= 1

    def stop(self) -> None:
        """Do what waits, then end; what comes later is dropped."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(STOP_S)

    def _run(self) -> None:
        while batch := self._next():
            for effect in self._effects:
                made = [one for one, wanted in batch if effect in wanted]
                try:
                    if made:
                        effect.work(made, self._store)
                except Exception as error:  # the thread must outlive it; what it says may quote what a person sent
                    logger.error("effect %s failed for %d answers: %s", effect.name, len(made), type(error).__name__)
                    effect.lost(len(made), "failed")
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _next(self) -> list[tuple[Made, list[Effect]]]:
        """Wait for answers and gather some; none when everything is done and the effects are stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopped)
            self._changed.wait_for(
                lambda: len(self._waiting) >= AT_ONCE or self._flushing or self._stopped, timeout=GATHER_S
            )
            self._busy = bool(self._waiting)
            return [self._waiting.popleft() for _ in range(min(AT_ONCE, len(self._waiting)))]
