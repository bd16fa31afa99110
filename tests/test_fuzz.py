"""Damaged files: every reader says in one sentence what is wrong, with an error of ours, whatever the bytes are."""

from __future__ import annotations

import ast
import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embeddings.bundle_reader import open_bundle
from embeddings.errors import BespokeError, BundleError
from embeddings.manifest import MANIFEST
from embeddings.releases import current_release
from embeddings.schema import Event, User, to_table
from serving.settings import Settings
from serving.store import Store
from serving.store.export import export
from tests.conftest import NOW, ROOT, world_items, write_world
from tests.test_bundle import FILES
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.recipes import load_recipe
from training.sources import read

FEW = settings(max_examples=40, suppress_health_check=list(HealthCheck))


class Damage(NamedTuple):
    """An accident to a file: pieces replaced, then what lies outside of a span lost."""

    edits: list[tuple[int, int, bytes]]
    first: int = 0
    last: int | None = None

    def to(self, whole: bytes) -> bytes:
        data = bytearray(whole)
        for start, length, new in self.edits:
            data[start : start + length] = new
        return bytes(data[self.first : self.last])


def damage(whole: bytes) -> st.SearchStrategy[Damage]:
    place = st.integers(0, max(0, len(whole) - 1))
    telling = st.sampled_from([b"\x00" * 8, b"\xff" * 8, b'"', b"{", b"\n", b"-1", b"1e999"])
    edit = st.tuples(place, st.integers(0, 32), st.binary(max_size=16) | telling)
    other = st.tuples(st.just(0), st.just(len(whole)), st.binary(max_size=64))
    return (
        st.builds(Damage, st.lists(edit, min_size=1, max_size=4))
        | st.builds(Damage, st.just([]), place, place)
        | st.builds(Damage, st.just([]), st.just(0), place)
        | st.builds(Damage, other.map(lambda one: [one]))
    )


def only_our_errors(reads: Callable[[], Any]) -> None:
    """Read; anything but a `BespokeError` fails the test."""
    said = "nothing"
    try:
        reads()
    except BespokeError as error:
        said = error.message.strip()
    assert 0 < len(said) < 2000


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("whole") / "releases")


def sign(folder: Path) -> None:
    """Let the manifest vouch for the files as they are: what is left to protect the service are the parsers."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in manifest["files"]}
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("vouched", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_a_release(release: Path, tmp_path: Path, name: str, vouched: bool) -> None:
    folder = tmp_path / release.name
    shutil.copytree(release, folder)
    whole = (release / name).read_bytes()

    @FEW
    @given(damage(whole))
    def holds(accident: Damage) -> None:
        (folder / name).write_bytes(accident.to(whole))
        if vouched:
            sign(folder)
            only_our_errors(lambda: open_bundle(folder))
        elif accident.to(whole) != whole:
            with pytest.raises(BundleError, match=f"{name} does not have the checksum"):
                open_bundle(folder)

    holds()


def test_a_damaged_manifest_or_pointer(release: Path, tmp_path: Path) -> None:
    folder = tmp_path / release.name
    shutil.copytree(release, folder)
    whole = (folder / MANIFEST).read_bytes()

    @FEW
    @given(damage(whole), damage(b"world-1\n"))
    def holds(to_manifest: Damage, to_pointer: Damage) -> None:
        (folder / MANIFEST).write_bytes(to_manifest.to(whole))
        (tmp_path / "current").write_bytes(to_pointer.to(b"world-1\n"))
        only_our_errors(lambda: open_bundle(folder))
        only_our_errors(lambda: current_release(tmp_path))

    holds()


SETTINGS_TOML = b"""
releases = "var/releases"
store = "sqlite:///var/store.db"
host = "127.0.0.1"
port = 8000
topology = "fused"
replica_cpus = 0.5
console = true
cors_origins = ["https://shop.example"]
"""


def test_damaged_settings(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"

    @settings(max_examples=150)
    @given(damage(SETTINGS_TOML))
    def holds(accident: Damage) -> None:
        file.write_bytes(accident.to(SETTINGS_TOML))
        only_our_errors(lambda: Settings.load(file=file, environment={}))

    holds()


@given(
    st.sampled_from(sorted(Settings.model_fields)),
    st.text() | st.integers() | st.floats() | st.lists(st.text()) | st.none(),
)
def test_settings_of_any_value(name: str, value: Any) -> None:
    only_our_errors(lambda: Settings.load({name: value}, environment={}))


def test_damaged_recipes(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    whole = (Path(__file__).parents[1] / "training" / "recipes" / "quick.toml").read_bytes()

    @settings(max_examples=150)
    @given(damage(whole))
    def holds(accident: Damage) -> None:
        file.write_bytes(accident.to(whole))
        only_our_errors(lambda: load_recipe(file))

    holds()


def test_a_damaged_checkpoint(tmp_path: Path) -> None:
    identity = {"recipe": "a"}
    save_checkpoint(tmp_path, Checkpoint(identity=identity, tensors={"a": torch.ones(3)}, state={"epoch": 1}))
    file = tmp_path / "checkpoint.safetensors"

    whole = file.read_bytes()

    @given(damage(whole))
    def holds(accident: Damage) -> None:
        file.write_bytes(accident.to(whole))
        only_our_errors(lambda: load_checkpoint(tmp_path, identity=identity))

    holds()


CSV = b"user_id,item_id,event_type,timestamp,value\n" + b"".join(
    b'u%d,"i ""%d""",view,2026-01-01T00:00:%02dZ,%d.5\n' % (n, n, n, n) for n in range(30)
)
JSONL = b"".join(
    b'{"user_id": "u%d", "item_id": "i", "timestamp": "2026-01-01T00:00:%02dZ", "context": {"a": 1.5}}\n' % (n, n)
    for n in range(30)
)
RATINGS = b"userId,movieId,rating,timestamp\n" + b"".join(b"%d,%d,4.5,96498%04d\n" % (n, n % 7, n) for n in range(30))
MOVIES = b"movieId,title,genres\n" + b"".join(b'%d,"Film, The (19%d0)",Drama|War\n' % (n, n) for n in range(1, 8))
RATINGS_1M = b"".join(b"%d::%d::4::96498%04d\n" % (n, n % 7, n) for n in range(30))
MOVIES_1M = b"".join(b"%d::Film (1990)::Drama|War\n" % n for n in range(7))


def parquet() -> bytes:
    events = [Event(user_id=f"u{n}", item_id="i", timestamp=NOW, context={"a": 1}) for n in range(30)]
    sink = pa.BufferOutputStream()
    pq.write_table(to_table(events, Event), sink)
    return bytes(sink.getvalue())


@pytest.mark.parametrize(
    ("name", "whole", "beside"),
    [
        ("events.csv", CSV, {}),
        ("events.jsonl", JSONL, {}),
        ("events.parquet", parquet(), {}),
        ("items.csv", b"item_id,title,price\na,A,1.5\nb,B,2.5\n", {"events.csv": CSV}),
        ("users.jsonl", b'{"user_id": "u1", "attributes": {"country": "DE"}}\n', {"events.csv": CSV}),
        ("ratings.csv", RATINGS, {"movies.csv": MOVIES}),
        ("movies.csv", MOVIES, {"ratings.csv": RATINGS}),
        ("ratings.dat", RATINGS_1M, {"movies.dat": MOVIES_1M}),
        ("movies.dat", MOVIES_1M, {"ratings.dat": RATINGS_1M}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_data(tmp_path: Path, name: str, whole: bytes, beside: dict[str, bytes]) -> None:
    for other, data in beside.items():
        (tmp_path / other).write_bytes(data)
    (tmp_path / name).write_bytes(whole)
    assert len(read(tmp_path).events) == 30

    @FEW
    @given(damage(whole))
    def holds(accident: Damage) -> None:
        (tmp_path / name).write_bytes(accident.to(whole))
        only_our_errors(lambda: read(tmp_path, max_bad_share=0.5, quarantine=tmp_path / "bad.quarantine"))

    holds()


def test_a_damaged_store(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    with Store.open(f"sqlite:///{file}") as store:
        store.catalogue.upsert(world_items()[:20])
        store.profiles.upsert([User(user_id=f"u{n}", attributes={"country": "DE"}) for n in range(20)])
        store.events.append([Event(user_id=f"u{n % 5}", item_id=f"i{n}", timestamp=NOW) for n in range(50)])
        store.documents.put("rule", "r", {"a": 1}, by="test")
        store.keys.create("k", ["read"], per_minute=1, by="test")
    whole = file.read_bytes()

    def everything(place: Path) -> None:
        with Store.open(f"sqlite:///{file}") as store:
            for look in (
                store.documents.snapshot,
                store.documents.audit,
                store.keys.list,
                store.profiles.list,
                lambda: store.profiles.get("u1"),
                lambda: store.catalogue.changes(0),
                lambda: store.catalogue.get("g0-0"),
                lambda: store.events.since(0),
                lambda: store.events.counts(0.0),
                lambda: store.events.append([Event(user_id="u1", item_id="i", timestamp=NOW)]),
                lambda: export(store, place),
            ):
                only_our_errors(look)

    tried = iter(range(10_000))

    @FEW
    @given(damage(whole))
    def holds(accident: Damage) -> None:
        for left in tmp_path.glob("store.db*"):
            left.unlink()
        file.write_bytes(accident.to(whole))
        only_our_errors(lambda: everything(tmp_path / f"export-{next(tried)}"))

    holds()


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


PICKLES: dict[str, Callable[[Path], Any]] = {
    "towers.safetensors": lambda file: torch.save({"weight": Bomb()}, file),
    "ranker.safetensors": lambda file: file.write_bytes(pickle.dumps(Bomb())),
    "popularity.npy": lambda file: np.save(file, np.array([[Bomb()]], dtype=object)),
    "matrix.npy": lambda file: file.write_bytes(pickle.dumps(Bomb())),
    "index.faiss": lambda file: file.write_bytes(pickle.dumps(Bomb())),
    "items.parquet": lambda file: file.write_bytes(pickle.dumps(Bomb())),
    "features.json": lambda file: file.write_bytes(pickle.dumps(Bomb())),
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_in_a_release_is_never_loaded(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Bomb()))
    Path("exploded").unlink()
    folder = tmp_path / release.name
    shutil.copytree(release, folder)
    PICKLES[name](folder / name)
    sign(folder)
    with pytest.raises(BundleError):
        open_bundle(folder)
    assert not Path("exploded").exists()


UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
UNSAFE_CALLS = {"torch.load", "torch.save", "np.load", "numpy.load", "pd.read_pickle", "pa.deserialize"}


def test_no_module_of_ours_can_read_or_write_a_pickle() -> None:
    for package in ("embeddings", "training", "serving", "bespoke.py"):
        files = (ROOT / package).rglob("*.py") if package != "bespoke.py" else [ROOT / package]
        for file in files:
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
                    assert not {name.split(".")[0] for name in names} & UNSAFE_MODULES, file
                if isinstance(node, ast.Attribute):
                    assert ast.unparse(node) not in UNSAFE_CALLS, f"{file}:{node.lineno}"
                if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                    assert ast.unparse(node.value) == "False", f"{file}:{node.value.lineno}"
