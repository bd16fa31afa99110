"""The engine: everything one replica holds, and the one place where a request becomes an answer.

It owns the store, the release in service and the snapshot every request reads. A background thread follows what other
replicas and people change: items, policy, the release pointer, demand. Nothing here knows HTTP or Ray; in the chained
topology the sections are handed in as calls to other deployments.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import orjson

from embeddings.bundle import current_release, open_bundle
from embeddings.errors import BespokeError, BundleError, NotFound, StoreError, Unavailable
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.pipeline import SECTIONS, SOURCES, run_section, trace_of
from serving.pipeline.query import Answer, Query, Recommended
from serving.pipeline.snapshot import Snapshot
from serving.pipeline.stage import Section
from serving.pipeline.work import Work
from serving.policy.compiled import KINDS, Policy
from serving.settings import Settings
from serving.store import Store
from serving.store.profiles import Profile

logger = logging.getLogger("bespoke.engine")

T = TypeVar("T")
Call = Callable[[bytes], Awaitable[bytes]]
REFILLS = 3
CHANGES_AT_ONCE = 10_000
TREND_WINDOW_S = 7 * 86_400.0
TREND_HALF_LIFE_S = 86_400.0


class Engine:
    """One replica's state. `start` before the first request, `stop` after the last."""

    def __init__(self, settings: Settings, *, sections: Mapping[Section, Call] | None = None) -> None:
        self.settings = settings
        self.sections = sections
        self.store = Store.open(settings.store)
        self._snapshot: Snapshot | None = None
        self._revision = -1
        self._trend_at = 0.0
        self._refused: str | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self.pool = ThreadPoolExecutor(max_workers=settings.threads, thread_name_prefix="pipeline")
        self._follower = threading.Thread(target=self._follow, name="follower", daemon=True)

    def start(self) -> None:
        """Load the current release, if there is one, and begin to follow changes."""
        self.refresh()
        self._follower.start()

    def stop(self) -> None:
        """Let requests in flight finish, then let go of everything."""
        self._stopped.set()
        if self._follower.is_alive():
            self._follower.join(timeout=5)
        self.pool.shutdown(wait=True)
        self.store.close()

    @property
    def ready(self) -> bool:
        """Whether a release is in service."""
        return self._snapshot is not None

    @property
    def following(self) -> bool:
        """Whether the engine still follows the changes of others."""
        return self._follower.is_alive()

    @property
    def snapshot(self) -> Snapshot:
        """The current view; raises `Unavailable` before the first release."""
        snapshot = self._snapshot
        if snapshot is None:
            raise Unavailable(f"no release in {self.settings.releases}; train and publish one first")
        return snapshot

    async def recommend(self, query: Query) -> Answer:
        """Answer one query. Raises `InputError` for what is wrong with it, `Unavailable` without a release."""
        snapshot = self.snapshot
        if query.similar_to is not None and snapshot.catalogue.row(query.similar_to) < 0:
            raise NotFound(f"unknown item '{query.similar_to}'", field="item_id")
        if self.sections is None:
            return await self._in_pool(self._fused, query, snapshot)
        work = await self._in_pool(self._begin, query, snapshot)
        for _ in range(REFILLS):
            # What travels is read again only at the end: each deployment answers in the form the next one takes.
            payload = work.to_wire([self._revision, snapshot.policy.version])
            for section in SECTIONS:
                payload = await self._remote(self.sections[section], section, payload)
            work = Work.from_wire(orjson.loads(payload), snapshot)
            if work.complete:
                break
            work.again()
        return self._answer(work)

    def run_section(self, section: Section, payload: bytes) -> bytes:
        """Run one section of a request that another deployment began (the far side of the chained topology)."""
        raw = orjson.loads(payload)
        needs = raw["needs"]
        if self._revision < needs[0] or self.snapshot.policy.version < needs[1]:
            self.refresh()
        work = Work.from_wire(raw, self.snapshot)
        run_section(section, work)
        return work.to_wire(needs)

    def refresh(self) -> None:
        """Bring the snapshot up to date with store and release pointer; called after every write and by the follower."""
        with self._lock:
            self._take_release()
            if self._snapshot is not None:
                self._take_changes()
                self._take_policy()
                self._take_trend()

    def _fused(self, query: Query, snapshot: Snapshot) -> Answer:
        work = self._begin(query, snapshot)
        for _ in range(REFILLS):
            for section in SECTIONS:
                run_section(section, work)
            if work.complete:
                break
            work.again()
        return self._answer(work)

    def _begin(self, query: Query, snapshot: Snapshot) -> Work:
        profile: Profile | None = None
        lost = False
        if query.user_id is not None:
            try:
                profile = self.store.profiles.get(query.user_id)
            except StoreError:
                logger.exception("profile not read; answering as for a new person")
                lost = True
        work = Work(query, snapshot, profile)
        if lost:
            work.degrade("profile")
        return work

    async def _remote(self, call: Call, section: Section, payload: bytes) -> bytes:
        """Ask the deployment of a section; without ranking the retrieval order stands, without others there is no list."""
        try:
            return await call(payload)
        except BespokeError:
            raise
        except Exception as error:
            if section != "ranking":
                raise Unavailable(f"the {section} deployment did not answer") from error
            logger.exception("the ranking deployment did not answer; keeping the retrieval order")
            return Work.degraded_wire(payload, "ranker")

    def _answer(self, work: Work) -> Answer:
        query, catalogue = work.query, work.catalogue
        return Answer(
            recommendation_id=uuid.uuid4().hex,
            items=tuple(
                Recommended(
                    item_id=catalogue.id(place.row),
                    score=place.score,
                    reasons=place.reasons,
                    item=catalogue.item(place.row) if query.fields else None,
                )
                for place in work.slate
            ),
            model_version=work.snapshot.bundle.name,
            policy_version=work.snapshot.policy.version,
            degraded=tuple(work.degraded),
            unknown=tuple(name for name in query.candidates or () if catalogue.row(name) < 0),
            trace=trace_of(work) if query.explain else None,
            milliseconds=work.milliseconds,
        )

    async def _in_pool(self, call: Callable[[Query, Snapshot], T], query: Query, snapshot: Snapshot) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.pool, call, query, snapshot)

    def _follow(self) -> None:
        while not self._stopped.wait(self.settings.poll_s):
            try:
                self.refresh()
            except Exception:  # the follower must outlive whatever the store or a release folder does
                logger.exception("could not refresh; the last view stays in service")

    def _take_release(self) -> None:
        """Open the release the pointer names, if it is another one; a bad one never replaces the one in service."""
        name = current_release(self.settings.releases)
        held = self._snapshot.bundle.name if self._snapshot else None
        if name is None or name in (held, self._refused):
            return
        try:
            bundle = open_bundle(self.settings.releases / name)
        except (BundleError, NotFound) as error:
            self._refused = name
            logger.error("release refused: %s", error.message)
            return
        started = time.monotonic()
        catalogue = Catalogue.of_bundle(bundle)
        revision, catalogue = self._caught_up(catalogue, 0)
        old = self._snapshot.policy if self._snapshot else Policy.compile({}, version=-1, item_attributes=())
        self._snapshot = Snapshot(
            catalogue=catalogue,
            policy=old,
            base_policy=old.bind(catalogue.base.columns),
            delta_policy=old.bind(catalogue.delta.columns),
            live_trend=self._snapshot.live_trend if self._snapshot else {},
            sources=SOURCES,
        )
        self._revision = revision
        self._take_policy(force=True)
        logger.info("release %s in service after %.1f s", name, time.monotonic() - started)

    def _take_changes(self) -> None:
        if self.store.catalogue.revision() == self._revision:
            return
        snapshot = self.snapshot
        revision, catalogue = self._caught_up(snapshot.catalogue, self._revision)
        self._snapshot = self._with(catalogue=catalogue, delta_policy=snapshot.policy.bind(catalogue.delta.columns))
        self._revision = revision
        if catalogue.attributes != snapshot.catalogue.attributes:
            self._take_policy(force=True)  # a rule may have become valid, or may not be any more

    def _caught_up(self, catalogue: Catalogue, revision: int) -> tuple[int, Catalogue]:
        while True:
            changes = self.store.catalogue.changes(revision, CHANGES_AT_ONCE)
            if not changes.upserted and not changes.deleted:
                return max(revision, changes.revision), catalogue
            catalogue = catalogue.changed(changes.upserted, changes.deleted)
            revision = changes.revision

    def _take_policy(self, *, force: bool = False) -> None:
        if self.store.documents.version() == self.snapshot.policy.version and not force:
            return
        catalogue = self.snapshot.catalogue
        version, stored = self.store.documents.snapshot()
        documents = {kind: [one.body for one in stored if one.kind == kind] for kind in KINDS}
        policy = Policy.compile(documents, version=version, item_attributes=catalogue.attributes)
        for problem in policy.problems:
            logger.error("%s '%s' left out: %s", problem.kind, problem.id, problem.message)
        self._snapshot = self._with(
            policy=policy,
            base_policy=policy.bind(catalogue.base.columns),
            delta_policy=policy.bind(catalogue.delta.columns),
        )

    def _take_trend(self) -> None:
        if time.monotonic() - self._trend_at < self.settings.trend_s and self._trend_at:
            return
        self._trend_at = time.monotonic()
        spec = self.snapshot.bundle.spec
        counts = self.store.events.counts(time.time() - TREND_WINDOW_S, TREND_HALF_LIFE_S)
        trend = {
            item_id: sum(max(0.0, spec.event_kind(name).weight) * count for name, count in by_type.items())
            for item_id, by_type in counts.items()
        }
        self._snapshot = self._with(live_trend=trend)

    def _with(self, **changes: object) -> Snapshot:
        # Not dataclasses.replace: the cached columns of the old snapshot must not travel into the new one.
        old = self.snapshot
        fields = {name: getattr(old, name) for name in Snapshot.__dataclass_fields__}
        return Snapshot(**(fields | changes))
