"""Holdings: the releases that a replica has in memory, level with the store and with the release pointer.

One is in service and one may be on trial; others are asked for by arms of experiments. A request in flight keeps what it
has read: what changes is put in place by one assignment.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext

from embeddings.bundle_reader import open_bundle
from embeddings.errors import BundleError, NotFound, Unavailable
from embeddings.manifest import Part
from embeddings.releases import CURRENT, current_release, list_releases
from serving import metrics
from serving.pipeline.live import Demand, Live, policy_of
from serving.pipeline.opening import turn
from serving.pipeline.releases import RELEASE, Releases, Tried, tried
from serving.pipeline.trial import Trial
from serving.policy.compiled import Policy
from serving.policy.layers import EXPERIMENTS
from serving.request.snapshot import Snapshot
from serving.settings import Settings
from serving.store import Document, Store

logger = logging.getLogger("bespoke.holdings")

TREND_WINDOW_S = 7 * 86_400.0
TREND_HALF_LIFE_S = 86_400.0
JUDGE_S = 1.0

ITSELF = "bespoke"
"""Who withdrew a release when nobody did."""


class Holdings:
    """What is held of the releases of a folder; `parts` are the parts of a release that this replica computes with."""

    def __init__(self, settings: Settings, store: Store, releases: Releases, *, parts: frozenset[Part]) -> None:
        self.settings, self.store, self.releases, self.parts = settings, store, releases, parts
        self.live: Live | None = None
        self.trial: Trial | None = None
        self.asked = threading.Event()
        self.demand_at = -math.inf
        self._tested: tuple[Live, ...] = ()
        self._documents: tuple[int, Sequence[Document]] = (-1, ())
        self._demand: Demand = {}
        self._judged_at = 0.0
        self._level_at = time.monotonic()
        self._behind = False
        self._refused: set[tuple[str, int]] = set()
        self._opening, self._lock = threading.Lock(), threading.Lock()
        self._changed = threading.Condition()

    def current(self) -> Live:
        """The release in service; raises `Unavailable` before the first one."""
        live = self.live
        if live is None:
            raise Unavailable(f"no release in {self.settings.releases}; train and publish one first")
        return live

    def every(self) -> list[Live]:
        """The release in service, the one on trial, and those of experiments."""
        trial = [self.trial.live] if self.trial is not None else []
        return [live for live in (self.live, *trial, *self._tested) if live is not None]

    def named(self, name: str) -> Live | None:
        """A release that is held here."""
        return next((live for live in self.every() if live.name == name), None)

    @property
    def policy(self) -> Policy:
        """The policy in force; before the first release that of the stored documents, compared with no catalogue."""
        live = self.live
        if live is not None:
            return live.snapshot.policy
        version, documents = self._documents
        return policy_of(documents, version=version, item_attributes=None)

    def level_with(self, name: str, revision: int, version: int) -> Snapshot:
        """The view of a release that another deployment names, as new as it has it; in a thread.

        It is that of the current release where the named one is not held here (yet).
        """
        snapshot = (self.named(name) or self.current()).snapshot
        if snapshot.revision < revision or snapshot.policy.version < version:
            self.take_changes()
            snapshot = (self.named(name) or self.current()).snapshot
        return snapshot

    def catch_up(self, live: Live, revision: int, version: int, seconds: float) -> None:
        """Wait, in the thread of a request, until a release is level with the store; not longer than given."""

        def level() -> bool:
            snapshot = live.snapshot
            return snapshot.revision >= revision and snapshot.policy.version >= version

        # A request that waited in vain speaks for those behind it: a large import must not make everybody wait.
        if self._behind:
            return
        self.asked.set()
        with self._changed:
            self._behind = not self._changed.wait_for(level, max(0.0, seconds))

    def take_changes(self) -> None:
        """Bring items and policy up to date with the store; `asked` asks a follower to do so at once."""
        with self._lock:
            self._level()
        self._behind = False
        metrics.REFRESHED.set_to_current_time()
        with self._changed:
            self._changed.notify_all()

    def _level(self) -> None:
        """Bring every release held here to the state of the store; the lock is held."""
        self.asked.clear()
        if self.store.documents.version() != self._documents[0]:
            self._documents = self.store.documents.snapshot()
        version, documents = self._documents
        revision = self.store.catalogue.revision()
        for live in self.every():
            if live.snapshot.revision != revision:
                live.take_changes(version, documents)
                metrics.FRESHNESS.labels("items").observe(time.monotonic() - self._level_at)
            if live.snapshot.policy.version != version:
                live.take_policy(version, documents)
                metrics.FRESHNESS.labels("policy").observe(time.monotonic() - self._level_at)
        self._level_at = time.monotonic()

    def take_releases(self) -> None:
        """Put in service, or on trial, what pointer and documents name; what is not sound never replaces what is."""
        with self._opening:
            pointer = self._pointer()
            wanted = tried(self._documents[1])
            live, trial = self.live, self.trial
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
            if live is not self.live or trial is not self.trial or tested != self._tested:
                self._put(live, trial, tested)
            self._take_demand()
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
            before, self.live, self.trial, self._tested = self.live, live, trial, tested
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
        held = self.named(name)
        if held is not None:
            return held
        if (name, stamp) in self._refused:
            return None
        try:
            # One after the other where requests are answered meanwhile.
            with nullcontext() if self.live is None else turn(self.settings.releases):
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
        if time.monotonic() - self.demand_at < self.settings.trend_s or self.live is None:
            return
        self.demand_at = time.monotonic()
        self._demand = self.store.events.counts(time.time() - TREND_WINDOW_S, TREND_HALF_LIFE_S)
        with self._lock:
            for live in self.every():
                live.take_demand(self._demand)

    def _withdraw_if_bad(self, trial: Trial, wanted: Tried) -> None:
        reason = trial.verdict() if trial.mode == "canary" else None
        if reason is not None and self.releases.withdraw(wanted, reason, by=ITSELF):
            metrics.WITHDRAWN.inc()
            logger.error("canary %s withdrawn: %s", trial.live.name, reason)
