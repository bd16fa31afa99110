"""Replay: logged requests asked again, of a release aside, with something changed in them.

A person is as they were then, as far as the profile remembers: what they did later is left out. Everything else, catalogue,
policy and demand, is that of today on all sides of a comparison.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

from embeddings.errors import BespokeError
from serving.pipeline.job import Job
from serving.pipeline.ladder import Ladder
from serving.pipeline.live import Live
from serving.request.query import Query
from serving.request.work import Work
from serving.stages.effects import query_of
from serving.store import Decision, Profile, Store

logger = logging.getLogger("bespoke.replay")

Change = Callable[[Query], Query]


class Replayed(NamedTuple):
    """A logged request, and its list for each change."""

    decision: Decision
    lists: tuple[Work, ...]


async def replayed(
    ladder: Ladder, live: Live, store: Store, decisions: Iterable[Decision], changes: Iterable[Change], *, until: float
) -> AsyncIterator[Replayed]:
    """Ask again until `until` (of `time.monotonic`); requests that cannot be asked any more are left out.

    The ladder and the release should be none that anybody is answered by.
    """
    wanted = tuple(changes)
    for decision in decisions:
        if time.monotonic() >= until:
            return
        try:
            query = query_of(decision)
            profile = await asyncio.to_thread(_then, store, decision)
            lists = [await ladder.run(Job.known(change(query), live, ladder.deadline_s, profile)) for change in wanted]
        except (BespokeError, TypeError) as error:  # an item that is gone, a request of an older version
            logger.info("a logged request cannot be asked again: %s", type(error).__name__)
            continue
        yield Replayed(decision, tuple(lists))


def _then(store: Store, decision: Decision) -> Profile | None:
    """The person at the time of a decision."""
    if decision.user_id is None:
        return None
    profile = store.profiles.read(decision.user_id).profile
    if profile is None:
        return None
    at = decision.at.timestamp()
    return replace(profile, history=[event for event in profile.history if event.timestamp <= at])
