"""What goes with what: counted from baskets, against a slow and obvious count, and kept in a release."""

from __future__ import annotations

import random
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from embeddings.bundle_reader import open_bundle
from embeddings.errors import BundleError
from embeddings.features import EventKind
from embeddings.manifest import TOGETHER
from tests.conftest import write_world
from tests.histories import Touch, dataset
from training.dataset import Dataset
from training.together import APART_S, COMPANIONS, LARGEST, SHRINKAGE, SUPPORT, baskets_of, companions

KINDS = {"view": EventKind(), "cart": EventKind(weight=3), "purchase": EventKind(weight=5)}


def shoppers(people: int = 40, seed: int = 0) -> Dataset:
    rng = random.Random(seed)
    histories: dict[str, list[Touch]] = {}
    for person in range(people):
        times = sorted(rng.randrange(400) for _ in range(rng.randrange(1, 30)))
        histories[f"u{person}"] = [(f"i{rng.randrange(30)}", rng.choice(list(KINDS)), hour) for hour in times]
    return dataset(histories, event_types=KINDS)


def slowly(data: Dataset) -> dict[int, list[int]]:
    """The same by the letter of the description."""
    taken = {data.spec.event_row(name) for name in ("cart", "purchase")}
    baskets: list[set[int]] = []
    before: tuple[int, float] | None = None
    for owner, row, kind, when in zip(data.owners, data.rows, data.types, data.times, strict=True):
        if int(kind) not in taken:
            continue
        if before is None or before[0] != owner or when - before[1] > APART_S:
            baskets.append(set())
        baskets[-1].add(int(row))
        before = (int(owner), float(when))
    closeness: dict[int, list[tuple[float, int]]] = {}
    for one, other in combinations(range(len(data.items)), 2):
        both = sum(one in basket and other in basket for basket in baskets)
        if both >= SUPPORT:
            each = [sum(row in basket for basket in baskets) for row in (one, other)]
            close = both / ((each[0] * each[1]) ** 0.5 + SHRINKAGE)
            closeness.setdefault(one, []).append((-close, other))
            closeness.setdefault(other, []).append((-close, one))
    return {row: [other for _, other in sorted(found)][:COMPANIONS] for row, found in closeness.items()}


@pytest.mark.parametrize("seed", range(3))
def test_the_count_agrees_with_a_slow_one(seed: int) -> None:
    data = shoppers(seed=seed)
    found = companions(data)
    assert found is not None
    expected = slowly(data)
    assert len(expected) > 10
    for row in range(len(data.items)):
        assert [other for other in found[row].tolist() if other >= 0] == expected.get(row, [])


def test_without_baskets_whatever_is_worth_predicting_counts() -> None:
    data = dataset(dict.fromkeys(("ann", "bob", "eve"), "a b") | {"zoe": "c"})
    found = companions(data)
    assert found is not None
    a, b, c = (data.items.row(name) for name in "abc")
    assert (found[a, 0], found[b, 0], found[c, 0]) == (b, a, -1)
    assert companions(dataset({"ann": "a b", "bob": "c d"})) is None


def test_a_huge_basket_counts_in_part() -> None:
    data = dataset({"ann": " ".join(f"i{n}" for n in range(3 * LARGEST))})
    assert baskets_of(data).sum() <= 3 * LARGEST


def test_a_release_keeps_what_goes_together(tmp_path: Path) -> None:
    folder = write_world(tmp_path)
    bundle = open_bundle(folder)
    assert bundle.together is not None
    assert bundle.together.shape == (100, 3)
    assert open_bundle(write_world(tmp_path, "bare", with_baskets=False)).together is None
    path = folder / TOGETHER
    raw = path.read_bytes()
    path.write_bytes(raw[:-4] + np.int32(5).tobytes())
    with pytest.raises(BundleError, match=r"together.npy does not have the checksum"):
        open_bundle(folder)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (np.zeros((99, 3), dtype=np.int32), "100 items, but"),
        (np.zeros((100, 3), dtype=np.int64), "int64"),
        (np.full((100, 3), 100, dtype=np.int32), "rows that are none"),
        (np.full((100, 3), -2, dtype=np.int32), "rows that are none"),
    ],
)
def test_a_release_with_nonsense_in_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: np.ndarray, says: str
) -> None:
    folder = write_world(tmp_path)
    np.save(folder / TOGETHER, wrong)
    monkeypatch.setattr("embeddings.bundle_reader.verify_files", lambda *_: None)
    with pytest.raises(BundleError, match=says):
        open_bundle(folder)
