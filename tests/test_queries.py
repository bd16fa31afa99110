"""Ranking the whole catalogue, against a sort of all scores."""

from __future__ import annotations

import numpy as np
import pytest

from embeddings.errors import InputError
from tests.histories import dataset
from training import queries
from training.dataset import leave_last_out, temporal
from training.queries import rank_all, seen_items, target_context


@pytest.mark.parametrize("cells", [1, 1 << 20])
def test_rank_all_equals_sorting_everything(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "CHUNK_CELLS", cells)
    rng = np.random.default_rng(0)
    asked, matrix = rng.normal(size=(7, 4)).astype(np.float32), rng.normal(size=(20, 4)).astype(np.float32)
    seen = [rng.integers(20, size=size) for size in (0, 1, 5, 40, 200, 3, 3)]
    seen[4] = np.arange(19)
    ranked = rank_all(asked, matrix, seen, 6)
    for query in range(7):
        order = [row for row in np.argsort(-(matrix @ asked[query])).tolist() if row not in seen[query]][:6]
        assert ranked[query].tolist() == order + [-1] * (6 - len(order))
    everything = rank_all(asked, matrix, None, 50)
    assert everything.shape == (7, 50)
    assert (everything[:, 20:] == -1).all()
    assert sorted(everything[0, :20]) == list(range(20))


def test_rank_all_of_nothing() -> None:
    matrix = np.ones((3, 2), dtype=np.float32)
    assert rank_all(np.zeros((0, 2), dtype=np.float32), matrix, [], 2).shape == (0, 2)
    nothing = np.zeros((0, 2), dtype=np.float32)
    assert rank_all(matrix, nothing, None, 2).tolist() == [[-1, -1]] * 3


def test_rank_all_refuses_what_does_not_fit() -> None:
    matrix = np.ones((3, 2), dtype=np.float32)
    with pytest.raises(InputError, match="at least 1"):
        rank_all(matrix, matrix, None, 0)
    with pytest.raises(InputError, match="3 queries, but 1"):
        rank_all(matrix, matrix, [np.array([1])], 2)


def test_seen_items_are_those_before_the_target() -> None:
    data = dataset({"ann": "a b a c d e", "bob": "c a b d"})
    seen = seen_items(data, leave_last_out(data).validation)
    assert [data.items.ids(rows) for rows in seen] == [["a", "b", "a", "c"], ["c", "a"]]


def test_context_of_a_target_counts_from_the_last_event_of_its_history() -> None:
    histories = {
        "ann": [("a", "view", 0), ("b", "view", 5), ("c", "view", 90), ("d", "view", 95)],
        "new": [("a", "view", 96)],
    }
    data = dataset(histories, context_buckets=99)
    targets = temporal(data, validation_share=0.3, test_share=0.3).test
    tokens = target_context(data, targets)
    assert len(targets) == 2
    for query, user in enumerate(targets.users.tolist()):
        event, start, end = int(targets.events[query]), data.offsets[user], targets.ends[query]
        last = float(data.times[end - 1]) if end > start else None
        expected = data.context_tokens(event, now=float(targets.times[query]), last=last)
        assert [token for token in tokens[query].tolist() if token] == expected
