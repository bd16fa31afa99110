"""Turns: several steps of one request, one after the other in a thread, each within its time.

A step that does not come back keeps its thread, as everything that hangs does (`workers.py`); the steps behind it go on in
another one, and whoever asked learns which were left out.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from embeddings.errors import InputError
from serving.pipeline.workers import Workers

logger = logging.getLogger("bespoke.turns")

Step = Callable[[Mapping[str, Any]], Any]
"""Gets what the steps before it returned, by their names."""


class Taken(NamedTuple):
    """What the steps returned, by name, and the names of those that failed or were not waited for, in their order."""

    done: dict[str, Any]
    left_out: list[str]


class _Run:
    """Steps under way in one thread; the event loop sees where it is, and may leave it to itself."""

    def __init__(self, steps: Iterable[tuple[str, Step]], done: Mapping[str, Any]) -> None:
        self.waiting, self.done = deque(steps), dict(done)
        self.failed: list[str] = []
        self.at: str | None = None
        self.since = 0.0
        self._abandoned = False
        self._lock = threading.Lock()

    def __call__(self) -> None:
        while (step := self._next()) is not None:
            assert self.at is not None
            try:
                self._ended(step(self.done))
            except InputError:
                raise
            except Exception:
                logger.exception("%s failed; the page goes on without it", self.at)
                self.failed.append(self.at)

    def _next(self) -> Step | None:
        with self._lock:
            if self._abandoned or not self.waiting:
                self.at = None
                return None
            self.since = time.monotonic()
            self.at, step = self.waiting.popleft()
            return step

    def _ended(self, found: Any) -> None:
        with self._lock:
            if not self._abandoned:
                assert self.at is not None
                self.done[self.at] = found

    def stuck(self, patience_s: float) -> bool:
        """Whether one step has taken longer than that by now."""
        return self.at is not None and self.at not in self.done and time.monotonic() - self.since > patience_s

    def abandon(self) -> list[str]:
        """Have it begin nothing more; what it was at and has not done, and what failed before."""
        with self._lock:
            self._abandoned = True
            busy = [self.at] if self.at is not None and self.at not in self.done else []
            return [*self.failed, *(name for name in busy if name not in self.failed)]


async def in_turn(workers: Workers, steps: Mapping[str, Step], *, patience_s: float, until: float) -> Taken:
    """Take some steps; none for longer than `patience_s`, all until `until` (of `time.monotonic`).

    Raises `InputError` where a step does; any other error costs that step alone.
    """
    left_out: list[str] = []
    run = _Run(steps.items(), {})
    ticket = workers.submit(run)
    while True:
        now = time.monotonic()
        patient = (run.since if run.at is not None else now) + patience_s
        if await ticket.finished(min(patient, until) - now):
            ticket.result()
            left_out += run.failed
            break
        late = time.monotonic() >= until
        if not late and not run.stuck(patience_s):
            continue
        left_out += run.abandon()
        if late or workers.exhausted:
            workers.give_up_later(ticket, patience_s)
            left_out += [name for name, _ in run.waiting]
            break
        workers.give_up(ticket)
        run = _Run(run.waiting, run.done)
        ticket = workers.submit(run)
    return Taken(run.done, [name for name in steps if name in left_out])
