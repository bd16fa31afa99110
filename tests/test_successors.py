"""Successors: counted as they follow each other, found again for a history, and carried by a release."""

from __future__ import annotations

import numpy as np
import pytest

from embeddings.features import EventKind
from embeddings.ranker import Ranker
from embeddings.successors import DECAY, LATEST, Successors
from serving.replica.engine import Engine
from tests.conftest import look_only_at
from tests.histories import dataset
from tests.test_pipeline import ask, do, ids
from training.dataset import Dataset, leave_last_out
from training.successors import count_successors

VIEW = {"view": EventKind(), "dislike": EventKind(weight=-3.0, positive=False)}


def everything(data: Dataset) -> np.ndarray:
    return np.ones(len(data), dtype=np.bool_)


def closeness(found: Successors, data: Dataset, first: str, then: str) -> float:
    row, other = data.items.row(first), data.items.row(then)
    return float(found.weights[row][found.rows[row] == other].sum())


def test_what_comes_sooner_is_closer_and_what_is_everywhere_less_so() -> None:
    data = dataset({"ann": "a b c d e", "bob": "a b x", "cid": "x d", "dan": "x c"}, event_types=VIEW)
    found = count_successors(data, everything(data), width=4, reach=3)
    often = {"a": 2, "b": 2, "c": 2, "d": 2, "e": 1, "x": 3}

    def expected(first: str, then: str, count: float) -> float:
        return count / np.sqrt((often[first] + 1) * (often[then] + 1))

    assert closeness(found, data, "a", "b") == pytest.approx(expected("a", "b", 2.0), rel=1e-3)
    assert closeness(found, data, "a", "c") == pytest.approx(expected("a", "c", 1 / 2), rel=1e-3)
    assert closeness(found, data, "a", "d") == pytest.approx(expected("a", "d", 1 / 3), rel=1e-3)
    assert closeness(found, data, "a", "e") == 0.0  # out of reach
    assert closeness(found, data, "b", "a") == 0.0  # only forwards
    assert closeness(found, data, "e", "x") == 0.0  # another person
    row = data.items.row("a")
    assert data.items.ids(found.rows[row][found.rows[row] >= 0]) == ["b", "c", "x", "d"]
    assert (np.diff(found.weights[row].astype(np.float32)) <= 0).all()


def test_only_known_and_positive_events_count() -> None:
    data = dataset(
        {"ann": [("a", "view", 0), ("b", "dislike", 1), ("c", "view", 2), ("d", "view", 3), ("e", "view", 4)]},
        event_types=VIEW,
    )
    found = count_successors(data, leave_last_out(data).train, width=4, reach=3)  # d and e are held out
    assert closeness(found, data, "a", "c") == pytest.approx(1 / 2, rel=1e-3)
    assert not (found.rows == data.items.row("d")).any()
    assert not (found.rows == data.items.row("b")).any()


def test_without_order_all_items_of_a_person_go_together() -> None:
    people = {"ann": "a b c d", "bob": "d a", "cid": "x d x"}
    data = dataset(people, event_types=VIEW)
    found = count_successors(data, everything(data), width=4, reach=0)
    names = sorted({"a", "b", "c", "d", "x"})
    ones = np.array([[float(name in items.split()) for name in names] for items in people.values()])
    scaled = ones / np.sqrt(ones.sum(1, keepdims=True)) / np.sqrt(ones.sum(0))
    expected = scaled.T @ scaled
    for at, first in enumerate(names):
        for to, then in enumerate(names):
            wanted = 0.0 if first == then else expected[at, to]
            assert closeness(found, data, first, then) == pytest.approx(wanted, abs=1e-3)
    assert not found.ordered


@pytest.mark.parametrize("reach", [3, 0])
def test_more_items_than_a_chunk(reach: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    data = dataset({f"u{n}": " ".join(f"i{m}" for m in rng.integers(0, 30, 12)) for n in range(20)}, event_types=VIEW)
    whole = count_successors(data, everything(data), width=6, reach=reach)
    monkeypatch.setattr("training.successors.CHUNK", 7)
    parts = count_successors(data, everything(data), width=6, reach=reach)
    np.testing.assert_array_equal(parts.rows, whole.rows)
    np.testing.assert_array_equal(parts.weights, whole.weights)


def table(*, ordered: bool = True) -> Successors:
    """Item n is followed by n + 1, closely, and by n + 2."""
    rows = np.stack([np.arange(1, 21), np.arange(2, 22), np.full(20, -1)], axis=1).astype(np.int32)
    rows[rows >= 20] = -1
    weights = np.where(rows >= 0, np.array([0.5, 0.25, 0.0]), 0.0).astype(np.float16)
    return Successors(rows=rows, weights=weights, ordered=ordered)


def test_without_order_every_event_counts_the_same_and_the_closest_once_more() -> None:
    history = np.array([8, 7, *[3] * LATEST])  # more than would count in order
    found = table(ordered=False).follow(history, np.array([10, 4, 9, 15]))
    np.testing.assert_allclose(found, [[0.25, 0.25], [0.5 * LATEST, 0.5], [0.75, 0.5], [0.0, 0.0]], rtol=1e-6)


def test_the_latest_events_count_most() -> None:
    found = table().follow(np.array([3, 7, 8]), np.array([10, 4, 9, 15]))
    np.testing.assert_allclose(found[:, 0], [0.25, 0.5 * DECAY**2, 0.5 + 0.25 * DECAY, 0.0], rtol=1e-6)
    np.testing.assert_allclose(found[:, 1], [0.25, 0.0, 0.5, 0.0], rtol=1e-6)


def test_old_events_and_rows_of_another_world_count_nothing() -> None:
    long = np.concatenate([[3], np.full(LATEST, 17)])
    assert table().follow(long, np.array([4, 18]))[:, 0].tolist()[0] == 0.0
    assert not table().follow(np.array([-1, 40]), np.array([4, 40, -1])).any()
    unknown_last = table().follow(np.array([3, 40]), np.array([4, 41]))
    np.testing.assert_allclose(unknown_last, [[0.5 * DECAY, 0.0], [0.0, 0.0]], rtol=1e-6)
    assert table().follow(np.zeros(0, dtype=np.int64), np.array([1])).shape == (1, 2)
    assert table().follow(np.array([1]), np.zeros(0, dtype=np.int64)).shape == (0, 2)


def test_a_release_carries_them_and_the_service_asks_them(engine: Engine) -> None:
    """A ranking model that looks at nothing but what follows the last item puts just that first."""
    before = ids(ask(engine, user_id="ann", k=3))
    bundle = engine.holdings.current().snapshot.bundle
    assert bundle.ranker is not None
    assert bundle.successors.rows.shape == (len(bundle.ids), bundle.ranker.config.successors)
    last, wanted = bundle.ids.row(before[0]), bundle.ids.row(before[2])
    rows, weights = bundle.successors.rows.copy(), bundle.successors.weights.copy()
    rows[last, 0], weights[last, 0] = wanted, 1.0
    model = only_what_follows(bundle.ranker, Successors(rows=rows, weights=weights))
    bundle.__dict__.pop("successors", None)
    bundle.__dict__.pop("ranker_pass", None)
    object.__setattr__(bundle, "ranker", model)
    do(engine, before[0])
    assert ids(ask(engine, user_id="ann", k=3))[0] == before[2]


def only_what_follows(model: Ranker, successors: Successors) -> Ranker:
    built = Ranker(model.config, dim=8).eval()
    built.set_successors(successors)
    look_only_at(built, "follows_last")
    return built
