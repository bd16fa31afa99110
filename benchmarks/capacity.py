"""Capacity: what items, people, lists and events cost in memory, disk and CPU; `bespoke capacity` computes with it.

    python -m benchmarks capacity [--items 2000 50000] [--seconds 10] [--save]

The service is started as users start it, for two catalogues and with one and two replicas each; a line through the two
catalogues gives a base and a slope. What a second replica adds is what a replica has for itself; the rest of the first one
is shared by all. CPU is that of the processes, read before and after, divided by the requests that the service counted
itself: other work on the machine makes everything slower but hardly changes it. `--save` also writes serving/capacity.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.results import keep
from benchmarks.serving import HISTORY, PEOPLE, event_bodies, make_world, measure, service
from embeddings.schema import Event, Item, from_table
from serving.capacity import FILE, Figures, Line
from serving.family import members
from serving.store import Store
from training.shop import Shop

REPLICA = "ray::ServeReplica"
SETTLE_S = 4.0
STORE_PEOPLE = 2000


def main(argv: Sequence[str]) -> None:
    """Measure, print, and save if asked."""
    options = _options(argv)
    console = Console()
    runs = []
    for items in options.items:
        with tempfile.TemporaryDirectory() as folder, console.status(f"{items} items: making a release"):
            world = make_world(Path(folder), items=items)
            for replicas in (1, 2):
                with (
                    mock.patch.dict(os.environ, {"BESPOKE_REPLICAS": str(replicas)}),
                    service(Path(folder), "fused") as url,
                ):
                    runs.append(run(url, world, items, replicas, options.seconds))
                    console.print(json.dumps(runs[-1]), highlight=False, soft_wrap=True)
            runs[-1]["release_bytes"] = sum(
                path.stat().st_size for path in (Path(folder) / "releases" / "untrained").iterdir()
            )
    with tempfile.TemporaryDirectory() as folder:
        store = store_figures(Path(folder))
    found = figures(runs, store, source="not saved")
    configuration = {"items": options.items, "seconds": options.seconds, "people": PEOPLE, "history": HISTORY}
    if options.save:
        path = keep("capacity", {"configuration": configuration, "runs": runs, "store": store})
        found = figures(runs, store, source=path.name)
        FILE.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    _print(console, found)
    print(json.dumps(found.model_dump()))


def run(url: str, world: list[dict[str, Any]], items: int, replicas: int, seconds: float) -> dict[str, Any]:
    """What one service costs, idle and at work."""
    measure(f"{url}/v1/recommendations", world, seconds=SETTLE_S, concurrency=4)
    time.sleep(SETTLE_S)
    memory = memories(url)
    found: dict[str, Any] = {"items": items, "replicas": replicas, **memory}
    if replicas > 1:
        return found
    idle = cpu(url)
    started = time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - started
    found["idle_cores"] = (sum(cpu(url)) - sum(idle)) / elapsed
    singles, batches = event_bodies(items)
    for name, path, bodies, of in (
        ("list", "/v1/recommendations", world, 1),
        ("event", "/v1/events", singles, 1),
        ("batched_event", "/v1/events", batches, len(batches[0]["events"])),
    ):
        before, count, began = cpu(url), requests(url, path), time.monotonic()
        answers = measure(url + path, bodies, seconds=seconds, concurrency=4)
        elapsed = time.monotonic() - began
        inside, around = (after - was for after, was in zip(cpu(url), before, strict=True))
        done = requests(url, path) - count
        found[f"{name}_requests"], found[f"{name}_answers"] = done, answers["answers"]
        found[f"{name}_cpu_ms"] = inside / done / of * 1e3
        found[f"{name}_around_cpu_ms"] = max(0.0, around - found["idle_cores"] * elapsed) / done * 1e3
    return found


def memories(url: str) -> dict[str, float]:
    """Memory of a service, each page counted once however many processes share it: of all replicas, and of the rest."""
    found = {"replica_bytes": 0.0, "other_bytes": 0.0}
    for process in members(_port(url)):
        try:
            found["replica_bytes" if _is_replica(process) else "other_bytes"] += process.memory_full_info().pss
        except psutil.Error:  # it ended meanwhile
            continue
    return found


def cpu(url: str) -> tuple[float, float]:
    """Seconds of CPU that the replicas have used so far, and all other processes of the service."""
    found = [0.0, 0.0]
    for process in members(_port(url)):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        found[0 if _is_replica(process) else 1] += times.user + times.system
    return found[0], found[1]


def requests(url: str, route: str) -> int:
    """Requests of a route that the service has answered."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as reply:
        text = reply.read().decode()
    return int(sum(map(float, re.findall(rf'bespoke_requests_total{{[^}}]*route="{route}"[^}}]*}} (\S+)', text))))


def store_figures(folder: Path) -> dict[str, float]:
    """Bytes of an SQLite store for each item, each event and each person."""
    file, rows = folder / "store.db", from_table(Shop(items=STORE_PEOPLE, users=10).items(), Item)
    now = datetime.now(UTC) - timedelta(days=1)
    sizes = []
    with Store.open(f"sqlite:///{file}") as store:
        sizes.append(_size(store, file))
        store.catalogue.upsert(rows)
        sizes.append(_size(store, file))
        for people in (1, STORE_PEOPLE):  # the same events twice: of one person, and of many
            for start in range(0, STORE_PEOPLE * HISTORY, 10_000):
                events = [
                    Event(
                        user_id=f"{people}-u{at // HISTORY if people > 1 else 0:06}",
                        item_id=rows[at % len(rows)].item_id,
                        event_type="view",
                        timestamp=now + timedelta(seconds=at),
                    )
                    for at in range(start, start + 10_000)
                ]
                store.events.append(events)
            sizes.append(_size(store, file))
    item, event, both = (after - before for before, after in itertools.pairwise(sizes))
    of_event = event / (STORE_PEOPLE * HISTORY)
    return {
        "item_bytes": item / len(rows),
        "event_bytes": of_event,
        "person_bytes": max(0.0, both / STORE_PEOPLE - HISTORY * of_event),
    }


def figures(runs: Sequence[dict[str, Any]], store: dict[str, float], *, source: str) -> Figures:
    """What the runs say: lines through the two catalogues, means of what does not depend on them."""
    small, large = (
        {one["replicas"]: one for one in runs if one["items"] == items}
        for items in sorted({one["items"] for one in runs})
    )

    def line(value: Any) -> Line:
        (x0, y0), (x1, y1) = ((found[1]["items"], value(found)) for found in (small, large))
        slope = max(0.0, (y1 - y0) / (x1 - x0))
        return Line(base=max(0.0, y0 - slope * x0), per_item=slope)

    alone = (small[1], large[1])
    return Figures(
        source=source,
        cluster_bytes=max(one["other_bytes"] for one in runs),
        replica_bytes=line(lambda found: found[2]["replica_bytes"] - found[1]["replica_bytes"]),
        shared_bytes=line(lambda found: max(0.0, 2 * found[1]["replica_bytes"] - found[2]["replica_bytes"])),
        release_bytes=line(lambda found: found[2]["release_bytes"]),
        list_cpu_ms=line(lambda found: found[1]["list_cpu_ms"]),
        event_cpu_ms=max(one["event_cpu_ms"] for one in alone),
        batched_event_cpu_ms=max(one["batched_event_cpu_ms"] for one in alone),
        around_cpu_ms=max(one["list_around_cpu_ms"] for one in alone),
        idle_cores=max(one["idle_cores"] for one in alone),
        largest_catalogue=large[1]["items"],
        **store,
    )


def _size(store: Store, file: Path) -> int:
    store.database.read(lambda connection: connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").all())
    return file.stat().st_size


def _is_replica(process: psutil.Process) -> bool:
    return " ".join(process.cmdline()).startswith(REPLICA)


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


def _print(console: Console, found: Figures) -> None:
    table = Table("figure", "base", "per item")
    for name, value in found:
        if isinstance(value, Line):
            table.add_row(name, f"{value.base:,.2f}", f"{value.per_item:,.6f}")
        elif not isinstance(value, str):
            table.add_row(name, f"{value:,.3f}", "")
    console.print(table)


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks capacity", description=__doc__)
    parser.add_argument("--items", type=int, nargs=2, default=[2000, 50_000], help="the two catalogues")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each measurement")
    parser.add_argument("--save", action="store_true", help="keep the result, for `bespoke capacity` too")
    return parser.parse_args(argv)
