"""Deciding in time: contents before one deadline, with what there is then, and what a page shows of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from serving.decisions.alerts import alert_of, in_order
from serving.decisions.deciding import Contents, Decided, DecisionQuery
from serving.pages.page import Page
from serving.pipeline.job import Job
from serving.pipeline.ladder import Ladder
from serving.pipeline.live import Live
from serving.policy.contents import HERE
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
    asked = ladder.deadline_s if query.deadline_ms is None else min(ladder.deadline_s, query.deadline_ms / 1e3)
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


class PageContents:
    """What is decided for one page; it is kept until the page is put together, when it is claimed and logged."""

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self.made: dict[str, Decided] = {}

    def content(self, name: str, work: Work) -> Mapping[str, Any] | None:
        """What to show of a content; None where there is nothing for the person now, or no such content (any more)."""
        content = work.snapshot.policy.contents.get(name)
        return None if content is None else self._kept(self.contents.decide(content, work))

    def alert(self, name: str | None, work: Work) -> Mapping[str, Any] | None:
        """The alert of that name, if it is due, or the first one that is.

        One that waits for the application is there if it is named, for the application to show when the moment comes.
        """
        contents = work.snapshot.policy.contents
        if name is None:
            due = (alert_of(self.contents, one, work, ()) for one in in_order(contents.values()))
        else:
            due = (alert_of(self.contents, one, work, HERE) for one in (contents.get(name),) if one is not None)
        for decided in due:
            if decided is not None and (found := self._kept(decided)) is not None:
                return found
        return None

    def _kept(self, decided: Decided) -> Mapping[str, Any] | None:
        if decided.logged:
            self.made[decided.recommendation_id] = decided
        return decided.shown() if decided.variant is not None else None


async def claimed_on(page: Page, contents: PageContents, seconds: float) -> list[Decided]:
    """Claim what a page shows; what may not be shown leaves it. Returns all that is worth a row of the log."""
    places = {one["recommendation_id"]: name for name, one in page.decided.items() if "recommendation_id" in one}
    held, wanted = [], []
    for one in contents.made.values():
        if one.variant is None:
            held.append(one)
        elif places.get(one.recommendation_id) in page.shown:
            wanted.append(one)
    shown = await contents.contents.claimed(wanted, max(MARGIN_S, seconds))
    lost = {places[one.recommendation_id] for one in shown if one.variant is None}
    page.shown = [name for name in page.shown if name not in lost]
    return [*held, *(one for one in shown if one.variant is not None)]
