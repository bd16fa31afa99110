"""The HTTP interface over the known-answer world, without Ray: shapes, errors, and what a client may not do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from serving.api import create_api
from serving.replica.engine import Engine
from serving.settings import Settings
from tests.conftest import write_world


@contextmanager
def service(releases: Path, folder: Path) -> Iterator[TestClient]:
    """A client of the application, with a store of its own in a folder."""
    engine = Engine(Settings(releases=releases, store=f"sqlite:///{folder / 'store.db'}", deadline_ms=10_000))
    engine.start()
    with TestClient(create_api(engine), raise_server_exceptions=False) as one:
        yield one
    engine.stop()


@pytest.fixture
def client(releases: Path, tmp_path: Path) -> Iterator[TestClient]:
    with service(releases, tmp_path) as one:
        yield one


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One application for all tests of a file that leave it as they found it: to make one takes half a second."""
    folder = tmp_path_factory.mktemp("lasting")
    write_world(folder / "releases")
    with service(folder / "releases", folder) as one:
        yield one


def view(item_id: str, **fields: Any) -> dict[str, Any]:
    return {"user_id": "ann", "item_id": item_id, "event_type": "view"} | fields


def recommend(client: TestClient, **fields: Any) -> dict[str, Any]:
    reply = client.post("/v1/recommendations", json={"user_id": "ann", "k": 10} | fields)
    assert reply.status_code == 200, reply.text
    body: dict[str, Any] = reply.json()
    return body


def error(reply: Any, status: int) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    assert set(reply.json()) == {"error"}
    assert set(reply.json()["error"]) == {"code", "message", "field"}
    detail: dict[str, Any] = reply.json()["error"]
    return detail


def test_an_event_changes_the_next_answer(client: TestClient) -> None:
    done = client.post("/v1/events", json=view("g2-3"))
    assert done.status_code == 202
    assert done.json()["accepted"] == 1
    body = recommend(client)
    assert {one["item_id"].split("-")[0] for one in body["items"]} == {"g2"}
    assert [one["position"] for one in body["items"]] == list(range(10))
    assert body["items"][0]["reasons"][0]["text"] == "Because you viewed Group 2 item 3"
    assert "item" not in body["items"][0]
    assert "trace" not in body
    assert body["model_version"] == "world-1"


def test_events_are_all_or_nothing_and_idempotent(client: TestClient) -> None:
    batch = [view("g2-3", event_id="e1"), view("g2-4", event_id="e2"), view("g2-4", event_id="e2")]
    assert client.post("/v1/events", json={"events": batch}).json() == {
        "accepted": 2,
        "duplicates": 1,
        "event_ids": ["e1", "e2", "e2"],
    }
    assert client.post("/v1/events", json={"events": batch}).json()["duplicates"] == 3
    detail = error(client.post("/v1/events", json={"events": [view("g1-1"), view("g1-2", value="x")]}), 422)
    assert detail["field"] == "events.1.value"
    assert client.get("/v1/users/ann").json()["events"] == 2


def test_fields_and_explain_bring_items_and_trace(client: TestClient) -> None:
    client.post("/v1/events", json=view("g2-3"))
    body = recommend(client, fields=True, explain=True)
    assert body["items"][0]["item"]["title"].startswith("Group 2")
    assert {"stages", "candidates"} == set(body["trace"])


def test_similar_and_rankings(client: TestClient) -> None:
    body = client.post("/v1/similar", json={"item_id": "g1-4", "k": 5}).json()
    assert all(one["item_id"].startswith("g1") for one in body["items"])
    assert error(client.post("/v1/similar", json={"item_id": "none"}), 404)["field"] == "item_id"
    client.post("/v1/events", json=view("g3-3"))
    body = client.post("/v1/rankings", json={"user_id": "ann", "items": ["g0-1", "g3-1", "zz"]}).json()
    assert [one["item_id"] for one in body["items"]] == ["g3-1", "g0-1"]
    assert body["unknown"] == ["zz"]


def test_a_misspelt_parameter_changes_nothing(client: TestClient) -> None:
    for parameter in ("expected_versio", "validate_olny"):
        detail = error(client.put("/v1/placements/home", json={"k": 5}, params={parameter: 1}), 422)
        assert (detail["field"], "did you mean" in detail["message"]) == (parameter, True)
    error(client.get("/v1/placements/home"), 404)
    assert "known: " in error(client.get("/v1/alerts", params={"user_id": "ann", "x": 1}), 422)["message"]


def test_items_live_and_die_over_http(client: TestClient) -> None:
    item = {"title": "Fresh", "categories": ["group-3"], "price": 3.5, "attributes": {"brand": "new"}}
    assert client.put("/v1/items/fresh", json=item).json()["item_id"] == "fresh"
    assert client.get("/v1/items/fresh").json()["attributes"] == {"brand": "new"}
    client.post("/v1/events", json=view("g3-1"))
    assert "fresh" in [one["item_id"] for one in recommend(client, k=40)["items"]]
    assert client.post("/v1/items", json={"items": [{"item_id": "a"}, {"item_id": "b"}]}).json() == {"upserted": 2}
    page = client.get("/v1/items", params={"limit": 2}).json()
    assert [one["item_id"] for one in page["items"]] == ["a", "b"]
    rest = client.get("/v1/items", params={"limit": 2, "after": page["next"]}).json()
    assert [one["item_id"] for one in rest["items"]] == ["fresh"]
    assert [one["item_id"] for one in client.get("/v1/items", params={"q": "FRES"}).json()["items"]] == ["fresh"]
    assert client.delete("/v1/items/fresh").status_code == 204
    assert error(client.get("/v1/items/fresh"), 404)["message"] == "unknown item 'fresh'"
    assert error(client.delete("/v1/items/never"), 404)["field"] == "item_id"
    assert "fresh" not in [one["item_id"] for one in recommend(client, k=100)["items"]]


def test_users_are_described_listed_and_forgotten(client: TestClient) -> None:
    assert client.put("/v1/users/bob", json={"attributes": {"country": "DE"}}).json()["events"] == 0
    client.post("/v1/events", json=view("g2-3") | {"user_id": "bob"})
    profile = client.get("/v1/users/bob/profile").json()
    assert profile["attributes"] == {"country": "DE"}
    assert profile["history"][0]["title"] == "Group 2 item 3"
    assert [one["user_id"] for one in client.get("/v1/users").json()["users"]] == ["bob"]
    gone = client.delete("/v1/users/bob").json()
    assert (gone["user_id"], gone["erased_events"], gone["receipt"]["aliases"]) == ("bob", 1, [])
    assert error(client.get("/v1/users/bob"), 404)["code"] == "not_found"


def test_rules_over_http(client: TestClient) -> None:
    rule = {"action": {"type": "exclude"}, "items": {"attribute": "categories", "op": "contains", "value": "group-2"}}
    stored = client.put("/v1/rules/no-two", json=rule).json()
    assert stored["id"] == "no-two"
    client.post("/v1/events", json=view("g2-3"))
    body = recommend(client, k=100)
    assert not any(one["item_id"].startswith("g2") for one in body["items"])
    assert body["policy_version"] == stored["version"]
    assert [one["id"] for one in client.get("/v1/rules").json()["rules"]] == ["no-two"]
    wrong = rule | {"items": {"attribute": "colour", "op": "eq", "value": "x"}}
    detail = error(client.put("/v1/rules/bad", json=wrong), 422)
    assert "brand" in detail["message"]
    assert error(client.put("/v1/rules/bad", json=rule | {"id": "other"}), 422)["field"] == "id"
    assert client.delete("/v1/rules/no-two").status_code == 204
    assert error(client.delete("/v1/rules/no-two"), 404)
    assert any(one["item_id"].startswith("g2") for one in recommend(client)["items"])


@pytest.mark.parametrize(
    ("path", "body", "field", "says"),
    [
        ("/v1/recommendations", {"user_id": "a", "k": 0}, "k", "greater"),
        ("/v1/recommendations", {"user_id": "a", "k": 201}, "k", "less"),
        ("/v1/recommendations", {"user_id": "a", "k": "7"}, "k", "integer"),
        ("/v1/recommendations", {"k": 3}, "user_id", "required"),
        ("/v1/recommendations", {"user_id": "x" * 129}, "user_id", "128"),
        ("/v1/recommendations", {"user_id": "a", "colour": 1}, "colour", "unknown field"),
        ("/v1/recommendations", {"user_id": "a", "context": {"x": {}}}, "context.x", "text, a number"),
        (
            "/v1/recommendations",
            {"user_id": "a", "filter": {"attribute": "colour", "op": "eq", "value": 1}},
            None,
            "brand",
        ),
        (
            "/v1/recommendations",
            {"user_id": "a", "filter": {"attribute": "price", "op": "like", "value": 1}},
            None,
            "lt",
        ),
        ("/v1/rankings", {"user_id": "a", "items": []}, "items", "at least 1"),
        ("/v1/events", {"events": []}, "events", "at least 1"),
        ("/v1/events", view("i") | {"timestamp": "2999-01-01T00:00:00Z"}, "timestamp", "future"),
        ("/v1/events", view("i") | {"value": None, "position": -1}, "position", "greater"),
        ("/v1/items", {"items": [{"item_id": "a", "price": -1}]}, "items.0.price", "greater"),
        ("/v1/rules", {"id": "r", "action": {"type": "explode"}}, None, "boost"),
    ],
)
def test_bad_input_names_the_field_and_what_is_allowed(
    lasting: TestClient, path: str, body: dict[str, Any], field: str | None, says: str
) -> None:
    detail = error(lasting.post(path, json=body), 422)
    assert says in detail["message"], detail
    if field is not None:
        assert detail["field"] == field


def test_nan_is_refused_and_changes_nothing(client: TestClient) -> None:
    body = '{"user_id": "ann", "item_id": "g1-1", "value": NaN}'
    reply = client.post("/v1/events", content=body, headers={"content-type": "application/json"})
    assert reply.status_code in (400, 422)
    error(reply, reply.status_code)
    assert client.get("/v1/users/ann").status_code == 404


def test_malformed_undeclared_and_oversized_bodies(client: TestClient) -> None:
    json_type = {"content-type": "application/json"}
    assert error(client.post("/v1/events", content="{", headers=json_type), 400)["code"] == "malformed_json"
    assert error(client.post("/v1/events", content="{}"), 415)["code"] == "unsupported_type"
    huge = b'{"user_id": "' + b"x" * (1 << 21) + b'"}'
    assert error(client.post("/v1/events", content=huge, headers=json_type), 413)["code"] == "too_large"
    chunks = (huge[start : start + 65_536] for start in range(0, len(huge), 65_536))
    assert error(client.post("/v1/events", content=chunks, headers=json_type), 413)["code"] == "too_large"
    assert error(client.get("/v1/nothing"), 404)["code"] == "not_found"
    assert error(client.get("/v1/events"), 405)["code"] == "method_not_allowed"


def test_the_service_tells_its_state(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"ready": True, "model_version": "world-1"}
    assert client.get("/v1/info").json()["items"] == 100
    recommend(client)
    text = client.get("/metrics").text
    assert 'bespoke_requests_total{method="POST",route="/v1/recommendations",status="200"}' in text
    assert "bespoke_stage_seconds" in text
    assert "ann" not in text
    assert client.get("/docs").status_code == 200


def test_before_the_first_release_everything_but_lists_works(tmp_path: Path) -> None:
    engine = Engine(Settings(releases=tmp_path / "none", store=f"sqlite:///{tmp_path / 's.db'}"))
    engine.start()
    with TestClient(create_api(engine), raise_server_exceptions=False) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503
        assert client.post("/v1/events", json=view("a")).status_code == 202
        assert client.put("/v1/items/a", json={}).status_code == 200
        assert "publish" in error(client.post("/v1/recommendations", json={"user_id": "a"}), 503)["message"]
    engine.stop()


def test_every_answer_has_a_request_id_and_safe_headers(client: TestClient) -> None:
    reply = client.get("/healthz", headers={"x-request-timeout-seconds": "0"})
    assert len(reply.headers["x-request-id"]) == 32
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_the_console_is_served_under_a_strict_policy(client: TestClient) -> None:
    page = client.get("/console")
    assert page.status_code == 200
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assert client.get("/console/console.js").headers["content-type"].startswith("text/javascript")


def test_late_events_take_their_place_in_the_history(client: TestClient) -> None:
    now = datetime.now(UTC)
    client.post("/v1/events", json=view("g2-3", timestamp=now.isoformat()))
    client.post("/v1/events", json=view("g1-3", timestamp=(now - timedelta(days=2)).isoformat()))
    assert [one["item_id"] for one in client.get("/v1/users/ann/profile").json()["history"]] == ["g2-3", "g1-3"]
    assert {one["item_id"].split("-")[0] for one in recommend(client)["items"]} == {"g2"}


def test_a_request_that_takes_too_long_is_an_error_of_ours(
    releases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(
        Settings(releases=releases, store=f"sqlite:///{tmp_path / 'p.db'}", request_timeout_s=0.2, deadline_ms=10_000)
    )
    engine.start()
    monkeypatch.setattr(engine.store.catalogue, "get", lambda _: time.sleep(0.5))
    with TestClient(create_api(engine), raise_server_exceptions=False) as one:
        detail = error(one.get("/v1/items/x"), 503)
        assert detail["code"] == "timeout"
        assert recommend(one)["degraded"] == []
    engine.stop()


def test_a_rule_whose_attribute_is_gone_lets_nothing_pass_and_says_so(client: TestClient) -> None:
    fresh = {"title": "Fresh", "attributes": {"licence": "EU"}}
    assert client.put("/v1/items/fresh", json=fresh).status_code == 200
    rule = {"action": {"type": "include"}, "items": {"attribute": "licence", "op": "eq", "value": "EU"}}
    assert client.put("/v1/rules/eu", json=rule).json()["problem"] is None
    assert [one["item_id"] for one in recommend(client)["items"]] == ["fresh"]
    client.delete("/v1/items/fresh")
    assert recommend(client)["items"] == []
    assert "licence" in client.get("/v1/rules/eu").json()["problem"]
    assert client.get("/v1/rules").json()["rules"][0]["problem"]
    assert "bespoke_policy_problems 1.0" in client.get("/metrics").text


def test_a_list_may_be_wanted_sooner(client: TestClient) -> None:
    assert len(recommend(client, deadline_ms=20)["items"]) == 10
    assert (
        error(client.post("/v1/recommendations", json={"user_id": "a", "deadline_ms": 1}), 422)["field"]
        == "deadline_ms"
    )
