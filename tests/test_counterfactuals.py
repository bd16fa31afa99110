"""Counterfactuals: what a list would be without one thing, in both topologies and over HTTP."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi.testclient import TestClient

from embeddings.schema import User
from serving.aside.counterfactuals import EVENTS, PLACES
from serving.replica.engine import Engine
from serving.request.query import Query
from tests.test_api import error
from tests.test_ladder import engine as topologies  # noqa: F401 - a fixture: fused and chained
from tests.test_pipeline import ask, do, ids, rule


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shared machine takes longer than anybody would wait."""
    monkeypatch.setattr("serving.aside.aside.SECONDS", 60.0)


def what_if(engine: Engine, **fields: Any) -> dict[tuple[str, str], dict[str, Any]]:
    query = Query(k=10, now=datetime.now(UTC), user_id="ann", **fields)

    async def both() -> list[dict[str, Any]]:
        return await engine.aside.counterfactuals(query, await engine.recommend(query))

    return {(one["kind"], one["id"]): one for one in asyncio.run(both())}


def test_each_is_the_list_that_would_have_been(topologies: Engine) -> None:  # noqa: F811
    engine = topologies
    do(engine, "g1-3")
    do(engine, "g2-3")
    pinned = {"attribute": "item_id", "op": "eq", "value": "g3-9"}
    rule(engine, "mine", {"type": "pin", "position": 0}, items=pinned)
    now = ask(engine)
    assert ids(now)[0] == "g3-9"
    found = what_if(engine)
    assert {kind for kind, _ in found} == {"event", "rule", "place", "person"}
    without_rule = found["rule", "mine"]
    assert without_rule["left"] == ["g3-9"]
    assert all(item.startswith("g2") for item in without_rule["items"])
    assert without_rule["text"].startswith("Without the rule 'mine', Group 2 item")
    without_event = found["event", "g2-3"]
    assert [item for item in without_event["items"] if item.startswith("g1")] == without_event["items"][1:]
    assert without_event["text"].startswith("If you had not viewed Group 2 item 3, Group 1 item")
    assert found["place", "g3-9"]["left"] == ["g3-9"]
    everybodys = ask(engine, personalized=False)
    assert found["person", "ann"]["items"] == ids(everybodys)
    assert ids(ask(engine)) == ids(now), "asking changes nothing"


def test_what_changes_nothing_says_so(topologies: Engine) -> None:  # noqa: F811
    engine = topologies
    do(engine, "g2-3")
    rule(engine, "idle", {"type": "boost", "factor": 2.0}, items={"attribute": "price", "op": "gt", "value": 1000})
    assert what_if(engine)["rule", "idle"]["text"] == "Without the rule 'idle', the list would be the same."


def test_there_are_few_of_them(topologies: Engine) -> None:  # noqa: F811
    engine = topologies
    do(engine, *[f"g2-{n}" for n in range(12)])
    for n in range(8):
        rule(engine, f"r{n}", {"type": "boost", "factor": 2.0}, items={"attribute": "price", "op": "gt", "value": 3})
    kinds = [kind for kind, _ in what_if(engine)]
    assert {kind: kinds.count(kind) for kind in kinds} == {"event": EVENTS, "rule": 5, "place": PLACES, "person": 1}


def test_who_allows_nothing_is_told_nothing_of_themselves(topologies: Engine) -> None:  # noqa: F811
    engine = topologies
    do(engine, "g2-3")
    engine.store.profiles.upsert([User(user_id="ann", consent={"personalization": False})])
    assert {kind for kind, _ in what_if(engine)} == {"place"}


def test_counterfactuals_over_http(client: TestClient) -> None:
    client.post("/v1/events", json={"user_id": "ann", "item_id": "g2-3"})
    plain = client.post("/v1/recommendations", json={"user_id": "ann", "k": 5, "explain": True}).json()
    assert "counterfactuals" not in plain
    found = client.post("/v1/recommendations", json={"user_id": "ann", "k": 5, "explain": "counterfactual"}).json()
    assert [one["item_id"] for one in found["items"]] == [one["item_id"] for one in plain["items"]]
    assert found["trace"]["stages"]
    assert {one["kind"] for one in found["counterfactuals"]} == {"event", "place", "person"}
    wrong = error(client.post("/v1/recommendations", json={"user_id": "ann", "explain": "everything"}), 422)
    assert (wrong["field"], wrong["message"]) == ("explain", "explain: must be true, false or 'counterfactual'")


def test_what_a_rule_keeps_away_is_not_told_as_what_might_be(client: TestClient) -> None:
    client.post("/v1/events", json={"user_id": "ann", "item_id": "g2-3"})
    cheap = {"attribute": "price", "op": "lt", "value": 5}
    young = {"attribute": "user.events", "op": "lt", "value": 100}
    for name, action in (("hides", {"type": "exclude"}), ("lifts", {"type": "boost", "factor": 2.0})):
        client.put(f"/v1/rules/{name}", json={"items": cheap, "when": young, "action": action}).raise_for_status()
    found = client.post("/v1/recommendations", json={"user_id": "ann", "k": 5, "explain": "counterfactual"}).json()
    assert [one["id"] for one in found["counterfactuals"] if one["kind"] == "rule"] == ["lifts"]
