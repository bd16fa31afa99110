"""Deciding in time: contents before one deadline, with what there is then, and what a page shows of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from serving.decisions.alerts import AlertsQuery, alert_of, alerts_of, in_order
from serving.decisions.deciding import Contents, Decided, DecisionQuery
from serving.pages.page import Page
from serving.pipeline.job import Job
from serving.pipeline.ladder import Ladder
from serving.pipeline.live import Live
from serving.request.work import Work
from serving.store import Profile

MARGIN_S = 0.02
"""What a claim may take at least: it is one commit."""


async def decided_in_time(
    ladder: Ladder,
    live: Live,
    contents: Contents,
    query: DecisionQuery,
    how: Callable[[Work], list[Decided]],
    profile: Profile | None = None,
) -> tuple[list[Decided], Work]:
    """Decide in a thread, then claim; where the person cannot be read in time, as for somebody unknown.

    With a `profile` the store is not asked who this is. Returns the request as it was understood, too.
    """
    asked = _deadline(ladder, query)
    job = Job(query.person, live, asked, profile=profile)
    if not ladder.circuit.allows() and profile is None:
        job.without.add("profile")

    def computed(one: Job) -> tuple[list[Decided], Work]:
        work = ladder.begin(one)
        return how(work), work

    found = None
    if not ladder.workers.exhausted:
        job, found = await ladder.in_time(job, computed)
    if found is None:
        stranger = Job(query.person, live, asked).work()
        stranger.degrade(job.at)
        found = how(stranger), stranger
    decided, work = found
    return await contents.claimed(decided, max(MARGIN_S, job.left())), work


def _deadline(ladder: Ladder, query: DecisionQuery) -> float:
    """How many seconds a request has."""
    return ladder.deadline_s if query.deadline_ms is None else min(ladder.deadline_s, query.deadline_ms / 1e3)


async def alerts_in_time(
    ladder: Ladder, live: Live, contents: Contents, query: AlertsQuery
) -> tuple[list[Decided], Work]:
    """Alerts before one deadline; in the place of one that is found capped when it is claimed comes the next."""
    asked = query.asked
    ends = time.monotonic() + _deadline(ladder, asked)
    found: list[Decided] = []
    profile: Profile | None = None
    while True:
        how = partial(alerts_of, contents, query, tuple(found))
        more, work = await decided_in_time(ladder, live, contents, asked, how, profile)
        found += more
        left = ends - time.monotonic()
        if left < MARGIN_S or not any(one.reason == "capped" for one in more):
            return found, work
        asked, profile = replace(asked, deadline_ms=left * 1e3), work.profile


class PageContents:
    """What is decided for one page; it is kept until the page is put together, when it is claimed and logged."""

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self.made: dict[str, Decided] = {}

    def content(self, name: str, work: Work) -> Mapping[str, Any] | None:
        """What to show of a content; None where there is nothing for the person now, or no such content any more."""
        content = work.snapshot.policy.contents.get(name)
        if content is None or content.trigger is not None:
            return None
        return self._kept(self.contents.decide(content, work))

    def alert(self, name: str | None, work: Work) -> Mapping[str, Any] | None:
        """The alert of that name, if it is due, or the first one that is and not on the page yet.

        Somebody who is held out of it has nothing in its place.
        """
        contents = work.snapshot.policy.contents
        told = {one.content for one in list(self.made.values()) if one.work is work}  # a late step may still add one
        for content in in_order(one for one in contents.values() if name in (None, one.id) and one.id not in told):
            decided = alert_of(self.contents, content, work)
            if decided is not None and decided.logged:
                return self._kept(decided)
        return None

    def _kept(self, decided: Decided) -> Mapping[str, Any] | None:
        if decided.logged:
            self.made[decided.recommendation_id] = decided
        return decided.shown() if decided.variant is not None else None


async def claimed_on(page: Page, contents: PageContents, seconds: float) -> list[Decided]:
    """Claim what a page shows; what may not be shown leaves it. Returns all that is worth a row of the log."""
    places = {one["recommendation_id"]: name for name, one in page.decided.items() if "recommendation_id" in one}
    wanted = [
        one for one in contents.made.values() if one.variant is None or places.get(one.recommendation_id) in page.shown
    ]
    claimed = await contents.contents.claimed(wanted, max(MARGIN_S, seconds))
    lost = {places.get(one.recommendation_id) for one in claimed if not one.logged}
    page.shown = [name for name in page.shown if name not in lost]
    return [one for one in claimed if one.logged]
