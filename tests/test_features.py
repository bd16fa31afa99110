"""The featurizer: one item or many, known or unknown, text, numbers, gaps and contexts."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embeddings.errors import InputError
from embeddings.features import (
    GAP_BUCKETS,
    MAX_CONTEXT_TOKENS,
    MAX_WORDS,
    EventKind,
    FeatureSpec,
    ItemFeatures,
    gap_bucket,
    gap_buckets,
    item_tokens,
    span_buckets,
    word_buckets,
)
from embeddings.schema import Item

ITEMS = [
    Item(item_id="1", title="Red cup", categories=["kitchen"], attributes={"colour": "red", "size": 3.0}, price=4.0),
    Item(
        item_id="2", title="Tasse bleue, 茶碗", categories=["kitchen", "new"], attributes={"colour": "blue"}, price=9.0
    ),
    Item(item_id="3", attributes={"colour": "red", "tags": ["a", "b"], "vegan": True}),
    Item(item_id="4", title="Red red RED", price=500_000.0),
]


def spec(**options: int) -> FeatureSpec:
    return FeatureSpec.fit(ITEMS, text_buckets=options.get("text", 32), context_buckets=options.get("context", 64))


def bags(features: ItemFeatures) -> list[tuple[list[int], list[int], list[float]]]:
    return [
        (
            features.tokens[features.token_offsets[at] : features.token_offsets[at + 1]].tolist(),
            features.words[features.word_offsets[at] : features.word_offsets[at + 1]].tolist(),
            features.numbers[at].tolist(),
        )
        for at in range(len(features))
    ]


def test_batch_equals_single() -> None:
    together = bags(spec().item_features(ITEMS))
    assert together == [bags(spec().item_features([item]))[0] for item in ITEMS]


def test_take_equals_featurizing_those_items() -> None:
    features = spec().item_features(ITEMS, np.arange(4))
    chosen = np.array([3, 0, 0, 2])
    taken = features.take(chosen)
    assert bags(taken) == [bags(features)[at] for at in chosen]
    assert taken.rows.tolist() == chosen.tolist()
    assert len(features.take(np.zeros(0, dtype=np.int64))) == 0


def test_rare_and_unseen_attributes_share_the_buckets_behind_the_vocabulary() -> None:
    found = spec()
    assert found.tokens == ("categories=kitchen", "colour=red")  # everything else occurs once
    rare, unseen = (
        found.token_rows(ITEMS[1])[-1],
        found.token_rows(Item(item_id="9", attributes={"colour": "plaid"}))[0],
    )
    assert len(found.tokens) <= rare < found.token_count
    assert len(found.tokens) <= unseen < found.token_count


def test_tokens_name_every_value_of_a_list_and_write_booleans_as_json_does() -> None:
    assert item_tokens(ITEMS[2]) == ["colour=red", "tags=a", "tags=b", "vegan=true"]


def test_numbers_are_standardised_and_a_missing_one_is_zero() -> None:
    found = spec()
    assert [number.name for number in found.numbers] == ["price", "size"]
    assert found.numbers[0].log  # prices span orders of magnitude
    numbers = found.item_features(ITEMS).numbers
    assert numbers[2].tolist() == [0.0, 0.0]
    assert np.isclose(numbers[[0, 1, 3], 0].mean(), 0.0, atol=1e-6)
    far = found.item_features([Item(item_id="9", price=1e15)]).numbers
    assert np.abs(far).max() <= 5.0


def test_a_constant_number_does_not_divide_by_zero() -> None:
    items = [Item(item_id=str(at), price=7.0) for at in range(3)]
    assert np.isfinite(FeatureSpec.fit(items).item_features(items).numbers).all()


def test_numbers_that_differ_by_rounding_are_one_number() -> None:
    items = [Item(item_id=str(at), price=0.1) for at in range(7)]
    found = FeatureSpec.fit(items)
    assert found.numbers[0].scale == 1.0
    numbers = found.item_features([*items, Item(item_id="dearer", price=0.3)]).numbers
    assert numbers[:, 0].tolist() == pytest.approx([0.0] * 7 + [0.2])


def test_numbers_beyond_all_bounds_leave_the_others_finite() -> None:
    values = (1e200, -1e200, 1.0)
    items = [Item(item_id=str(at), attributes={"size": value}) for at, value in enumerate(values)]
    numbers = FeatureSpec.fit(items).item_features(items).numbers
    assert numbers[:, 0].tolist() == pytest.approx([1.5**0.5, -(1.5**0.5), 0.0])


def test_words_are_lower_case_unique_and_bounded() -> None:
    assert len(word_buckets(ITEMS[3], 1_000_003)) == 1
    assert word_buckets(Item(item_id="9", title="ÉTÉ"), 97) == word_buckets(Item(item_id="9", title="été"), 97)
    long = Item(item_id="9", description=" ".join(f"w{at}" for at in range(900)))
    assert len(word_buckets(long, 10**9)) == MAX_WORDS
    assert word_buckets(Item(item_id="9"), 97) == []


def test_spec_survives_json() -> None:
    found = spec()
    again = FeatureSpec.model_validate_json(found.model_dump_json())
    assert again == found
    assert bags(again.item_features(ITEMS)) == bags(found.item_features(ITEMS))


def test_empty_catalogue() -> None:
    found = FeatureSpec.fit([])
    assert len(found.item_features([])) == 0
    assert found.token_count == found.unknown_buckets


def test_event_types() -> None:
    found = FeatureSpec.fit([], event_types={"view": EventKind(), "hide": EventKind(weight=-1, positive=False)})
    assert found.event_row("hide") == 1
    assert found.event_row("view") == 2
    assert found.event_row("never heard of") == 0
    assert found.positive_types() == ("view",)
    assert not found.event_kind("never heard of").positive
    kinds = {"seen": EventKind(weight=0, positive=False), "hide": EventKind(weight=-1), "view": EventKind()}
    told = FeatureSpec(event_types=kinds).telling
    assert [told(name) for name in ("seen", "hide", "view", "never heard of")] == [False, True, True, True]
    with pytest.raises(InputError, match="did you mean 'view'"):
        found.require_event_type("vew", field="event_type")


@given(st.lists(st.floats(-1e6, 1e9), min_size=1, max_size=20))
def test_gap_buckets_of_many_equal_those_of_one(seconds: list[float]) -> None:
    assert span_buckets(np.array(seconds)).tolist() == [gap_bucket(gap) for gap in seconds]
    times = np.cumsum(np.maximum(seconds, 0.0))
    expected = [0] + [gap_bucket(later - sooner) for sooner, later in pairwise(times)]
    assert gap_buckets(times).tolist() == expected


def test_gaps_double_from_bucket_to_bucket() -> None:
    assert [gap_bucket(seconds) for seconds in (-5, 0, 59, 60, 179, 180, 1e12)] == [0, 0, 0, 1, 1, 2, GAP_BUCKETS - 1]


def test_context_tokens() -> None:
    found = spec()
    now = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
    base = found.context_tokens({}, {}, now, None)
    assert len(base) == 3
    assert found.context_tokens({}, {}, now, now - 60)[:3] == base
    full = found.context_tokens({"plan": "gold"}, {"channel": "email", "sale": True}, now, now - 60)
    assert len(full) == 7
    assert all(1 <= token <= 64 for token in full)
    assert found.context_tokens({"plan": "gold"}, {"sale": True, "channel": "email"}, now, now - 60) == full
    assert found.context_tokens({"plan": "free"}, {"channel": "email", "sale": True}, now, now - 60) != full
    assert len(found.context_tokens({f"a{at}": at for at in range(50)}, {}, now, None)) == MAX_CONTEXT_TOKENS
    assert spec(context=0).context_tokens({"plan": "gold"}, {}, now, None) == []
