"""Contents and alerts over HTTP: through which door each comes, to whom, how often, and under which of their ids."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.test_api import client as client
from tests.test_api import error
from tests.test_contents import is_

ONCE = [{"limit": 1, "days": 7}]
ADULT = {"not": is_("user.age", "lt", 18)}


def content(client: TestClient, name: str, trigger: str | dict[str, Any] | None = None, **fields: Any) -> None:
    body = {"variants": [{"id": "a", "payload": {"text": name}}], **fields}
    if trigger is not None:
        body["trigger"] = {"type": trigger} if isinstance(trigger, str) else trigger
    done = client.put(f"/v1/contents/{name}", json=body)
    assert done.status_code == 200, done.text


def told(client: TestClient, *happened: str, user: str = "ann", **fields: Any) -> list[dict[str, Any]]:
    answer = client.post("/v1/alerts", json={"user_id": user, "trigger": happened, "limit": 10} | fields)
    assert answer.status_code == 200, answer.text
    alerts: list[dict[str, Any]] = answer.json()["alerts"]
    return alerts


def names(alerts: list[dict[str, Any]]) -> list[str]:
    return [one["content"] for one in alerts]


def decided(client: TestClient, *contents: str, user: str = "ann", **fields: Any) -> list[dict[str, Any]]:
    answer = client.post("/v1/decisions", json={"user_id": user, "contents": contents} | fields)
    assert answer.status_code == 200, answer.text
    decisions: list[dict[str, Any]] = answer.json()["decisions"]
    return decisions


def did(client: TestClient, item_id: str, event_type: str, *, minutes: float, user: str = "ann") -> None:
    at = datetime.now(UTC) - timedelta(minutes=minutes)
    event = {"user_id": user, "item_id": item_id, "event_type": event_type, "timestamp": at.isoformat()}
    assert client.post("/v1/events", json=event).status_code == 202


def put(client: TestClient, name: str, **fields: Any) -> None:
    assert client.put(f"/v1/items/{name}", json={"title": name.title(), **fields}).status_code == 200


def person(client: TestClient, name: str, **fields: Any) -> None:
    assert client.put(f"/v1/users/{name}", json=fields).status_code == 200


def hide(client: TestClient, item_id: str, **fields: Any) -> None:
    rule = {"items": is_("item_id", "eq", item_id), "action": {"type": "exclude"}, **fields}
    assert client.put(f"/v1/rules/hide-{item_id}", json=rule).status_code == 200


def test_an_alert_comes_through_its_own_doors_alone(client: TestClient) -> None:
    content(client, "cart", "cart_abandonment")
    content(client, "leaving", "exit_intent", caps=ONCE)
    content(client, "hero")
    asked = {"user_id": "ann", "contents": ["hero", "cart"]}
    refused = error(client.post("/v1/decisions", json=asked), 422)
    assert refused["field"] == "contents.1"
    assert "/v1/alerts" in refused["message"]
    for slot, field, words in (
        ({"type": "content", "content": "cart"}, "slots.0.content", "is an alert"),
        ({"type": "alert", "alert": "hero"}, "slots.0.alert", "has no trigger"),
        ({"type": "alert", "alert": "nope"}, "slots.0.alert", "unknown content 'nope'"),
        ({"type": "alert", "alert": "leaving"}, "slots.0.alert", "happens after the page was made"),
    ):
        found = error(client.put("/v1/layouts/home", json={"slots": [{"id": "s", **slot}]}), 422)
        assert (found["field"], words in found["message"]) == (field, True), found
    slots = [{"id": "top", "type": "content", "content": "hero"}, {"id": "note", "type": "alert", "alert": "cart"}]
    trending = {"id": "shelf", "type": "shelf", "placement": "trending"}
    assert client.put("/v1/layouts/home", json={"slots": [*slots, trending]}).status_code == 200
    turned = {"variants": [{"id": "a", "payload": {"text": "hero"}}], "trigger": {"type": "cart_abandonment"}}
    assert "the layout 'home' would not hold" in error(client.put("/v1/contents/hero", json=turned), 409)["message"]
    did(client, "g0-1", "cart", minutes=300)
    page = client.post("/v1/pages", json={"user_id": "ann", "page": "home"}).json()
    assert [slot["id"] for slot in page["slots"]] == ["top", "note", "shelf"]


def test_a_content_is_decided_once_a_request(client: TestClient) -> None:
    content(client, "hero")
    content(client, "side")
    found = client.post("/v1/decisions", json={"user_id": "ann", "contents": ["hero", "side", "hero"]}).json()
    assert [one["content"] for one in found["decisions"]] == ["hero", "side"]


@pytest.mark.parametrize("asked", [{"personalized": False}, {}])
def test_what_protects_people_knows_them_and_nothing_else_does(client: TestClient, asked: dict[str, Any]) -> None:
    consent = {} if asked else {"consent": {"personalization": False}}
    person(client, "kid", attributes={"age": 12}, **consent)
    person(client, "eve", attributes={"age": 40, "vip": True}, **consent)
    did(client, "g0-1", "purchase", minutes=5, user="eve")
    content(client, "wine", when=ADULT)
    content(client, "club", when=is_("user.vip", "eq", True))
    content(client, "first", when={"not": {"did": "purchase"}})
    kinds = [{"id": "wine", "payload": {"text": "Wine"}, "when": ADULT}, {"id": "tea", "payload": {"text": "Tea"}}]
    content(client, "drink", variants=kinds, choice="weights")
    shown = {
        user: {one["content"]: one["variant"] for one in decided(client, "wine", "club", "first", user=user, **asked)}
        for user in ("kid", "eve", "new")
    }
    assert shown["kid"] == {"wine": None, "club": None, "first": "a"}
    assert shown["eve"] == {"wine": "a", "club": None, "first": None}
    assert shown["new"] == {"wine": "a", "club": None, "first": "a"}
    assert decided(client, "drink", user="kid", **asked)[0]["variant"] == "tea"


def test_rules_protect_who_refuses_by_what_they_did_too(client: TestClient) -> None:
    did(client, "g0-1", "purchase", minutes=5)
    hide(client, "g1-1", when={"did": "purchase"})
    ask = {"user_id": "ann", "k": 100}
    person(client, "ann", consent={"personalization": False})
    items = [one["item_id"] for one in client.post("/v1/recommendations", json=ask).json()["items"]]
    assert "g1-2" in items
    assert "g1-1" not in items


def test_a_channel_keeps_a_content_to_itself(client: TestClient) -> None:
    content(client, "app", channel="app")
    asked = [{"context": {"channel": "app"}}, {"context": {"channel": "web"}}, {}]
    assert [decided(client, "app", **one)[0]["reason"]["code"] for one in asked] == [
        "only",
        "not_eligible",
        "not_eligible",
    ]


def test_a_condition_may_go_by_the_clock_of_the_person(client: TestClient) -> None:
    here, there = datetime.now(UTC), datetime.now(UTC) + timedelta(hours=12)
    person(client, "ann", attributes={"time_zone": "Etc/GMT-12"})
    content(client, "now", when=is_("time.local_hour", "in", [there.hour, (there.hour + 1) % 24]))
    content(client, "utc", when=is_("time.local_hour", "in", [here.hour, (here.hour + 1) % 24]))
    assert [one["variant"] for one in decided(client, "now", "utc")] == ["a", None]
    assert [one["variant"] for one in decided(client, "now", "utc", user="bob")] == [None, "a"]


def test_nothing_is_called_learned_before_anything_is(client: TestClient) -> None:
    content(client, "hero", variants=[{"id": name, "payload": {"text": name}} for name in "abc"])
    assert {decided(client, "hero", user=f"u{n}")[0]["reason"]["code"] for n in range(20)} == {"tried"}


def test_caps_hold_across_channels_and_ids_that_are_joined_and_parted(client: TestClient) -> None:
    content(client, "hero", caps=[{"limit": 2, "days": 1}])

    def reasons(user: str, *channels: str) -> list[str]:
        return [decided(client, "hero", user=user, context={"channel": one})[0]["reason"]["code"] for one in channels]

    assert reasons("cookie", "app", "email", "web") == ["only", "only", "capped"]
    assert client.put("/v1/users/known/aliases/cookie").status_code in (200, 201)
    assert client.put("/v1/users/other/aliases/phone").status_code in (200, 201)
    assert reasons("known", "web") == ["capped"]
    assert reasons("other", "web") == ["only"]
    assert reasons("phone", "web", "web") == ["only", "capped"]
    assert client.delete("/v1/users/other/aliases/phone").status_code in (200, 204)
    assert (reasons("phone", "web"), reasons("other", "web")) == (["capped"], ["capped"])


def test_a_cart_that_was_left_is_told_once_under_any_id(client: TestClient) -> None:
    content(client, "cart", {"type": "cart_abandonment", "after_minutes": 30.0})
    did(client, "g0-1", "cart", minutes=40, user="ck")
    hide(client, "g0-2")
    did(client, "g0-2", "cart", minutes=41, user="ck")
    (found,) = told(client, user="ck")
    assert (found["trigger"], [item["item_id"] for item in found["items"]]) == ("cart_abandonment", ["g0-1"])
    client.put("/v1/users/kk/aliases/ck")
    assert told(client, user="kk") == told(client, user="ck") == []
    did(client, "g0-2", "cart", minutes=300, user="bob")
    assert told(client, user="bob") == []  # all that lies in the cart is kept from them


def test_what_is_back_is_told_to_who_still_wants_it(client: TestClient) -> None:
    content(client, "back", "back_in_stock")
    put(client, "tea", price=5.0, available=False)
    for user in ("ann", "bob", "kid"):
        did(client, "tea", "view", minutes=60, user=user)
    did(client, "tea", "dislike", minutes=50, user="bob")
    person(client, "kid", attributes={"age": 12})
    hide(client, "tea", when=is_("user.age", "lt", 18))
    put(client, "tea", price=5.0)
    assert [item["item_id"] for one in told(client) for item in one["items"]] == ["tea"]
    assert told(client) == told(client, user="bob") == told(client, user="kid") == []


@pytest.mark.parametrize("prices", [(80, 79.5), (97, 94, 91, 88), (120, 94)])
def test_a_price_is_compared_with_what_the_person_knew(client: TestClient, prices: tuple[float, ...]) -> None:
    content(client, "drop", {"type": "price_drop", "percent": 5.0})
    put(client, "tea", price=100.0)
    did(client, "tea", "view", minutes=60)
    for price in prices:
        put(client, "tea", price=float(price))
    did(client, "tea", "view", minutes=0, user="late")
    (found,) = told(client)
    (item,) = found["items"]
    assert (item["before"], item["price"]) == (100.0, prices[-1])
    put(client, "tea", price=prices[-1] - 1.0)  # they know by now what it costs
    assert told(client) == told(client, user="late") == []
    put(client, "tea", price=100.0)
    put(client, "tea", price=prices[-1])
    assert told(client) == []  # what rose in between has not fallen for them
    put(client, "tea", price=50.0)
    assert [one["items"][0]["before"] for one in told(client)] == [prices[-1]]


def test_idle_is_told_as_often_as_it_may_be_and_where_the_context_says(client: TestClient) -> None:
    content(client, "stay", "idle", caps=ONCE)
    content(client, "rain", "idle", caps=ONCE, priority=5, when=is_("context.weather", "eq", "rain"))
    assert told(client) == []
    assert names(told(client, "idle", limit=1)) == ["stay"]
    assert names(told(client, "idle", context={"weather": "rain"})) == ["rain"]
    assert told(client, "idle", context={"weather": "rain"}) == []


def test_an_alert_leaves_people_in_peace(client: TestClient) -> None:
    now = datetime.now(UTC)
    clock = {"start": f"{now - timedelta(hours=1):%H:%M}", "end": f"{now + timedelta(hours=1):%H:%M}", "zone": "UTC"}
    content(client, "stay", "exit_intent", caps=ONCE, quiet=clock)
    person(client, "far", attributes={"time_zone": "Etc/GMT-12"})
    assert told(client, "exit_intent") == []
    assert names(told(client, "exit_intent", user="far")) == ["stay"]
    content(client, "stay", "exit_intent", caps=ONCE)
    person(client, "bob", consent={"marketing": False})
    assert told(client, "exit_intent", user="bob") == []
    assert names(told(client, "exit_intent")) == ["stay"]


def test_after_the_held_out_alert_comes_the_next_as_for_everybody(client: TestClient) -> None:
    content(client, "low", "idle", caps=[{"limit": 5, "days": 7}])
    content(client, "top", "idle", caps=ONCE, priority=9)
    treated = [names(told(client, "idle", limit=1)) for _ in range(3)]
    content(client, "top", "idle", caps=ONCE, priority=9, holdout=0.999999)
    held_out = [names(told(client, "idle", limit=1, user="bob")) for _ in range(3)]
    assert (treated, held_out) == ([["top"], ["low"], ["low"]], [[], ["low"], ["low"]])


def test_a_page_holds_out_as_a_request_does(client: TestClient) -> None:
    did(client, "g0-1", "cart", minutes=300)
    content(client, "low", "cart_abandonment")
    content(client, "top", "cart_abandonment", priority=9, holdout=0.999999)
    slots = [{"id": "note", "type": "alert"}, {"id": "shelf", "type": "shelf", "placement": "trending"}]
    client.put("/v1/layouts/home", json={"slots": slots})
    pages = [client.post("/v1/pages", json={"user_id": "ann", "page": "home"}).json()["slots"] for _ in range(3)]
    shown = [[(slot.get("content") or {}).get("content") for slot in page] for page in pages]
    assert shown == [[None], ["low", None], [None]]


def test_in_the_place_of_what_its_group_has_used_up_comes_the_next(client: TestClient) -> None:
    for place, name in enumerate(("g1", "g2", "g3")):
        content(client, name, "idle", caps=ONCE, priority=-place, group=None if name == "g3" else "both")
    assert names(told(client, "idle", limit=2)) == ["g1", "g3"]


def test_a_misspelt_question_is_refused(client: TestClient) -> None:
    assert error(client.get("/v1/alerts?user_id=ann&trigge=idle"), 422)["field"] == "trigge"
    assert error(client.post("/v1/alerts", json={"user_id": "ann", "happened": ["idle"]}), 422)["field"] == "happened"
