"""The table of neighbours against comparing all pairs one by one, and on its way through a bundle into lists."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from embeddings.bundle_reader import open_bundle
from embeddings.errors import BundleError
from embeddings.ids import UNKNOWN
from embeddings.neighbours import nearest_items
from embeddings.schema import Event
from serving.replica.engine import Engine
from serving.request.query import Query
from serving.settings import Settings
from tests.conftest import NOW, write_world


def cosines(matrix: np.ndarray) -> np.ndarray:
    unit = matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
    found: np.ndarray = unit @ unit.T
    return found


def test_they_are_the_nearest_by_cosine_without_the_item_itself() -> None:
    matrix = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    matrix *= np.linspace(0.1, 10.0, 300, dtype=np.float32)[:, None]  # long rows are no nearer for being long
    similar = cosines(matrix)
    np.fill_diagonal(similar, -2.0)
    expected = np.argsort(-similar, axis=1, kind="stable")[:, :20]
    np.testing.assert_array_equal(nearest_items(matrix, count=20), expected)


def test_inverted_lists_find_nearly_all_of_them() -> None:
    rng = np.random.default_rng(1)
    matrix = (rng.standard_normal((40, 16))[rng.integers(0, 40, 3000)] + 0.5 * rng.standard_normal((3000, 16))).astype(
        np.float32
    )
    exact, found = nearest_items(matrix, count=10), nearest_items(matrix, count=10, exact_rows=1000)
    hits = [len(set(a) & set(b)) for a, b in zip(exact.tolist(), found.tolist(), strict=True)]
    assert sum(hits) / exact.size > 0.95
    assert not (found == np.arange(3000)[:, None]).any()


def test_doubles_are_neighbours_and_a_small_catalogue_leaves_places() -> None:
    matrix = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], dtype=np.float32)
    found = nearest_items(matrix, count=5)
    assert [set(row[:2]) for row in found[:3].tolist()] == [{1, 2}, {0, 2}, {0, 1}]
    assert (found[:, 3:] == UNKNOWN).all()
    assert nearest_items(matrix[:1], count=3).tolist() == [[UNKNOWN] * 3]
    assert nearest_items(matrix[:0], count=3).shape == (0, 3)


def test_rows_that_are_none_are_refused(tmp_path: Path) -> None:
    bundle = open_bundle(write_world(tmp_path / "good"))
    np.testing.assert_array_equal(bundle.neighbours, nearest_items(bundle.matrix))
    wrong = [np.full((100, 3), 100, dtype=np.int32), np.zeros((99, 3), dtype=np.int32), np.zeros((100, 3))]
    for number, table in enumerate(wrong):
        with pytest.raises(BundleError, match="neighbours"):
            open_bundle(write_world(tmp_path / str(number), neighbours=lambda _, table=table: table))


def test_a_release_without_the_table_gives_the_same_lists(tmp_path: Path) -> None:
    lists = []
    for name, table in (("with", nearest_items), ("without", lambda _: None)):
        write_world(tmp_path / name / "releases", neighbours=table)
        engine = Engine(
            Settings(releases=tmp_path / name / "releases", store=f"sqlite:///{tmp_path / name / 'store.db'}")
        )
        engine.start()
        engine.store.events.append([Event(user_id="ann", item_id="g1-3", event_type="view", timestamp=NOW)])
        query = Query(k=10, now=NOW, user_id="ann", explain=True)
        answer = asyncio.run(engine.recommend(query))
        lists.append([one.item_id for one in answer.items])
        assert answer.trace is not None
        assert [stage["found"] > 0 for stage in answer.trace["stages"] if stage["name"] == "similar_to_recent"] == [
            True
        ]
        engine.stop()
    assert lists[0] == lists[1]
