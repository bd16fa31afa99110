"""The shadow: a request computed once more, on the release on trial, when its answer is out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from serving.pipeline.job import Job
from serving.pipeline.ladder import Ladder
from serving.pipeline.trial import Trial
from serving.request.query import Query
from serving.request.work import Work

logger = logging.getLogger("bespoke.shadow")


class Shadow:
    """Computes one request at a time, and none is waited for; `ladder` is one that answers nobody."""

    def __init__(self, ladder: Ladder, *, seconds: float) -> None:
        self.ladder, self.seconds = ladder, seconds
        self.under_way: asyncio.Task[None] | None = None

    def follow(self, query: Query, trial: Trial, answered: Work, ours: Sequence[str]) -> None:
        """Compare the list that went out with that of the release on trial; called on the event loop."""
        if self.under_way is not None and not self.under_way.done():
            trial.difference.dropped += 1
            return
        self.under_way = asyncio.get_running_loop().create_task(self._compared(query, trial, answered, ours))

    async def _compared(self, query: Query, trial: Trial, answered: Work, ours: Sequence[str]) -> None:
        job = Job(query, trial.live, self.seconds, profile=answered.profile)
        job.read = not answered.stranger
        try:
            work = await self.ladder.run(job)
            trial.difference.add(ours, [work.catalogue.id(place.row) for place in work.slate])
        except Exception:
            trial.difference.failed += 1
            logger.exception("the shadow %s failed", trial.live.name)
