"""An attempt: one request while a release is on trial, answered by the release of its arm and counted for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from embeddings.errors import InputError
from serving import metrics
from serving.pipeline.live import Live
from serving.pipeline.releases import RELEASE
from serving.pipeline.trial import Arm, Trial
from serving.request.work import Work

logger = logging.getLogger("bespoke.attempt")

T = TypeVar("T")


class Attempt:
    """One request; `live` is the release in service, which answers where the one on trial fails.

    Its arm is that of the person, so it is known only when the request has found out who asks: whoever computes it asks
    `arm_of` and sets `arm`.
    """

    def __init__(self, trial: Trial, live: Live) -> None:
        self.trial, self.live = trial, live
        self.arm: Arm = "control"

    def arm_of(self, person: str | None) -> tuple[Arm, Live]:
        """The arm of a person, by their own id and not by an alias, and its release; None: nobody, or nobody known."""
        arm = self.trial.arm(person)
        return arm, self.trial.live if arm == "canary" else self.live

    @property
    def mark(self) -> str:
        """The end of the answer's id."""
        return self.trial.mark(self.arm)

    async def made(
        self, make: Callable[[Attempt | None], Awaitable[T]], failed: Callable[[T], bool] | None = None
    ) -> T:
        """What `make` makes of this attempt; where the release on trial fails, of none, by the release in service.

        `failed` says whether to count it so (None: it is not counted).
        """
        began = time.monotonic()
        try:
            found = await make(self)
        except InputError:
            raise
        except Exception:
            self._count(began, failed=True)
            if self.arm == "control":
                raise
            logger.exception("release %s failed on trial; answering by %s", self.trial.live.name, self.live.name)
            self.arm = "control"
            return await make(None)
        if failed is not None:
            self._count(began, failed=failed(found))
        return found

    def note(self, work: Work) -> None:
        """Put the arm beside those of experiments, unless the release of one of them answered, which says so itself."""
        if self.trial.mode == "canary" and work.snapshot.bundle.name in (self.live.name, self.trial.live.name):
            work.arms[RELEASE] = self.arm

    def _count(self, began: float, *, failed: bool) -> None:
        self.trial.note(self.arm, time.monotonic() - began, failed=failed)
        metrics.ARMS.labels(self.arm, "failed" if failed else "ok").inc()
