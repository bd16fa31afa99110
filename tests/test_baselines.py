from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from embeddings.errors import InputError
from training import baselines
from training.baselines import EASE, ItemKNN, Popularity, RecentPopularity, top_rows
from training.metrics import score

BASELINES = (Popularity, RecentPopularity, ItemKNN, EASE)
PERSONALISED = [baseline for baseline in BASELINES if not issubclass(baseline, Popularity)]


def random_world(seed: int = 0, users: int = 60, items: int = 25) -> csr_matrix:
    generator = np.random.default_rng(seed)
    return csr_matrix(
        (generator.random((users, items)) < 0.2) * generator.integers(1, 4, (users, items)), dtype=np.float32
    )


def times_of(train: csr_matrix) -> np.ndarray[Any, Any]:
    moments: np.ndarray[Any, Any] = 1.7e9 + np.random.default_rng(5).integers(0, 10**7, train.nnz).astype(np.float64)
    return moments


def fitted(baseline: Any, train: csr_matrix) -> Any:
    return baseline().fit(train, times_of(train))


def block_world(groups: int = 4, size: int = 9, users: int = 40) -> tuple[csr_matrix, np.ndarray[Any, Any]]:
    """Users of a group touch that group's items only; groups are of different size, so popularity would mix them."""
    generator = np.random.default_rng(1)
    group = np.arange(users * groups) % groups
    liked = generator.random((users * groups, groups * size)) < (0.25 + 0.1 * group[:, None])
    same = group[:, None] == np.arange(groups * size)[None, :] // size
    liked |= np.arange(groups * size)[None, :] == group[:, None] * size  # nobody without a history
    return csr_matrix(liked & same, dtype=np.float32), group


def slow_top(scores: np.ndarray[Any, Any], k: int) -> np.ndarray[Any, Any]:
    out = np.full((len(scores), k), -1, dtype=np.int64)
    for query, line in enumerate(scores.tolist()):
        usable = [row for row, value in enumerate(line) if value != -np.inf]
        best = sorted(usable, key=lambda row: (-line[row], row))[:k]
        out[query, : len(best)] = best
    return out


@pytest.mark.parametrize("baseline", BASELINES)
class TestContract:
    def test_lists_are_rows_without_repeats_and_repeatable(self, baseline: Any) -> None:
        train = random_world()
        rows = fitted(baseline, train).rank(train, 10)
        assert (rows.shape, rows.dtype) == ((60, 10), np.int64)
        assert rows.min() >= -1
        assert rows.max() < 25
        for row in rows:
            shown = row[row >= 0]
            assert len(set(shown.tolist())) == len(shown)
            assert (row[len(shown) :] == -1).all()
        np.testing.assert_array_equal(rows, fitted(baseline, train).rank(train, 10))

    def test_excluded_rows_never_come_and_lists_stay_full(self, baseline: Any) -> None:
        train = random_world()
        model = fitted(baseline, train)
        rows = model.rank(train, 5, exclude=train)
        for row, history in zip(rows, train.toarray(), strict=True):
            assert (history[row[row >= 0]] == 0).all()
        everything = csr_matrix(np.ones(train.shape))
        assert (model.rank(train, 5, exclude=everything) == -1).all()
        # Exclusion is a filter: what remains keeps its order.
        full = model.rank(train, 25)
        for row, before, history in zip(rows, full, train.toarray(), strict=True):
            kept = [item for item in before if item >= 0 and history[item] == 0][:5]
            assert row[row >= 0].tolist() == kept

    def test_more_places_than_items(self, baseline: Any) -> None:
        train = random_world()
        rows = fitted(baseline, train).rank(train, 40)
        assert rows.shape == (60, 40)
        assert (rows[:, 25:] == -1).all()

    def test_an_item_nobody_met_is_never_recommended(self, baseline: Any) -> None:
        dense = random_world().toarray()
        dense[:, 7] = 0
        history = csr_matrix(np.ones((1, 25), np.float32))
        rows = fitted(baseline, csr_matrix(dense)).rank(history, 25)
        assert 7 not in rows

    def test_a_batch_answers_as_its_queries_and_chunks_change_nothing(
        self, baseline: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        train = random_world()
        model = fitted(baseline, train)
        rows = model.rank(train, 6, exclude=train)
        single = [model.rank(train[user], 6, exclude=train[user]) for user in range(60)]
        np.testing.assert_array_equal(rows, np.concatenate(single))
        monkeypatch.setattr(baselines, "CHUNK_CELLS", 60)  # two histories, a few items at a time
        np.testing.assert_array_equal(rows, fitted(baseline, train).rank(train, 6, exclude=train))

    def test_input_is_not_changed(self, baseline: Any) -> None:
        train = random_world()
        before = train.copy()
        fitted(baseline, train).rank(train, 5, exclude=train)
        assert (train != before).nnz == 0
        np.testing.assert_array_equal(train.indices, before.indices)

    def test_no_queries_no_users_no_items(self, baseline: Any) -> None:
        train = random_world()
        assert fitted(baseline, train).rank(csr_matrix((0, 25)), 3).shape == (0, 3)
        nobody = fitted(baseline, csr_matrix((0, 4)))
        assert (nobody.rank(csr_matrix(np.ones((2, 4))), 3) == -1).all()
        nothing = fitted(baseline, csr_matrix((3, 0)))
        assert (nothing.rank(csr_matrix((2, 0)), 3) == -1).all()

    def test_other_types_and_unsorted_columns_are_understood(self, baseline: Any) -> None:
        train = random_world()
        data, columns = train.data.astype(np.int64), train.indices
        order = np.concatenate(
            [np.arange(a, b)[::-1] for a, b in zip(train.indptr[:-1], train.indptr[1:], strict=True)]
        )
        shuffled = csr_matrix((data[order], columns[order], train.indptr), shape=train.shape)
        again = baseline().fit(shuffled, times_of(train)[order]).rank(shuffled, 8)
        np.testing.assert_array_equal(again, fitted(baseline, train).rank(train, 8))

    @pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
    def test_bad_weights_are_refused(self, baseline: Any, value: float) -> None:
        train = random_world()
        bad = train.copy()
        bad.data[3] = value
        with pytest.raises(InputError, match="train must hold finite weights"):
            baseline().fit(bad, times_of(bad))
        with pytest.raises(InputError, match="histories must hold finite weights"):
            fitted(baseline, train).rank(bad, 3)

    def test_bad_calls_are_refused(self, baseline: Any) -> None:
        train = random_world()
        with pytest.raises(InputError, match="must be fitted"):
            baseline().rank(train, 3)
        model = fitted(baseline, train)
        with pytest.raises(InputError, match="k is 0"):
            model.rank(train, 0)
        with pytest.raises(InputError, match="24 items wide, training was 25"):
            model.rank(train[:, :24], 3)
        with pytest.raises(InputError, match="exclude is"):
            model.rank(train, 3, exclude=train[:5])
        with pytest.raises(InputError, match="times are"):
            baseline().fit(train, times_of(train)[:-1])
        with pytest.raises(InputError, match="finite seconds"):
            baseline().fit(train, np.full(train.nnz, np.nan))


def test_names_are_different() -> None:
    assert len({baseline.name for baseline in BASELINES}) == len(BASELINES)


@pytest.mark.parametrize("baseline", PERSONALISED)
def test_a_block_world_is_solved_exactly(baseline: Any) -> None:
    train, group = block_world()
    rows = fitted(baseline, train).rank(train, 4)
    assert (rows // 9 == group[:, None]).all()
    newcomer = csr_matrix(np.eye(36, dtype=np.float32))
    first = fitted(baseline, train).rank(newcomer, 5, exclude=newcomer)
    assert (first // 9 == (np.arange(36) // 9)[:, None]).all()


@pytest.mark.parametrize("baseline", PERSONALISED)
def test_no_history_no_evidence(baseline: Any) -> None:
    train = random_world()
    stored_zero = csr_matrix((np.zeros(1, np.float32), [3], [0, 1, 1]), shape=(2, 25))
    assert (fitted(baseline, train).rank(stored_zero, 5) == -1).all()


def test_popularity_counts_weights() -> None:
    train = csr_matrix(np.array([[1, 0, 3, 0], [1, 2, 0, 0], [0, 0, 0, 0]], dtype=np.float32))
    assert Popularity().fit(train).rank(train, 4).tolist() == [[2, 0, 1, -1]] * 3


def test_recent_popularity_forgets_by_half_lives() -> None:
    # Item 0: four old weights of 1; item 1: one new of 1; item 2: one new of 0.9. Two half-lives lie between.
    train = csr_matrix(np.array([[1, 1, 0], [1, 0, 0.9], [1, 0, 0], [1.2, 0, 0]], dtype=np.float32))
    times = np.array([0, 200, 0, 200, 0, 0], dtype=np.float64)
    history = csr_matrix((1, 3))
    assert RecentPopularity(half_life_s=100).fit(train, times).rank(history, 3).tolist() == [[0, 1, 2]]
    assert RecentPopularity(half_life_s=80).fit(train, times).rank(history, 3).tolist() == [[1, 2, 0]]
    assert RecentPopularity(half_life_s=1e12).fit(train, times + 1.7e9).rank(history, 3).tolist() == [[0, 1, 2]]
    with pytest.raises(InputError, match="needs the times"):
        RecentPopularity().fit(train)


@pytest.mark.parametrize(("neighbours", "shrinkage"), [(1000, 0.0), (1000, 10.0), (3, 2.5), (1, 0.0)])
def test_item_knn_equals_its_definition(neighbours: int, shrinkage: float) -> None:
    train = random_world(3)
    x = train.toarray().astype(np.float64)
    similar = np.zeros((25, 25))
    for i in range(25):
        for j in range(25):
            both = x[:, i] @ x[:, j]
            if i != j and both:
                similar[i, j] = both / (np.linalg.norm(x[:, i]) * np.linalg.norm(x[:, j]) + shrinkage)
        # Neighbours by similarity as float32 holds it, the lower row first.
        order = np.lexsort((np.arange(25), -similar[i].astype(np.float32)))
        similar[i, order[neighbours:]] = 0
    model = ItemKNN(neighbours=neighbours, shrinkage=shrinkage).fit(train)
    np.testing.assert_allclose(model._similar_NN.toarray(), similar, rtol=1e-5)
    scores = (train @ model._similar_NN).toarray()
    np.testing.assert_array_equal(model.rank(train, 9), slow_top(np.where(scores > 0, scores, -np.inf), 9))


def test_ease_equals_its_definition() -> None:
    train = random_world(4, users=200, items=40)
    x = train.toarray().astype(np.float64)
    inverse = np.linalg.inv(x.T @ x + 30 * np.eye(40))
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    model = EASE(l2=30).fit(train)
    np.testing.assert_allclose(model._weights_NN, weights, atol=2e-6)
    np.testing.assert_array_equal(model.rank(train, 12), slow_top(np.where(x @ weights == 0, -np.inf, x @ weights), 12))


def test_ease_solves_its_own_problem() -> None:
    # The closed form is the minimum of |X - XB|^2 + l2 |B|^2 with a zero diagonal: no small step away from it helps.
    train = random_world(6)
    x, weights = train.toarray().astype(np.float64), EASE(l2=5).fit(train)._weights_NN.astype(np.float64)

    def loss(b: np.ndarray[Any, Any]) -> float:
        return float(np.square(x - x @ b).sum() + 5 * np.square(b).sum())

    for seed in range(20):
        step = 1e-3 * np.random.default_rng(seed).standard_normal((25, 25))
        np.fill_diagonal(step, 0)
        assert loss(weights + step) > loss(weights)


def test_ease_refuses_what_does_not_fit() -> None:
    wide = csr_matrix((2, 100_000), dtype=np.float32)
    with pytest.raises(InputError, match=r"needs 38\.1 GiB for 100000 items, the limit is 2 GiB") as caught:
        EASE(memory_limit_gib=2).fit(wide)
    assert caught.value.field == "memory_limit_gib"


@pytest.mark.parametrize("items", [1, 7, 8, 25, 64])
def test_ease_inverts_in_place_block_by_block(items: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "SWEEP", 8)
    x = random_world(items=items).toarray().astype(np.float64)
    gram = x.T @ x + 5 * np.eye(items)
    worked = gram.astype(np.float32)
    assert baselines._inverse(worked) is worked
    np.testing.assert_allclose(worked, np.linalg.inv(gram), atol=1e-6)
    np.testing.assert_array_equal(worked, worked.T)


def test_ease_refuses_a_singular_matrix() -> None:
    with pytest.raises(InputError, match="raise l2"):
        baselines._inverse(-np.eye(3, dtype=np.float32))


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 50),
    st.lists(st.sampled_from([-np.inf, -3.5, -1e-30, -0.0, 0.0, 1e-30, 1.0, 1.0000001, 7e30]), min_size=1),
)
def test_top_rows_equals_a_sort(items: int, k: int, values: list[float]) -> None:
    scores = np.random.default_rng(items).choice(np.array(values, np.float32), size=(5, items))
    expected = slow_top(scores, k)[:, : min(k, items)]
    np.testing.assert_array_equal(top_rows(scores, k), expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RecentPopularity(half_life_s=0),
        lambda: RecentPopularity(half_life_s=float("nan")),
        lambda: ItemKNN(neighbours=0),
        lambda: ItemKNN(shrinkage=-1),
        lambda: EASE(l2=0),
    ],
)
def test_bad_settings_are_refused(make: Any) -> None:
    with pytest.raises(InputError, match="must"):
        make()


@pytest.mark.slow
def test_baselines_reach_their_known_accuracy_on_real_data() -> None:
    """Leave-last-out over `sequences.txt`, one line a user: the user, then items in time order."""
    file = Path(os.environ.get("BESPOKE_TEST_DATA", "")) / "beauty" / "sequences.txt"
    if not file.is_file():
        pytest.skip("BESPOKE_TEST_DATA names no folder with beauty/sequences.txt")
    sequences = [np.array(line.split()[1:], dtype=np.int64) for line in file.read_text().splitlines()]
    lengths = [len(sequence) - 1 for sequence in sequences]
    columns = np.concatenate([sequence[:-1] for sequence in sequences])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    history = csr_matrix((np.ones(len(columns), np.float32), columns, offsets))
    relevant = [sequence[-1:] for sequence in sequences]
    recall = {}
    for model in (Popularity(), ItemKNN(), EASE(l2=200)):
        rows = model.fit(history).rank(history, 10, exclude=history)
        means = score(rows, relevant, k=[10], metrics=["recall", "ndcg"]).means
        recall[model.name] = means["recall@10"]
    assert means["recall@10"] == pytest.approx(0.0764, abs=5e-4)
    assert means["ndcg@10"] == pytest.approx(0.0418, abs=5e-4)
    assert recall["popularity"] < recall["item_knn"] < recall["ease"]
