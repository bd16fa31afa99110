"""Aside: logged requests asked again, changed a little, in a thread that answers nobody."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from embeddings.errors import Overloaded
from serving.aside.counterfactuals import SECONDS, imagined
from serving.aside.estimates import estimated
from serving.aside.lab import simulated
from serving.aside.preview import previewed
from serving.pipeline.holdings import Holdings
from serving.pipeline.ladder import Ladder
from serving.pipeline.live import Live
from serving.policy.placements import Placement
from serving.policy.rules import Rule
from serving.request.query import Answer, Query
from serving.store import Store

PREVIEW_SHARE = 0.8
"""Of the time that a request may take; the rest is for what is under way then."""


class Aside:
    """What drafts would do, and what answers would have been; nothing of it is in force, and nothing is noted down.

    `ladder` is one that no request of a person waits for, `request_timeout_s` how long a caller is kept waiting at most.
    """

    def __init__(self, ladder: Ladder, holdings: Holdings, store: Store, *, request_timeout_s: float) -> None:
        self.ladder = ladder
        self._holdings, self._store = holdings, store
        self._most_s = PREVIEW_SHARE * request_timeout_s
        self._replaying = False

    async def preview(self, draft: Placement, *, requests: int, seconds: float) -> dict[str, Any]:
        """What a draft of a placement would move, on its latest logged requests, in about so many seconds at most.

        Raises `Overloaded` while another preview, estimate or simulation is under way.
        """
        with self._alone() as live:
            seconds = min(seconds, self._most_s)
            return await previewed(self.ladder, live, self._store, draft, requests=requests, seconds=seconds)

    async def simulate(self, name: str, draft: Rule | None, *, requests: int, seconds: float) -> dict[str, Any]:
        """What a draft of a rule would do to the latest logged requests; None: what its removal would. As `preview`."""
        with self._alone() as live:
            seconds = min(seconds, self._most_s)
            return await simulated(self.ladder, live, self._store, name, draft, requests=requests, seconds=seconds)

    async def estimate(
        self, draft: Placement, *, event_type: str, by_value: bool, requests: int, seconds: float
    ) -> dict[str, Any]:
        """What a draft of a placement would bring, from its log, in about so many seconds. As `preview`."""
        how: dict[str, Any] = {"event_type": event_type, "by_value": by_value, "requests": requests}
        with self._alone() as live:
            return await estimated(self.ladder, live, self._store, draft, seconds=seconds, **how)

    async def counterfactuals(self, query: Query, answer: Answer) -> list[dict[str, Any]]:
        """What an answer would have been without one thing or another, by the release that gave it."""
        live = self._holdings.named(answer.model_version) or self._holdings.current()
        seconds = min(SECONDS, self._most_s)
        return await imagined(self.ladder, live.aside(), self._store, query, seconds=seconds)

    @contextmanager
    def _alone(self) -> Iterator[Live]:
        """The release aside, for one who asks many logged requests again; for one at a time."""
        live = self._holdings.current()
        if self._replaying:
            raise Overloaded("a preview or an estimate is under way here; ask again when it is done")
        self._replaying = True
        try:
            yield live.aside()
        finally:
            self._replaying = False
