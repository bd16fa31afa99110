"""The table: every system on the same terms, checked against the slow way, and back from its own JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from rich.console import Console

from embeddings.bundle import build_towers
from embeddings.errors import DataError, InputError
from embeddings.features import EventKind
from embeddings.ids import UNKNOWN
from embeddings.ranker import Ranker, RankerConfig
from embeddings.schema import Item
from embeddings.two_tower import TowerConfig, TwoTower
from tests.histories import cycle, dataset
from training.baselines import ItemKNN, Popularity, RecentPopularity
from training.contenders import RELEASE, item_matrix, rank_baseline, rank_ranker, rank_two_tower, training_matrix
from training.dataset import Dataset, leave_last_out
from training.evaluate import BASELINE_NAMES, ORDER, Evaluation, evaluate
from training.metrics import Interval

VIEW = {"view": EventKind(), "dislike": EventKind(weight=-3.0, positive=False)}
CONFIG = RankerConfig(objectives=("view",), hidden=(8,), candidates=10, history=4)


def models(data: Dataset) -> tuple[TwoTower, Ranker]:
    torch.manual_seed(0)
    towers = build_towers(TowerConfig(dim=8, layers=1, max_history=8), data.spec, items=len(data.items)).eval()
    return towers, Ranker(CONFIG, dim=8).eval()


def ratings() -> Dataset:
    rng = np.random.default_rng(0)
    histories = {
        f"u{person}": [
            (f"i{item:02}", "dislike" if rng.random() < 0.2 else "view", float(hour))
            for hour, item in enumerate(rng.choice(30, 12, p=np.arange(1, 31) / np.arange(1, 31).sum()))
        ]
        for person in range(40)
    }
    return dataset(histories, event_types=VIEW)


def test_the_training_matrix_has_a_one_for_every_liked_item() -> None:
    data = ratings()
    split = leave_last_out(data)
    matrix, times = training_matrix(data, split)
    expected = np.zeros((len(data.users), len(data.items)))
    last = np.full(expected.shape, -np.inf)
    for event in np.flatnonzero(split.train & data.positive):
        at = data.owners[event], data.rows[event]
        expected[at], last[at] = 1.0, max(last[at], data.times[event])
    np.testing.assert_array_equal(matrix.toarray(), expected)
    np.testing.assert_array_equal(times, last[expected > 0])


def test_popularity_is_what_counting_gives() -> None:
    data = ratings()
    split = leave_last_out(data)
    ranked = rank_baseline(Popularity(), data, split, split.test, depth=5)
    liked = training_matrix(data, split)[0].toarray().sum(0)
    for q, (user, end) in enumerate(zip(split.test.users, split.test.ends, strict=True)):
        seen = set(data.rows[data.offsets[user] : end].tolist())
        best = [row for row in np.argsort(-liked, kind="stable") if row not in seen and liked[row]]
        assert ranked[q][ranked[q] != UNKNOWN].tolist() == best[:5]


def test_no_system_lists_what_was_seen_and_no_baseline_sees_the_future() -> None:
    data = ratings()
    split = leave_last_out(data)
    towers, _ = models(data)
    lists = [rank_baseline(one, data, split, split.test, depth=10) for one in (RecentPopularity(), ItemKNN())]
    lists.append(rank_two_tower(data, towers, item_matrix(data, towers), split.test, depth=10))
    for ranked in lists:
        for q, (user, end) in enumerate(zip(split.test.users, split.test.ends, strict=True)):
            assert not set(ranked[q].tolist()) & set(data.rows[data.offsets[user] : end].tolist())


def test_the_ranker_reorders_the_head_and_leaves_the_rest() -> None:
    data = cycle(people=30, event_types=VIEW)
    split = leave_last_out(data)
    towers, ranker = models(data)
    matrix = item_matrix(data, towers)
    retrieved = rank_two_tower(data, towers, matrix, split.test, depth=13)
    same, _ = rank_ranker(data, towers, matrix, ranker, split.test, retrieved)
    np.testing.assert_array_equal(same, retrieved)  # untrained
    with torch.no_grad():
        ranker.trust.fill_(-1.0)
    turned, predictions = rank_ranker(data, towers, matrix, ranker, split.test, retrieved)
    np.testing.assert_array_equal(turned[:, :10], retrieved[:, 9::-1])
    np.testing.assert_array_equal(turned[:, 10:], retrieved[:, 10:])
    assert 0.0 < predictions.error() < 1.0
    short, _ = rank_ranker(data, towers, matrix, ranker, split.test, retrieved[:, :3])
    np.testing.assert_array_equal(short, turned[:, :3])


def test_the_table_has_every_system_and_every_figure() -> None:
    data = cycle(people=40, event_types=VIEW)
    split = leave_last_out(data)
    said: list[str] = []
    found = evaluate(data, split, *models(data), k=(10, 3), say=said.append)
    systems = [name for name in ORDER if name != RELEASE]
    assert list(found.systems) == systems
    assert said == [*systems, "intervals"]
    for name, metrics in found.systems.items():
        for cut in (10, 3):
            for metric in ("recall", "ndcg", "mrr", "map", "coverage", "novelty", "diversity"):
                assert f"{metric}@{cut}" in metrics
            low, mean, high = (getattr(metrics[f"ndcg@{cut}"], end) for end in ("low", "mean", "high"))
            assert low <= mean <= high
        assert ("calibration" in metrics) == (name == "ranker")
    pairs = {f"{ours} - {name}" for ours in ("two_tower", "ranker") for name in BASELINE_NAMES}
    assert set(found.differences) == pairs | {"ranker - two_tower"}
    means = found.means(["ndcg@3"])
    gap = found.differences["two_tower - item_knn"]["ndcg@3"].mean
    assert gap == pytest.approx(means["two_tower"]["ndcg@3"] - means["item_knn"]["ndcg@3"])


def test_categories_decide_diversity_where_there_are_some() -> None:
    items = [Item(item_id=f"i{n:02}", categories=["all", f"own-{n}"]) for n in range(20)]
    histories = {f"u{p}": " ".join(f"i{(p + n) % 20:02}" for n in range(6)) for p in range(25)}
    data = dataset(histories, items=items, event_types=VIEW)
    found = evaluate(data, leave_last_out(data), models(data)[0])
    for metrics in found.systems.values():
        assert metrics["diversity@10"].mean == pytest.approx(1 - 1 / 3)  # one category of three is common


def test_ease_is_left_out_above_its_memory_and_the_table_says_so() -> None:
    data = cycle(people=20, event_types=VIEW)
    found = evaluate(data, leave_last_out(data), models(data)[0], ease_gib=0.001)
    assert "ease" not in found.systems
    assert "ranker" not in found.systems
    assert "EASE needs" in found.notes[0]


def test_json_comes_back_as_it_went() -> None:
    data = cycle(people=20, event_types=VIEW)
    found = evaluate(data, leave_last_out(data), *models(data))
    text = json.dumps(found.to_json(), allow_nan=False)
    back = Evaluation.from_json(text, where="here")
    assert back.to_json() == found.to_json()
    assert math.isnan(back.systems["ranker"]["calibration"].low)


def test_the_printed_table_shows_the_figures() -> None:
    systems = {"two_tower": {"recall@10": Interval(0.25, 0.2, 0.3), "calibration": Interval(0.5, math.nan, math.nan)}}
    found = Evaluation(
        targets="test", queries=7, items=9, cutoffs=(10,), systems=systems, differences={}, notes=("no EASE",)
    )
    console = Console(width=200, record=True, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115
    with console.file:
        console.print(found.to_rich_table())
        text = console.export_text()
    for part in ("7 test targets, 9 items", "two_tower", "0.2500 [0.200, 0.300]", "0.5000", "no EASE"):
        assert part in text
    with pytest.raises(InputError, match="k is 5, evaluated were 10"):
        found.to_rich_table(k=5)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"targets": 1}', '{"systems": 3}'])
def test_what_is_no_evaluation_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="here is not an evaluation"):
        Evaluation.from_json(text, where="here")


def test_bad_questions_are_sentences() -> None:
    data = cycle(people=10, event_types=VIEW)
    towers, _ = models(data)
    with pytest.raises(InputError, match="at least 1"):
        evaluate(data, leave_last_out(data), towers, k=(0,))
    lonely = dataset({"ann": "a b", "bob": "a"}, event_types=VIEW)
    with pytest.raises(DataError, match="no test targets"):
        evaluate(lonely, leave_last_out(lonely), models(lonely)[0])
