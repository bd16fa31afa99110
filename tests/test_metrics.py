from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from sklearn import metrics as sklearn_metrics
from sklearn.calibration import calibration_curve

from embeddings.errors import InputError
from training import metrics
from training.metrics import Relevant, Scores, score

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ranx and what it imports warn while they are imported
    from ranx import Qrels, Run, evaluate


def lists(data: st.DataObject) -> tuple[np.ndarray[Any, Any], list[np.ndarray[Any, Any]], int]:
    queries, places, items = (data.draw(st.integers(1, top)) for top in (6, 12, 25))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    ranked = np.full((queries, places), -1, dtype=np.int64)
    relevant = []
    for query in range(queries):
        shown = generator.permutation(items)[: generator.integers(0, places + 1)]
        ranked[query, : len(shown)] = shown
        relevant.append(generator.permutation(items)[: generator.integers(0, items + 1)])
    return ranked, relevant, data.draw(st.integers(1, 15))


def by_hand(name: str, shown: list[int], relevant: set[int], k: int) -> float:
    found = [place for place, row in enumerate(shown[:k], start=1) if row in relevant]
    if not relevant:
        return math.nan
    if name == "recall":
        return len(found) / len(relevant)
    if name == "hit_rate":
        return float(bool(found))
    if name == "mrr":
        return 1 / found[0] if found else 0.0
    if name == "map":
        return sum((rank + 1) / place for rank, place in enumerate(found)) / len(relevant)
    ideal = sum(1 / math.log2(place + 1) for place in range(1, min(k, len(relevant)) + 1))
    return sum(1 / math.log2(place + 1) for place in found) / ideal


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_ranking_metrics_equal_their_definitions(data: st.DataObject) -> None:
    ranked, relevant, k = lists(data)
    scores = score(ranked, relevant, k=[k])
    assert set(scores.per_query) == {f"{name}@{k}" for name in metrics.RANKING_METRICS}
    for name in metrics.RANKING_METRICS:
        expected = [
            by_hand(name, [row for row in shown if row >= 0], set(truth.tolist()), k)
            for shown, truth in zip(ranked.tolist(), relevant, strict=True)
        ]
        np.testing.assert_allclose(scores.per_query[f"{name}@{k}"], expected, rtol=1e-12)


@pytest.mark.slow  # ranx compiles its functions when they are first called
@pytest.mark.filterwarnings("ignore")  # numba's, while it compiles
def test_ranking_metrics_equal_ranx() -> None:
    generator = np.random.default_rng(0)
    ranked = np.full((300, 20), -1, dtype=np.int64)
    relevant = [generator.permutation(40)[: generator.integers(1, 40)] for _ in ranked]
    for row in ranked:
        shown = generator.permutation(40)[: generator.integers(0, 21)]
        row[: len(shown)] = shown
    truth = {f"q{query:03}": {f"d{row}": 1 for row in rows} for query, rows in enumerate(relevant)}
    # ranx knows no empty list: one unknown document stands for it.
    run = {
        f"q{query:03}": {f"d{row}": 1.0 / place for place, row in enumerate(shown, start=1) if row >= 0}
        or {"none": 1.0}
        for query, shown in enumerate(ranked.tolist())
    }
    cuts = [1, 3, 10, 20, 25]
    names = [f"{name}@{k}" for name in metrics.RANKING_METRICS for k in cuts]
    expected = evaluate(Qrels(truth), Run(run), names, return_mean=False)
    scores = score(ranked, relevant, k=cuts)
    assert set(scores.per_query) == set(names)
    for name in names:
        np.testing.assert_allclose(scores.per_query[name], expected[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("recall", [1 / 3, 0.0]),
        ("hit_rate", [1.0, 0.0]),
        ("mrr", [0.5, 0.0]),
        ("map", [0.5 / 3, 0.0]),
        ("ndcg", [(1 / math.log2(3)) / (1 + 1 / math.log2(3)), 0.0]),
    ],
)
def test_one_metric_at_a_time(name: str, expected: list[float]) -> None:
    ranked, relevant = np.array([[5, 2, 7], [1, -1, -1]]), [np.array([2, 7, 9]), np.array([0])]
    np.testing.assert_allclose(score(ranked, relevant, k=[2], metrics=[name]).per_query[f"{name}@2"], expected)


def test_offsets_and_lists_mean_the_same_and_sets_have_no_duplicates() -> None:
    listed = Relevant.of([np.array([3, 1, 3]), np.array([], dtype=np.int64), np.array([2])])
    flat = Relevant.of((np.array([0, 3, 3, 4]), np.array([3, 1, 3, 2])))
    for truth in (listed, flat):
        assert truth.offsets.tolist() == [0, 2, 2, 3]
        assert truth.rows.tolist() == [1, 3, 2]
        assert truth.counts.tolist() == [2, 0, 1]
    assert Relevant.of([]).counts.tolist() == []
    assert Relevant.of(listed) is listed


def test_queries_without_relevant_rows_are_left_out() -> None:
    scores = score(np.array([[1, 2], [3, 4]]), [np.array([1]), np.array([], dtype=np.int64)], k=[2])
    assert math.isnan(scores.per_query["recall@2"][1])
    assert scores.means["recall@2"] == 1.0
    nothing = score(np.array([[1, 2]]), [np.array([], dtype=np.int64)], k=[2])
    assert math.isnan(nothing.means["ndcg@2"])
    assert math.isnan(nothing.intervals()["ndcg@2"].low)


def test_no_queries_at_all() -> None:
    empty = score(np.empty((0, 5), np.int64), [], k=[3], metrics=["recall"])
    assert empty.per_query["recall@3"].shape == (0,)
    assert math.isnan(empty.intervals()["recall@3"].mean)
    assert score(np.empty((2, 0), np.int64), [np.array([1]), np.array([2])], k=[3]).means["mrr@3"] == 0.0


def test_intervals_cover_and_repeat() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        scores = Scores({"m": generator.exponential(size=80)})
        interval = scores.intervals(samples=300, seed=seed)["m"]
        assert interval.low <= interval.mean <= interval.high
        covered += interval.low <= 1.0 <= interval.high
    assert 85 <= covered <= 100
    assert scores.intervals(seed=3) == scores.intervals(seed=3) != scores.intervals(seed=4)
    narrow, wide = (scores.intervals(level=level)["m"] for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_intervals_equal_a_plain_bootstrap() -> None:
    values = np.random.default_rng(1).normal(size=200)
    values[::7] = np.nan
    interval = Scores({"m": values}).intervals(samples=4000)["m"]
    generator, defined = np.random.default_rng(2), values[~np.isnan(values)]
    means = [generator.choice(defined, len(defined)).mean() for _ in range(4000)]
    np.testing.assert_allclose(interval[1:], np.quantile(means, [0.025, 0.975]), atol=0.02)
    assert interval.mean == pytest.approx(defined.mean())


def test_paired_differences_see_what_separate_intervals_cannot() -> None:
    generator = np.random.default_rng(0)
    weak = Scores({"recall@10": generator.random(400), "only here": generator.random(400)})
    strong = Scores({"recall@10": weak.per_query["recall@10"] + generator.normal(0.01, 0.02, size=400)})
    assert strong.intervals()["recall@10"].low < weak.intervals()["recall@10"].high
    differences = strong.differences(weak)
    assert differences.keys() == {"recall@10"}
    assert differences["recall@10"].low > 0
    assert weak.differences(strong)["recall@10"].high < 0
    with pytest.raises(InputError, match="cannot pair 400 queries with 3"):
        weak.differences(Scores({"recall@10": np.ones(3)}))


def test_coverage_and_gini() -> None:
    ranked = np.array([[0, 1, 9], [1, 2, -1], [1, -1, -1]])
    assert metrics.coverage(ranked, items=10, k=2) == 0.3
    assert metrics.coverage(ranked, items=10, k=3) == 0.4
    exposure = np.bincount([0, 1, 9, 1, 2, 1], minlength=10)
    pairs = np.abs(exposure[:, None] - exposure[None, :]).sum()
    assert metrics.gini(ranked, items=10, k=3) == pytest.approx(pairs / (2 * 10**2 * exposure.mean()))
    assert metrics.gini(np.array([[0, 1], [2, 3]]), items=4, k=2) == 0.0
    assert metrics.gini(np.zeros((9, 1), np.int64), items=1000, k=1) == pytest.approx(0.999)
    assert math.isnan(metrics.gini(np.full((2, 2), -1), items=4, k=2))


def test_novelty_leaves_padding_out() -> None:
    ranked = np.array([[0, 1, 2], [2, -1, -1], [-1, -1, -1]])
    popularity = np.array([8, 2, 0])
    np.testing.assert_allclose(metrics.novelty(ranked, popularity, users=8, k=3), [(0 + 2 + 3) / 3, 3, np.nan])
    with pytest.raises(InputError, match="7 users"):
        metrics.novelty(ranked, popularity, users=7, k=3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_diversity_equals_the_mean_over_pairs(seed: int) -> None:
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(12, 4))
    vectors[generator.random(12) < 0.2] = 0
    has = generator.random((12, 5)) < 0.3
    ranked = np.array([generator.permutation(12)[:6] for _ in range(4)])
    ranked[1, generator.integers(1, 7) :] = -1
    by_vector = metrics.vector_diversity(ranked, vectors, k=5)
    by_category = metrics.category_diversity(ranked, csr_matrix(has.astype(float) * 3), k=5)
    for query, row in enumerate(ranked):
        shown = row[:5][row[:5] >= 0]
        pairs = [(a, b) for place, a in enumerate(shown) for b in shown[place + 1 :]]
        if not pairs:
            assert math.isnan(by_vector[query])
            assert math.isnan(by_category[query])
            continue
        lengths = [np.linalg.norm(vectors[a]) * np.linalg.norm(vectors[b]) for a, b in pairs]
        cosines = [vectors[a] @ vectors[b] / size if size else 0.0 for (a, b), size in zip(pairs, lengths, strict=True)]
        either = [(has[a] | has[b]).sum() for a, b in pairs]
        alike = [(has[a] & has[b]).sum() / size if size else 1.0 for (a, b), size in zip(pairs, either, strict=True)]
        assert by_vector[query] == pytest.approx(1 - np.mean(cosines))
        assert by_category[query] == pytest.approx(1 - np.mean(alike))


predictions = st.lists(st.tuples(st.sampled_from([0, 0.1, 0.25, 0.5, 0.7, 0.99, 1.0]), st.booleans()), min_size=1)


@settings(max_examples=60, deadline=None)
@given(predictions)
def test_probability_metrics_equal_scikit_learn(pairs: list[tuple[float, bool]]) -> None:
    probabilities, labels = np.array([p for p, _ in pairs]), np.array([int(y) for _, y in pairs])
    clipped = np.clip(probabilities, 1e-15, 1 - 1e-15)
    expected = sklearn_metrics.log_loss(labels, clipped, labels=[0, 1])
    assert metrics.log_loss(probabilities, labels) == pytest.approx(expected, rel=1e-3)


def test_log_loss_of_inner_probabilities_is_exact() -> None:
    generator = np.random.default_rng(0)
    probabilities, labels = generator.uniform(0.01, 0.99, 500), generator.integers(0, 2, 500)
    expected = sklearn_metrics.log_loss(labels, probabilities)
    assert metrics.log_loss(probabilities, labels) == pytest.approx(expected, rel=1e-12)


def test_calibration_error_equals_scikit_learns_curve() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.beta(2, 3, 4000)
    labels = (generator.random(4000) < probabilities**1.5).astype(int)
    observed, predicted = calibration_curve(labels, probabilities, n_bins=10)
    sizes = np.histogram(probabilities, bins=10, range=(0, 1))[0]
    expected = float((np.abs(observed - predicted) * sizes[sizes > 0]).sum() / 4000)
    assert metrics.expected_calibration_error(probabilities, labels, bins=10) == pytest.approx(expected)
    calibrated = (generator.random(4000) < probabilities).astype(int)
    assert metrics.expected_calibration_error(probabilities, calibrated) < 0.05 < expected


def test_edges_of_probabilities() -> None:
    assert metrics.expected_calibration_error([1.0, 0.0], [1, 0], bins=3) == 0.0
    assert metrics.expected_calibration_error([1.0, 1.0], [0, 1], bins=1) == 0.5
    assert metrics.log_loss([1.0], [0]) == pytest.approx(-math.log(1e-15))
    for empty in (metrics.log_loss, metrics.expected_calibration_error):
        assert math.isnan(empty([], []))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: score(np.array([[1, 1]]), [np.array([1])], k=[2]), "row 1 stands twice in ranking 0"),
        (lambda: score(np.array([[1, -2]]), [np.array([1])], k=[2]), "row -2"),
        (lambda: score(np.array([[1.0]]), [np.array([1])], k=[2]), "float64"),
        (lambda: score(np.array([1]), [np.array([1])], k=[2]), "queries, places"),
        (lambda: score(np.array([[1]]), [np.array([1])], k=[0]), "at least 1"),
        (lambda: score(np.array([[1]]), [], k=[1]), "1 rankings, but 0"),
        (lambda: score(np.array([[1]]), [np.array([-1])], k=[1]), "must not be negative"),
        (lambda: score(np.array([[1]]), (np.array([0, 2]), np.array([1])), k=[1]), "offsets"),
        (lambda: score(np.array([[1]]), (np.array([], np.int64), np.array([1])), k=[1]), "offsets"),
        (lambda: score(np.array([[1]]), (np.array([0, 2, 1]), np.array([1])), k=[1]), "offsets"),
        (lambda: score(np.array([[1]]), [np.array([1])], k=[1], metrics=["recal"]), "did you mean 'recall'"),
        (lambda: Scores({"a": np.ones(2), "b": np.ones(3)}), "one value a query"),
        (lambda: Scores({"a": np.ones(2)}).intervals(level=1.0), "level"),
        (lambda: metrics.coverage(np.array([[5]]), items=5, k=1), "row 5 of a catalogue of 5"),
        (lambda: metrics.gini(np.array([[5]]), items=0, k=1), "items is 0"),
        (lambda: metrics.vector_diversity(np.array([[5]]), np.ones((5, 2)), k=1), "catalogue of 5"),
        (lambda: metrics.category_diversity(np.array([[5]]), csr_matrix(np.ones((5, 2))), k=1), "catalogue of 5"),
        (lambda: metrics.log_loss([0.5], [0.5]), "0 or 1"),
        (lambda: metrics.log_loss([math.nan], [1]), "between 0 and 1"),
        (lambda: metrics.log_loss([1.2], [1]), "between 0 and 1"),
        (lambda: metrics.log_loss([0.5, 0.5], [1]), "one length"),
        (lambda: metrics.expected_calibration_error([0.5], [1], bins=0), "bins"),
    ],
)
def test_bad_input_is_refused(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
