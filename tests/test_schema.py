"""The vocabulary: what a row accepts, what it refuses, and that it survives Arrow."""

from __future__ import annotations

import string
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from embeddings import errors
from embeddings.errors import BespokeError, InputError, unknown_name
from embeddings.schema import Event, Item, Row, User, from_table, parse, to_table

GOOD = {"user_id": "u", "item_id": "i", "timestamp": "2026-01-02T03:04:05Z"}
text = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), min_size=1, max_size=20)
names = st.text(string.ascii_letters, min_size=1, max_size=8).filter(lambda name: name not in Item.model_fields)
values = st.one_of(st.booleans(), st.floats(allow_nan=False, allow_infinity=False), text, st.lists(text, max_size=3))
moments = st.datetimes(datetime(1971, 1, 1), datetime(2026, 1, 1), timezones=st.just(UTC))


@given(
    st.builds(
        Item,
        item_id=text,
        title=st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), max_size=20),
        categories=st.lists(text, max_size=3),
        attributes=st.dictionaries(names, values, max_size=3),
        price=st.none() | st.floats(0, 1e9),
        created_at=st.none() | moments,
        available=st.booleans(),
    )
)
def test_items_survive_arrow(item: Item) -> None:
    assert from_table(to_table([item], Item), Item) == [item]


@given(
    st.builds(
        Event,
        user_id=text,
        item_id=text,
        timestamp=moments,
        value=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        context=st.dictionaries(names, st.one_of(st.booleans(), st.integers(-5, 5), text), max_size=3),
        position=st.none() | st.integers(0, 100),
    )
)
def test_events_survive_arrow(event: Event) -> None:
    assert from_table(to_table([event], Event), Event) == [event]


def test_no_rows_make_an_empty_table_with_all_columns() -> None:
    assert from_table(to_table([], User), User) == []


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"user_id": ""}, "user_id", "at least 1"),
        ({"user_id": "x" * 129}, "user_id", "at most 128"),
        ({"user_id": 7}, "user_id", "string"),
        ({"item_id": "a\x00b"}, "item_id", "NUL"),
        ({"item_id": None}, "item_id", "string"),
        ({"value": float("nan")}, "value", "finite"),
        ({"value": True}, "value", "boolean"),
        ({"position": -1}, "position", "greater"),
        ({"timestamp": "soon"}, "timestamp", "datetime"),
        ({"timestamp": (datetime.now(UTC) + timedelta(days=3)).isoformat()}, "timestamp", "future"),
        ({"timestamp": "1950-01-01T00:00:00Z"}, "timestamp", "1970"),
        ({"context": {"a b": 1}}, "context.a b", "pattern"),
        ({"context": {"a": [1]}}, "context.a", "text, a number or a boolean"),
        ({"event_type": "no spaces please"}, "event_type", "pattern"),
        ({"colour": "red"}, "colour", "known: user_id, item_id"),
    ],
)
def test_a_bad_event_names_the_field_and_the_trouble(change: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        parse(Event, GOOD | change)
    assert caught.value.field is not None
    assert caught.value.field.startswith(field)


def test_a_timestamp_without_zone_is_utc_and_others_are_converted() -> None:
    assert parse(Event, GOOD | {"timestamp": "2026-01-02T03:04:05"}).timestamp == parse(Event, GOOD).timestamp
    assert parse(Event, GOOD | {"timestamp": "2026-01-02T05:04:05+02:00"}).timestamp == parse(Event, GOOD).timestamp


def test_an_attribute_may_not_hide_a_column() -> None:
    with pytest.raises(InputError, match="'price' is a field of the item itself"):
        parse(Item, {"item_id": "i", "attributes": {"price": 3}})


def test_every_error_is_in_the_tree_and_has_a_code() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert all(issubclass(kind, BespokeError) for kind in kinds)
    assert all(400 <= kind.status < 600 and kind.code.isidentifier() for kind in kinds)
    for kind in kinds:
        assert f" {kind.__name__} " in (errors.__doc__ or "") or kind is BespokeError


def test_an_unknown_name_lists_the_known_and_the_nearest() -> None:
    error = unknown_name("attribute", "colr", ["size", "color"], field="filter")
    assert error.message == "unknown attribute 'colr'; did you mean 'color'? known: color, size"
    assert "none" in unknown_name("rule", "x", []).message


class Dial(Row):
    name: Annotated[str, Field(min_length=1)] = "dial"
    share: Annotated[float, Field(le=1)] = 1.0
    sides: Annotated[tuple[int, ...], Field(min_length=1)] = (1,)
    consent: Annotated[dict[Literal["marketing", "analytics"], bool], Field(default_factory=dict)]


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"share": 50}, "share: must be less than or equal to 1; 50 percent is 0.5"),
        ({"share": 500}, "share: must be less than or equal to 1"),
        ({"name": ""}, "name: must have a length of at least 1"),
        ({"sides": []}, "sides: must have at least 1, and has 0"),
        (
            {"consent": {"markting": True}},
            "consent.markting: must be 'marketing' or 'analytics'; did you mean 'marketing'?",
        ),
        ({"shar": 1}, "unknown field 'shar'; did you mean 'share'? known: name, share, sides, consent"),
    ],
)
def test_what_is_wrong_is_said_with_what_is_allowed(raw: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(Dial, raw)
    assert caught.value.message == says
