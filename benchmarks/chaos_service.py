"""Chaos of the running service, over HTTP: processes killed, a store that stalls, a herd, releases swapped, a long soak.

The service runs as users start it, with two replicas. A caller asks at a constant rate and checks every answer: a full
list of different items, of one release, and of the release it names.
"""

from __future__ import annotations

import asyncio
import bisect
import json
import os
import sqlite3
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread
from typing import Any
from unittest import mock

import psutil

from benchmarks.load import Caller, encode, percentile_ms
from benchmarks.serving import make_world, service, write_release
from benchmarks.trial import Trial
from embeddings.releases import point_to
from embeddings.schema import Item, from_table
from serving.family import members
from serving.settings import Settings
from training.shop import Shop

ITEMS = 500
SWAP_S = 5.0
REPLICAS = 2
KILL_EVERY_S = 5.0
RECOVERY_S = 60.0
STALL_S = 3.0
QUIET_S = 5.0
SAMPLES = 9
PATIENCE_S = 30.0
FULL_ANSWERED = 0.999
REPLICA = "ray::ServeReplica"


@dataclass(slots=True)
class Answers:
    """What a caller saw: statuses (0: no connection), seconds of good answers, faults, and when it went well or not."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    failed_at: list[float] = field(default_factory=list)
    good_at: list[float] = field(default_factory=list)
    without_retry_after: int = 0
    reopened: int = 0

    @property
    def answered(self) -> float:
        """Share of requests with a list."""
        return self.statuses[200] / max(1, self.statuses.total())

    @property
    def p99_ms(self) -> float:
        """99th percentile of the good answers, in milliseconds."""
        return percentile_ms(sorted(self.seconds), 0.99) or 0.0

    def note(self, caller: Caller, status: int, seconds: float) -> None:
        """Count and check one answer."""
        self.statuses[status] += 1
        if status == 200:
            self.seconds.append(seconds)
            self.good_at.append(time.monotonic())
            self.wrong.extend(fault(json.loads(caller.body)))
        elif status == 202:
            self.good_at.append(time.monotonic())
        else:
            self.failed_at.append(time.monotonic())
            if status in (429, 503) and b"\r\nretry-after:" not in caller.head.lower():
                self.without_retry_after += 1


def fault(body: dict[str, Any]) -> list[str]:
    """What is wrong with an answer; ids of a release that is not the first one begin with its name."""
    ids = [one["item_id"] for one in body["items"]]
    if len(ids) != 20 or len(set(ids)) != 20:
        return [f"a list of {len(set(ids))} different items instead of 20"]
    release = body["model_version"]
    if any(item_id.partition(":")[0] != release for item_id in ids if release != "untrained" or ":" in item_id):
        return [f"the list of release {release} has items of another"]
    return []


class Load(Thread):
    """Requests at a constant rate on a thread of its own, until `stop`; or as fast as `callers` can, without a rate."""

    def __init__(
        self,
        url: str,
        bodies: Sequence[dict[str, Any]],
        *,
        rate: float | None,
        callers: int = 32,
        path: str = "/v1/recommendations",
    ) -> None:
        super().__init__(daemon=True)
        self.url = f"{url}{path}"
        self.requests = encode(self.url, [json.dumps(body) for body in bodies])
        self.rate, self.callers = rate, callers
        self.answers = Answers()
        self.stopped = False
        self.failure: Exception | None = None

    def __enter__(self) -> Answers:
        self.start()
        return self.answers

    def __exit__(self, *_: object) -> None:
        self.stopped = True
        self.join(2 * PATIENCE_S)
        if self.failure is not None:
            raise self.failure

    def run(self) -> None:
        """Ask until stopped."""
        try:
            asyncio.run(self._ask())
        except Exception as failure:  # raised where the load is taken away: half a load must not pass for a whole one
            self.failure = failure

    async def _ask(self) -> None:
        start = time.perf_counter()
        await asyncio.gather(*(self._call(Caller(self.url, self.requests, n), n, start) for n in range(self.callers)))

    async def _call(self, caller: Caller, number: int, start: float) -> None:
        turn = 0
        while not self.stopped:
            due = time.perf_counter()
            if self.rate is not None:
                due = start + (number + turn * self.callers) / self.rate
                turn += 1
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
            reused = caller.writer is not None
            status = await asyncio.wait_for(caller.ask(), PATIENCE_S)
            if status == 0 and reused:
                # A connection that was kept open may be closed at any time; like every client, open another and repeat.
                self.answers.reopened += 1
                caller.next -= 1
                status = await asyncio.wait_for(caller.ask(), PATIENCE_S)
            self.answers.note(caller, status, time.perf_counter() - due)
            if status == 0:
                await asyncio.sleep(0.01)
        caller.close()


@contextmanager
def running(trial: Trial) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The service on a small world: its URL, and bodies to ask it with."""
    world = make_world(trial.folder, items=ITEMS)
    with mock.patch.dict(os.environ, {"BESPOKE_REPLICAS": str(REPLICAS)}), service(trial.folder, "fused") as url:
        yield url, world


def capacity(url: str, world: Sequence[dict[str, Any]]) -> float:
    """Lists a second that 16 callers get."""
    with Load(url, world, rate=None, callers=16) as answers:
        time.sleep(3)
    return answers.statuses[200] / 3


def processes(url: str, name: str) -> list[psutil.Process]:
    """Processes of the service whose title begins with a name."""
    found = []
    for process in members(int(url.rpartition(":")[2])):
        try:
            title = " ".join(process.cmdline()) or process.name()
        except psutil.Error:
            continue
        if title.startswith(name) or process.name().startswith(name):
            found.append(process)
    return found


def replicas_killed(trial: Trial) -> None:
    """A replica dies every five seconds under half load."""
    dice = trial.dice()
    with running(trial) as (url, world):
        rate = capacity(url, world) / 2
        killed = 0
        with Load(url, world, rate=rate) as answers:
            for _ in range(trial.pick(4, 24)):
                time.sleep(KILL_EVERY_S)
                alive = processes(url, REPLICA)
                if len(alive) == REPLICAS:  # the last one standing is not shot at: that is the next scenario
                    dice.choice(alive).kill()
                    killed += 1
            time.sleep(KILL_EVERY_S)
    _report(trial, answers, killed=killed, rate=round(rate))
    trial.expect(killed > 0, "no replica was killed")
    trial.expect(answers.answered >= FULL_ANSWERED, f"only {answers.answered:.2%} were answered")


def parts_killed(trial: Trial) -> None:
    """Proxy, controller and all replicas die, one kind after the other; the service comes back by itself each time."""
    with running(trial) as (url, world):
        rate = capacity(url, world) / 4
        with Load(url, world, rate=rate) as answers:
            for name in ("haproxy", "ray::ServeController", "ray::ProxyActor", "ray::HAProxyManager", REPLICA):
                victims = processes(url, name)
                for victim in victims:
                    victim.kill()
                at = time.monotonic()
                back = _back_after(answers, at) if victims else None
                trial.figures[name.rpartition(":")[2]] = "none" if back is None else f"back after {back:.1f} s"
                trial.expect(back is None or back < RECOVERY_S, f"{name} was killed and the service did not come back")
    _report(trial, answers)


def _back_after(answers: Answers, at: float) -> float:
    """Seconds from a kill until there are answers again, and then five seconds without a failure."""
    while time.monotonic() - at < RECOVERY_S:
        time.sleep(0.5)
        last = max([at, *answers.failed_at[-1:]])
        again = bisect.bisect_right(answers.good_at, last)
        if time.monotonic() - last > QUIET_S and again < len(answers.good_at):
            return answers.good_at[again] - at
    return RECOVERY_S


def slow_store(trial: Trial) -> None:
    """Somebody holds the store's write lock: events wait, lists do not; then both go on."""
    with running(trial) as (url, world):
        rate = capacity(url, world) / 4
        event = {"user_id": "u1", "item_id": "x", "event_type": "view"}
        events = Caller(f"{url}/v1/events", encode(f"{url}/v1/events", [json.dumps(event)]), 0)
        lock = sqlite3.connect(trial.folder / "store.db", isolation_level=None, timeout=30)
        with Load(url, world, rate=rate) as answers:
            lock.execute("BEGIN IMMEDIATE")
            started = time.monotonic()
            waiting = Thread(target=lambda: trial.figures.update(event=asyncio.run(events.ask())))
            waiting.start()
            time.sleep(STALL_S)
            lock.execute("ROLLBACK")
            waiting.join(30)
            trial.figures["event_after_s"] = round(time.monotonic() - started, 1)
        lock.close()
    _report(trial, answers)
    trial.expect(trial.figures["event"] == 202, f"the waiting event got {trial.figures['event']}")
    trial.expect(answers.answered >= FULL_ANSWERED, f"only {answers.answered:.2%} of the lists were answered")


def herd(trial: Trial) -> None:
    """Ten times the callers that the service can hold: prompt refusals, bounded memory, and soon everything as before."""
    with running(trial) as (url, world):
        rate = capacity(url, world) / 4
        with Load(url, world, rate=rate) as before:
            time.sleep(5)
        memory = _memory(url)
        with Load(url, world, rate=None, callers=640 * REPLICAS) as crowd:
            time.sleep(trial.pick(8, 30))
            grown = _memory(url) - memory
        time.sleep(5)
        with Load(url, world, rate=rate) as after:
            time.sleep(5)
    trial.figures |= {"answers": dict(crowd.statuses), "p99_ms": crowd.p99_ms, "grown_mb": round(grown / 1e6)}
    trial.figures |= {"before_ms": _median(before), "after_ms": _median(after)}
    trial.wrong += crowd.wrong[:3]
    trial.expect(crowd.statuses[200] > 0, "nobody was answered")
    trial.expect(
        set(crowd.statuses) <= {200, 429, 503}, f"answers other than a list or a refusal: {dict(crowd.statuses)}"
    )
    deadline_ms = Settings().request_timeout_s * 1e3
    trial.expect(crowd.p99_ms <= deadline_ms, f"answered after {crowd.p99_ms} ms, the deadline is {deadline_ms:.0f} ms")
    trial.expect(not crowd.without_retry_after, f"{crowd.without_retry_after} refusals without Retry-After")
    trial.expect(grown < 300e6, f"memory grew by {grown / 1e6:.0f} MB")
    trial.expect(after.answered == 1.0, f"only {after.answered:.2%} were answered five seconds later")


def releases_swapped(trial: Trial) -> None:
    """Two releases with different items take turns under load, every few seconds."""
    swaps = trial.pick(5, 50)
    with running(trial) as (url, world):
        rows = from_table(Shop(items=ITEMS, users=10).items(), Item)
        write_release(
            trial.folder / "releases",
            "other",
            [row.model_copy(update={"item_id": f"other:{row.item_id}"}) for row in rows],
        )
        rate = capacity(url, world) / 2
        with Load(url, world, rate=rate) as quiet:
            time.sleep(5)
        with Load(url, world, rate=rate) as answers:
            for turn in range(swaps):
                point_to(trial.folder / "releases", ("other", "untrained")[turn % 2])
                time.sleep(SWAP_S)
    _report(trial, answers, swaps=swaps, quiet_p99_ms=quiet.p99_ms)
    trial.expect(answers.answered == 1.0, f"only {answers.answered:.2%} were answered")
    trial.expect(answers.p99_ms <= 2 * quiet.p99_ms, f"p99 {answers.p99_ms} ms, {quiet.p99_ms} ms without swaps")


def soak(trial: Trial) -> None:
    """Quarter load, lists and events, for a long time: memory and descriptors stay what they were after the first tenth."""
    seconds, samples = trial.minutes * 60, list[dict[str, dict[str, float]]]()
    with running(trial) as (url, world):
        rate = capacity(url, world) / 4
        events = [
            {"user_id": body["user_id"], "item_id": f"i{at:08}", "event_type": "view"} for at, body in enumerate(world)
        ]
        with Load(url, world, rate=rate) as answers, Load(url, events, rate=rate, callers=8, path="/v1/events") as sent:
            time.sleep(seconds / 10)
            for _ in range(SAMPLES):
                samples.append(_sizes(url))
                time.sleep(seconds * 0.9 / SAMPLES)
            samples.append(_sizes(url))
    trial.figures["processes"] = {name: _course([one.get(name, {}) for one in samples]) for name in samples[0]}
    _report(trial, answers, rate=round(rate), events=dict(sent.statuses))
    mb, files = ([sum(one[what] for one in sample.values()) for sample in samples] for what in ("mb", "files"))
    trial.expect(mb[-1] < 1.1 * mb[0], f"memory grew from {mb[0]:.0f} MB to {mb[-1]:.0f} MB")
    trial.expect(files[-1] < files[0] + 50, f"{files[-1] - files[0]:.0f} more descriptors are open")
    trial.expect(answers.answered >= FULL_ANSWERED, f"only {answers.answered:.2%} of the lists were answered")
    trial.expect(set(sent.statuses) == {202}, f"events were answered with {dict(sent.statuses)}")


def _sizes(url: str) -> dict[str, dict[str, float]]:
    """Memory in MB, each page counted once, and open files of a service, by the name of its processes."""
    found: dict[str, dict[str, float]] = {}
    for process in members(int(url.rpartition(":")[2])):
        try:
            name = (process.cmdline() or [process.name()])[0].partition(" ")[0].rpartition("/")[2][:40]
            one = found.setdefault(name, {"mb": 0.0, "files": 0, "processes": 0})
            one["mb"] += process.memory_full_info().pss / 1e6
            one["files"] += process.num_fds()
            one["processes"] += 1
        except psutil.Error:  # it ended meanwhile
            continue
    return found


def _course(samples: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    return {what: [round(one.get(what, 0)) for one in samples] for what in ("mb", "files", "processes")}


def _report(trial: Trial, answers: Answers, **figures: Any) -> None:
    trial.figures |= {"answered": round(answers.answered, 5), "p99_ms": answers.p99_ms, **figures}
    trial.figures |= {"statuses": dict(answers.statuses), "reopened": answers.reopened}
    trial.wrong += sorted(set(answers.wrong))[:3]


def _median(answers: Answers) -> float:
    return round(statistics.median(answers.seconds or [0.0]) * 1e3, 2)


def _memory(url: str) -> int:
    return sum(process.memory_info().rss for process in processes(url, REPLICA))


SCENARIOS: dict[str, Callable[[Trial], None]] = {
    "replicas": replicas_killed,
    "parts": parts_killed,
    "slow": slow_store,
    "herd": herd,
    "releases": releases_swapped,
    "soak": soak,
}
