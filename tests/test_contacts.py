"""What the store keeps for contents: contacts and their caps, lessons, news of items. On both databases."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text

from embeddings.errors import Damaged
from embeddings.schema import Event, Item
from serving.store import Contact, Decision, Lesson, Store
from serving.store.lessons import Position
from serving.store.news import BACK, PRICE, STEPS
from tests.test_store import START, fresh_url


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with fresh_url(request.param, tmp_path) as url, Store.open(url) as opened:
        yield opened


def contact(subject: str, days: float = 0.0, **fields: Any) -> Contact:
    given = {"user_id": "ann", "counted": "content hero", "caps": [(2, 7.0), (3, 30.0)], **fields}
    return Contact(subject=subject, at=START + timedelta(days=days), **given)


def test_caps_hold_in_every_window(store: Store) -> None:
    claim = store.contacts.claim
    assert [claim(contact("a", 0)), claim(contact("b", 1)), claim(contact("c", 2))] == [True, True, False]
    assert claim(contact("c", 7.5))  # the first is over a week old
    assert not claim(contact("d", 15))  # three in thirty days
    assert claim(contact("d", 30.5))
    assert claim(contact("a", 0, user_id="bob"))
    assert claim(contact("a", 0, counted="group mail"))


def test_contacts_count_for_all_ids_of_a_person_and_stay_with_each(store: Store) -> None:
    claim = store.contacts.claim
    assert claim(contact("price tea 1", 0, user_id="cookie"))
    store.aliases.link("cookie", "ann")
    store.aliases.link("phone", "ann")
    assert claim(contact("price tea 2", 1))
    assert [claim(contact("c", 2, user_id=name)) for name in ("ann", "cookie", "phone")] == [False] * 3
    assert not store.contacts.open(contact("price tea 1", 9, user_id="phone"))
    told = {"price tea 1": START, "price tea 2": START + timedelta(days=1)}
    assert store.contacts.told("phone", "content hero", "price") == told
    assert len(store.contacts.of(["ann", "cookie", "phone"])) == 2
    for name in ("cookie", "phone"):
        store.aliases.unlink(name)
    assert [len(store.contacts.told(name, "content hero", "price")) for name in ("ann", "cookie", "phone")] == [1, 2, 1]
    assert [claim(contact("c", 2, user_id=name)) for name in ("ann", "cookie", "phone")] == [True, False, True]


def test_a_subject_is_claimed_once_and_asking_claims_nothing(store: Store) -> None:
    one = contact("cart@1", caps=())
    assert store.contacts.open(one)
    assert store.contacts.open(one)
    assert store.contacts.claim(one)
    assert not store.contacts.open(one)
    assert not store.contacts.claim(one)


def test_many_at_once_never_exceed_a_cap(store: Store) -> None:
    outcomes: list[bool] = []
    store.aliases.link("phone", "ann")

    def ask(n: int) -> None:
        one = contact(f"s{n}", user_id="ann" if n % 3 else "phone")
        if n % 2:
            outcomes.append(store.contacts.claim(one))
        else:
            outcomes.extend(store.claims.submit([one]).result(20))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False] * 10 + [True] * 2


def test_contacts_go_with_the_person_and_with_time(store: Store) -> None:
    store.contacts.claim(contact("a", 0))
    store.contacts.claim(contact("b", 1))
    store.contacts.claim(contact("a", 1, user_id="bob"))
    assert store.contacts.forget(START + timedelta(days=0.5)) == 1
    store.profiles.erase("ann")
    assert store.database.read(lambda one: one.execute(text("SELECT user_id FROM contacts")).all()) == [("bob",)]


def shown(name: str, variant: str | None = "a", **fields: Any) -> Decision:
    given: dict[str, Any] = {"kind": "content", "request": {"features": [1.0, 0.5]}, **fields}
    items = [] if variant is None else [variant]
    return Decision(
        recommendation_id=name,
        user_id="ann",
        at=START,
        placement="hero",
        channel=None,
        items=items,
        scores=[0.0] * len(items),
        propensities=[0.5] * len(items),
        sources=[[] for _ in items],
        arms={},
        model_version="m1",
        policy_version=1,
        degraded=[],
        **given,
    )


def click(name: str | None, minutes: float, **fields: Any) -> Event:
    at = START + timedelta(minutes=minutes)
    given = {"user_id": "ann", "item_id": "hero", "event_type": "click", **fields}
    return Event(timestamp=at, recommendation_id=name, **given)


def test_lessons_read_on_and_count_each_response_once(store: Store) -> None:
    store.decisions.write([shown("d1"), shown("d2", "b"), shown("d3", None), shown("d4", kind="list", request={})])
    store.events.append(
        [click("d1", 1), click("d1", 2), click("d2", 3, event_type="view"), click("d4", 1), click(None, 1)]
    )
    decisions, events = store.lessons.heads()
    assert [one.variant for one in store.lessons.showings(0, decisions)] == ["a", "b"]
    found = store.lessons.responses(0, events)
    assert [(one.showing.variant, one.event_type, one.seconds) for one in found] == [
        ("a", "click", 60.0),
        ("b", "view", 180.0),
    ]
    assert found[0].showing.context == [1.0, 0.5]
    store.events.append([click("d1", 4), click("d2", 5)])
    later = store.lessons.responses(events, store.lessons.heads()[1])
    assert [(one.showing.variant, one.event_type) for one in later] == [("b", "click")]


def test_a_lesson_is_written_with_how_far_it_came_or_not_at_all(store: Store) -> None:
    rng = np.random.default_rng(0)
    outer, inner = rng.normal(size=(2, 3, 3)), rng.normal(size=(2, 3))
    lesson = Lesson(content="hero", version=1, at=7, basis="m1", arms=("a", "b"), outer=outer, inner=inner)
    begun = store.lessons.position()
    assert begun == Position(0, 0, 0)
    assert store.lessons.advance(begun, Position(4, 5, 6), [lesson])
    assert not store.lessons.advance(begun, Position(9, 9, 9), [replace(lesson, version=2)])
    assert store.lessons.position() == Position(4, 5, 6)
    back = store.lessons.all()["hero"]
    assert (back.version, back.at, back.basis, back.arms) == (1, 7, "m1", ("a", "b"))
    assert np.array_equal(back.outer, outer)
    assert np.array_equal(back.inner, inner)
    assert store.lessons.versions() == {"hero": 1}
    store.database.write(lambda one: one.execute(text("UPDATE lessons SET basis = 'm2'")))
    with pytest.raises(Damaged, match="the content 'hero'"):
        store.lessons.all()


def test_good_news_of_items_are_noted_when_they_are_written(store: Store) -> None:
    def put(name: str, **fields: Any) -> None:
        store.catalogue.upsert([Item(item_id=name, **fields)])

    put("tea", price=10.0, available=False)
    put("rum", price=10.0)
    assert store.catalogue.news.of(["tea", "rum"], PRICE, START) == []
    put("tea", price=10.0)
    put("rum", price=8.0)
    store.catalogue.change("rum", lambda item: item.model_copy(update={"price": 9.0}))
    put("rum", price=9.0)
    (back,) = store.catalogue.news.of(["tea", "rum", "gin"], BACK, START)
    (rum,) = store.catalogue.news.of(["tea", "rum", "gin"], PRICE, START)
    assert (back.item_id, rum.item_id) == ("tea", "rum")
    (first, before), (second, between) = rum.before
    assert (before, between, second) == (10.0, 8.0, rum.at.timestamp())
    moments = (first - 1, first, second - 1e-6, second)
    assert [rum.price_at(moment) for moment in moments] == [10.0, 8.0, 8.0, None]
    assert store.catalogue.news.of(["rum"], PRICE, rum.at + timedelta(seconds=1)) == []
    store.catalogue.delete("rum")
    put("rum", price=5.0)  # one that comes back is new
    assert store.catalogue.news.of(["rum"], PRICE, START) == [rum]
    for price in range(STEPS):
        put("rum", price=float(price + 100))
    (rum,) = store.catalogue.news.of(["rum"], PRICE, START)
    assert len(rum.before) == STEPS
    assert rum.price_at(0.0) == 5.0
