"""The threads in which requests are computed, and what happens when one of them does not come back.

A computation cannot be killed. One that hangs keeps its thread, the work goes on in a fresh pool, and the number of threads
given up like that is bounded: when too many hang at once, nothing is computed until one returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, Generic, TypeVar

T = TypeVar("T")

LOST_LIMIT = 4
"""Threads that may hang at a time."""


class Ticket(Generic[T]):
    """One computation under way; to be waited for on the event loop that asked for it."""

    __slots__ = ("awaited", "running")

    def __init__(self, running: Future[T]) -> None:
        self.running = running
        self.awaited: asyncio.Future[T] = asyncio.wrap_future(running)

    async def finished(self, seconds: float) -> bool:
        """Wait up to so many seconds; whether it has ended, well or badly."""
        if not self.awaited.done():
            await asyncio.wait({self.awaited}, timeout=max(0.0, seconds))
        return self.awaited.done()

    def result(self) -> T:
        """What it returned; raises what it raised."""
        return self.awaited.result()


class Workers:
    """Some threads, renewed when one is lost. Everything but the computations runs on the event loop."""

    def __init__(self, threads: int, *, name: str = "pipeline") -> None:
        self._threads, self._name = threads, name
        self._pool = self._fresh()
        self._lost: list[Future[Any]] = []

    @property
    def exhausted(self) -> bool:
        """Whether so many threads hang that no more may be risked."""
        if self._lost:
            self._lost = [one for one in self._lost if not one.done()]
        return len(self._lost) >= LOST_LIMIT

    def submit(self, call: Callable[..., T], *args: Any) -> Ticket[T]:
        """Begin `call(*args)` as soon as a thread is free."""
        return Ticket(self._pool.submit(copy_context().run, call, *args))  # the log knows the request there too

    def give_up(self, ticket: Ticket[Any]) -> None:
        """Wait no longer: what has not begun never will, and a thread that is busy with it is replaced."""
        ticket.awaited.cancel()
        if ticket.running.done() or ticket.running.cancel():
            return
        self._lost.append(ticket.running)
        self._pool.shutdown(wait=False)  # what was in its queue is still done there
        self._pool = self._fresh()

    def give_up_later(self, ticket: Ticket[Any], seconds: float) -> None:
        """The same in a while, unless it has ended by then: it may only have come late."""
        asyncio.get_running_loop().call_later(seconds, self.give_up, ticket)

    def stop(self) -> None:
        """Let what is under way finish, except in threads that hang."""
        self._pool.shutdown(wait=True)

    def _fresh(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=self._threads, thread_name_prefix=self._name)
