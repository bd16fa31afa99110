from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import embeddings.effort
import embeddings.index
from embeddings.arrays import Floats
from embeddings.effort import Effort, perturbed_rows
from embeddings.errors import BundleError, InputError
from embeddings.index import VectorIndex

Rows = npt.NDArray[np.int64]


def clustered(rows: int, width: int, seed: int = 0) -> tuple[Floats, npt.NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((max(2, rows // 200), width))
    cluster = generator.integers(len(centres), size=rows)
    return (centres[cluster] + 0.7 * generator.standard_normal((rows, width))).astype(np.float32), cluster


def reference(matrix: Floats, queries: Floats, k: int, allowed: npt.NDArray[np.bool_] | None = None) -> Rows:
    """Python's sort over every row: score descending, then row ascending, padded with -1."""
    scores = queries.astype(np.float64) @ matrix.astype(np.float64).T
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    for query, line in enumerate(scores):
        usable = [row for row in range(len(matrix)) if allowed is None or allowed[row]]
        best = sorted(usable, key=lambda row: (-line[row], row))[:k]
        rows[query, : len(best)] = best
    return rows


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@pytest.fixture(scope="module")
def world() -> tuple[Floats, Floats]:
    matrix, _ = clustered(12_300, 16)
    return matrix[:12_000], matrix[12_000:]


@pytest.fixture(scope="module", params=["exact", "ivf"])
def index(request: pytest.FixtureRequest, world: tuple[Floats, Floats]) -> Iterator[VectorIndex]:
    matrix, queries = world
    # So few rows are computed faster than cells are read: count that as dear, so that filters are searched in cells.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embeddings.effort, "COMPUTED_NS", 1e5)
        yield VectorIndex.build(matrix, kind=request.param, seed=1, k=50, queries=queries[:150])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_exact_equals_a_sort_with_ties_and_filters(data: st.DataObject) -> None:
    draw = data.draw
    rows, width, count = draw(st.integers(1, 60)), draw(st.integers(1, 9)), draw(st.integers(1, 20))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    # Small whole numbers: their products are exact in float32, so that equal scores are plentiful and truly equal.
    matrix = generator.integers(-2, 3, size=(rows, width)).astype(np.float32)
    queries = generator.integers(-2, 3, size=(count, width)).astype(np.float32)
    allowed = None if draw(st.booleans()) else generator.random(rows) < draw(st.floats(0, 1))
    k = draw(st.integers(1, 80))
    scores, found = VectorIndex.build(matrix, seed=0).search(queries, k, allowed=allowed)
    expected = reference(matrix, queries, k, allowed)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.int64
    assert scores.dtype == np.float32
    there = expected >= 0
    np.testing.assert_array_equal(np.isneginf(scores), ~there)
    products = np.einsum("qd,qkd->qk", queries, matrix[np.where(there, expected, 0)])
    np.testing.assert_allclose(scores[there], products[there])


@pytest.mark.parametrize("share", [1.0, 0.8, 0.3, 0.05])
def test_equal_scores_at_the_end_keep_the_lowest_rows(share: float) -> None:
    matrix = np.repeat(np.eye(4, dtype=np.float32), 500, axis=0)
    matrix = matrix[np.random.default_rng(0).permutation(len(matrix))]
    queries = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [3, 2, 1, 0], [-1, 0, 0, 0]], dtype=np.float32)
    allowed = np.random.default_rng(1).random(len(matrix)) < share
    found = VectorIndex.build(matrix).search(queries, 130, allowed=allowed)[1]
    np.testing.assert_array_equal(found, reference(matrix, queries, 130, allowed))


@pytest.mark.parametrize("share", [0.97, 0.6, 0.45, 0.2, 0.05])
@pytest.mark.parametrize("together", [False, True])
def test_exact_filters_equal_a_sort_at_every_share(share: float, together: bool) -> None:
    generator = np.random.default_rng(8)
    matrix = generator.integers(-3, 4, size=(4000, 6)).astype(np.float32)
    queries = generator.integers(-3, 4, size=(20, 6)).astype(np.float32)
    # Together: what the first query likes best is not allowed, so that many of its best rows fall away.
    order = np.argsort(matrix @ queries[0], kind="stable") if together else generator.permutation(4000)
    allowed = np.zeros(4000, np.bool_)
    allowed[order[: round(share * 4000)]] = True
    found = VectorIndex.build(matrix).search(queries, 8, allowed=allowed)[1]
    np.testing.assert_array_equal(found, reference(matrix, queries, 8, allowed))


def test_real_valued_duplicates_tie_wherever_they_stand() -> None:
    generator = np.random.default_rng(3)
    matrix = generator.standard_normal((300, 33), dtype=np.float32)[generator.integers(300, size=4001)]
    queries = generator.standard_normal((40, 33), dtype=np.float32)
    scores, rows = VectorIndex.build(matrix).search(queries, 25)
    for query in range(len(queries)):
        order = np.lexsort((rows[query], -scores[query]))
        np.testing.assert_array_equal(order, np.arange(25))
    assert (scores[:, 1:] == scores[:, :-1]).any(axis=1).all()


def test_a_batch_answers_as_its_queries_one_by_one(index: VectorIndex, world: tuple[Floats, Floats]) -> None:
    queries = world[1][:70]
    scores, rows = index.search(queries, 30)
    single = [index.search(query[None], 30) for query in queries]
    np.testing.assert_array_equal(scores, np.concatenate([one[0] for one in single]))
    np.testing.assert_array_equal(rows, np.concatenate([one[1] for one in single]))


def test_more_threads_than_queries_change_nothing(index: VectorIndex, world: tuple[Floats, Floats]) -> None:
    expected = index.search(world[1][:3], 30)
    faiss.omp_set_num_threads(8)
    try:
        found = index.search(world[1][:3], 30)
    finally:
        faiss.omp_set_num_threads(1)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_recall_reaches_the_floor_and_is_measured_honestly(index: VectorIndex, world: tuple[Floats, Floats]) -> None:
    matrix, queries = world
    assert index.recall >= 0.98
    assert index.measure_recall(queries[150:], 50) >= 0.98
    expected = reference(matrix, queries[:20], 50)
    found = index.search(queries[:20], 50)[1]
    shares = [len(set(a) & set(b)) / 50 for a, b in zip(found.tolist(), expected.tolist(), strict=True)]
    assert index.measure_recall(queries[:20], 50) == pytest.approx(float(np.mean(shares)))


def with_effort(index: VectorIndex, **changes: Any) -> VectorIndex:
    assert index.effort is not None
    effort = Effort.model_validate(index.effort.model_dump() | changes)
    return VectorIndex(index._matrix, index._cells, effort=effort, tuned_k=index.tuned_k)


def test_recall_counts_misses() -> None:
    matrix, _ = clustered(6000, 16)
    one_cell = with_effort(VectorIndex.build(matrix, kind="ivf", k=20), depths=(20.0,), probes=(1,))
    assert one_cell.measure_recall(perturbed_rows(matrix, seed=5), 20) < 0.9


def test_effort_rises_with_the_floor_with_k_and_with_the_filter() -> None:
    matrix, _ = clustered(20_000, 16)
    low, high = (VectorIndex.build(matrix, kind="ivf", recall_floor=floor, k=20) for floor in (0.6, 0.9))
    assert 0.6 <= low.recall < high.recall
    assert low.effort is not None
    assert high.effort is not None
    probes = [low.effort.probes_for(20, 1.0), high.effort.probes_for(20, 1.0)]
    probes += [high.effort.probes_for(30, 1.0), high.effort.probes_for(30, 0.8)]
    assert None not in probes
    assert probes == sorted(set(probes))
    assert high.effort.probes_for(1, 1.0) == probes[1]
    assert high.effort.probes_for(40, 1.0) == high.effort.probes_for(20, 0.5)
    assert high.effort.probes_for(20, 0.0001) is None


def test_rows_of_very_unequal_size_are_listed_in_greater_number() -> None:
    generator = np.random.default_rng(2)
    matrix = generator.standard_normal((4000, 16), dtype=np.float32)
    matrix[0] *= 100  # a byte must now span a range a hundred times as wide
    queries = generator.standard_normal((300, 16), dtype=np.float32)
    index = VectorIndex.build(matrix, kind="ivf", k=20, queries=queries[:150])
    assert index.effort is not None
    assert index.effort.extra >= 1.0
    assert index.measure_recall(queries[150:], 20) >= 0.98


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("together", [False, True])
def test_filters_keep_the_recall(
    index: VectorIndex, world: tuple[Floats, Floats], share: float, together: bool
) -> None:
    matrix, queries = world
    # Together: the allowed rows lie on one side of the space, far from many of the queries.
    order = np.argsort(matrix[:, 0]) if together else np.random.default_rng(2).permutation(len(matrix))
    allowed = np.zeros(len(matrix), dtype=np.bool_)
    allowed[order[: max(1, round(share * len(matrix)))]] = True
    scores, rows = index.search(queries, 50, allowed=allowed)
    there = min(50, int(allowed.sum()))
    assert (rows[:, :there] >= 0).all()
    assert (rows[:, there:] == -1).all()
    assert np.isneginf(scores[:, there:]).all()
    assert allowed[rows[:, :there]].all()
    assert index.measure_recall(queries, 50, allowed=allowed) >= 0.98


def test_fixtures_search_some_filters_in_cells(index: VectorIndex) -> None:
    assert index.kind == "exact" or index._probes(50, 0.1) is not None


def test_a_narrow_filter_is_computed_exactly() -> None:
    matrix, _ = clustered(20_000, 16)
    index = with_effort(VectorIndex.build(matrix, kind="ivf", k=20), depths=(20.0, 40.0), probes=(1, 1))
    masks = [np.random.default_rng(0).random(len(matrix)) < share for share in (0.7, 0.4)]
    in_cells, exact = (index.measure_recall(perturbed_rows(matrix, seed=3), 20, allowed=mask) for mask in masks)
    assert in_cells < 0.95
    assert exact == 1.0


def test_cells_without_enough_allowed_rows_are_not_the_last_word() -> None:
    matrix, cluster = clustered(20_000, 16)
    index = with_effort(VectorIndex.build(matrix, kind="ivf", k=20), depths=(20.0, 2e4), probes=(1, 1))
    far = cluster[np.argsort(matrix @ matrix[0])[0]]
    allowed = (cluster == far) | (np.random.default_rng(0).random(len(matrix)) < 0.001)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embeddings.effort, "COMPUTED_NS", 1e5)
        assert index._probes(40, float(allowed.mean())) == 1
        rows = index.search(matrix[:1], 40, allowed=allowed)[1]
    np.testing.assert_array_equal(rows, reference(matrix, matrix[:1], 40, allowed))


def test_more_asked_than_there_is(index: VectorIndex, world: tuple[Floats, Floats]) -> None:
    scores, rows = index.search(world[1][:2], len(index) + 7)
    assert (rows[:, -7:] == -1).all()
    assert np.isneginf(scores[:, -7:]).all()
    np.testing.assert_array_equal(np.sort(rows[:, :-7], axis=1), np.tile(np.arange(len(index)), (2, 1)))


def test_nothing_allowed_no_queries_no_rows(index: VectorIndex) -> None:
    nothing = index.search(np.ones((2, 16), np.float32), 3, allowed=np.zeros(len(index), np.bool_))
    assert np.isneginf(nothing[0]).all()
    assert (nothing[1] == -1).all()
    assert index.search(np.ones((0, 16), np.float32), 3)[1].shape == (0, 3)
    empty = VectorIndex.build(np.ones((0, 16), np.float32))
    assert (empty.search(np.ones((2, 16), np.float32), 3)[1] == -1).all()


def test_saved_equals_loaded(index: VectorIndex, world: tuple[Floats, Floats], tmp_path: Path) -> None:
    matrix, queries = world
    index.save(tmp_path / "größe 1.faiss")
    assert [file.name for file in tmp_path.iterdir()] == ["größe 1.faiss"]
    loaded = VectorIndex.load(tmp_path / "größe 1.faiss", matrix)
    about = [(one.kind, one.effort, one.tuned_k, one.recall, len(one), one.width) for one in (index, loaded)]
    assert about[0] == about[1]
    for share in (1.0, 0.5, 0.03):
        allowed = np.random.default_rng(4).random(len(matrix)) < share
        before, after = (one.search(queries, 20, allowed=allowed) for one in (index, loaded))
        np.testing.assert_array_equal(before[1], after[1])
        np.testing.assert_array_equal(before[0], after[0])
    assert loaded.measure_recall(queries, 50) >= 0.98


def test_a_mapped_index_survives_its_replacement(tmp_path: Path) -> None:
    old, new = (clustered(3000, 8, seed)[0] for seed in (0, 1))
    VectorIndex.build(old, kind="ivf").save(tmp_path / "i")
    loaded = VectorIndex.load(tmp_path / "i", old)
    expected = loaded.search(old[:5], 10)[1]
    VectorIndex.build(new, kind="ivf").save(tmp_path / "i")
    np.testing.assert_array_equal(loaded.search(old[:5], 10)[1], expected)


def test_an_empty_index_survives_saving(tmp_path: Path) -> None:
    nothing = np.ones((0, 4), np.float32)
    VectorIndex.build(nothing).save(tmp_path / "i")
    loaded = VectorIndex.load(tmp_path / "i", nothing)
    assert (len(loaded), loaded.width) == (0, 4)


def broken(content: bytes) -> dict[str, bytes]:
    footer = content[-8 - 4 :]
    forged = content[-12 - 400 : -12]
    return {
        "empty": b"",
        "text": b"not an index at all",
        "truncated": content[: len(content) // 2],
        "no codes": content[:40] + content[-700:],
        "no footer": content[:-150],
        "foreign kind": content.replace(b'"kind":"ivf"', b'"kind":"magic"'),
        "other kind": content.replace(b'"kind":"ivf"', b'"kind":"exact"'),
        "other size": content.replace(b'"rows":3000', b'"rows":3001'),
        "other matrix": content.replace(b'"seal":', b'"seal":1'),
        "no probes": content.replace(b'"probes":[', b'"probes":[0,'),
        "no object": content[:-200] + b"[1, 2]" + (6).to_bytes(4, "little") + footer[4:],
        "forged length": content[:-12] + (2**32 - 1).to_bytes(4, "little") + footer[4:],
        "an earlier version": content[:-1] + b"1",
        "half a line": content[:-12] + (len(forged) // 2).to_bytes(4, "little") + footer[4:],
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Floats, bytes]:
    matrix, path = clustered(3000, 8)[0], tmp_path_factory.mktemp("index") / "i"
    VectorIndex.build(matrix, kind="ivf").save(path)
    return matrix, path.read_bytes()


@pytest.mark.parametrize("how", sorted(broken(b" " * 300)))
def test_a_broken_file_is_refused(how: str, written: tuple[Floats, bytes], tmp_path: Path) -> None:
    matrix, content = written
    bad = broken(content)[how]
    assert bad != content
    (tmp_path / "bad").write_bytes(bad)
    with pytest.raises(BundleError, match="bad"):
        VectorIndex.load(tmp_path / "bad", matrix)


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_a_missing_file_and_a_foreign_matrix_are_refused(kind: Any, tmp_path: Path) -> None:
    matrix = clustered(300, 8)[0]
    with pytest.raises(BundleError, match="nowhere"):
        VectorIndex.load(tmp_path / "nowhere", matrix)
    VectorIndex.build(matrix, kind=kind).save(tmp_path / "i")
    with pytest.raises(BundleError, match="300 x 8"):
        VectorIndex.load(tmp_path / "i", np.ones((300, 9), np.float32))
    with pytest.raises(BundleError, match="another item matrix"):
        VectorIndex.load(tmp_path / "i", matrix + 1)
    for other in (matrix.astype(np.float64), np.asfortranarray(matrix), matrix[0]):
        with pytest.raises(InputError, match="by rows"):
            VectorIndex.load(tmp_path / "i", other)  # type: ignore[arg-type]


def test_threads_search_at_once(index: VectorIndex, world: tuple[Floats, Floats]) -> None:
    matrix, queries = world
    masks = [np.random.default_rng(seed).random(len(matrix)) < share for seed, share in enumerate((0.9, 0.4, 0.02))]
    expected = [index.search(queries[:40], 20, allowed=mask)[1] for mask in masks]
    wrong: list[Any] = []

    def work(turn: int) -> None:
        for step in range(12):
            which = (turn + step) % len(masks)
            rows = index.search(queries[:40], 20, allowed=masks[which])[1]
            if not np.array_equal(rows, expected[which]):
                wrong.append((turn, step))

    workers = [threading.Thread(target=work, args=(turn,)) for turn in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_the_seed_decides() -> None:
    matrix = np.random.default_rng(0).standard_normal((3000, 16), dtype=np.float32)
    first, again = (VectorIndex.build(matrix, kind="ivf", seed=7, k=10, recall_floor=0.7) for _ in range(2))
    assert (first.effort, first.recall) == (again.effort, again.recall)
    np.testing.assert_array_equal(first.search(matrix[:50], 10)[1], again.search(matrix[:50], 10)[1])


def test_auto_chooses_by_size_and_never_below_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, _ = clustered(1500, 16)
    assert VectorIndex.build(matrix).kind == "exact"
    monkeypatch.setattr(embeddings.index, "EXACT_ROWS", 1499)
    cells = VectorIndex.build(matrix, k=10)
    assert cells.kind == "ivf"
    assert cells.recall >= 0.98
    matrix[0] *= 1e6  # a byte for each number says nothing of the others now
    assert VectorIndex.build(matrix, kind="ivf", k=10, queries=matrix[1:200]).recall < 0.98
    assert VectorIndex.build(matrix, k=10, queries=matrix[1:200]).kind == "exact"


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_cells_take_tiny_matrices(rows: int) -> None:
    matrix = np.arange(1, rows + 1, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    index = VectorIndex.build(matrix, kind="ivf")
    np.testing.assert_array_equal(index.search(np.ones((1, 3), np.float32), 10)[1][0, :rows], np.arange(rows)[::-1])


@pytest.mark.parametrize(
    ("matrix", "options", "message"),
    [
        ([[1.0, float("nan")]], {}, "row 0"),
        ([[1.0, 1.0], [1.0, float("inf")]], {}, "row 1"),
        ([[1e300]], {}, "row 0"),
        ([[1, 2]], {}, "float32"),
        ([1.0, 2.0], {}, "two dimensions"),
        (np.ones((3, 0), np.float32), {}, "two dimensions"),
        (np.ones((0, 3), np.float32), {"kind": "ivf"}, "no rows"),
        ([[1.0]], {"kind": "ivff"}, "did you mean 'ivf'"),
        ([[1.0]], {"recall_floor": 1.5}, "recall_floor"),
        ([[1.0]], {"k": 0}, "at least 1"),
        ([[1.0]], {"kind": "ivf", "queries": [[1.0, 2.0]]}, "queries"),
        ([[1.0]], {"kind": "ivf", "queries": np.ones((0, 1), np.float32)}, "queries"),
    ],
)
def test_bad_builds_are_refused(matrix: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        VectorIndex.build(matrix, **options)


@pytest.mark.parametrize(
    ("queries", "k", "allowed", "field"),
    [
        ([[float("nan")] * 16], 3, None, "queries"),
        ([[float("-inf")] * 16], 3, None, "queries"),
        (np.ones((2, 15), np.float32), 3, None, "queries"),
        (np.ones(16, np.float32), 3, None, "queries"),
        (np.ones((2, 16), np.float32), 0, None, "k"),
        (np.ones((2, 16), np.float32), 3, np.ones(4, np.bool_), "allowed"),
        (np.ones((2, 16), np.float32), 3, np.ones(12_000, np.int8), "allowed"),
    ],
)
def test_bad_searches_are_refused(index: VectorIndex, queries: Any, k: int, allowed: Any, field: str) -> None:
    with pytest.raises(InputError) as caught:
        index.search(queries, k, allowed=allowed)
    assert caught.value.field == field


def test_recall_of_nothing_is_refused(index: VectorIndex) -> None:
    with pytest.raises(InputError, match="at least one query"):
        index.measure_recall(np.ones((0, 16), np.float32), 3)
