"""The engine: everything one replica holds, and the one place where a request becomes an answer.

It owns the store and the releases, and followers keep both level with what other replicas and people change. Nothing here
knows HTTP or Ray; in the chained topology the sections are handed in as calls to other deployments.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import orjson

from embeddings.errors import Damaged, Unavailable
from embeddings.manifest import PARTS, Part
from embeddings.schema import Event
from serving import metrics
from serving.analysis.guardrails import enforce
from serving.aside.aside import Aside
from serving.decisions.alerts import AlertsQuery
from serving.decisions.deciding import Contents, Decided, DecisionQuery
from serving.decisions.deciding_in_time import PageContents, alerts_in_time, claimed_on, decided_in_time
from serving.pages.page import Decider, Page, PageAnswer, Paged, PageQuery
from serving.pages.pages import compose, run_page_section
from serving.pages.wire import MARK
from serving.pipeline.attempt import Attempt
from serving.pipeline.holdings import Holdings
from serving.pipeline.ladder import Call, Ladder
from serving.pipeline.pipeline import EFFECTS, run_section
from serving.pipeline.releases import Releases
from serving.pipeline.trial import Trial
from serving.pipeline.wire import from_wire, to_wire
from serving.policy.compiled import Policy
from serving.policy.layers import EXPERIMENTS
from serving.replica.answer import answer_of
from serving.replica.followers import Followers
from serving.replica.paging import Paging
from serving.replica.shadow import Shadow
from serving.request.query import Answer, Query
from serving.request.snapshot import Snapshot
from serving.request.work import Work
from serving.settings import Settings
from serving.stages.effects import Effects, Listed, Made
from serving.stages.stage import Section
from serving.store import Profile, Store

logger = logging.getLogger("bespoke.engine")

SHOW_S = 1.0
LEARN_S = 2.5
WATCHED = 20
"""Guardrails of large experiments are looked at less often: the look may take a twentieth of the time."""

HARMLESS = {"profile", "queue"}
"""What a list may do without and its release is not to blame."""


class Engine:
    """One replica's state. `start` before the first request, `stop` after the last.

    `parts` are the parts of a release that this replica computes with.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        sections: Mapping[Section, Call] | None = None,
        parts: frozenset[Part] = PARTS,
    ) -> None:
        self.settings = settings
        self.store = Store.open(settings.store)
        self.releases = Releases(settings.releases, self.store.documents)
        self.holdings = Holdings(settings, self.store, self.releases, parts=parts)
        self.paging = Paging(self.store.key_for("pages"))
        self.ladder = self._ladder(settings.threads, settings.deadline_ms / 1e3, sections)
        self.ladder.held = self.holdings.named
        self.effects = Effects(EFFECTS, self.store, settings)
        self.contents = Contents(self.store)
        self.decider: Decider | None = None
        aside = self._ladder(1, settings.request_timeout_s, sections)
        self.aside = Aside(aside, self.holdings, self.store, request_timeout_s=settings.request_timeout_s)
        self.shadow = Shadow(aside, seconds=settings.request_timeout_s)
        self._shown_at = self._watch_at = 0.0
        self._learned_at = -math.inf
        self._decides = False
        self._followers = Followers(settings.poll_s)
        self._followers.follow(self.take_changes, woken=self.holdings.asked)
        self._followers.follow(self._take_releases)
        self._followers.follow(self._learn)
        if sections is not None or parts == PARTS:  # one deployment is enough to look after experiments
            self._followers.follow(self._watch_guardrails)

    def _ladder(self, threads: int, deadline_s: float, sections: Mapping[Section, Call] | None) -> Ladder:
        catch_up = self.holdings.catch_up
        return Ladder(self.store, threads=threads, deadline_s=deadline_s, sections=sections, catch_up=catch_up)

    def start(self) -> None:
        """Load the current release, if there is one, and begin to follow changes."""
        self.refresh()
        self._followers.start()

    def stop(self) -> None:
        """Let requests in flight finish, then let go of everything."""
        self._followers.stop()
        self.ladder.workers.stop()
        self.aside.ladder.workers.stop()
        self.effects.stop()
        self.store.close()

    @property
    def ready(self) -> bool:
        """Whether a release is in service."""
        return self.holdings.live is not None

    @property
    def following(self) -> bool:
        """Whether the engine still follows the changes of others."""
        return self._followers.alive

    @property
    def snapshot(self) -> Snapshot:
        """The current view; raises `Unavailable` before the first release."""
        return self.holdings.current().snapshot

    @property
    def policy(self) -> Policy:
        """The policy in force, also before the first release."""
        return self.holdings.policy

    @property
    def trial(self) -> Trial | None:
        """The release on trial, if there is one."""
        return self.holdings.trial

    async def recommend(self, query: Query) -> Answer:
        """Answer one query in time. Raises `InputError` for what is wrong with it, `Unavailable` without a release."""
        listed = await self.compose(query)
        self.afterwards(listed)
        return listed.answer

    async def compose(self, query: Query, profile: Profile | None = None) -> Listed:
        """The same without effects: until `afterwards` is called with it, nothing is noted down.

        With a `profile` the store is not asked who this is: for many people at once, and for somebody it does not know.
        """
        live, trial = self.holdings.current(), self.trial
        if trial is None:
            return self._listed(await self.ladder.climb(query, live, profile))
        attempt = Attempt(trial, live)
        work = await attempt.made(
            lambda one: self.ladder.climb(query, live, profile, attempt=one),
            failed=lambda work: bool(set(work.degraded) - HARMLESS),
        )
        attempt.note(work)
        listed = self._listed(work, mark=attempt.mark)
        if trial.shadows(listed.recommendation_id):
            self.shadow.follow(query, trial, work, [one.item_id for one in listed.answer.items])
        return listed

    async def page(self, query: PageQuery) -> PageAnswer:
        """Answer a request for a whole page in time. Raises as `recommend` does, and `NotFound` for an unknown page."""
        live, trial = self.holdings.current(), self.trial
        self._decides = True
        contents = PageContents(self.contents)
        decider = self.decider or contents
        began = time.monotonic()
        if trial is None:
            page = await compose(self.ladder, query, live, decider)
            return await self._composed(page, contents, began)
        attempt = Attempt(trial, live)
        page = await attempt.made(lambda one: compose(self.ladder, query, live, decider, attempt=one))
        attempt.note(page.base)
        return await self._composed(page, contents, began, mark=attempt.mark)

    async def decide(self, query: DecisionQuery) -> tuple[list[Decided], Work]:
        """Decide some contents in time, with the request as it was understood. Raises `NotFound` for an unknown one."""
        decided, work = await self.decided(query)
        self._noted(decided)
        return decided, work

    async def decided(self, query: DecisionQuery, profile: Profile | None = None) -> tuple[list[Decided], Work]:
        """The same without a row in the log: until `afterwards` is called with each decision that is `logged`.

        It is the release in service that decides, also while another one is on trial.
        """
        self._decides = True
        how = partial(self.contents.decided, query)
        return await decided_in_time(self.ladder, self.holdings.current(), self.contents, query, how, profile)

    async def alerts(self, query: AlertsQuery) -> tuple[list[Decided], Work]:
        """Decide which alerts are due for somebody, and claim them: none is answered twice."""
        self._decides = True
        decided, work = await alerts_in_time(self.ladder, self.holdings.current(), self.contents, query)
        self._noted(decided)
        return [one for one in decided if one.variant is not None], work

    def afterwards(self, made: Made) -> None:
        """Have the effects done with an answer once it is out; called on the event loop, which writes it first."""
        asyncio.get_running_loop().call_soon(self.effects.take, made)

    def run_section(self, section: Section, payload: bytes) -> bytes:
        """Run one section of a request that another deployment began (the far side of the chained topology)."""
        raw = orjson.loads(payload)
        work = from_wire(raw, self._level_with(raw))
        run_section(section, work)
        if section == "rules" and not work.query.explain:
            work.keep_shown()
        return to_wire(work)

    async def run_section_in_time(self, section: Section, payload: bytes) -> bytes:
        """The same in a thread; one that hangs is replaced. Raises `Unavailable` when nothing comes of it in time."""
        ladder = self.ladder
        if ladder.workers.exhausted:
            raise Unavailable(f"the threads of {section} hang")
        if payload.startswith(MARK):
            return await run_page_section(
                ladder.workers, section, payload, held=self._level_with, seconds=ladder.deadline_s
            )
        ticket = ladder.workers.submit(self.run_section, section, payload)
        try:
            if not await ticket.finished(ladder.deadline_s):
                raise Unavailable(f"{section} took longer than {ladder.deadline_s * 1e3:.0f} ms")
            return ticket.result()
        finally:
            if not ticket.awaited.done():
                ladder.workers.give_up_later(ticket, ladder.hang_s)

    def _level_with(self, raw: Mapping[str, Any]) -> Snapshot:
        """The view that a request of another deployment asks for; in a thread."""
        return self.holdings.level_with(raw["model"], *raw["needs"])

    def refresh(self) -> None:
        """Bring everything up to date: release, trial, demand, items, policy. Waits while a release is being opened."""
        self.take_changes()
        self._take_releases()
        try:
            self.contents.learned.refresh()
        except Damaged as error:
            logger.error("contents are decided without what was learned: %s", error.message)

    def take_changes(self) -> None:
        """Bring items and policy up to date with the store; called after every write and by a follower."""
        self.holdings.take_changes()

    def count(self, events: Iterable[Event]) -> None:
        """Note what people did with the answers of a trial."""
        if self.trial is not None:
            self.trial.succeed(events)

    def _listed(self, work: Work, *, mark: str = "") -> Listed:
        return Listed.of(work, answer_of(work, self.paging, mark=mark))

    async def _composed(self, page: Page, contents: PageContents, began: float, *, mark: str = "") -> PageAnswer:
        left = self.ladder.deadline_s - (time.monotonic() - began)
        made = await claimed_on(page, contents, left)
        answer = page.answer(uuid.uuid4().hex + mark)
        self.afterwards(Paged.of(page, answer))
        self._noted(replace(one, page=answer.recommendation_id) for one in made)
        return answer

    def _noted(self, decided: Iterable[Decided]) -> None:
        for one in decided:
            if one.logged:
                self.afterwards(one)

    def _take_releases(self) -> None:
        """Follow pointer and trials, and export the circuits of the release in service, and of the store.

        Those of a trial are judged with it.
        """
        self.holdings.take_releases()
        if time.monotonic() - self._shown_at > SHOW_S:
            self._shown_at = time.monotonic()
            metrics.CIRCUIT.labels("store").set(self.ladder.circuit.open)
            live = self.holdings.live
            for section, circuit in live.circuits.items() if live is not None else ():
                metrics.CIRCUIT.labels(section).set(circuit.open)

    def _watch_guardrails(self) -> None:
        """Stop arms that do harm, now and then; whichever replica sees it first."""
        began = time.monotonic()
        if began < self._watch_at:
            return
        now = datetime.now(UTC)
        running = [one for one in self.policy.of(EXPERIMENTS).by_id.values() if one.running(now.timestamp())]
        if enforce(self.store, [one for one in running if one.guardrails], now=now):
            self.take_changes()
        spent = time.monotonic() - began
        self._watch_at = time.monotonic() + max(self.settings.guardrails_s, WATCHED * spent)

    def _learn(self) -> None:
        """Take over what was learned about contents, and have a part in learning it where this process decides any."""
        live = self.holdings.live
        if time.monotonic() - self._learned_at < LEARN_S or live is None:
            return
        self._learned_at = time.monotonic()
        contents = self.policy.contents
        if contents:
            if self._decides:
                self.contents.learned.learn(contents, live.name)
            self.contents.learned.refresh()
