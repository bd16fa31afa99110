"""Moving in: tables of the schema into a store, once, however often they are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from embeddings.schema import EVENTS, Event, Item, User, to_table
from serving.store import Store, load
from serving.store.load import load_tables

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'store.db'}") as one:
        yield one


def tables() -> dict[str, object]:
    events = [
        Event(user_id="u", item_id=f"i{place % 3}", timestamp=NOW + timedelta(minutes=place)) for place in range(7)
    ]
    twice = Event(user_id="v", item_id="i0", timestamp=NOW)
    named = Event(user_id="v", item_id="i1", timestamp=NOW, event_id="mine")
    return {
        "items": to_table([Item(item_id=f"i{place}") for place in range(3)], Item),
        "users": to_table([User(user_id="u", attributes={"country": "DE"})], User),
        "events": to_table([*events, twice, twice, named], Event),
    }


def test_everything_arrives_and_equal_events_stay_two(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "ROWS_AT_ONCE", 4)
    told: list[int] = []
    counts = load_tables(store, **tables(), progress=told.append)  # type: ignore[arg-type]
    assert counts == {"items": 3, "users": 1, "events": 10, "known_events": 0}
    assert sum(told) == 14
    assert store.catalogue.count() == 3
    assert store.events.count("v") == 3
    profile = store.profiles.get("u")
    assert profile is not None
    assert profile.attributes == {"country": "DE"}
    assert [event.item_id for event in profile.history] == ["i0", "i1", "i2", "i0", "i1", "i2", "i0"]


def test_loading_again_changes_nothing(store: Store) -> None:
    load_tables(store, **tables())  # type: ignore[arg-type]
    again = load_tables(store, **tables())  # type: ignore[arg-type]
    assert (again["events"], again["known_events"]) == (0, 10)
    assert store.events.count("u") == 7


def test_an_empty_table_is_no_trouble(store: Store) -> None:
    counts = load_tables(store, **tables() | {"events": EVENTS.empty_table()})  # type: ignore[arg-type]
    assert counts["events"] == 0
