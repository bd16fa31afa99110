"""The writer: one thread that stores what many callers bring in one transaction, and then tells each of them.

A commit waits for the disk, so what arrives meanwhile is stored by the next one, together. Nobody waits for company: a
row that arrives while the writer is idle is stored at once, alone.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from embeddings.errors import BespokeError, Overloaded, StoreError

logger = logging.getLogger("bespoke.store")

ROWS_PER_COMMIT = 2_000
"""A larger commit saves nothing more and makes everybody in it wait longer. A single batch may be larger."""

WAITING_LIMIT = 10_000
"""Rows that may wait for the writer: about the events that it stores in a second, so that nobody waits much longer."""

R = TypeVar("R")
T = TypeVar("T")
Write = Callable[[Sequence[Sequence[R]]], Sequence[T | BespokeError]]


class Writer(Generic[R, T]):
    """The queue of batches and the thread that stores them; any number of threads may submit.

    The thread starts with the first batch, so that a store which only reads has none.
    """

    def __init__(self, write: Write[R, T], *, what: str, waiting_limit: int = WAITING_LIMIT) -> None:
        self._write, self._what = write, what
        self._limit = waiting_limit
        self._waiting: deque[tuple[Sequence[R], Future[T]]] = deque()
        self._rows = 0
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def submit(self, rows: Sequence[R]) -> Future[T]:
        """Have a batch stored; the future is done when it is durable or refused.

        A future that is cancelled in time takes its batch out of the queue. Raises `Overloaded` when too much waits
        already, `StoreError` when the store is closed.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                raise StoreError("the store is closed")
            if self._rows and self._rows + len(rows) > self._limit:
                raise Overloaded(f"{self._rows} {self._what} wait to be stored; send again in a second")
            self._waiting.append((rows, future))
            self._rows += len(rows)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"writer of {self._what}", daemon=True)
                self._thread.start()
            self._changed.notify()
        return future

    def close(self) -> None:
        """Store what waits, then end; a later `submit` is refused. Closing twice is allowed."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while group := self._next():
            live = [(rows, future) for rows, future in group if future.set_running_or_notify_cancel()]
            for (_, future), outcome in zip(live, self._outcomes([rows for rows, _ in live]), strict=True):
                if isinstance(outcome, BespokeError):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)

    def _next(self) -> list[tuple[Sequence[R], Future[T]]]:
        """Wait for batches and take as many as make one commit; none when the writer is closed and all are stored."""
        group: list[tuple[Sequence[R], Future[T]]] = []
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            room = ROWS_PER_COMMIT
            while self._waiting and (not group or len(self._waiting[0][0]) <= room):
                group.append(self._waiting.popleft())
                room -= len(group[-1][0])
            self._rows -= ROWS_PER_COMMIT - room
        return group

    def _outcomes(self, batches: Sequence[Sequence[R]]) -> Sequence[T | BespokeError]:
        try:
            return self._write(batches)
        except Exception as error:  # the thread must outlive it, or everybody would wait for ever
            logger.exception("%s not stored", self._what)
            return [StoreError(f"the {self._what} were not stored: {type(error).__name__}")] * len(batches)
