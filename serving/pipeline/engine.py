"""The engine: everything one replica holds, and the one place where a request becomes an answer.

It owns the store, the release in service and the one on trial. A background thread follows what other replicas and people
change: items, policy, the release pointer, demand. Nothing here knows HTTP or Ray; in the chained topology the sections are
handed in as calls to other deployments.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import orjson

from embeddings.bundle import CURRENT, PARTS, Part, current_release, list_releases, open_bundle
from embeddings.errors import BundleError, Damaged, InputError, NotFound, Overloaded, Unavailable
from embeddings.schema import Event
from serving import metrics
from serving.analysis.guardrails import enforce
from serving.logs import Outage
from serving.pipeline.alerts import AlertsQuery, alerts_of
from serving.pipeline.counterfactuals import SECONDS, imagined
from serving.pipeline.deciding import Contents, Decided, DecisionQuery
from serving.pipeline.deciding_in_time import PageContents, claimed_on, decided_in_time
from serving.pipeline.effects import Effects, Listed, Made
from serving.pipeline.estimates import estimated
from serving.pipeline.lab import simulated
from serving.pipeline.ladder import Call, Job, Ladder
from serving.pipeline.live import Demand, Live, policy_of
from serving.pipeline.page import MARK, Decider, Page, PageAnswer, Paged, PageQuery
from serving.pipeline.pages import compose, run_page_section
from serving.pipeline.paging import Paging
from serving.pipeline.pipeline import EFFECTS, run_section, trace_of
from serving.pipeline.preview import previewed
from serving.pipeline.query import Answer, Query, Recommended
from serving.pipeline.releases import RELEASE, Releases, Tried, tried
from serving.pipeline.snapshot import Snapshot
from serving.pipeline.stage import Section
from serving.pipeline.trial import Arm, Trial
from serving.pipeline.work import Work
from serving.policy.compiled import Policy
from serving.policy.layers import EXPERIMENTS
from serving.policy.placements import Placement
from serving.policy.rules import Rule
from serving.settings import Settings
from serving.store import Document, Profile, Store

logger = logging.getLogger("bespoke.engine")

TREND_WINDOW_S = 7 * 86_400.0
TREND_HALF_LIFE_S = 86_400.0
JUDGE_S = 1.0
SHOW_S = 1.0
LEARN_S = 2.5
WATCHED = 20
"""Guardrails of large experiments are looked at less often: the look may take a twentieth of the time."""

PREVIEW_SHARE = 0.8
"""Of the time that a request may take; the rest is for what is under way then."""

ITSELF = "bespoke"
"""Who withdrew a release when nobody did."""


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
        self.parts = parts
        self.store = Store.open(settings.store)
        self.releases = Releases(settings.releases, self.store.documents)
        self.paging = Paging(self.store.key_for("pages"))
        self.ladder = self._ladder(settings.threads, settings.deadline_ms / 1e3, sections)
        self.ladder.held = self._by_name
        self.effects = Effects(EFFECTS, self.store, settings)
        self.contents = Contents(self.store)
        self.decider: Decider | None = None
        self.trial: Trial | None = None
        self._aside = self._ladder(1, settings.request_timeout_s, sections)
        self._previewing = False
        self._shadowing: asyncio.Task[None] | None = None
        self._live: Live | None = None
        self._tested: tuple[Live, ...] = ()
        self._documents: tuple[int, Sequence[Document]] = (-1, ())
        self._demand: Demand = {}
        self._demand_at = -math.inf
        self._judged_at = self._shown_at = self._watch_at = 0.0
        self._learned_at = -math.inf
        self._decides = False
        self._level_at = time.monotonic()
        self._behind = False
        self._refused: set[tuple[str, int]] = set()
        self._opening, self._lock = threading.Lock(), threading.Lock()
        self._changed = threading.Condition()
        self._asked = threading.Event()
        self._stopped = threading.Event()
        steps = [(self.take_changes, self._asked.wait)]
        steps += [(step, self._stopped.wait) for step in (self._take_releases, self._learn)]
        if sections is not None or parts == PARTS:  # one deployment is enough to look after experiments
            steps.append((self._watch_guardrails, self._stopped.wait))
        self._followers = [
            threading.Thread(target=self._follow, args=(step, wait), name=step.__name__, daemon=True)
            for step, wait in steps
        ]

    def _ladder(self, threads: int, deadline_s: float, sections: Mapping[Section, Call] | None) -> Ladder:
        return Ladder(self.store, threads=threads, deadline_s=deadline_s, sections=sections, catch_up=self._catch_up)

    def _by_name(self, name: str) -> Live | None:
        """A release that is held here."""
        return next((live for live in self._lives() if live.name == name), None)

    def start(self) -> None:
        """Load the current release, if there is one, and begin to follow changes."""
        self.refresh()
        for follower in self._followers:
            follower.start()

    def stop(self) -> None:
        """Let requests in flight finish, then let go of everything."""
        self._stopped.set()
        self._asked.set()
        for follower in self._followers:
            if follower.is_alive():
                follower.join(timeout=5)
        self.ladder.workers.stop()
        self._aside.workers.stop()
        self.effects.stop()
        self.store.close()

    @property
    def ready(self) -> bool:
        """Whether a release is in service."""
        return self._live is not None

    @property
    def following(self) -> bool:
        """Whether the engine still follows the changes of others."""
        return all(follower.is_alive() for follower in self._followers)

    @property
    def snapshot(self) -> Snapshot:
        """The current view; raises `Unavailable` before the first release."""
        return self._current().snapshot

    @property
    def policy(self) -> Policy:
        """The policy in force; before the first release that of the stored documents, compared with no catalogue."""
        live = self._live
        if live is not None:
            return live.snapshot.policy
        version, documents = self._documents
        return policy_of(documents, version=version, item_attributes=None)

    async def recommend(self, query: Query) -> Answer:
        """Answer one query in time. Raises `InputError` for what is wrong with it, `Unavailable` without a release."""
        listed = await self.compose(query)
        self.afterwards(listed)
        return listed.answer

    async def compose(self, query: Query, profile: Profile | None = None) -> Listed:
        """The same without effects: until `afterwards` is called with it, nothing is noted down.

        With a `profile` the store is not asked who this is: for many people at once, and for somebody it does not know.
        """
        live, trial = self._current(), self.trial
        if trial is None:
            return self._listed(await self.ladder.climb(query, live, profile))
        return await self._tried(query, live, trial, profile)

    async def page(self, query: PageQuery) -> PageAnswer:
        """Answer a request for a whole page in time. Raises as `recommend` does, and `NotFound` for an unknown page."""
        live, trial = self._current(), self.trial
        self._decides = True
        contents = PageContents(self.contents)
        decider = self.decider or contents
        began = time.monotonic()
        if trial is None:
            page = await compose(self.ladder, query, live, decider)
            return await self._composed(page, contents, began)
        arm = trial.arm(query.user_id)
        try:
            page = await compose(self.ladder, query, trial.live if arm == "canary" else live, decider)
        except InputError:
            raise
        except Exception:
            self._judge(trial, arm, time.monotonic() - began, failed=True)
            if arm == "control":
                raise
            logger.exception("release %s failed on trial; answering by %s", trial.live.name, live.name)
            page, arm = await compose(self.ladder, query, live, decider), "control"
        if trial.mode == "canary" and page.base.snapshot.bundle.name in (live.name, trial.live.name):
            page.base.arms[RELEASE] = arm
        return await self._composed(page, contents, began, mark=trial.mark(arm))

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
        return await decided_in_time(self.ladder, self._current(), self.contents, query, how, profile)

    async def simulate(self, name: str, draft: Rule | None, *, requests: int, seconds: float) -> dict[str, Any]:
        """What a draft of a rule would do to the latest logged requests; None: what its removal would. As `preview`."""
        with self._replaying() as live:
            seconds = min(seconds, PREVIEW_SHARE * self.settings.request_timeout_s)
            return await simulated(self._aside, live, self.store, name, draft, requests=requests, seconds=seconds)

    async def alerts(self, query: AlertsQuery) -> tuple[list[Decided], Work]:
        """Decide which alerts are due for somebody, and claim them: none is answered twice."""
        self._decides = True
        how = partial(alerts_of, self.contents, query)
        decided, work = await decided_in_time(self.ladder, self._current(), self.contents, query.asked, how)
        self._noted(decided)
        return [one for one in decided if one.variant is not None], work

    async def preview(self, draft: Placement, *, requests: int, seconds: float) -> dict[str, Any]:
        """What a draft of a placement would move, on its latest logged requests, in about so many seconds at most.

        It is computed aside, in a thread that answers nobody. Raises `Overloaded` while another preview is under way.
        """
        with self._replaying() as live:
            seconds = min(seconds, PREVIEW_SHARE * self.settings.request_timeout_s)
            return await previewed(self._aside, live, self.store, draft, requests=requests, seconds=seconds)

    async def estimate(
        self, draft: Placement, *, event_type: str, by_value: bool, requests: int, seconds: float
    ) -> dict[str, Any]:
        """What a draft of a placement would bring, from its log, in about so many seconds; aside, as a preview is."""
        how: dict[str, Any] = {"event_type": event_type, "by_value": by_value, "requests": requests}
        with self._replaying() as live:
            return await estimated(self._aside, live, self.store, draft, seconds=seconds, **how)

    @contextmanager
    def _replaying(self) -> Iterator[Live]:
        """The release aside, for one who asks many logged requests again; for one at a time."""
        live = self._current()
        if self._previewing:
            raise Overloaded("a preview or an estimate is under way here; ask again when it is done")
        self._previewing = True
        try:
            yield live.aside()
        finally:
            self._previewing = False

    async def counterfactuals(self, query: Query, answer: Answer) -> list[dict[str, Any]]:
        """What an answer would have been without one thing or another; computed aside, by the release that gave it."""
        live = next((one for one in self._lives() if one.name == answer.model_version), self._current())
        seconds = min(SECONDS, PREVIEW_SHARE * self.settings.request_timeout_s)
        return await imagined(self._aside, live.aside(), self.store, query, seconds=seconds)

    def afterwards(self, made: Made) -> None:
        """Have the effects done with an answer once it is out; called on the event loop, which writes it first."""
        asyncio.get_running_loop().call_soon(self.effects.take, made)

    def run_section(self, section: Section, payload: bytes) -> bytes:
        """Run one section of a request that another deployment began (the far side of the chained topology)."""
        raw = orjson.loads(payload)
        work = Work.from_wire(raw, self._level_with(raw))
        run_section(section, work)
        if section == "rules" and not work.query.explain:
            work.keep_shown()
        return work.to_wire()

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
        with self._lock:
            self._level()
        self._behind = False
        metrics.REFRESHED.set_to_current_time()
        with self._changed:
            self._changed.notify_all()

    def count(self, events: Iterable[Event]) -> None:
        """Note what people did with the answers of a trial."""
        if self.trial is not None:
            self.trial.succeed(events)

    async def _tried(self, query: Query, live: Live, trial: Trial, profile: Profile | None) -> Listed:
        arm = trial.arm(query.user_id)
        began = time.monotonic()
        try:
            work = await self.ladder.climb(query, trial.live if arm == "canary" else live, profile)
        except InputError:
            raise
        except Exception:
            self._judge(trial, arm, time.monotonic() - began, failed=True)
            if arm == "control":
                raise
            logger.exception("release %s failed on trial; answering by %s", trial.live.name, live.name)
            work, arm = await self.ladder.climb(query, live, profile), "control"
        else:
            self._judge(trial, arm, time.monotonic() - began, failed=bool(set(work.degraded) - {"profile", "queue"}))
        if trial.mode == "canary" and work.snapshot.bundle.name in (live.name, trial.live.name):
            work.arms[RELEASE] = arm  # else the release of an experiment answered, which says so itself
        listed = self._listed(work, mark=trial.mark(arm))
        if trial.shadows(listed.recommendation_id):
            self._shadow(query, trial, work, [one.item_id for one in listed.answer.items])
        return listed

    def _listed(self, work: Work, *, mark: str = "") -> Listed:
        return Listed.of(work, _answer(work, self.paging, mark=mark))

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

    def _judge(self, trial: Trial, arm: Arm, seconds: float, *, failed: bool) -> None:
        trial.note(arm, seconds, failed=failed)
        metrics.ARMS.labels(arm, "failed" if failed else "ok").inc()

    def _shadow(self, query: Query, trial: Trial, answered: Work, ours: list[str]) -> None:
        """Compute the request on the shadow once its answer is out; one at a time, and none is waited for."""
        if self._shadowing is not None and not self._shadowing.done():
            trial.difference.dropped += 1
            return

        async def compare() -> None:
            job = Job(query, trial.live, self.settings.request_timeout_s, profile=answered.profile)
            job.read = not answered.stranger
            try:
                work = await self._aside.run(job)
                trial.difference.add(ours, [work.catalogue.id(place.row) for place in work.slate])
            except Exception:
                trial.difference.failed += 1
                logger.exception("the shadow %s failed", trial.live.name)

        self._shadowing = asyncio.get_running_loop().create_task(compare())

    def _current(self) -> Live:
        live = self._live
        if live is None:
            raise Unavailable(f"no release in {self.settings.releases}; train and publish one first")
        return live

    def _lives(self) -> list[Live]:
        trial = [self.trial.live] if self.trial is not None else []
        return [live for live in (self._live, *trial, *self._tested) if live is not None]

    def _level_with(self, raw: Mapping[str, Any]) -> Snapshot:
        """The view that a request of another deployment asks for, as new as that deployment's; in a thread."""
        revision, version = raw["needs"]
        snapshot = self._held(raw["model"])
        if snapshot.revision < revision or snapshot.policy.version < version:
            self.take_changes()
            snapshot = self._held(raw["model"])
        return snapshot

    def _held(self, name: str) -> Snapshot:
        """The view of a release that another deployment names, of the current one if it is not held here (yet)."""
        return next((live.snapshot for live in self._lives() if live.name == name), self.snapshot)

    def _follow(self, step: Callable[[], None], wait: Callable[[float], bool]) -> None:
        outage = Outage(
            logger, f"could not {step.__name__.strip('_').replace('_', ' ')}; the last view stays in service"
        )
        while not self._stopped.is_set():
            wait(self.settings.poll_s)
            try:
                step()
                outage.over()
            except Exception:  # a follower must outlive whatever the store or a release folder does
                if not self._stopped.is_set():
                    outage.failed()
                    self._stopped.wait(self.settings.poll_s)

    def _catch_up(self, live: Live, revision: int, version: int, seconds: float) -> None:
        """Wait, in the thread of a request, until a release is level with the store; not longer than given."""

        def level() -> bool:
            snapshot = live.snapshot
            return snapshot.revision >= revision and snapshot.policy.version >= version

        # A request that waited in vain speaks for those behind it: a large import must not make everybody wait.
        if self._behind:
            return
        self._asked.set()
        with self._changed:
            self._behind = not self._changed.wait_for(level, max(0.0, seconds))

    def _level(self) -> None:
        """Bring every release held here to the state of the store; the lock is held."""
        self._asked.clear()
        if self.store.documents.version() != self._documents[0]:
            self._documents = self.store.documents.snapshot()
        version, documents = self._documents
        revision = self.store.catalogue.revision()
        for live in self._lives():
            if live.snapshot.revision != revision:
                live.take_changes(version, documents)
                metrics.FRESHNESS.labels("items").observe(time.monotonic() - self._level_at)
            if live.snapshot.policy.version != version:
                live.take_policy(version, documents)
                metrics.FRESHNESS.labels("policy").observe(time.monotonic() - self._level_at)
        self._level_at = time.monotonic()

    def _take_releases(self) -> None:
        """Put in service, or on trial, what pointer and documents name; what is not sound never replaces what is."""
        with self._opening:
            pointer = self._pointer()
            wanted = tried(self._documents[1])
            live, trial = self._live, self.trial
            sound = True
            if pointer is not None and (live is None or pointer[0] != live.name):
                opened = self._opened(*pointer)
                sound = opened is not None
                live = opened or live or self._last_sound(pointer[0])
            if wanted is None or (live is not None and wanted.name == live.name):
                trial = None
            elif trial is None or trial.version != wanted.version:
                opened = self._opened(wanted.name, wanted.version)
                sound = sound and opened is not None
                trial = Trial(opened, wanted.mode, wanted.how, wanted.version) if opened is not None else None
            tested = self._wanted_by_experiments(live, trial)
            metrics.REFUSED.set(not sound)
            if live is not self._live or trial is not self.trial or tested != self._tested:
                self._put(live, trial, tested)
            self._take_demand()
        self._show_circuits()
        if trial is not None and wanted is not None and time.monotonic() - self._judged_at > JUDGE_S:
            self._judged_at = time.monotonic()
            self._withdraw_if_bad(trial, wanted)

    def _wanted_by_experiments(self, live: Live | None, trial: Trial | None) -> tuple[Live, ...]:
        """Releases that arms of experiments are answered by, beside those that are held anyway."""
        withdrawn = {
            one.id for one in self._documents[1] if one.kind == RELEASE and one.body.get("state") == "withdrawn"
        }
        anyway = {one.name for one in (live, None if trial is None else trial.live) if one is not None}
        names = sorted(self.policy.of(EXPERIMENTS).releases() - withdrawn - anyway)
        return tuple(one for name in names if (one := self._opened(name, self._stamp(name))) is not None)

    def _stamp(self, name: str) -> int:
        """When a release was put into its folder; 0 while it is not there."""
        folder = self.settings.releases / name
        return folder.stat().st_mtime_ns if folder.is_dir() else 0

    def _put(self, live: Live | None, trial: Trial | None, tested: tuple[Live, ...]) -> None:
        """One assignment each: a request in flight keeps what it has read."""
        with self._lock:
            before, self._live, self.trial, self._tested = self._live, live, trial, tested
            self._level()
        if live is not None and live is not before:
            if before is not None:
                pointer = self.settings.releases / CURRENT
                metrics.FRESHNESS.labels("release").observe(max(0.0, time.time() - pointer.stat().st_mtime))
            logger.info("release %s in service", live.name)

    def _pointer(self) -> tuple[str, int] | None:
        """The name in the release pointer and when it was written; a pointer that is none counts as an unsound release."""
        try:
            name = current_release(self.settings.releases)
            return None if name is None else (name, (self.settings.releases / CURRENT).stat().st_mtime_ns)
        except BundleError as error:
            return f"? {error.message}", 0

    def _opened(self, name: str, stamp: int) -> Live | None:
        """A release, verified and level with the store, or None; what was refused is not tried again before it moves."""
        for held in self._lives():
            if held.name == name:
                return held
        if (name, stamp) in self._refused:
            return None
        try:
            bundle = open_bundle(self.settings.releases / name, parts=self.parts)
            version, documents = self._documents
            return Live(bundle, self.store, version=version, documents=documents, demand=self._demand)
        except (BundleError, NotFound) as error:
            self._refused.add((name, stamp))
            logger.error("release refused: %s", error.message)
            return None

    def _last_sound(self, name: str) -> Live | None:
        """After a restart on an unsound release: the one before it, rather than none."""
        before = [one for one in list_releases(self.settings.releases) if one != name]
        return next((live for one in reversed(before) if (live := self._opened(one, 0)) is not None), None)

    def _take_demand(self) -> None:
        if time.monotonic() - self._demand_at < self.settings.trend_s or self._live is None:
            return
        self._demand_at = time.monotonic()
        self._demand = self.store.events.counts(time.time() - TREND_WINDOW_S, TREND_HALF_LIFE_S)
        with self._lock:
            for live in self._lives():
                live.take_demand(self._demand)

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
        if time.monotonic() - self._learned_at < LEARN_S or self._live is None:
            return
        self._learned_at = time.monotonic()
        contents = self.policy.contents
        if contents:
            if self._decides:
                self.contents.learned.learn(contents, self._live.name)
            self.contents.learned.refresh()

    def _show_circuits(self) -> None:
        """Export the circuits of the release in service, and of the store; those of a trial are judged with it."""
        if time.monotonic() - self._shown_at > SHOW_S:
            self._shown_at = time.monotonic()
            metrics.CIRCUIT.labels("store").set(self.ladder.circuit.open)
            for section, circuit in self._live.circuits.items() if self._live is not None else ():
                metrics.CIRCUIT.labels(section).set(circuit.open)

    def _withdraw_if_bad(self, trial: Trial, wanted: Tried) -> None:
        reason = trial.verdict() if trial.mode == "canary" else None
        if reason is not None and self.releases.withdraw(wanted, reason, by=ITSELF):
            metrics.WITHDRAWN.inc()
            logger.error("canary %s withdrawn: %s", trial.live.name, reason)


def _answer(work: Work, paging: Paging, *, mark: str = "") -> Answer:
    query, catalogue, anchor = work.query, work.catalogue, work.anchor
    begun = anchor.item_id if anchor and query.similar_to is None else None
    shown = [catalogue.id(place.row) for place in work.slate]
    more = query.candidates is None and len(shown) >= query.k
    return Answer(
        recommendation_id=uuid.uuid4().hex + mark,
        items=tuple(
            Recommended(
                item_id=item_id,
                score=place.score,
                reasons=place.reasons,
                item=catalogue.item(place.row) if query.fields else None,
            )
            for item_id, place in zip(shown, work.slate, strict=True)
        ),
        model_version=work.snapshot.bundle.name,
        policy_version=work.snapshot.policy.version,
        experiment=dict(work.arms),
        degraded=tuple(work.degraded),
        unknown=tuple(name for name in query.candidates or () if catalogue.row(name) < 0),
        unserved=work.unserved,
        anchor=anchor,
        next_page=paging.after(query, shown, anchor=begun) if more else None,
        trace=trace_of(work) if query.explain else None,
        milliseconds=work.milliseconds,
    )
