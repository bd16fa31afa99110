"""A release on trial: who is answered by it, what is counted, and when it is withdrawn.

As a *canary* it answers a share of the people, always the same ones. As a *shadow* it answers nobody: a share of the
requests is computed on it too, after their answer, and the two lists are compared. Every replica counts what it answers
itself and judges by that; a release that one of them finds wanting is withdrawn everywhere.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from embeddings.ids import bucket
from embeddings.schema import Event
from serving.pipeline.live import Live

Arm = Literal["control", "canary"]
ARMS: tuple[Arm, ...] = ("control", "canary")

BUCKETS = 10_000
WINDOW = 2000
"""Answers of each arm that are remembered for error rate and latency."""

ENOUGH = 100
"""Answers of each arm before anything is judged."""

ERRORS = 0.05
SLOWER, SLOWER_MS = 1.5, 10.0
SURE = 3.3
"""Standard deviations by which the goal must lie below control's: strict, because it is looked at again and again."""

PERSISTENCE = 0.9
"""Of rank-biased overlap (Webber et al., 2010): the first ten places carry about 85% of the weight."""


class Share(BaseModel):
    """How a release is tried: `share` of the people (canary) or of the requests (shadow).

    `goal` is the type of the events that count as success when they echo a `recommendation_id`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: Annotated[float, Field(gt=0, le=1)] = 0.05
    goal: Annotated[str, Field(min_length=1, max_length=64)] = "click"


@dataclass(slots=True)
class Tally:
    """What one arm did: seconds and failures of its latest answers, all of its answers, and its successes."""

    latest: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    answers: int = 0
    successes: int = 0

    def figures(self) -> dict[str, float | int | None]:
        """Counts, error rate, p50 and p99 in milliseconds, and successes per answer; None without answers."""
        latest = list(self.latest)  # at once: the event loop goes on counting
        times = sorted(seconds for seconds, _ in latest)
        n = len(times)
        return {
            "answers": self.answers,
            "error_rate": sum(failed for _, failed in latest) / n if n else None,
            "p50_ms": round(times[n // 2] * 1e3, 3) if n else None,
            "p99_ms": round(times[max(0, math.ceil(0.99 * n) - 1)] * 1e3, 3) if n else None,
            "successes": self.successes,
            "success_rate": self.successes / self.answers if self.answers else None,
        }


@dataclass(slots=True)
class Difference:
    """Sums over the compared requests of a shadow."""

    compared: int = 0
    dropped: int = 0
    failed: int = 0
    overlap: float = 0.0
    agreement: float = 0.0

    def add(self, ours: Sequence[str], theirs: Sequence[str]) -> None:
        """Compare two lists of ids."""
        self.compared += 1
        self.overlap += overlap(ours, theirs)
        self.agreement += rank_biased_overlap(ours, theirs)

    def figures(self) -> dict[str, float | int | None]:
        """Means over what was compared, None before the first."""
        n = self.compared
        return {
            "compared": n,
            "dropped": self.dropped,
            "failed": self.failed,
            "overlap": self.overlap / n if n else None,
            "rank_biased_overlap": self.agreement / n if n else None,
        }


class Trial:
    """One release on trial on this replica, begun by the document of that version."""

    def __init__(self, live: Live, mode: Literal["canary", "shadow"], how: Share, version: int) -> None:
        self.live, self.mode, self.how, self.version = live, mode, how, version
        self.tallies: dict[Arm, Tally] = {arm: Tally() for arm in ARMS}
        self.difference = Difference()
        self._marks = {arm: f".{version}{arm[:2]}" for arm in ARMS}

    def arm(self, user_id: str | None) -> Arm:
        """Which release answers this person; without a person, the current one."""
        if self.mode != "canary" or user_id is None:
            return "control"
        return "canary" if self._drawn(user_id) else "control"

    def shadows(self, recommendation_id: str) -> bool:
        """Whether a request is computed on the shadow too."""
        return self.mode == "shadow" and self._drawn(recommendation_id)

    def mark(self, arm: Arm) -> str:
        """The end of a recommendation id; events that echo it can then be counted by any replica."""
        return self._marks[arm]

    def note(self, arm: Arm, seconds: float, *, failed: bool) -> None:
        """Count one answer."""
        tally = self.tallies[arm]
        tally.answers += 1
        tally.latest.append((seconds, failed))

    def succeed(self, events: Iterable[Event]) -> None:
        """Count the successes among events."""
        for event in events:
            if event.event_type == self.how.goal and event.recommendation_id:
                for arm, mark in self._marks.items():
                    self.tallies[arm].successes += event.recommendation_id.endswith(mark)

    def verdict(self) -> str | None:
        """Why the canary must go, as a sentence with the figures; None while there is no reason."""
        control, canary = self.tallies["control"], self.tallies["canary"]
        if min(len(control.latest), len(canary.latest)) < ENOUGH:
            return None
        usual, now = control.figures(), canary.figures()
        if _number(now["error_rate"]) > _number(usual["error_rate"]) + ERRORS:
            return f"error rate {now['error_rate']:.3f}, control {usual['error_rate']:.3f}"
        if _number(now["p99_ms"]) > SLOWER * _number(usual["p99_ms"]) + SLOWER_MS:
            return f"p99 {now['p99_ms']:.1f} ms, control {usual['p99_ms']:.1f} ms"
        if _below(canary, control) > SURE:
            return f"{now['success_rate']:.4f} '{self.how.goal}' an answer, control {usual['success_rate']:.4f}"
        return None

    def report(self) -> dict[str, Any]:
        """The figures of this replica."""
        if self.mode == "shadow":
            return {"difference": self.difference.figures()}
        return {arm: tally.figures() for arm, tally in self.tallies.items()}

    def _drawn(self, text: str) -> bool:
        # Salted with the release, so that the same people are not the first to meet every new one.
        return bucket(text, BUCKETS, salt=self.live.name) < self.how.share * BUCKETS


def overlap(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """Share of the longer list that both have; two empty lists are equal."""
    longest = max(len(ours), len(theirs))
    return len(set(ours) & set(theirs)) / longest if longest else 1.0


def rank_biased_overlap(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """Overlap of all prefixes, the first ones weighing most; 1 for equal lists, 0 for disjoint ones."""
    depth = max(len(ours), len(theirs))
    if not depth:
        return 1.0
    left: set[str] = set()
    right: set[str] = set()
    total = weights = 0.0
    for place in range(depth):
        left.update(ours[place : place + 1])
        right.update(theirs[place : place + 1])
        weight = PERSISTENCE**place
        total += weight * len(left & right) / max(len(left), len(right))
        weights += weight
    return total / weights


def _below(canary: Tally, control: Tally) -> float:
    """Standard deviations by which the canary's success rate lies below control's (pooled, two proportions)."""
    pooled = (canary.successes + control.successes) / (canary.answers + control.answers)
    deviation = math.sqrt(pooled * max(0.0, 1 - pooled) * (1 / canary.answers + 1 / control.answers))
    gap = control.successes / control.answers - canary.successes / canary.answers
    return gap / deviation if deviation else 0.0


def _number(value: float | int | None) -> float:
    assert value is not None
    return float(value)
