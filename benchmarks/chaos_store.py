"""Chaos of the store, without a service: writers killed, files that rot, a full disk, a moved clock."""

from __future__ import annotations

import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.trial import Trial
from embeddings.errors import BespokeError, InputError, StoreError
from embeddings.schema import Event, Item, User, parse
from serving.store import Store

START = datetime(2026, 3, 1, tzinfo=UTC)
PEOPLE = 20
WRITERS = 2

# Several callers at once, so that commits are shared; the lines of a batch appear only when it is acknowledged.
WRITER = """
import sys
from concurrent.futures import wait
from datetime import UTC, datetime
from embeddings.schema import Event
from serving.store import Store

url, prefix, people = sys.argv[1], sys.argv[2], int(sys.argv[3])
now = datetime(2026, 3, 1, tzinfo=UTC)
with Store.open(url) as store:
    for turn in range(1_000_000):
        batches = [
            [
                Event(user_id=f"u{n % people}", item_id="i", timestamp=now, event_id=f"{prefix}-{turn}-{caller}-{n}")
                for n in range(1 + (turn * 7 + caller) % 9)
            ]
            for caller in range(4)
        ]
        for future in [store.writer.submit(batch) for batch in batches]:
            sys.stdout.write(" ".join(future.result().event_ids) + "\\n")
            sys.stdout.flush()
"""


def kills(trial: Trial) -> None:
    """Processes that write events are killed at any moment; whatever they acknowledged is there, once."""
    dice = trial.dice()
    url = f"sqlite:///{trial.folder / 'store.db'}"
    Store.open(url).close()
    acknowledged: set[str] = set()
    rounds = trial.pick(5, 100)
    for turn in range(rounds):
        logs = [trial.folder / f"{turn}-{number}.log" for number in range(WRITERS)]
        writers = [_writer(url, log) for log in logs]
        if turn % 5:  # every fifth time they are killed while they start
            _wait_until_written(logs)
        time.sleep(dice.uniform(0, 1))
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.wait(60)
        for log in logs:
            lines = log.read_text().splitlines(keepends=True)
            acknowledged.update(word for line in lines if line.endswith("\n") for word in line.split())
        _check_events(trial, url, acknowledged, f"after kill {turn + 1}")
    trial.figures |= {"kills": rounds * WRITERS, "acknowledged": len(acknowledged)}
    trial.expect(len(acknowledged) > rounds, "the writers hardly wrote: nothing was shown")


def _writer(url: str, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen([sys.executable, "-c", WRITER, url, log.stem, str(PEOPLE)], stdout=output)


def _wait_until_written(logs: list[Path]) -> None:
    deadline = time.monotonic() + 60
    while not all(log.stat().st_size for log in logs) and time.monotonic() < deadline:
        time.sleep(0.01)


def _check_events(trial: Trial, url: str, acknowledged: set[str], when: str) -> None:
    with Store.open(url) as store:
        stored = Counter(event.event_id for _, event in store.events.since(0, 10_000_000))
        profiles = sum(profile.events for n in range(PEOPLE) if (profile := store.profiles.get(f"u{n}")))
    lost = acknowledged - stored.keys()
    trial.expect(not lost, f"{when}: {len(lost)} acknowledged events are gone, such as {sorted(lost)[:3]}")
    trial.expect(max(stored.values(), default=0) <= 1, f"{when}: events are stored twice")
    trial.expect(
        profiles == stored.total(), f"{when}: profiles count {profiles} events, the store has {stored.total()}"
    )


def rot(trial: Trial) -> None:
    """A bit of the file is flipped or its end is cut off: the store is whole, or refuses; it never tells anything else."""
    whole, content = _sound_store(trial.folder / "sound.db")
    dice = trial.dice()
    places = list(range(len(content)))
    if trial.short:
        places = sorted(dice.sample(places, 400))
    outcomes: Counter[str] = Counter()
    for place in places:
        flipped = content[:place] + bytes([content[place] ^ 1 << dice.randrange(8)]) + content[place + 1 :]
        for name, damaged in (("flipped", flipped), ("cut", content[:place])):
            told = _told(trial.folder / "rotten.db", damaged)
            # Without content a file is a new store, to SQLite as to us.
            if isinstance(told, BespokeError):
                outcomes["refused"] += 1
            elif told == whole:
                outcomes["whole"] += 1
            else:
                fresh = name == "cut" and place < 2 and told["items"] == []
                trial.expect(fresh, f"byte {place} {name}: served what was never stored")
    trial.figures |= {"bytes": len(places), **outcomes}


def _sound_store(path: Path) -> tuple[dict[str, Any], bytes]:
    connection = sqlite3.connect(path)
    connection.executescript("PRAGMA page_size = 512; VACUUM")  # the smaller the file, the more of it is content
    connection.close()
    with Store.open(f"sqlite:///{path}") as store:
        times = [START + timedelta(minutes=n) for n in range(20)]
        store.events.append(
            [Event(user_id=f"u{n % 5}", item_id=f"i{n}", timestamp=at, event_id=f"e{n}") for n, at in enumerate(times)]
        )
        store.profiles.upsert([User(user_id=f"u{n}", attributes={"country": "DE"}) for n in range(5)])
        store.catalogue.upsert([Item(item_id=f"i{n}", title=f"Item {n}", price=float(n)) for n in range(10)])
        for n in range(3):
            store.documents.put("rule", f"r{n}", {"boost": n}, by="chaos")
        contents = _contents(store)
    return contents, path.read_bytes()


def _contents(store: Store) -> dict[str, Any]:
    return {
        "profiles": [store.profiles.get(f"u{n}") for n in range(5)],
        "people": store.profiles.list(),
        "items": [item for n in range(10) if (item := store.catalogue.get(f"i{n}"))],
        "changes": store.catalogue.changes(0),
        "documents": store.documents.snapshot(),
        "audit": store.documents.audit(),
        "events": store.events.since(0),
        "counts": store.events.counts(0),
    }


def _told(path: Path, content: bytes) -> dict[str, Any] | BespokeError:
    for left in path.parent.glob(f"{path.name}*"):
        left.unlink()
    path.write_bytes(content)
    try:
        with Store.open(f"sqlite:///{path}") as store:
            return _contents(store)
    except BespokeError as error:
        return error


def disk_full(trial: Trial) -> None:
    """The disk fills up while events are written: refused without acknowledgement, and taken again when there is room."""
    dice = trial.dice()
    path = trial.folder / "store.db"
    acknowledged: set[str] = set()
    refused = 0
    with Store.open(f"sqlite:///{path}") as store:
        for turn in range(trial.pick(10, 100)):
            used = max(file.stat().st_size for file in trial.folder.iterdir())
            with full_disk(used + dice.randrange(200_000)):
                for batch in range(5):
                    try:
                        acknowledged |= _put(store, f"{turn}-{batch}", 200)
                    except StoreError:
                        refused += 1
            try:
                acknowledged |= _put(store, f"{turn}-after", 10)
            except StoreError as error:
                trial.expect(False, f"turn {turn}: refused although there was room again: {error.message}")
    _check_events(trial, f"sqlite:///{path}", acknowledged, "in the end")
    trial.figures |= {"acknowledged": len(acknowledged), "refused_batches": refused}
    trial.expect(refused > 0, "the disk was never full: nothing was shown")


def _put(store: Store, prefix: str, count: int) -> set[str]:
    events = [
        Event(user_id=f"u{n % PEOPLE}", item_id="i" * 64, timestamp=START, event_id=f"{prefix}-{n}")
        for n in range(count)
    ]
    return set(store.writer.submit(events).result(60).event_ids)


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def clock(trial: Trial) -> None:
    """The clock jumps by a day and back: what was stored is told as before, and only the far future is refused."""
    now = time.time()
    raw = {"user_id": "u1", "item_id": "i", "event_type": "view"}
    accepted = 0
    with Store.open(f"sqlite:///{trial.folder / 'store.db'}") as store:
        for days in (0, 1, -1, 1, 0, -1):
            here = now + days * 86_400
            with mock.patch("time.time", return_value=here):
                for offset in (-10 * 86_400, -1, 86_000):
                    moment = datetime.fromtimestamp(here + offset, UTC)
                    accepted += store.events.append([parse(Event, raw | {"timestamp": moment})]).accepted
                try:
                    parse(Event, raw | {"timestamp": datetime.fromtimestamp(here + 2 * 86_400, UTC)})
                    trial.expect(False, f"clock at {days:+} days: an event of the day after tomorrow was taken")
                except InputError:
                    pass
                profile = store.profiles.get("u1")
                told = [event for _, event in store.events.since(0)]
                times = [event.timestamp for event in profile.history] if profile else []
                weights = store.events.counts(0, 86_400.0)["i"]["view"]
            trial.expect(len(told) == len(times) == accepted, f"clock at {days:+} days: an event is missing")
            trial.expect(times == sorted(times), f"clock at {days:+} days: the history is out of order")
            trial.expect(0 < weights <= accepted, f"clock at {days:+} days: {accepted} events count {weights}")
    trial.figures |= {"accepted": accepted}


SCENARIOS: dict[str, Callable[[Trial], None]] = {"kills": kills, "rot": rot, "disk_full": disk_full, "clock": clock}
