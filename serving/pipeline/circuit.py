"""A circuit breaker: what fails again and again is left alone for a while, then tried with a single request.

Closed, everything passes. After a few failures in a row it opens and nothing passes; when the cooling time is over one
request is let through, and its outcome closes the circuit or opens it again. Outcomes are told by one thread, the event
loop's; any thread may ask.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

logger = logging.getLogger("bespoke.circuit")

FAILURES = 3
COOLING_S = 2.0


class Circuit:
    """The breaker in front of one part of the service; `part` is its name in the log."""

    def __init__(
        self,
        part: str,
        *,
        failures: int = FAILURES,
        cooling_s: float = COOLING_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.part, self.limit, self.cooling_s = part, failures, cooling_s
        self._clock = clock
        self._failures = 0
        self._retry_at = 0.0
        self._asking = threading.Lock()

    @property
    def open(self) -> bool:
        """Whether it failed too often and has not recovered yet."""
        return self._failures >= self.limit

    def allows(self) -> bool:
        """Whether the next request may try; after the cooling time one may, the others wait for its outcome."""
        if not self.open:
            return True
        with self._asking:
            now = self._clock()
            if now < self._retry_at:
                return False
            self._retry_at = now + self.cooling_s
            return True

    def failed(self) -> None:
        """Count a failure; the last of too many opens the circuit, and each further one restarts the cooling time."""
        self._failures += 1
        if not self.open:
            return
        self._retry_at = self._clock() + self.cooling_s
        if self._failures == self.limit:
            logger.error("%s failed %d times in a row; going on without it", self.part, self._failures)

    def succeeded(self) -> None:
        """Forget the failures."""
        if not self._failures:
            return
        if self.open:
            logger.warning("%s works again", self.part)
        self._failures = 0
