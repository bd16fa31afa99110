"""Paging: whatever happens between two pages, nothing comes twice, and a token is good for its own list alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from embeddings.errors import Expired, InputError
from serving.replica.paging import MOST_SHOWN, Paging
from serving.request.query import Query
from tests.test_api import client, error, view  # noqa: F401 - a fixture
from tests.test_pipeline import Engine, ask, do, ids, rule
from tests.test_placements import patient as patient

NOW = datetime(2026, 11, 1, tzinfo=UTC)
PAGING = Paging(b"k" * 32)


def opened(token: str, **fields: Any) -> Query:
    return PAGING.opened(
        Query(now=NOW, user_id="ann") if not fields else Query(**{"now": NOW, "user_id": "ann"} | fields), token
    )


def page(client: TestClient, path: str, **body: Any) -> dict[str, Any]:  # noqa: F811
    reply = client.post(f"/v1/{path}", json=body)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def names(answer: dict[str, Any]) -> list[str]:
    return [one["item_id"] for one in answer["items"]]


def test_pages_go_through_everything_once_though_the_person_goes_on(client: TestClient) -> None:  # noqa: F811
    body = {"user_id": "ann", "k": 9, "filter": {"attribute": "price", "op": "gt", "value": 2}}
    answer = page(client, "recommendations", **body)
    seen: list[str] = []
    while True:
        assert [one["position"] for one in answer["items"]] == list(range(len(seen), len(seen) + len(answer["items"])))
        seen += names(answer)
        if answer["next_page"] is None:
            break
        client.post("/v1/events", json=view(f"g{len(seen) % 4}-{len(seen) % 20 + 2}"))
        answer = page(client, "recommendations", **body, page=answer["next_page"])
    assert len(seen) == len(set(seen)) == 92


def test_the_next_page_follows_the_last_event_below_what_was_shown(client: TestClient) -> None:  # noqa: F811
    client.post("/v1/events", json=view("g2-3"))
    first = page(client, "recommendations", user_id="ann", k=5)
    client.post("/v1/events", json=view("g1-3"))
    second = page(client, "recommendations", user_id="ann", k=5, page=first["next_page"])
    assert {name[:2] for name in names(first)} == {"g2"}
    assert {name[:2] for name in names(second)} == {"g1"}


def test_similar_items_have_pages_too_and_an_anchor_stays(client: TestClient) -> None:  # noqa: F811
    first = page(client, "similar", item_id="g1-4", k=10)
    second = page(client, "similar", item_id="g1-4", k=14, page=first["next_page"])
    assert {*names(first), *names(second)} == {f"g1-{n}" for n in range(25) if n != 4}
    client.post("/v1/events", json=view("g2-3"))
    ask = {"user_id": "ann", "placement": "because_you_watched", "k": 4}
    first = page(client, "recommendations", **ask)
    client.post("/v1/events", json=view("g1-3"))
    second = page(client, "recommendations", **ask, page=first["next_page"])
    assert first["anchor"] == second["anchor"] == {"item_id": "g2-3", "title": "Group 2 item 3", "event_type": "view"}
    assert page(client, "recommendations", **ask)["anchor"]["item_id"] == "g1-3"
    assert page(client, "rankings", user_id="ann", items=["g1-1", "g1-2"])["next_page"] is None


def test_a_page_of_another_request_is_refused(client: TestClient) -> None:  # noqa: F811
    cheap = {"attribute": "price", "op": "lt", "value": 20}
    token = page(client, "recommendations", user_id="ann", k=3, filter=cheap)["next_page"]
    same: dict[str, Any] = {"user_id": "ann", "k": 3, "filter": cheap, "page": token}
    for change, what in (
        ({"user_id": "bob"}, "person"),
        ({"placement": "home"}, "placement"),
        ({"filter": cheap | {"value": 21}}, "filter"),
        ({"filter": None}, "filter"),
    ):
        detail = error(client.post("/v1/recommendations", json=same | change), 422)
        assert (detail["field"], f"another {what};" in detail["message"]) == ("page", True)
    error(client.post("/v1/similar", json={"item_id": "g1-1", "user_id": "ann", "page": token}), 422)
    swapped = {"value": 20, "op": "lt", "attribute": "price"}
    page(client, "recommendations", **same | {"filter": swapped, "k": 7, "exclude": ["g0-1"]})
    for wrong in ("x", token[:-2], token + "A", token[:20] + "x" + token[21:], "☃", "A" * 100):
        detail = error(client.post("/v1/recommendations", json=same | {"page": wrong}), 422)
        assert (detail["field"], "not a page of this service" in detail["message"]) == ("page", True)
    error(client.post("/v1/recommendations", json=same | {"page": ""}), 422)


def test_who_refuses_personalization_reads_on(client: TestClient) -> None:  # noqa: F811
    assert client.put("/v1/users/ann", json={"consent": {"personalization": False}}).status_code == 200
    first = page(client, "recommendations", user_id="ann", k=3)
    second = page(client, "recommendations", user_id="ann", k=3, page=first["next_page"])
    both = [one["item_id"] for one in (*first["items"], *second["items"])]
    assert len(set(both)) == 6


def test_a_page_is_kept_for_half_an_hour(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    token = PAGING.after(Query(now=NOW, user_id="ann"), ["a", "b"], anchor="c")
    assert token is not None
    later = opened(token, now=NOW + timedelta(minutes=29))
    assert (later.shown, later.anchor) == (("a", "b"), "c")
    assert opened(token, now=NOW - timedelta(seconds=5)).shown == ("a", "b"), "clocks of replicas differ a little"
    for moment in (NOW + timedelta(minutes=31), NOW - timedelta(minutes=2)):
        with pytest.raises(Expired, match="30 minutes"):
            opened(token, now=moment)
    with pytest.raises(InputError, match="not a page"):
        Paging(b"other").opened(Query(now=NOW, user_id="ann"), token)
    fresh = page(client, "recommendations", user_id="ann")["next_page"]
    monkeypatch.setattr("serving.replica.paging.VALID_S", 0.0)
    detail = error(client.post("/v1/recommendations", json={"user_id": "ann", "page": fresh}), 410)
    assert (detail["code"], detail["field"]) == ("expired", "page")


def test_long_tokens_are_packed_and_there_is_an_end() -> None:
    shown = [f"item-{n:08}" for n in range(MOST_SHOWN)]
    token = PAGING.after(Query(now=NOW, user_id="ann"), shown, anchor=None)
    assert token is not None
    assert len(token) < 8 * MOST_SHOWN
    query = opened(token)
    assert list(query.shown) == shown
    assert PAGING.after(query, ["one-more"], anchor=None) is None
    assert len(PAGING.after(Query(now=NOW), ["x" * 128] * MOST_SHOWN, anchor=None) or "") < 200_000


def test_a_pin_holds_on_the_page_it_names(engine: Engine) -> None:
    for place in (1, 6):
        title = {"attribute": "title", "op": "eq", "value": f"Group 3 item {place}"}
        rule(engine, f"pin-{place}", {"type": "pin", "position": place}, items=title)
    do(engine, "g2-3")
    first = ask(engine, k=5)
    assert ids(first)[1] == "g3-1"
    assert first.next_page is not None
    second = ask(engine, k=5, shown=tuple(ids(first)))
    assert ids(second)[1] == "g3-6"
    assert "g3-1" not in ids(second)


def test_pages_travel_between_deployments(patient: Engine) -> None:
    first = ask(patient, k=6)
    second = ask(patient, k=6, shown=tuple(ids(first)))
    assert not set(ids(first)) & set(ids(second))
    assert patient.effects.flush()
    logged = patient.store.decisions.get(second.recommendation_id)
    assert logged is not None
    assert logged.request["shown"] == ids(first)
