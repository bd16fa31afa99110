"""Shared fixtures: a small world with a known answer, an engine over it, and a live service.

The world needs no training: the id vectors of a group of items point in one direction, and a user tower without blocks
looks in the direction of the last event. So whoever touches an item of a group must be offered that group.
"""

from __future__ import annotations

import gc
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import numpy as np
import psutil
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import settings

from embeddings.arrays import Floats
from embeddings.bundle import build_towers
from embeddings.bundle_writer import Parts, Provenance, write_bundle
from embeddings.features import FeatureSpec
from embeddings.index import VectorIndex
from embeddings.neighbours import Neighbours, nearest_items
from embeddings.ranker import FEATURES, Ranker, RankerConfig
from embeddings.releases import point_to
from embeddings.schema import Item, to_table
from embeddings.traits import rarity, traits_of
from embeddings.two_tower import TowerConfig
from serving.api import create_api
from serving.process import LOCAL_PROFILE
from serving.replica.engine import Engine
from serving.settings import Settings

# Shared machines pause for longer than any deadline is worth; CI tries the same examples every time.
settings.register_profile("bespoke", deadline=None, max_examples=60, derandomize=bool(os.environ.get("CI")))
settings.load_profile("bespoke")

ROOT = Path(__file__).parent.parent
GROUPS = 4
PER_GROUP = 25
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)

ALONE = {
    "browser",
    "cluster",
    "console",
    "docs",
    "keys",
    "loopback",
    "mailing",
    "process",
    "security",
    "service",
    "sites",
}
"""Test files that start a browser or Ray, of which one machine has one cluster at a time: nothing runs beside them."""


@pytest.hookimpl(tryfirst=True)  # before expressions of markers are read
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that run alone; the others go by file to as many workers as there are."""
    for item in items:
        if item.path.stem.removeprefix("test_") in ALONE:
            item.add_marker(pytest.mark.alone)


def pytest_collection_finish() -> None:
    """What is imported by now stays: a garbage collector that walks it again and again takes a fifth of the run."""
    gc.collect()
    gc.freeze()


def require(condition: object, what: str) -> None:
    """Skip with a word where something is missing; in CI its absence is a failure."""
    if condition:
        return
    if os.environ.get("CI"):
        pytest.fail(f"CI must have {what}")
    pytest.skip(f"needs {what}")


def world_items() -> list[Item]:
    return [
        Item(
            item_id=f"g{group}-{place}",
            title=f"Group {group} item {place}",
            categories=[f"group-{group}"],
            attributes={"brand": f"brand-{place % 5}", "rank": float(place)},
            price=float(place + 1),
            created_at=NOW - timedelta(days=100 + place),
        )
        for place in range(PER_GROUP)
        for group in range(GROUPS)
    ]


def look_only_at(model: Ranker, feature: str) -> None:
    """Make a ranking model score by one of its features: its first hidden unit is that, and nothing else counts."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        first, later = model.body[0], model.body[3]
        assert isinstance(first, torch.nn.Linear)
        assert isinstance(later, torch.nn.Linear)
        first.weight[0, first.in_features - len(FEATURES) + FEATURES.index(feature)] = 1.0
        later.weight[0, 0] = 1.0
        model.heads.weight[:, 0] = 1.0


def write_world(
    releases: Path,
    name: str = "world-1",
    *,
    with_ranker: bool = True,
    with_baskets: bool = True,
    neighbours: Callable[[Floats], Neighbours | None] = nearest_items,
    pointed: bool = True,
) -> Path:
    """Write the known-answer release and (unless not `pointed`) point to it: g1-7 goes with g2-7, and then with g3-7.

    `neighbours` makes the table of its matrix.
    """
    files = world_files(name, with_ranker, with_baskets, neighbours)
    folder, unfinished = releases / name, releases / f".copied-{name}"  # an engine may be looking on
    assert not folder.exists(), "releases are immutable"
    unfinished.mkdir(parents=True)
    for file, content in files.items():
        (unfinished / file).write_bytes(content)
    unfinished.rename(folder)
    if pointed:
        point_to(releases, name)
    return folder


@cache  # hundreds of tests want the same one
def world_files(
    name: str, with_ranker: bool, with_baskets: bool, neighbours: Callable[[Floats], Neighbours | None]
) -> dict[str, bytes]:
    """The files of the known-answer release, by name."""
    items = world_items()
    config = TowerConfig(dim=8, layers=0, max_history=10, dropout=0.0, id_dropout=0.0)
    spec = FeatureSpec.fit(items, context_buckets=16)
    torch.manual_seed(0)
    towers = build_towers(config, spec, items=len(items)).eval()
    with torch.no_grad():
        for parameter in towers.parameters():
            parameter.zero_()
        towers.users.norm_in.weight.fill_(1.0)
        towers.users.norm_out.weight.fill_(1.0)
        for row, item in enumerate(items):
            group = int(item.item_id[1])
            towers.items.ids.weight[row + 1, 2 * group] = 1.0
            towers.items.ids.weight[row + 1, 2 * group + 1] = 0.5 - row // GROUPS / 100
        for row, token in enumerate(spec.tokens):
            if token.startswith("categories=group-"):
                towers.items.tokens.weight[row, 2 * int(token[-1])] = 0.5
    features = spec.item_features(items, np.arange(len(items)))
    matrix, rare = towers.items.encode(features), rarity(features, spec.token_count)
    ranking = RankerConfig(objectives=("view", "purchase"), candidates=50)
    ranker = None
    if with_ranker:
        ranker = Ranker(ranking, dim=8, items=len(items), tokens=spec.token_count).eval()
        ranker.set_traits(traits_of(features, rare), rare)
    popularity = np.tile(np.arange(len(items), 0, -1, dtype=np.float64)[:, None], (1, 2))
    rows = np.arange(len(items))
    group, rest = rows % GROUPS, rows - rows % GROUPS
    together = np.stack([rest + (group + 1) % GROUPS, rest + (group + 2) % GROUPS, np.full(len(items), -1)], axis=1)
    with TemporaryDirectory() as workshop:
        folder = write_bundle(
            Path(workshop),
            name,
            Parts(
                spec=spec,
                towers=towers,
                ranker=ranker,
                items=to_table(items, Item),
                popularity=popularity,
                matrix=matrix,
                index=VectorIndex.build(matrix),
                neighbours=neighbours(matrix),
                together=together.astype(np.int32) if with_baskets else None,
            ),
            Provenance(data_fingerprint="world", counts={"events": 0}),
        )
        return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def releases(tmp_path: Path) -> Path:
    """A folder of releases with the known-answer world in service."""
    folder = tmp_path / "releases"
    write_world(folder)
    return folder


@pytest.fixture
def engine(releases: Path, tmp_path: Path) -> Iterator[Engine]:
    """An engine over the known-answer world and an empty store."""
    one = Engine(Settings(releases=releases, store=f"sqlite:///{tmp_path / 'store.db'}", deadline_ms=10_000))
    one.start()
    yield one
    one.stop()


@pytest.fixture
def client(engine: Engine) -> Iterator[TestClient]:
    """The HTTP application around the engine; an unexpected error is raised in the test."""
    with TestClient(create_api(engine)) as opened:
        yield opened


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(command: list[str], url: str, log: Path, **environment: str) -> Iterator[str]:
    """A service as its users start it: a command of its own process group, ended by Ctrl-C, which must leave nothing."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"BESPOKE_DEADLINE_MS": "10000"} | environment,  # shared machines pause
            cwd=ROOT,
            start_new_session=True,
            # In the background of a script SIGINT is ignored, and whoever is started there inherits that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    below: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 240
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{' '.join(command)} did not come up:\n{log.read_text(errors='replace')[-3000:]}")
            try:
                if httpx2.get(f"{url}/readyz", timeout=5).status_code == 200:
                    break
            except httpx2.HTTPError:
                pass
            time.sleep(0.2)
        yield url
        below = psutil.Process(process.pid).children(recursive=True)
        assert below
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail(f"{command[0]} did not stop on Ctrl-C")
    _, left = psutil.wait_procs(below, timeout=10)
    assert running(left) == set(), "Ctrl-C leaves no process"
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", httpx2.URL(url).port)) != 0, "Ctrl-C leaves no port"


def running(processes: Iterable[psutil.Process]) -> set[psutil.Process]:
    """Those that still run; some of Ray's live for a moment only."""
    there = set()
    for one in processes:
        with suppress(psutil.NoSuchProcess):
            if one.is_running() and one.status() != psutil.STATUS_ZOMBIE:
                there.add(one)
    return there


@pytest.fixture(scope="session")
def fast_profile() -> dict[str, str]:
    """What `eval "$(bespoke environment)"` sets before `serve run`; only the long drain at the end is left out."""
    command = [sys.executable, "-m", "bespoke", "environment"]
    exports = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return dict(word.split("=", 1) for word in shlex.split(exports) if word != "export") | LOCAL_PROFILE


@pytest.fixture(scope="session")
def live_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The known-answer world behind `bespoke serve`: a base URL."""
    folder = tmp_path_factory.mktemp("live")
    write_world(folder / "releases")
    port = free_port()
    command = [sys.executable, "-m", "bespoke", "serve", "--port", str(port)]
    command += ["--releases", str(folder / "releases"), "--store", f"sqlite:///{folder / 'store.db'}"]
    with started(command, f"http://127.0.0.1:{port}", folder / "serve.log") as url:
        items = [item.model_dump(mode="json") for item in world_items()]
        httpx2.post(f"{url}/v1/items", json={"items": items}).raise_for_status()
        yield url
    assert "no process and no port is left" in (folder / "serve.log").read_text()
