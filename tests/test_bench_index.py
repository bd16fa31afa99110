"""The benchmark of the index: what it compares is comparable, and it says so when somebody finds too little."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from benchmarks import index
from benchmarks.searchers import Ask, Scan, more
from benchmarks.vectors import make_mask, make_vectors
from embeddings.arrays import Floats, Mask
from embeddings.scan import Matrix


class Halting:
    """Finds a share of what there is, more with every effort."""

    name, bytes = "halting", 0

    def __init__(self, rows: Floats, shares: Sequence[float]) -> None:
        self.scan, self.shares, self.asked = Scan(rows), shares, [0] * len(shares)

    def ways(self, k: int, mask: Mask | None) -> Iterator[Sequence[Callable[[], Ask]]]:
        (best,) = next(iter(self.scan.ways(k, mask)))

        def make(at: int) -> Callable[[], Ask]:
            def ask(query: Floats) -> Any:
                self.asked[at] += 1
                found = self.scan.index.search(query, k)[1][0] if mask is None else best()(query)
                return found[: round(self.shares[at] * k)]

            return lambda: ask

        yield [make(at) for at in range(len(self.shares))]


@pytest.fixture(scope="module")
def world() -> tuple[Floats, Floats]:
    return make_vectors(2000, 16, 120, lengths="equal", seed=3)


def test_vectors_are_as_described(world: tuple[Floats, Floats]) -> None:
    rows, queries = world
    assert (rows.shape, queries.shape, rows.dtype, queries.dtype) == ((2000, 16), (120, 16), np.float32, np.float32)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    varied = np.linalg.norm(make_vectors(2000, 16, 1, lengths="varied", seed=3)[0], axis=1)
    assert 0.2 < np.log(varied).std() < 0.3
    np.testing.assert_array_equal(rows, make_vectors(2000, 16, 120, lengths="equal", seed=3)[0])
    assert not np.array_equal(rows, make_vectors(2000, 16, 120, lengths="equal", seed=4)[0])


def test_masks_allow_what_they_say(world: tuple[Floats, Floats]) -> None:
    assert make_mask(world[0], 1.0, together=False, seed=0) is None
    aside = []
    for together in (False, True):
        mask = make_mask(world[0], 0.1, together=together, seed=0)
        assert mask is not None
        assert mask.sum() == 200
        aside.append(np.linalg.norm(world[0][mask].mean(0) - world[0].mean(0)))
    assert aside[1] > 3 * aside[0]


def test_the_least_effort_that_finds_enough_is_chosen(world: tuple[Floats, Floats]) -> None:
    rows, queries = world
    matrix, searcher = Matrix(rows), Halting(rows, (0.5, 0.97, 0.98, 1.0))
    found = index.measure([searcher], matrix, queries[:60], queries[60:], 100, None, rounds=2)["halting"]
    assert found is not None
    assert found["recall"] == pytest.approx(0.98)
    assert searcher.asked[3] == 0
    assert searcher.asked[2] > searcher.asked[1]


def test_who_finds_too_little_is_shown_with_what_it_found(world: tuple[Floats, Floats]) -> None:
    rows, queries = world
    found = index.measure([Halting(rows, (0.2, 0.6))], Matrix(rows), queries[:60], queries[60:], 100, None, rounds=1)
    assert found["halting"] is not None
    assert found["halting"]["recall"] == pytest.approx(0.6)
    assert "at 0.600" in index._cell(found["halting"])
    assert index._cell(None) == "-"


def test_enough_is_asked_for_when_some_will_be_dropped() -> None:
    mask = np.zeros(1000, dtype=bool)
    mask[:100] = True
    assert more(100, None) == 100
    assert 1000 < more(100, mask) < 2000


def test_it_ends_with_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    options = {"items": 3000, "width": 16, "k": 20, "queries": 40, "rounds": 1}
    index.main([f"--{name}={value}" for name, value in options.items()] + ["--only", "bespoke", "scan"])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [cell["share"] for cell in last["cells"]] == [share for share, _ in index.FILTERS]
    assert all(cell["of"]["bespoke"]["recall"] >= 0.98 for cell in last["cells"])
    assert all(cell["of"]["scan"]["recall"] == 1.0 for cell in last["cells"])
    assert last["building"]["scan"]["bytes_per_item"] == 64
