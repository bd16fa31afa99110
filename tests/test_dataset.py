"""Data sets and their splits: order, targets, and that nothing looks into the future."""

from __future__ import annotations

import random

import numpy as np
import pytest

from embeddings.errors import DataError, InputError
from embeddings.features import EventKind
from embeddings.schema import EVENTS, Item
from tests.histories import START, Touch, dataset
from training.dataset import Dataset, Targets, first_touches, leave_last_out, leave_share_out, temporal

KINDS = {"view": EventKind(), "buy": EventKind(weight=5), "skip": EventKind(weight=-1, positive=False)}


def crowd(people: int = 30, seed: int = 0) -> Dataset:
    """Random histories with repeats, non-positive events and equal times."""
    rng = random.Random(seed)
    histories: dict[str, list[Touch]] = {}
    for person in range(people):
        times = sorted(rng.randrange(60) for _ in range(rng.randrange(1, 14)))
        histories[f"u{person}"] = [(f"i{rng.randrange(12)}", rng.choice(list(KINDS)), hour) for hour in times]
    return dataset(histories, event_types=KINDS)


def history(data: Dataset, targets: Targets, query: int) -> list[int]:
    return [int(row) for row in data.rows[data.offsets[targets.users[query]] : targets.ends[query]]]


def test_events_are_sorted_by_person_and_time_and_ties_keep_their_order() -> None:
    data = dataset(
        {
            "zoe": [("c", "view", 2), ("a", "view", 1), ("b", "view", 1)],
            "ann": [("b", "view", 5), ("a", "view", 5), ("c", "view", 5)],
        }
    )
    assert data.users.all == ("ann", "zoe")
    assert data.items.ids(data.rows) == ["b", "a", "c", "a", "b", "c"]
    assert data.offsets.tolist() == [0, 3, 6]
    assert data.owners.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.times[3] == START.timestamp() + 3600


def test_catalogue_comes_first_and_items_that_only_events_name_come_behind() -> None:
    data = dataset({"ann": "x b"}, items=[Item(item_id="b", title="Bée"), Item(item_id="a")])
    assert data.items.all == ("b", "a", "x")
    assert [item.title for item in data.item_rows()] == ["Bée", "", ""]
    assert data.rows.tolist() == [2, 0]


def test_what_is_about_contents_is_nothing_to_learn_from() -> None:
    data = dataset({"ann": "a content:hero b", "bob": "content:hero b"})
    assert data.items.all == ("a", "b")
    assert data.items.ids(data.rows) == ["a", "b", "b"]
    with pytest.raises(DataError, match="no events"):
        dataset({"ann": "content:hero"})


def test_impressions_before_clicks_change_nothing() -> None:
    clicks: dict[str, list[Touch]] = {
        f"u{person}": [(f"i{(person + place) % 9}", "click", place) for place in range(5)] for person in range(8)
    }
    shown = {
        name: [one for item, kind, hour in touches for one in ((item, "impression", hour - 0.01), (item, kind, hour))]
        for name, touches in clicks.items()
    }
    shown |= {"watcher": [("never touched", "impression", 1)]}
    data = dataset(shown)
    assert data.fingerprint() == dataset(clicks).fingerprint()
    assert len(leave_last_out(data).test) == 8
    with pytest.raises(DataError, match=r"weight 0 \(impression\)"):
        dataset({"watcher": shown["watcher"]})


def test_types_attributes_and_contexts_reach_the_events() -> None:
    data = dataset(
        {"ann": [("a", "buy", 0), ("b", "wink", 1)], "bob": "a"},
        users={"ann": {"plan": "gold"}},
        contexts={"bob": {"channel": "email", "sale": True}},
        event_types=KINDS,
        context_buckets=64,
    )
    assert data.types.tolist() == [data.spec.event_row("buy"), 0, data.spec.event_row("view")]
    assert data.positive.tolist() == [True, False, True]
    assert data.user_attributes == ({"plan": "gold"}, {})
    assert data.contexts[data.context[2]] == {"channel": "email", "sale": True}
    assert data.contexts[data.context[0]] == {}
    now = data.times[2]
    expected = data.spec.context_tokens({}, {"channel": "email", "sale": True}, now, None)
    assert data.context_tokens(2, now=now, last=None) == expected


def test_no_events_is_an_error() -> None:
    from training.dataset import load

    with pytest.raises(DataError, match="no events"):
        load(EVENTS.empty_table())


def test_first_touches_against_a_set() -> None:
    data = crowd()
    seen: set[tuple[int, int]] = set()
    for event, (owner, row) in enumerate(zip(data.owners.tolist(), data.rows.tolist(), strict=True)):
        assert first_touches(data)[event] == ((owner, row) not in seen)
        seen.add((owner, row))


@pytest.mark.parametrize("new_items_only", [True, False])
def test_leave_last_out_against_a_slow_reference(new_items_only: bool) -> None:
    data = crowd()
    split = leave_last_out(data, new_items_only=new_items_only)
    train, validation, test = [], [], []
    for user in range(len(data.users)):
        events = list(range(data.offsets[user], data.offsets[user + 1]))
        targets = [
            event
            for event in events
            if data.positive[event]
            and not (new_items_only and data.rows[event] in data.rows[data.offsets[user] : event])
        ]
        if len(targets) < 3:
            train += events
            continue
        validation.append(targets[-2])
        test.append(targets[-1])
        train += [event for event in events if event < targets[-2]]
    assert np.flatnonzero(split.train).tolist() == train
    assert split.validation.events.tolist() == split.validation.ends.tolist() == validation
    assert split.test.events.tolist() == split.test.ends.tolist() == test
    assert split.test.rows.tolist() == data.rows[test].tolist()
    assert len(test) > 5


def test_history_of_the_test_target_holds_the_validation_event() -> None:
    data = dataset({"ann": "a b c d"})
    split = leave_last_out(data)
    assert data.items.ids(data.rows[split.train]) == ["a", "b"]
    assert data.items.ids(split.validation.rows) == ["c"]
    assert data.items.ids(history(data, split.test, 0)) == ["a", "b", "c"]


def test_temporal_against_a_slow_reference() -> None:
    data = crowd()
    split = temporal(data, validation_share=0.2, test_share=0.2)
    first, second = np.quantile(data.times, [0.6, 0.8])
    assert split.train.tolist() == (data.times < first).tolist()
    for targets, start, stop in ((split.validation, first, second), (split.test, second, np.inf)):
        found = dict(zip(targets.users.tolist(), range(len(targets)), strict=True))
        for user in range(len(data.users)):
            events = range(data.offsets[user], data.offsets[user + 1])
            before = [event for event in events if data.times[event] < start]
            wanted = [
                event
                for event in events
                if start <= data.times[event] < stop
                and data.positive[event]
                and data.rows[event] not in data.rows[data.offsets[user] : event]
            ]
            if not wanted:
                assert user not in found
                continue
            query = found[user]
            assert history(data, targets, query) == data.rows[before].tolist()
            assert targets.relevant()[query].tolist() == data.rows[wanted].tolist()
            assert targets.events[query] == wanted[0]
            assert (data.times[before] < targets.times[query]).all()


@pytest.mark.parametrize(("validation", "test"), [(0.0, 0.1), (0.5, 0.5), (-0.1, 0.3)])
def test_temporal_refuses_impossible_shares(validation: float, test: float) -> None:
    with pytest.raises(InputError, match="add up to less than 1"):
        temporal(crowd(), validation_share=validation, test_share=test)


def test_take_keeps_order_and_lists() -> None:
    targets = temporal(crowd(), validation_share=0.2, test_share=0.3).test
    chosen = np.array([3, 0, 3])
    part = targets.take(chosen)
    assert [rows.tolist() for rows in part.relevant()] == [targets.relevant()[at].tolist() for at in chosen]
    assert part.users.tolist() == targets.users[chosen].tolist()
    empty = targets.take(np.zeros(0, dtype=np.int64))
    assert len(empty) == 0
    assert empty.relevant() == []


def test_fingerprint_changes_with_everything_a_model_could_learn_from() -> None:
    events = {"ann": "a b"}
    plain = dataset(events, context_buckets=9)
    assert plain.fingerprint() == dataset(events, context_buckets=9).fingerprint()
    others = [
        dataset({"ann": "b a"}, context_buckets=9),
        dataset({"bob": "a b"}, context_buckets=9),
        dataset({"ann": "a b b"}, context_buckets=9),
        dataset({"ann": [("a", "view", 0), ("b", "click", 1)]}, context_buckets=9),
        dataset(events, context_buckets=8),
        dataset(events, context_buckets=9, items=[Item(item_id="a", title="A")]),
        dataset(events, context_buckets=9, users={"ann": {"plan": "gold"}}),
        dataset(events, context_buckets=9, contexts={"ann": {"channel": "email"}}),
    ]
    assert len({data.fingerprint() for data in [plain, *others]}) == 9


def test_a_share_of_each_person_is_held_out_from_the_end() -> None:
    data = dataset({"ann": "a b c d e f g h i j", "bob": "a b c", "cid": "a"})
    split = leave_share_out(data, share=0.2, test_share=0.1)
    assert [data.items.ids(found) for found in split.validation.relevant()] == [["h", "i"], ["c"]]
    assert [data.items.ids(found) for found in split.test.relevant()] == [["j"]]
    assert data.items.ids(history(data, split.test, 0)) == list("abcdefghi")
    assert np.bincount(data.owners[split.train]).tolist() == [7, 2, 1]
    with pytest.raises(InputError, match="add up to less than 1"):
        leave_share_out(data, share=0.6, test_share=0.5)
