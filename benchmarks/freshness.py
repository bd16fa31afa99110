"""Freshness: from a change to the answers that know it, over several replicas behind one address.

    python -m benchmarks freshness [--rounds 50] [--replicas 2] [--topology fused] [--items 10000]

A change is acknowledged (a release: its pointer is moved), then one list after the other is asked for. The figure is the
time from the acknowledgement to the arrival of the first answer after which no answer was stale any more, so it contains
at least one whole request. Every round looks at several answers more than there are replicas.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.load import percentile_ms
from benchmarks.serving import make_world, service
from embeddings.manifest import MANIFEST
from embeddings.releases import point_to

LIMITS_MS = {"event_ms": 50.0, "item_ms": 200.0, "policy_ms": 1000.0, "release_ms": 10_000.0}
RELEASE_ROUNDS = 10
PATIENCE_S = 30.0


def main(argv: Sequence[str]) -> None:
    """Measure and print."""
    options = _options(argv)
    console = Console()
    found: dict[str, list[float]] = {name: [] for name in LIMITS_MS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_world(folder, items=options.items)
        _twin(folder / "releases")
        with service(folder, options.topology, "--replicas", str(options.replicas)) as url:
            probe = Probe(url, looks=4 * options.replicas)
            for n in range(options.rounds):
                found["event_ms"].append(probe.event(n))
                found["item_ms"].append(probe.item(n))
                found["policy_ms"].append(probe.policy(n))
            for n in range(min(RELEASE_ROUNDS, options.rounds)):
                found["release_ms"].append(probe.release(folder / "releases", ("twin", "untrained")[n % 2]))
    summary = {
        kind: {"p50": percentile_ms(sorted(times), 0.5), "p99": percentile_ms(sorted(times), 0.99)}
        for kind, times in found.items()
    }
    table = Table("change", "p50 ms", "p99 ms", "limit ms", "rounds")
    for kind, figures in summary.items():
        table.add_row(
            kind.removesuffix("_ms"),
            f"{figures['p50']:.1f}",
            f"{figures['p99']:.1f}",
            f"{LIMITS_MS[kind]:.0f}",
            str(len(found[kind])),
        )
    console.print(table)
    print(json.dumps(summary))


class Probe:
    """Makes one change after the other and looks when it is known; times in seconds."""

    def __init__(self, url: str, *, looks: int) -> None:
        self.url, self.looks = url, looks

    def event(self, n: int) -> float:
        """A purchase takes the item off the person's next list."""
        user = f"fresh-{n}"
        item = self._list(user)[0]
        self._send("POST", "/v1/events", {"user_id": user, "item_id": item, "event_type": "purchase"})
        return self._known(lambda: item not in self._list(user))

    def item(self, n: int) -> float:
        """A new item is found by a filter that only it passes."""
        name = f"fresh-{n}"
        self._send("PUT", f"/v1/items/{name}", {"title": "New", "price": 10.0})  # the rules in force ask for a price
        only = {"attribute": "item_id", "op": "eq", "value": name}
        return self._known(lambda: self._list("u0", filter=only) == [name])

    def policy(self, n: int) -> float:
        """An exclude rule takes an item off the list."""
        item = self._list("u0")[0]
        body = {"action": {"type": "exclude"}, "items": {"attribute": "item_id", "op": "eq", "value": item}}
        self._send("PUT", f"/v1/rules/fresh-{n}", body)
        return self._known(lambda: item not in self._list("u0"))

    def release(self, releases: Path, name: str) -> float:
        """The pointer moves, as `bespoke publish` moves it."""
        point_to(releases, name)
        return self._known(lambda: self._ask("u0")["model_version"] == name)

    def _known(self, known: Callable[[], bool]) -> float:
        begun = time.perf_counter()
        since: float | None = None
        fresh = 0
        while fresh < self.looks:
            if known():
                since = since or time.perf_counter()
                fresh += 1
            elif time.perf_counter() - begun > PATIENCE_S:
                raise SystemExit(f"a change was not known after {PATIENCE_S:.0f} s")
            else:
                since, fresh = None, 0
        assert since is not None
        return since - begun

    def _list(self, user: str, **fields: Any) -> list[str]:
        return [one["item_id"] for one in self._ask(user, **fields)["items"]]

    def _ask(self, user: str, **fields: Any) -> dict[str, Any]:
        return self._send("POST", "/v1/recommendations", {"user_id": user, "k": 10} | fields)

    def _send(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as reply:
            answer: dict[str, Any] = json.load(reply)
        return answer


def _twin(releases: Path) -> None:
    """The same release under another name."""
    shutil.copytree(releases / "untrained", releases / "twin")
    path = releases / "twin" / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"name": "twin"}), encoding="utf-8")


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks freshness", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50, help="changes of each kind")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--topology", choices=("fused", "chained"), default="fused")
    parser.add_argument("--items", type=int, default=10_000)
    return parser.parse_args(argv)
