"""Ranking lists: what was known at the time, what is set aside for the ranker, and what a candidate led to."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from embeddings.bundle import build_towers
from embeddings.features import EventKind
from embeddings.ids import UNKNOWN
from embeddings.ranker import CLOSENESS, FEATURES, RankerConfig
from embeddings.schema import Item
from embeddings.traits import alike
from embeddings.two_tower import TowerConfig, TwoTower
from tests.histories import START, Touch, cycle, dataset
from training.contenders import item_matrix
from training.dataset import Dataset, leave_last_out, single_targets
from training.examples import DAY_S, EventCounts, ListMaker, outcomes
from training.successors import count_successors

FOLLOWS, ALIKE = ([FEATURES.index(name), FEATURES.index(f"{name}_last")] for name in ("follows", "alike"))
SHOP = {"view": EventKind(), "purchase": EventKind(), "dislike": EventKind(weight=-3.0, positive=False)}


def random_world(seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    histories: dict[str, list[Touch]] = {
        f"u{person}": sorted(
            (
                (f"i{rng.integers(12)}", str(rng.choice(["view", "purchase", "dislike"])), float(rng.integers(2000)))
                for _ in range(25)
            ),
            key=lambda touch: touch[2],
        )
        for person in range(8)
    }
    return dataset(histories, event_types=SHOP)


def towers_for(data: Dataset) -> TwoTower:
    config = TowerConfig(dim=8, layers=1, max_history=6, dropout=0.0)
    return build_towers(config, data.spec, items=len(data.items)).eval()


def test_counts_are_those_of_the_moment() -> None:
    data = random_world()
    counts = EventCounts(data, recent_days=10)
    moments = np.unique(np.concatenate([data.times, data.times + 1, [0.0, 4e9]]))
    rows = np.arange(len(data.items))
    total, recent = counts.at(rows[None, :], moments[:, None])
    for m, moment in enumerate(moments):
        for row in rows:
            past = (data.rows == row) & data.positive & (data.times < moment)
            assert total[m, row] == past.sum()
            assert recent[m, row] == (past & (data.times >= moment - 10 * DAY_S)).sum()


def test_a_release_carries_the_counts_after_the_last_event() -> None:
    data = random_world()
    found = EventCounts(data, recent_days=10).at_the_end()
    last = data.times[data.positive].max()
    for row in range(len(data.items)):
        own = (data.rows == row) & data.positive
        assert found[row, 0] == own.sum()
        assert found[row, 1] == (own & (data.times >= np.nextafter(last, np.inf) - 10 * DAY_S)).sum()


def test_counts_without_a_positive_event_are_zero() -> None:
    data = dataset({"ann": [("a", "dislike", 0), ("b", "dislike", 1)]}, event_types=SHOP)
    assert EventCounts(data).at_the_end().tolist() == [[0, 0], [0, 0]]


def test_lists_hold_the_best_unseen_items_with_their_features() -> None:
    items = [
        Item(
            item_id=f"i{n:02}",
            price=float(n + 1),
            created_at=START if n % 2 else None,
            attributes={"colour": f"c{n % 4}"},
        )
        for n in range(20)
    ]
    data = cycle(people=30, items=20, length=7, event_types=SHOP)
    data = dataset(
        {
            data.users.id(u): " ".join(data.items.ids(data.rows[data.offsets[u] : data.offsets[u + 1]]))
            for u in range(30)
        },
        items=items,
        event_types=SHOP,
    )
    towers = towers_for(data)
    matrix = item_matrix(data, towers)
    split = leave_last_out(data)
    successors = count_successors(data, split.train, width=5, reach=3)
    maker = ListMaker(data, towers, matrix, RankerConfig(objectives=("view",), candidates=12, history=3), successors)
    lists = maker.make(split.test)
    assert lists.rows.shape == (30, 12)
    counts = EventCounts(data)
    for q in range(len(lists)):
        past = data.rows[data.offsets[split.test.users[q]] : split.test.ends[q]]
        scores = matrix @ lists.queries[q]
        best = [row for row in np.argsort(-scores, kind="stable") if row not in past][:12]
        assert set(lists.rows[q]) == set(best)
        np.testing.assert_allclose(lists.features[q, :, 0], scores[lists.rows[q]] - scores[best].max(), atol=1e-5)
        total = counts.before(lists.rows[q], split.test.times[q])
        np.testing.assert_allclose(lists.features[q, :, 2], np.log1p(total) / 5, rtol=1e-6)
        assert lists.history[q].tolist() == past[-3:].tolist()
        close = np.log1p(CLOSENESS * successors.follow(past, lists.rows[q])) / 3
        np.testing.assert_allclose(lists.features[q][:, FOLLOWS], close, rtol=1e-6)
        likeness = alike(maker.traits.take(past), maker.traits.take(lists.rows[q]))
        np.testing.assert_allclose(lists.features[q][:, ALIKE], likeness, rtol=1e-6)
    assert lists.features[..., FOLLOWS].any()
    assert lists.features[..., ALIKE].any()
    assert np.isfinite(lists.features).all()


def test_chunks_are_the_same_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    data = cycle(people=23)
    towers = towers_for(data)
    split = leave_last_out(data)
    config, successors = (
        RankerConfig(objectives=("view",), candidates=30),
        count_successors(data, split.train, width=5, reach=3),
    )
    maker = ListMaker(data, towers, item_matrix(data, towers), config, successors)
    targets = split.test
    whole = maker.make(targets)
    monkeypatch.setattr("training.examples.CHUNK", 5)
    parts = list(maker.chunks(targets))
    assert [len(part) for part in parts] == [5, 5, 5, 5, 3]
    np.testing.assert_array_equal(np.concatenate([part.rows for part in parts]), whole.rows)
    np.testing.assert_allclose(np.concatenate([part.features for part in parts]), whole.features, atol=1e-5)
    assert (whole.rows[:, 14:] == UNKNOWN).all()  # 20 items, 6 of them seen
    assert not whole.features[:, 14:].any()


def test_outcomes_are_what_followed_the_find() -> None:
    day = 24.0
    data = dataset(
        {
            "ann": [
                ("a", "view", 0),
                ("b", "view", 1),
                ("c", "view", 2),  # the validation target
                ("c", "purchase", 2 + 2 * day),
                ("d", "view", 3 + 2 * day),  # the test target
                ("d", "purchase", 3 + 20 * day),  # too late to be an outcome of that find
            ]
        },
        event_types=SHOP,
    )
    split, config = leave_last_out(data), RankerConfig(objectives=("purchase", "view"))
    rows = np.array([[*data.items.rows(["d", "c", "a"]).tolist(), UNKNOWN]])
    wanted = [[[False, False], [True, True], [False, False], [False, False]]]
    assert outcomes(data, split.validation, rows, config).tolist() == wanted
    assert outcomes(data, split.test, rows, config)[0, 0].tolist() == [False, True]
    assert outcomes(data, split.test, rows, config, within_days=30.0)[0, 0].tolist() == [True, True]


def test_a_target_from_elsewhere_counts_for_every_objective() -> None:
    """As the test items of a file of interactions, which are no events of the data."""
    data = dataset({"ann": "a b c", "bob": "c d"}, event_types=SHOP)
    row, end = data.users.row("ann"), data.offsets[data.users.row("ann") + 1]
    target = single_targets(data, np.array([end - 1]), np.array([end]))
    target = dataclasses.replace(target, users=np.array([row]), rows=np.array([data.items.row("d")]))
    rows = np.array([data.items.rows(["d", "a"])])
    config = RankerConfig(objectives=("purchase", "view"))
    assert outcomes(data, target, rows, config).tolist() == [[[True, True], [False, False]]]
