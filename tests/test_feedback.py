"""Feedback that is taken back: the event goes, and what the profile says follows."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from embeddings.schema import Event, Item, User
from serving.store import FeedbackKey, Store
from serving.store.retention import retain
from tests.test_store import START, fresh_url


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with fresh_url(request.param, tmp_path) as url, Store.open(url) as opened:
        yield opened


def did(item_id: str, event_type: str = "like", minute: int = 0, user_id: str = "ann", **fields: Any) -> Event:
    when = START + timedelta(minutes=minute)
    given = {"event_id": f"{user_id}-{item_id}-{event_type}-{minute}"} | fields
    return Event(user_id=user_id, item_id=item_id, event_type=event_type, timestamp=when, **given)


def history(store: Store, user_id: str = "ann") -> list[tuple[str, str, float | None]]:
    profile = store.profiles.get(user_id)
    assert profile is not None
    assert profile.events == len(profile.history) == store.events.count(user_id)
    expected = profile.history[-1].timestamp if profile.history else None
    assert profile.last_seen == expected
    return [(one.item_id, one.event_type, one.value) for one in profile.history]


def test_events_are_found_by_person_and_item(store: Store) -> None:
    store.events.append([did("a"), did("b", "view", 1), did("a", "view", 2), did("a", user_id="bob")])
    feedback = store.feedback
    assert [one.item_id for one in feedback.of_user("ann")] == ["a", "b", "a"]
    assert [one.item_id for one in feedback.of_user("ann", event_type="view")] == ["b", "a"]
    assert [one.event_type for one in feedback.of_user("ann", item_id="a")] == ["like", "view"]
    assert feedback.of_user("ann", item_id="a", event_type="view") == [did("a", "view", 2)]
    assert [one.user_id for one in feedback.of_item("a")] == ["ann", "ann", "bob"]
    assert feedback.of_item("a", event_type="view", limit=1) == [did("a", "view", 2)]
    assert feedback.of_user("nobody") == []


def test_what_is_taken_back_leaves_the_history(store: Store) -> None:
    store.events.append([did("a"), did("b", "view", 1), did("a", "view", 2), did("a", user_id="bob")])
    assert store.feedback.withdraw([FeedbackKey("ann", "a", "like")]) == 1
    assert history(store) == [("b", "view", None), ("a", "view", None)]
    assert store.feedback.withdraw([FeedbackKey("ann", "a"), FeedbackKey("ann", "b"), FeedbackKey("ann", "c")]) == 2
    assert history(store) == []
    assert history(store, "bob") == [("a", "like", None)]
    assert store.feedback.withdraw([FeedbackKey("ann", "a")]) == 0
    assert store.feedback.withdraw([FeedbackKey("nobody", "a")]) == 0
    assert store.feedback.withdraw([]) == 0
    store.events.append([did("c", "view", 3)])
    assert history(store) == [("c", "view", None)], "the next event finds a sound profile"


def test_a_value_may_take_the_place_of_another(store: Store) -> None:
    store.events.append(
        [did("a", "rating", 0, value=2.0), did("b", "rating", 1, value=5.0), did("a", "rating", 2, value=3.0)]
    )
    new = did("a", "rating", 1, value=4.0, event_id="new")
    store.events.append([new])
    assert store.feedback.withdraw([FeedbackKey("ann", "a", "rating")], keep=["new"]) == 2
    assert history(store) == [("b", "rating", 5.0), ("a", "rating", 4.0)]
    assert store.feedback.of_user("ann", item_id="a") == [new]


def test_what_retention_deleted_is_forgotten_too(store: Store) -> None:
    store.events.append([did("a"), did("b", minute=60)])
    retain(store, before=START + timedelta(minutes=30), exported=None)
    assert store.feedback.withdraw([FeedbackKey("ann", "a")]) == 0
    profile = store.profiles.get("ann")
    assert profile is not None
    assert ([one.item_id for one in profile.history], profile.events) == (["b"], 1)
    assert store.feedback.withdraw([FeedbackKey("ann", "b")]) == 1
    profile = store.profiles.get("ann")
    assert profile is not None
    assert (profile.history, profile.events, profile.last_seen) == ([], 0, None)


def test_a_history_that_forgot_all_but_not_its_count_goes_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.store.histories.HISTORY_LIMIT", 3)
    store.events.append([did("old", "view", 0), did("older", "view", 1), *(did("a", "view", n) for n in (2, 3, 4))])
    assert store.feedback.withdraw([FeedbackKey("ann", "a")]) == 3
    profile = store.profiles.get("ann")
    assert profile is not None
    assert (profile.history, profile.events) == ([], 2)
    store.events.append([did("b", "view", 5)])
    profile = store.profiles.get("ann")
    assert profile is not None
    assert ([one.item_id for one in profile.history], profile.events) == (["b"], 3)


def test_items_and_people_are_changed_in_place(store: Store) -> None:
    store.catalogue.upsert([Item(item_id="a", title="A", categories=["x"])])
    before = store.catalogue.revision()
    assert store.catalogue.change("a", lambda item: item.model_copy(update={"categories": ["x", "y"]}))
    assert store.catalogue.get("a") == Item(item_id="a", title="A", categories=["x", "y"])
    assert store.catalogue.revision() == before + 1
    assert store.catalogue.change("a", lambda item: item)
    assert store.catalogue.revision() == before + 1, "nothing changed"
    store.catalogue.delete("a")
    assert not store.catalogue.change("a", lambda item: item)
    assert not store.catalogue.change("b", lambda item: item)
    store.events.append([did("a")])
    store.profiles.upsert([User(user_id="ann", attributes={"n": 1.0}, consent={"marketing": False})])
    assert store.profiles.change("ann", lambda attributes: attributes | {"m": True})
    profile = store.profiles.get("ann")
    assert profile is not None
    assert (profile.attributes, profile.events, profile.consent) == ({"n": 1.0, "m": True}, 1, {"marketing": False})
    assert not store.profiles.change("bob", lambda attributes: attributes)
    store.profiles.upsert([User(user_id="bob"), User(user_id="cid")])
    assert [one.user_id for one in store.profiles.by_id(2)] == ["ann", "bob"]
    assert [one.user_id for one in store.profiles.by_id(2, "bob")] == ["cid"]
