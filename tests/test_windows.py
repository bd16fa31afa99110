"""Windows: every target once an epoch, enough past for each, and batches that match their events."""

from __future__ import annotations

import random

import numpy as np
import pytest

from embeddings.features import EventKind, gap_buckets
from tests.histories import Touch, dataset
from training.dataset import Dataset, Split, first_touches, leave_last_out, temporal
from training.windows import Windows, context_matrix, event_gaps, pad

KINDS = {"view": EventKind(), "skip": EventKind(positive=False)}


def crowd(longest: int = 60) -> Dataset:
    rng = random.Random(0)
    histories: dict[str, list[Touch]] = {}
    for person in range(25):
        length = rng.choice([1, 2, 5, longest // 2, longest])
        times = sorted(rng.random() * 900 for _ in range(length))
        histories[f"u{person:02}"] = [(f"i{rng.randrange(80)}", rng.choice(list(KINDS)), hour) for hour in times]
    people = {f"u{person:02}": {"plan": random.Random(person).choice(["gold", "free"])} for person in range(20)}
    contexts = {f"u{person:02}": {"channel": "email", "page": person} for person in range(7)}
    return dataset(histories, users=people, contexts=contexts, event_types=KINDS, context_buckets=500)


def windows(data: Dataset, split: Split, *, max_history: int = 10, hide_seen: bool = True) -> Windows:
    return Windows(data, split, max_history=max_history, batch=4, hide_seen=hide_seen)


@pytest.mark.parametrize("max_history", [1, 2, 3, 10, 200])
@pytest.mark.parametrize("cut", [leave_last_out, temporal])
def test_every_target_is_asked_for_once_an_epoch_with_enough_of_its_past(max_history: int, cut: object) -> None:
    data = crowd()
    split = cut(data)  # type: ignore[operator]
    found = windows(data, split, max_history=max_history)
    wanted = np.flatnonzero(split.train & data.positive & first_touches(data))
    for epoch in range(3):
        asked = []
        for group in found.epoch(0, epoch):
            batch = found.collate(group)
            assert len(batch) == len(batch.targets) > 0
            assert batch.rows.shape[1] <= max_history
            starts = group[batch.windows, 0]
            events = starts + batch.places
            assert (batch.targets == data.rows[events]).all()
            # A place has read the whole past, or at least half a window of it.
            whole = starts == data.offsets[data.owners[events]]
            assert (whole | (batch.places > max_history - max(1, max_history // 2))).all()
            assert (batch.places <= max_history).all()
            asked += events.tolist()
        assert sorted(asked) == wanted.tolist()


def test_a_single_window_asks_for_one_event_from_all_of_its_past_that_fits() -> None:
    data = crowd()
    split = leave_last_out(data)
    found = Windows(data, split, max_history=7, batch=4, hide_seen=True, single=True)
    asked = []
    for group in found.epoch(0, 1):
        batch = found.collate(group)
        assert len(batch) == len(group)
        events = group[batch.windows, 1]
        assert (batch.places == batch.lengths[batch.windows]).all()
        assert (batch.places == np.minimum(events - data.offsets[data.owners[events]], 7)).all()
        assert (batch.targets == data.rows[events]).all()
        asked += events.tolist()
    assert sorted(asked) == np.flatnonzero(split.train & data.positive & first_touches(data)).tolist()


def test_a_window_reads_the_events_of_one_person_and_no_later_ones() -> None:
    data = crowd()
    split = leave_last_out(data)
    found = windows(data, split)
    for group in found.epoch(3, 1):
        batch = found.collate(group)
        for at, (start, end, first) in enumerate(group.tolist()):
            length = end - start
            assert len(set(data.owners[start : end + 1])) == 1
            assert split.train[start : end + 1].all()
            assert start <= first <= end
            assert batch.rows[at, :length].tolist() == data.rows[start:end].tolist()
            assert batch.types[at, :length].tolist() == data.types[start:end].tolist()
            assert not batch.rows[at, length:].any()
            owner = data.owners[start]
            times = data.times[data.offsets[owner] : end]
            assert batch.gaps[at, :length].tolist() == gap_buckets(times)[len(times) - length :].tolist()


def test_windows_of_a_long_history_move_from_epoch_to_epoch_and_repeat_by_seed() -> None:
    data = crowd()
    found = windows(data, leave_last_out(data))
    cuts = [
        sorted(map(tuple, np.concatenate(found.epoch(seed, epoch)).tolist()))
        for seed, epoch in [(0, 1), (0, 2), (1, 1)]
    ]
    assert cuts[0] != cuts[1]
    assert cuts[0] != cuts[2]
    again = windows(data, leave_last_out(data)).epoch(0, 1)
    assert all((ours == theirs).all() for ours, theirs in zip(found.epoch(0, 1), again, strict=True))


def test_hidden_pairs_are_the_items_of_the_whole_history_but_never_the_target() -> None:
    data = crowd()
    found = windows(data, leave_last_out(data))
    for group in found.epoch(0, 1):
        batch = found.collate(group)
        assert (np.diff(batch.hidden_at) >= 0).all()
        for position in range(len(batch)):
            event = group[batch.windows[position], 0] + batch.places[position]
            hidden = batch.hidden_rows[batch.hidden_at == position]
            assert hidden.tolist() == data.rows[data.offsets[data.owners[event]] : event].tolist()
            assert batch.targets[position] not in hidden
    silent = windows(data, leave_last_out(data), hide_seen=False)
    assert not len(silent.collate(silent.epoch(0, 1)[0]).hidden_at)


def test_context_of_every_event_equals_the_featurizer_one_at_a_time() -> None:
    data = crowd()
    found = windows(data, leave_last_out(data)).tokens
    assert found.shape[1] > 5
    for event in range(len(data)):
        start = data.offsets[data.owners[event]]
        last = float(data.times[event - 1]) if event > start else None
        expected = data.context_tokens(event, now=float(data.times[event]), last=last)
        assert [token for token in found[event].tolist() if token] == expected


def test_context_is_cut_where_the_featurizer_cuts_it() -> None:
    about = {f"c{at}": at for at in range(9)}
    data = dataset(
        {"ann": "a b"}, users={"ann": {f"a{at}": at for at in range(9)}}, contexts={"ann": about}, context_buckets=999
    )
    found = context_matrix(data, np.arange(2), data.times, np.array([np.nan, data.times[0]]))
    for event, last in ((0, None), (1, float(data.times[0]))):
        assert found[event].tolist() == data.context_tokens(event, now=float(data.times[event]), last=last)


def test_without_context_buckets_there_are_no_tokens() -> None:
    data = dataset({"ann": "a b c"})
    assert context_matrix(data, np.arange(3), data.times, data.times).shape == (3, 0)


def test_first_events_have_no_gap() -> None:
    data = dataset({"ann": [("a", "view", 0), ("b", "view", 100)], "bob": [("a", "view", 900)]})
    assert event_gaps(data).tolist() == [0, gap_buckets(np.array([0.0, 360_000.0]))[1], 0]


def test_padding_stands_on_the_right() -> None:
    data = dataset({"ann": "a b c", "bob": "b"})
    rows, types, gaps = pad(data, event_gaps(data), np.array([0, 3, 3]), np.array([3, 4, 3]))
    assert rows.tolist() == [[0, 1, 2], [1, 0, 0], [0, 0, 0]]
    assert (types[0] > 0).all()
    assert types[1].tolist()[1:] == [0, 0]
    assert gaps.shape == (3, 3)
    assert pad(data, event_gaps(data), np.array([0]), np.array([0]))[0].shape == (1, 0)
