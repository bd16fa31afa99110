"""Bundles: what is saved is what is opened, nothing else is trusted, and the pointer is never half moved."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from embeddings.bundle import build_towers
from embeddings.bundle_reader import open_bundle
from embeddings.bundle_writer import Parts, Provenance, write_bundle
from embeddings.errors import BundleError, NotFound
from embeddings.features import FeatureSpec
from embeddings.index import VectorIndex
from embeddings.manifest import MANIFEST, read_manifest
from embeddings.ranker import FEATURES, Ranker, RankerConfig
from embeddings.releases import current_release, list_releases, point_to
from embeddings.schema import Item, to_table
from embeddings.two_tower import TowerConfig
from tests.conftest import world_items, write_world

ITEMS = [*world_items()[:30], Item(item_id="日本/ü", title="Ünïcode", attributes={"tags": ["a", "b"], "new": True})]
Files = Callable[[Path], None]


def write(releases: Path, name: str = "one", *, ranker: bool = True, spoil: str | None = None) -> Path:
    """Write a release of random weights; `spoil` puts a NaN into one part of it."""
    torch.manual_seed(1)
    spec = FeatureSpec.fit(ITEMS, text_buckets=64, context_buckets=32)
    towers = build_towers(TowerConfig(dim=8, layers=1, max_history=5), spec, items=len(ITEMS)).eval()
    model = None
    if ranker:
        config = RankerConfig(objectives=("click", "purchase"))
        model = Ranker(config, dim=8, items=len(ITEMS), tokens=spec.token_count).eval()
        torch.nn.init.normal_(model.heads.weight)
    matrix = towers.items.encode(spec.item_features(ITEMS, np.arange(len(ITEMS))))
    index = VectorIndex.build(matrix)
    with torch.no_grad():
        if spoil == "towers":
            towers.users.start[0] = torch.nan
        if spoil == "ranker" and model is not None:
            model.trust[0] = torch.inf
    if spoil == "item matrix":
        matrix[3, 3] = np.nan
    return write_bundle(
        releases,
        name,
        Parts(
            spec=spec,
            towers=towers,
            ranker=model,
            items=to_table(ITEMS, Item),
            popularity=np.arange(2.0 * len(ITEMS)).reshape(-1, 2),
            matrix=matrix,
            index=index,
        ),
        Provenance(
            data_fingerprint="data",
            recipe={"towers": {"dim": 8}},
            metrics={"two_tower": {"ndcg@10": 0.5}},
            counts={"events": 12},
            overridden=["a reason"],
        ),
    )


def query(folder: Path) -> np.ndarray:
    bundle = open_bundle(folder)
    rows = np.array([3, 30, 7])
    return bundle.encode_user(bundle.matrix[rows], np.array([1, 2, 1]), np.array([0.0, 60.0, 5e5]), [1, 2])


def test_saved_is_loaded(tmp_path: Path) -> None:
    folder = write(tmp_path)
    bundle, again = open_bundle(folder), open_bundle(folder)
    assert bundle.name == "one"
    assert [item.item_id for item in bundle.items[2:9:3]] == [bundle.ids.id(row) for row in (2, 5, 8)]
    assert list(bundle.items) == ITEMS
    assert bundle.ids.row("日本/ü") == 30
    np.testing.assert_array_equal(bundle.encode_items(ITEMS), bundle.matrix)
    np.testing.assert_array_equal(bundle.popularity, np.arange(62.0).reshape(31, 2))
    np.testing.assert_array_equal(query(folder), query(folder))
    found = bundle.index.search(query(folder)[None], 5)
    for ours, theirs in zip(found, again.index.search(query(folder)[None], 5), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert bundle.ranker is not None
    assert again.ranker is not None
    features = np.random.default_rng(0).random((31, len(FEATURES)), dtype=np.float32)
    vectors = np.array(bundle.matrix)
    scores = [model.rank(query(folder), vectors[:4], vectors, features) for model in (bundle.ranker, again.ranker)]
    np.testing.assert_array_equal(scores[0], scores[1])
    torch.manual_seed(1)  # the weights are those that were drawn, not merely the same twice
    spec = FeatureSpec.fit(ITEMS, text_buckets=64, context_buckets=32)
    drawn = build_towers(TowerConfig(dim=8, layers=1, max_history=5), spec, items=len(ITEMS)).state_dict()
    assert all(torch.equal(weight, drawn[name]) for name, weight in bundle.towers.state_dict().items())
    assert bundle.spec == spec


def test_the_manifest_says_what_was_published(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path))
    assert manifest.counts == {"events": 12, "items": 31}
    assert manifest.metrics == {"two_tower": {"ndcg@10": 0.5}}
    assert manifest.overridden == ("a reason",)
    assert manifest.index == {"kind": "exact", "recall": 1.0}
    assert set(manifest.versions) == {"torch", "faiss", "numpy"}


def test_a_release_may_have_no_ranker(tmp_path: Path) -> None:
    folder = write(tmp_path, ranker=False)
    assert open_bundle(folder).ranker is None
    assert not (folder / "ranker.safetensors").exists()


def test_an_opened_model_is_not_trained_by_accident(tmp_path: Path) -> None:
    bundle = open_bundle(write(tmp_path))
    assert bundle.ranker is not None
    for module in (bundle.towers, bundle.ranker):
        assert not module.training
        assert not any(weight.requires_grad for weight in module.parameters())


@pytest.mark.parametrize("part", ["towers", "ranker", "item matrix"])
def test_numbers_that_are_not_finite_are_not_written(tmp_path: Path, part: str) -> None:
    with pytest.raises(BundleError, match=f"{part}.*not finite"):
        write(tmp_path, spoil=part)
    assert list(tmp_path.iterdir()) == []


def test_a_release_is_never_overwritten(tmp_path: Path) -> None:
    before = (write(tmp_path) / MANIFEST).read_bytes()
    with pytest.raises(BundleError, match="exists already"):
        write(tmp_path)
    assert (tmp_path / "one" / MANIFEST).read_bytes() == before


FILES = (
    "features.json",
    "towers.safetensors",
    "ranker.safetensors",
    "items.parquet",
    "popularity.npy",
    "matrix.npy",
    "index.faiss",
)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "link"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, harm: str) -> None:
    path = write(tmp_path) / name
    content = bytearray(path.read_bytes())
    if harm == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif harm == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
        if harm == "link":
            (tmp_path / "elsewhere").write_bytes(content)
            path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=name):
        open_bundle(path.parent)


def forge(folder: Path, name: str, content: bytes) -> None:
    """Replace a file and its checksum, as someone would who wants it to be believed."""
    import hashlib

    (folder / name).write_bytes(content)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][name] = hashlib.sha256(content).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", FILES)
def test_a_foreign_file_with_a_right_checksum_is_refused_too(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path)
    forge(folder, name, b"\x89PNG\r\n\x1a\n something else entirely")
    with pytest.raises(BundleError, match="one"):
        open_bundle(folder)


def test_parts_of_another_release_do_not_fit(tmp_path: Path) -> None:
    folder, other = write(tmp_path), write_world(tmp_path / "other", "two")
    for name in ("towers.safetensors", "matrix.npy", "items.parquet", "index.faiss"):
        copy = tmp_path / f"mixed-{name}"
        shutil.copytree(folder, copy)
        forge(copy, name, (other / name).read_bytes())
        manifest = json.loads((copy / MANIFEST).read_text()) | {"name": copy.name}
        (copy / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(BundleError):
            open_bundle(copy)


def test_a_matrix_with_nan_and_a_right_checksum_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path)
    matrix = np.load(folder / "matrix.npy")
    matrix[0, 0] = np.nan
    np.save(tmp_path / "spoilt.npy", matrix)
    forge(folder, "matrix.npy", (tmp_path / "spoilt.npy").read_bytes())
    with pytest.raises(BundleError, match=r"matrix\.npy.*not finite"):
        open_bundle(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 99}, "format 99, this version reads 1"),
        ({"name": "else"}, "says it is 'else'"),
        ({"surprise": 1}, "not a manifest of ours"),
        ({"files": {}}, "it needs"),
    ],
)
def test_a_foreign_manifest_is_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    folder = write(tmp_path)
    (folder / MANIFEST).write_text(json.dumps(json.loads((folder / MANIFEST).read_text()) | change))
    with pytest.raises(BundleError, match=words):
        open_bundle(folder)


def test_what_is_no_release_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no release folder"):
        open_bundle(tmp_path / "nothing")
    with pytest.raises(BundleError, match="not a release, or an unfinished one"):
        open_bundle(tmp_path)
    (tmp_path / MANIFEST).write_bytes(b"\xff\x00 not json")
    with pytest.raises(BundleError, match="not a manifest of ours"):
        open_bundle(tmp_path)


def test_the_pointer_moves_from_release_to_release(tmp_path: Path) -> None:
    assert current_release(tmp_path) is None
    for name in ("one", "two"):
        write(tmp_path, name)
    assert list_releases(tmp_path) == ["one", "two"]
    point_to(tmp_path, "one")
    point_to(tmp_path, "two")
    assert current_release(tmp_path) == "two"
    point_to(tmp_path, "one")  # and back
    assert current_release(tmp_path) == "one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "one", "two"]


def test_the_pointer_stays_where_it_was_when_it_cannot_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    point_to(tmp_path, "one")
    with pytest.raises(NotFound):
        point_to(tmp_path, "missing")
    write(tmp_path, "two")

    def fails(self: Path, target: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("embeddings.durable.os.replace", fails)
    with pytest.raises(OSError, match="no space"):
        point_to(tmp_path, "two")
    assert current_release(tmp_path) == "one"


@pytest.mark.parametrize("text", ["", "../elsewhere", ".hidden", "a/b"])
def test_a_pointer_to_somewhere_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "current").write_text(text)
    with pytest.raises(BundleError, match="not the name of a release"):
        current_release(tmp_path)


def test_an_interrupted_write_leaves_nothing_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert list_releases(tmp_path) == []


@pytest.mark.parametrize("file", ["popularity.npy", "features.json"])
def test_a_number_that_is_none_is_refused_wherever_it_stands(tmp_path: Path, file: str) -> None:
    folder = write(tmp_path)
    path = folder / file
    if file == "features.json":
        spec = json.loads(path.read_text())
        spec["numbers"][0] = spec["numbers"][0] | {"mean": math.nan}
        path.write_text(json.dumps(spec))
    else:
        popularity = np.load(path)
        popularity[3, 1] = np.inf
        np.save(path, popularity)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][file] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"finite|cannot be opened"):
        open_bundle(folder)
