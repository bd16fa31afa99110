"""An application with a client of Gorse moves in by changing a URL: checked with its published client, over a socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient
from gorse import Gorse, GorseException

from embeddings.errors import ConfigError
from serving.api import access, create_api
from serving.api import gorse as gorse_routes
from serving.replica.engine import Engine
from serving.settings import Settings
from tests.conftest import free_port
from tests.test_api import error
from tests.test_ladder import engine as topologies  # noqa: F401 - a fixture: fused and chained


@pytest.fixture
def engine(releases: Path, tmp_path: Path) -> Iterator[Engine]:
    settings = Settings(releases=releases, store=f"sqlite:///{tmp_path / 'store.db'}", deadline_ms=10_000, auth="on")
    one = Engine(settings)
    one.start()
    yield one
    one.stop()


def key(engine: Engine, *scopes: str) -> str:
    return engine.store.keys.create("shop", scopes or ("read", "events", "catalogue"), per_minute=1_000_000, by="test")[
        1
    ]


@pytest.fixture
def secret(engine: Engine) -> str:
    """A key that is there when the application starts."""
    return key(engine)


@pytest.fixture
def url(engine: Engine, secret: str) -> Iterator[str]:
    """The application behind a real socket."""
    server = uvicorn.Server(uvicorn.Config(create_api(engine), port=free_port(), log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.config.port}"
    server.should_exit = True
    thread.join(20)


@pytest.fixture
def gorse(url: str, secret: str, monkeypatch: pytest.MonkeyPatch) -> Gorse:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return Gorse(url, secret, timeout=30)


@pytest.fixture
def client(engine: Engine, secret: str) -> Iterator[TestClient]:
    with TestClient(create_api(engine), raise_server_exceptions=False) as one:
        one.headers["X-API-Key"] = secret
        yield one


def eventually(true: Any, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.01)
    return False


def liked(*item_ids: str, user_id: str = "bob", kind: str = "star") -> list[dict[str, Any]]:
    start = datetime(2026, 2, 1, tzinfo=UTC)
    return [
        {"FeedbackType": kind, "UserId": user_id, "ItemId": name, "Timestamp": (start + timedelta(days=n)).isoformat()}
        for n, name in enumerate(item_ids)
    ]


def test_the_quick_start_of_the_client_works(gorse: Gorse) -> None:
    user = {"UserId": "bob", "Labels": {"gender": "M", "age": 24}, "Comment": "my user"}
    assert gorse.insert_user(user) == {"RowAffected": 1}
    assert gorse.get_user("bob") == user
    item = {
        "ItemId": "vuejs:vue",
        "IsHidden": False,
        "Labels": {"topics": ["javascript", "ui"], "stars": 200_000, "owner": {"name": "vuejs", "team": True}},
        "Categories": ["group-2", "framework"],
        "Timestamp": "2022-11-20T13:55:27Z",
        "Comment": "The progressive framework",
    }
    assert gorse.insert_item(item) == {"RowAffected": 1}
    assert gorse.get_item("vuejs:vue") == item
    assert gorse.insert_feedbacks(liked("g2-3", "g2-4", "vuejs:vue")) == {"RowAffected": 3}
    assert gorse.insert_feedback("read", "bob", "g1-3", "2022-11-20T13:55:27Z") == {"RowAffected": 1}
    scores = gorse.get_recommend("bob", n=5)
    assert len(scores) == 5
    assert {one.id.split("-")[0] for one in scores} == {"g2"}
    assert [one.score for one in scores] == sorted((one.score for one in scores), reverse=True)
    assert not {one.id for one in gorse.get_recommend("bob", n=200)} & {"g2-3", "g2-4", "vuejs:vue", "g1-3"}
    assert [one.id for one in gorse.get_recommend("bob", n=2, offset=3)] == [one.id for one in scores[3:]]
    assert {one.id.split("-")[0] for one in gorse.get_recommend("bob", "group-1", n=5)} == {"g1"}
    assert gorse.get_neighbors("g3-4", n=3) == gorse.get_neighbors("g3-4", n=9)[:3]
    assert all(one["Id"].startswith("g3") for one in gorse.get_neighbors("g3-4", n=9, offset=2))
    assert gorse.get_neighbors("nothing of ours") == []
    session = gorse.session_recommend(liked("g0-1", user_id=""), n=4)
    assert len(session) == 4
    assert all(one["Id"].startswith("g0") and one["Id"] != "g0-1" for one in session)


def test_feedback_is_listed_counted_once_and_taken_back(gorse: Gorse, engine: Engine) -> None:
    gorse.insert_feedbacks(liked("g2-3", "g2-4") + liked("g2-3", kind="read"))
    assert gorse.insert_feedbacks(liked("g2-3")) == {"RowAffected": 1}
    assert engine.store.events.count("bob") == 3, "the same feedback again is no other"
    stars = gorse.list_feedbacks("star", "bob")
    assert [(one["FeedbackType"], one["UserId"], one["ItemId"]) for one in stars] == [
        ("star", "bob", "g2-3"),
        ("star", "bob", "g2-4"),
    ]
    assert stars[1]["Timestamp"] == stars[1]["Updated"] == "2026-02-02T00:00:00Z"
    profile = engine.store.profiles.get("bob")
    assert profile is not None
    assert {event.event_type for event in profile.history} == {"like", "impression"}
    page, cursor = gorse.get_feedbacks(2)
    rest, end = gorse.get_feedbacks(2, cursor)
    assert [(one["FeedbackType"], one["ItemId"]) for one in page + rest] == [
        ("star", "g2-3"),
        ("star", "g2-4"),
        ("read", "g2-3"),
    ]
    assert end == ""
    assert gorse.delete_feedback("bob", "g2-3") == {"RowAffected": 2}
    assert gorse.delete_feedback("bob", "g2-3") == {"RowAffected": 0}
    assert [one["ItemId"] for one in gorse.list_feedbacks("star", "bob")] == ["g2-4"]
    assert gorse.list_feedbacks("star", "nobody") == []


def test_rows_are_paged_changed_and_removed(gorse: Gorse) -> None:
    assert gorse.insert_users([{"UserId": f"u{n}", "Labels": ["a", "b"]} for n in range(5)]) == {"RowAffected": 5}
    seen, cursor = [], ""
    while True:
        users, cursor = gorse.get_users(2, cursor)
        seen += users
        if not cursor:
            break
    assert [one["UserId"] for one in seen] == [f"u{n}" for n in range(5)]
    assert seen[0] == {"UserId": "u0", "Labels": ["a", "b"], "Comment": ""}
    for name in ("a", "b", "c"):
        gorse.insert_item({"ItemId": name, "Comment": f"Item {name}"})
    items, cursor = gorse.get_items(2)
    more, end = gorse.get_items(2, cursor)
    assert ([one["ItemId"] for one in items + more], end) == (["a", "b", "c"], "")
    assert items[0] == {
        "ItemId": "a",
        "IsHidden": False,
        "Categories": [],
        "Timestamp": "0001-01-01T00:00:00Z",
        "Labels": None,
        "Comment": "Item a",
    }
    assert [one["ItemId"] for one in gorse.search_items("ITEM B")] == ["b"]
    assert gorse.update_item("a", is_hidden=True, categories=["x"], labels={"price": 3.5}) == {"RowAffected": 1}
    changed = gorse.get_item("a")
    assert changed == items[0] | {"IsHidden": True, "Categories": ["x"], "Labels": {"price": 3.5}}
    assert gorse.update_item("a", comment="Another") == {"RowAffected": 1}
    assert gorse.get_item("a") == changed | {"Comment": "Another"}
    with pytest.raises(GorseException) as raised:
        gorse.update_item("none", comment="x")
    assert raised.value.status_code == 404
    assert gorse.delete_item("a") == {"RowAffected": 1}
    with pytest.raises(GorseException) as raised:
        gorse.get_item("a")
    assert raised.value.status_code == 404
    assert "unknown item 'a'" in raised.value.message
    assert gorse.delete_user("u0") == {"RowAffected": 1}
    with pytest.raises(GorseException) as raised:
        gorse.get_user("u0")
    assert raised.value.status_code == 404


def test_a_hidden_item_is_not_recommended(gorse: Gorse) -> None:
    gorse.insert_feedbacks(liked("g2-3"))
    first = gorse.get_recommend("bob", n=1)[0].id
    gorse.insert_item({"ItemId": first, "IsHidden": True, "Categories": ["group-2"]})
    assert first not in [one.id for one in gorse.get_recommend("bob", n=100)]


def test_keys_are_ours_with_their_scopes(engine: Engine, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(GorseException) as raised:
        Gorse(url, "wrong").get_items(1)
    assert raised.value.status_code == 401
    reader = Gorse(url, key(engine, "read"))
    assert eventually(lambda: not _refused(lambda: reader.get_recommend("bob", n=1)))
    for write in (
        lambda: reader.insert_user({"UserId": "x"}),
        lambda: reader.insert_feedbacks(liked("g2-3")),
        lambda: reader.delete_item("g2-3"),
        lambda: reader.delete_feedback("bob", "g2-3"),
        lambda: reader.get_recommend("bob", n=1, write_back_type="read"),
    ):
        with pytest.raises(GorseException) as raised:
            write()
        assert raised.value.status_code == 403, raised.value.message
    assert engine.store.events.count("bob") == 0


def _refused(ask: Any) -> bool:
    try:
        ask()
    except GorseException:
        return True
    return False


def api(client: TestClient, method: str, path: str, status: int = 200, **fields: Any) -> Any:
    reply = client.request(method, f"/api{path}", **fields)
    assert reply.status_code == status, reply.text
    return reply.json()


def test_what_is_shown_is_logged_and_may_be_written_back(client: TestClient, engine: Engine) -> None:
    api(client, "POST", "/feedback", json=liked("g2-3"))
    reply = client.get(
        "/api/recommend/bob", params={"n": 2, "offset": 1, "write-back-type": "read", "write-back-delay": "10m"}
    )
    assert reply.status_code == 200
    shown = reply.json()
    assert all(isinstance(name, str) for name in shown)
    assert engine.effects.flush()
    decision = engine.store.decisions.get(reply.headers["x-recommendation-id"])
    assert decision is not None
    assert (list(decision.items), decision.user_id, decision.placement) == (shown, "bob", "gorse")
    events = engine.store.feedback.of_user("bob", event_type="impression")
    assert [(one.item_id, one.position, one.recommendation_id) for one in events] == [
        (name, place, decision.recommendation_id) for place, name in enumerate(shown)
    ]
    assert not set(api(client, "GET", "/recommend/bob", params={"n": 100})) & {*shown, "g2-3"}


def test_lists_for_everybody(client: TestClient) -> None:
    newest = api(client, "GET", "/latest/", params={"n": 3})
    assert [one["Id"] for one in newest] == ["g0-0", "g1-0", "g2-0"]
    assert newest[0]["Score"] >= newest[2]["Score"] > 1e9
    assert [one["Id"] for one in api(client, "GET", "/latest/group-1", params={"n": 2, "offset": 1})] == [
        "g1-1",
        "g1-2",
    ]
    api(client, "POST", "/feedback", json=liked("g0-0", kind="read"))
    assert api(client, "GET", "/latest", params={"n": 1, "user-id": "bob"})[0]["Id"] == "g1-0"
    for path in ("/popular/", "/popular", "/non-personalized/trending"):
        assert [one["Id"] for one in api(client, "GET", path, params={"n": 2})] == ["g0-0", "g1-0"]
    assert api(client, "GET", "/popular", params={"n": 1, "user-id": "bob"})[0]["Id"] != "g0-0"
    both = [("category", "group-1"), ("category", "group-2")]
    assert api(client, "GET", "/recommend/bob", params=both) == [], "an item must have all categories"
    assert api(client, "GET", "/recommend/bob", params={"n": 0}) == []
    assert api(client, "GET", "/recommend/bob", params={"offset": 5000}) == []
    scored = api(client, "GET", "/collaborative-filtering/bob", params={"n": 2})
    assert scored == api(client, "GET", "/recommend/bob", params={"n": 2}, headers={"X-API-Version": "2"})
    assert [one["Id"] for one in scored] == api(client, "GET", "/recommend/bob/", params={"n": 2})
    assert api(client, "GET", "/item-to-item/any/g1-4", params={"n": 2}) == api(
        client, "GET", "/item/g1-4/neighbors/", params={"n": 2}
    )


def test_people_who_look_alike(client: TestClient) -> None:
    for user_id, group in (("ann", 1), ("bob", 1), ("cid", 2), ("dan", 1)):
        api(client, "POST", "/feedback", json=liked(f"g{group}-3", f"g{group}-4", user_id=user_id))
    client.put("/v1/users/dan", json={"consent": {"personalization": False}})
    alike = api(client, "GET", "/user/ann/neighbors/", params={"n": 5})
    assert [one["Id"] for one in alike] == ["bob", "cid"]
    assert alike[0]["Score"] == pytest.approx(1.0, abs=1e-3)
    assert alike[1]["Score"] < 0.9
    assert api(client, "GET", "/user-to-user/any/ann", params={"n": 1, "offset": 1})[0]["Id"] == "cid"
    assert api(client, "GET", "/user/dan/neighbors") == []
    assert api(client, "GET", "/user/nobody/neighbors") == []


def test_overwriting_feedback_and_categories(client: TestClient, engine: Engine) -> None:
    rated = {"FeedbackType": "rating", "UserId": "bob", "ItemId": "g2-3", "Timestamp": "2026-02-01"}
    assert api(
        client, "POST", "/feedback", json=[rated | {"Value": 2}, rated | {"Value": 2, "Timestamp": "2026-02-03"}]
    )
    path = "/feedback/rating/bob/g2-3"
    assert api(client, "GET", path) == {
        "FeedbackType": "rating",
        "UserId": "bob",
        "ItemId": "g2-3",
        "Value": 4.0,
        "Timestamp": "2026-02-01T00:00:00Z",
        "Updated": "2026-02-03T00:00:00Z",
        "Comment": "",
    }
    assert api(client, "PUT", "/feedback", json=[rated | {"Value": 1}, rated | {"Value": 5}]) == {"RowAffected": 2}
    assert api(client, "GET", path)["Value"] == 5.0
    assert engine.store.events.count("bob") == 1
    assert api(client, "GET", "/feedback/bob/g2-3") == [api(client, "GET", path)]
    assert api(client, "GET", "/item/g2-3/feedback/") == api(client, "GET", "/user/bob/feedback")
    assert api(client, "GET", "/item/g2-3/feedback/star") == []
    assert api(client, "GET", "/feedback/rating")["Feedback"] == [api(client, "GET", path)]
    assert api(client, "DELETE", path) == {"RowAffected": 1}
    assert error(client.get(f"/api{path}"), 404)["code"] == "not_found"
    api(client, "POST", "/items", json=[{"ItemId": "x", "Categories": ["a"]}, {"ItemId": "y"}])
    assert api(client, "PUT", "/item/x/category/b") == {"RowAffected": 1}
    assert api(client, "GET", "/item/x")["Categories"] == ["a", "b"]
    assert api(client, "DELETE", "/item/x/category/a/") == {"RowAffected": 1}
    assert api(client, "GET", "/item/x")["Categories"] == ["b"]
    api(client, "PUT", "/item/none/category/b", 404)
    api(client, "POST", "/user", json={"UserId": "ann", "Labels": {"a": 1}, "Comment": "c"})
    api(client, "PATCH", "/user/ann", json={"Labels": {"b": {"c": [1, 2]}}})
    assert api(client, "GET", "/user/ann") == {"UserId": "ann", "Labels": {"b": {"c": ["1", "2"]}}, "Comment": "c"}
    api(client, "PATCH", "/user/none", 404, json={"Comment": "c"})


def test_labels_become_what_attributes_can_hold(client: TestClient, engine: Engine) -> None:
    labels = {
        "price": 9.5,
        "description": "d" * 500,
        "long": "l" * 500,
        "title": "taken",
        "with space": "x",
        "9": True,
        "vector": [0.25, 0.5],
        "none": None,
        "a": {"b": {"c": 1}},
    }
    api(
        client,
        "POST",
        "/item",
        json={"ItemId": "x", "Labels": labels, "Unknown": 1, "Timestamp": "2022-11-20 13:55:27 +0000 UTC"},
    )
    item = engine.store.catalogue.get("x")
    assert item is not None
    assert (item.price, item.description, item.created_at) == (
        9.5,
        "d" * 500,
        datetime(2022, 11, 20, 13, 55, 27, tzinfo=UTC),
    )
    assert item.attributes == {
        "long": "l" * 256,
        "label_title": "taken",
        "with_space": "x",
        "label_9": True,
        "a.b.c": 1.0,
    }
    assert api(client, "GET", "/item/x")["Labels"]["a"] == {"b": {"c": 1}}
    for moment in ("1668952527", "2022/11/20", "2022-11-20T13:55:27+01:00"):
        api(client, "PATCH", "/item/x", json={"Timestamp": moment})
        assert api(client, "GET", "/item/x")["Timestamp"].startswith("2022-11-20T")


WRONG: list[tuple[str, str, Any, int, str]] = [
    ("POST", "/item", {"Comment": "x"}, 422, "ItemId"),
    ("POST", "/item", {"ItemId": "x", "Labels": "text"}, 422, "Labels"),
    ("POST", "/item", {"ItemId": "x", "Labels": {f"l{n}": n for n in range(65)}}, 422, "64"),
    ("POST", "/item", {"ItemId": "x", "Timestamp": "soon"}, 422, "is not a time"),
    ("POST", "/item", {"ItemId": "x" * 129}, 422, "128"),
    ("POST", "/items", {"ItemId": "x"}, 422, "list"),
    ("POST", "/feedback", liked("g2-3", kind="add to cart"), 422, "gorse_feedback"),
    ("POST", "/feedback", liked("g2-3", user_id=""), 422, "user_id"),
    ("POST", "/feedback", [liked("g2-3")[0] | {"Timestamp": "2999-01-01"}], 422, "future"),
    ("GET", "/recommend/bob?n=-1", None, 422, "n"),
    ("GET", "/items?cursor=nonsense", None, 422, "cursor"),
    ("GET", "/dashboard/config", None, 403, "admin"),
    ("PUT", "/feedback", None, 422, "required"),
]


def test_what_is_wrong_is_said_in_our_shape(client: TestClient) -> None:
    for method, path, body, status, says in WRONG:
        reply = client.request(method, f"/api{path}", **({} if body is None else {"json": body}))
        assert says in error(reply, status)["message"], (path, reply.text)


def test_health_needs_no_key(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with TestClient(create_api(engine), raise_server_exceptions=False) as one:
        healthy = {"Ready": True, "DataStoreConnected": True, "CacheStoreConnected": True}
        assert one.get("/api/health/live").json().items() >= healthy.items()
        assert one.get("/api/health/ready").json()["DataStoreError"] is None
        assert one.get("/api/users").status_code == 401
        engine.store.close()
        down = one.get("/api/health/ready")
        assert down.status_code == 503
        assert down.json()["Ready"] is False
        assert "closed" in down.json()["DataStoreError"]


def test_every_noun_stands_in_the_table(engine: Engine) -> None:
    paths = {getattr(route, "path", "").removeprefix("/api/") for route in gorse_routes.router(engine).routes}
    assert {path.split("/")[0] for path in paths} - {"health"} == set(access.GORSE_SCOPES)
    assert access.needed("GET", "/api/dashboard") == ("admin",)


def test_the_adapter_may_be_left_out(releases: Path, tmp_path: Path) -> None:
    engine = Engine(Settings(releases=releases, store=f"sqlite:///{tmp_path / 's.db'}", gorse=False))
    engine.start()
    with TestClient(create_api(engine)) as one:
        assert one.get("/api/items").status_code == 404
        assert not any(path.startswith("/api") for path in one.get("/openapi.json").json()["paths"])
    engine.stop()


def test_types_of_feedback_are_a_setting(tmp_path: Path) -> None:
    given = Settings.load({}, environment={"BESPOKE_GORSE_FEEDBACK": "read=view, add to cart=cart"})
    assert given.gorse_feedback == {"read": "view", "add to cart": "cart"}
    for wrong, says in (
        ("read=view,star=view", "must not become one type"),
        ("read=a b", "pattern"),
        ("read", "pattern|at least"),
    ):
        with pytest.raises(ConfigError, match=says):
            Settings.load({"gorse_feedback": wrong}, environment={})


def test_both_topologies_serve_the_adapter(topologies: Engine) -> None:  # noqa: F811
    with TestClient(create_api(topologies), raise_server_exceptions=False) as one:
        topologies.ladder.deadline_s = 10.0
        listed = api(one, "GET", "/recommend/ann", params={"n": 5})
        assert {name.split("-")[0] for name in listed} == {"g2"}
        assert not {"g2-3", "g2-4"} & set(listed)
        session = api(one, "POST", "/session/recommend", json=liked("g1-3", user_id=""))
        assert {row["Id"].split("-")[0] for row in session} == {"g1"}
        assert [row["Id"] for row in api(one, "GET", "/latest", params={"n": 2, "user-id": "ann"})] == ["g0-0", "g1-0"]
        assert api(one, "GET", "/item/g3-1/neighbors", params={"n": 1})[0]["Id"].startswith("g3")
        api(one, "POST", "/feedback", json=liked("g2-9", user_id="bob"))
        assert [row["Id"] for row in api(one, "GET", "/user/ann/neighbors")] == ["bob"]
