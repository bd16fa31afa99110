"""Alerts: what happened is told once, to whom it concerns, and when they may be disturbed."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from embeddings.errors import InputError
from embeddings.schema import Event, Item, User
from serving.api import create_api
from serving.decisions.alerts import AlertsQuery
from serving.decisions.deciding import Decided
from serving.pages.page import PageQuery
from serving.people.messages import Campaign, Composer
from serving.replica.engine import Engine
from serving.settings import Settings
from tests.test_api import client as client
from tests.test_contents import is_
from tests.test_deciding import content
from tests.test_ladder import engine as topologies  # noqa: F401 - a fixture: fused and chained
from tests.test_replenishment import publish

NOW = datetime.now(UTC)
ONCE_A_DAY = [{"limit": 1, "days": 1}]


def alert(engine: Engine, kind: str, name: str = "", *, trigger: dict[str, Any] | None = None, **fields: Any) -> None:
    content(engine, name or kind, trigger={"type": kind, **(trigger or {})}, **fields)


def due(
    engine: Engine, *happened: str, user: str = "ann", now: datetime = NOW, limit: int = 10, **context: Any
) -> list[Decided]:
    query = AlertsQuery(now=now, user_id=user, happened=frozenset(happened), context=context, limit=limit)
    return asyncio.run(engine.alerts(query))[0]


def told(engine: Engine, *happened: str, **fields: Any) -> list[tuple[str, list[str]]]:
    found = due(engine, *happened, **fields)
    return [(one.content, [item["item_id"] for item in (one.occasion or {})["items"]]) for one in found]


def did(engine: Engine, item_id: str, event_type: str, *, minutes: float, user: str = "ann") -> None:
    at = NOW - timedelta(minutes=minutes)
    engine.store.events.append([Event(user_id=user, item_id=item_id, event_type=event_type, timestamp=at)])


def put(engine: Engine, name: str, **fields: Any) -> None:
    engine.store.catalogue.upsert([Item(item_id=name, title=name.title(), **fields)])
    engine.take_changes()


def test_a_cart_that_was_left_is_told_once_in_both_topologies(topologies: Engine) -> None:  # noqa: F811
    engine = topologies
    engine.ladder.deadline_s = 10.0
    alert(engine, "cart_abandonment", trigger={"after_minutes": 30.0})
    did(engine, "g0-1", "cart", minutes=100, user="eve")
    did(engine, "g0-2", "cart", minutes=95, user="eve")
    did(engine, "g0-3", "cart", minutes=90, user="eve")
    did(engine, "g0-2", "purchase", minutes=80, user="eve")
    assert told(engine, user="eve", now=NOW - timedelta(minutes=51)) == []  # bought something 29 minutes ago
    assert told(engine, user="eve") == [("cart_abandonment", ["g0-3", "g0-1"])]
    assert told(engine, user="eve") == []
    did(engine, "g1-1", "cart", minutes=40, user="eve")
    assert told(engine, user="eve") == [("cart_abandonment", ["g1-1", "g0-3", "g0-1"])]
    assert told(engine, user="bob") == []
    assert engine.effects.flush()
    rows = engine.store.decisions.between(NOW - timedelta(1), NOW + timedelta(1), kind="content").decisions
    assert [row.request["trigger"] for row in rows] == ["cart_abandonment"] * 2


def test_an_emptied_or_old_cart_is_not_told(engine: Engine) -> None:
    alert(engine, "cart_abandonment", trigger={"within_days": 1.0})
    did(engine, "g0-1", "cart", minutes=300)
    did(engine, "g0-1", "remove_from_cart", minutes=200)
    assert told(engine) == []
    did(engine, "g0-1", "cart", minutes=199, user="bob")
    assert told(engine, user="bob", now=NOW + timedelta(days=1)) == []
    assert told(engine, user="bob") == [("cart_abandonment", ["g0-1"])]


def test_good_news_go_to_those_who_looked_before(engine: Engine) -> None:
    alert(engine, "price_drop", trigger={"percent": 20.0})
    alert(engine, "back_in_stock")
    put(engine, "tea", price=10.0)
    put(engine, "rum", price=10.0, available=False)
    for name in ("tea", "rum"):
        did(engine, name, "view", minutes=60)
        did(engine, name, "view", minutes=60, user="bob")
    did(engine, "tea", "purchase", minutes=50, user="bob")
    later = NOW + timedelta(minutes=1)
    assert told(engine, now=later) == []
    put(engine, "tea", price=9.0)  # a tenth is not enough
    assert told(engine, now=later) == []
    put(engine, "tea", price=7.0)
    put(engine, "rum", price=10.0)
    found = due(engine, now=later)
    assert [(one.content, one.occasion) for one in found] == [
        ("back_in_stock", {"trigger": "back_in_stock", "items": [{"item_id": "rum", "title": "Rum", "price": 10.0}]}),
        (
            "price_drop",
            {"trigger": "price_drop", "items": [{"item_id": "tea", "title": "Tea", "price": 7.0, "before": 10.0}]},
        ),
    ]
    assert told(engine, now=later) == []
    assert told(engine, now=later, user="bob") == [("back_in_stock", ["rum"])]
    assert told(engine, now=later, user="eve") == []


def test_what_is_gone_or_dear_again_is_not_told(engine: Engine) -> None:
    alert(engine, "price_drop")
    put(engine, "tea", price=10.0)
    did(engine, "tea", "view", minutes=60)
    put(engine, "tea", price=5.0)
    put(engine, "tea", price=10.0)
    assert told(engine, now=NOW + timedelta(minutes=1)) == []
    put(engine, "tea", price=5.0, available=False)
    assert told(engine, now=NOW + timedelta(minutes=1)) == []


def test_it_is_time_to_buy_again(tmp_path: Path) -> None:
    publish(tmp_path / "releases")
    engine = Engine(
        Settings(releases=tmp_path / "releases", store=f"sqlite:///{tmp_path / 's.db'}", deadline_ms=10_000)
    )
    engine.start()
    try:
        alert(engine, "replenishment")
        for days in (62, 31):
            did(engine, "g2-3", "purchase", minutes=days * 1440)
        found = due(engine)
        assert [item["item_id"] for one in found for item in (one.occasion or {})["items"]] == ["g2-3"]
        assert told(engine) == []

        def named() -> list[list[str]]:
            """What is due for somebody else, in an alert, in a message and for who asks what it is."""
            composed = asyncio.run(Composer(engine, Campaign(at=NOW), uuid.uuid4()).compose(["bob"]))
            with TestClient(create_api(engine)) as client:
                outlooks = client.get("/v1/users/bob/replenishment").json()["items"]
            alerts = [one for _, items in told(engine, user="bob") for one in items]
            return [alerts, *([one["item_id"] for one in some] for some in (composed.rows[0]["due"], outlooks))]

        for days in (62, 31):
            did(engine, "g2-3", "purchase", minutes=days * 1440, user="bob")
        rule = {"id": "hide", "items": is_("item_id", "eq", "g2-3"), "action": {"type": "exclude"}}
        engine.store.documents.put("rule", "hide", rule, by="test")
        engine.take_changes()
        assert named() == [[], [], []]
        engine.store.documents.delete("rule", "hide", by="test")
        engine.take_changes()
        assert named() == [["g2-3"]] * 3
        with pytest.raises(InputError, match="is an alert") as caught:
            Composer(engine, Campaign(at=NOW, content="replenishment"), uuid.uuid4())
        assert caught.value.field == "content"
    finally:
        engine.stop()


def test_exit_intent_comes_when_the_application_says_so_as_often_as_it_may(engine: Engine) -> None:
    alert(engine, "exit_intent", caps=ONCE_A_DAY)
    alert(
        engine,
        "idle",
        "idle_on_app",
        caps=ONCE_A_DAY,
        priority=5,
        when={"attribute": "context.channel", "op": "eq", "value": "app"},
    )
    assert told(engine) == []
    assert told(engine, "idle") == []
    assert told(engine, "idle", "exit_intent", channel="app", limit=1) == [("idle_on_app", [])]
    assert told(engine, "idle", "exit_intent", channel="app") == [("exit_intent", [])]
    assert told(engine, "idle", "exit_intent", channel="app") == []
    assert told(engine, "exit_intent", now=NOW + timedelta(days=1, seconds=1)) == [("exit_intent", [])]


def test_quiet_hours_are_those_of_the_person(engine: Engine) -> None:
    alert(engine, "exit_intent", caps=ONCE_A_DAY, quiet={"start": "21:00", "end": "08:00", "zone": "UTC"})
    engine.store.profiles.upsert([User(user_id="ann", attributes={"time_zone": "America/Los_Angeles"})])
    night = NOW.replace(hour=23, minute=0)
    assert told(engine, "exit_intent", user="bob", now=night) == []
    assert told(engine, "exit_intent", user="ann", now=night) == [("exit_intent", [])]


def test_consent_decides(engine: Engine) -> None:
    alert(engine, "cart_abandonment")
    alert(engine, "exit_intent", caps=ONCE_A_DAY)
    did(engine, "g0-1", "cart", minutes=300)
    engine.store.profiles.upsert([User(user_id="ann", consent={"marketing": False})])
    assert told(engine, "exit_intent") == []
    engine.store.profiles.upsert([User(user_id="ann", consent={"marketing": True, "personalization": False})])
    assert told(engine, "exit_intent") == [("exit_intent", [])]


def test_the_held_out_are_counted_once_for_each_occasion(engine: Engine) -> None:
    alert(engine, "cart_abandonment", holdout=0.999)
    did(engine, "g0-1", "cart", minutes=300)
    assert told(engine) == told(engine) == []
    assert engine.effects.flush()
    rows = engine.store.decisions.between(NOW - timedelta(1), NOW + timedelta(1), kind="content").decisions
    assert [(row.items, row.request["reason"]) for row in rows] == [([], "holdout")]


def test_a_page_shows_what_is_due_and_an_alert_by_name(engine: Engine) -> None:
    alert(engine, "cart_abandonment")
    alert(engine, "exit_intent", caps=ONCE_A_DAY, priority=9)
    did(engine, "g0-1", "cart", minutes=300)
    alert(engine, "cart_abandonment", "again", priority=-1)
    slots = [
        {"id": "any", "type": "alert"},
        {"id": "again", "type": "alert", "alert": "again"},
        {"id": "shelf", "type": "shelf", "placement": "trending"},
    ]
    engine.store.documents.put("layout", "home", {"id": "home", "slots": slots}, by="test")
    engine.take_changes()
    page, again = (asyncio.run(engine.page(PageQuery(page="home", now=NOW, user_id="ann"))) for _ in range(2))
    assert [slot.id for slot in page.slots] == ["any", "again", "shelf"]
    assert [(slot.content or {}).get("content") for slot in page.slots] == ["cart_abandonment", "again", None]
    assert [slot.id for slot in again.slots] == ["shelf"]
    assert told(engine) == []
    assert told(engine, "exit_intent") == [("exit_intent", [])]  # no page has used it up


def test_alerts_over_http(client: TestClient) -> None:
    body = {
        "variants": [{"id": "a", "payload": {"text": "Stay"}}],
        "trigger": {"type": "exit_intent"},
        "caps": [{"limit": 1, "days": 7}],
    }
    assert client.put("/v1/contents/stay", json=body).status_code == 200
    assert client.get("/v1/alerts?user_id=ann").json()["alerts"] == []
    answer = client.get("/v1/alerts?user_id=ann&trigger=exit_intent&channel=web")
    (found,) = answer.json()["alerts"]
    assert (found["content"], found["payload"], found["trigger"], found["items"]) == (
        "stay",
        {"text": "Stay"},
        "exit_intent",
        [],
    )
    assert answer.headers["cache-control"] == "no-store"
    assert client.get("/v1/alerts?user_id=ann&trigger=exit_intent&channel=web").json()["alerts"] == []
    for wrong, field in (
        ("user_id=ann&trigger=boo", "trigger.0"),
        ("trigger=idle", "user_id"),
        ("user_id=a&limit=0", "limit"),
    ):
        refused = client.get(f"/v1/alerts?{wrong}")
        assert (refused.status_code, refused.json()["error"]["field"]) == (422, field)
