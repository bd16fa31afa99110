"""The preview of a placement: logged requests asked again, the differences counted, nothing touched."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from embeddings.errors import Overloaded
from embeddings.schema import Event
from serving.policy.placements import Placement, parse_placement
from serving.replica.engine import Engine
from tests.test_api import client, error, recommend, view  # noqa: F401 - a fixture
from tests.test_pipeline import ask, do, ids
from tests.test_placements import patient as patient
from tests.test_placements import placement


def preview(engine: Engine, draft: Placement, requests: int = 100, seconds: float = 60.0) -> dict[str, Any]:
    engine.settings.__dict__["request_timeout_s"] = 100.0
    return asyncio.run(engine.aside.preview(draft, requests=requests, seconds=seconds))


def home(**fields: Any) -> Placement:
    return parse_placement({"id": "home", **fields})


def crowd(engine: Engine, people: int = 6) -> None:
    """Some people look at something and open the page."""
    for n in range(people):
        do(engine, f"g{n % 4}-3", user=f"u{n}")
        ask(engine, user_id=f"u{n}", placement="home", k=5)
    ask(engine, user_id="u0", placement="elsewhere")
    assert engine.effects.flush()


def test_the_same_placement_moves_nothing(patient: Engine) -> None:
    crowd(patient)
    found = preview(patient, home())
    assert (found["placement"], found["logged"], found["replayed"], found["changed"]) == ("home", 6, 6, 0)
    assert (found["overlap"], found["rank_biased_overlap"]) == (1.0, 1.0)
    assert (found["rising"], found["falling"], found["examples"]) == ([], [], [])
    assert all(mean["current"] == mean["draft"] for mean in found["means"].values())
    shares = {one["category"]: one["current"] for one in found["categories"]}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert sum(one["draft"] for one in found["price_bands"]) == pytest.approx(1.0)


def test_a_draft_shows_what_moves_and_stores_nothing(patient: Engine) -> None:
    crowd(patient)
    before = patient.store.documents.version()
    found = preview(patient, home(values={"price": 1000.0}))
    assert found["changed"] == found["replayed"] == 6
    assert 0 <= found["overlap"] < 0.5
    assert 0 <= found["rank_biased_overlap"] < 0.5
    price = found["means"]["price"]
    assert price["draft"] > 2 * price["current"]
    assert found["means"]["novelty"]["draft"] > found["means"]["novelty"]["current"]
    bands = found["price_bands"]
    assert (bands[0]["above"], bands[-1]["up_to"], len(bands)) == (None, None, 5)
    assert bands[0]["draft"] < bands[0]["current"]
    assert bands[-1]["draft"] > bands[-1]["current"]
    assert {one["item_id"].split("-")[1] for one in found["rising"]} <= {"24", "23", "22", "21", "20"}
    assert all(one["draft"] > one["current"] for one in found["rising"])
    assert all(one["draft"] < one["current"] for one in found["falling"])
    assert len(found["examples"]) == 3
    example = found["examples"][0]
    logged = patient.store.decisions.get(example["recommendation_id"])
    assert logged is not None
    assert [one["item_id"] for one in example["current"]] == list(logged.items)
    assert example["draft"][0]["title"].startswith("Group")
    assert patient.store.documents.version() == before
    assert patient.effects.flush()
    now = datetime.now(UTC)
    kept = patient.store.decisions.between(now - timedelta(hours=1), now + timedelta(hours=1)).decisions
    assert len(kept) == 7, "what is replayed is not logged"
    assert not any(circuit.open for circuit in patient.holdings.current().circuits.values())


def test_people_are_as_they_were_when_they_asked(engine: Engine) -> None:
    then = datetime.now(UTC) - timedelta(days=2)
    engine.store.events.append([Event(user_id="ann", item_id="g2-3", event_type="view", timestamp=then)])
    shown = ids(ask(engine, placement="home", k=5, now=then + timedelta(seconds=1)))
    assert engine.effects.flush()
    do(engine, "g1-3")
    do(engine, *shown, event_type="purchase")
    found = preview(engine, home(novelty=1000.0))
    assert [one["item_id"] for one in found["examples"][0]["current"]] == shown


def test_similar_and_rankings_are_replayed_and_what_is_gone_is_left_out(engine: Engine) -> None:
    ask(engine, user_id=None, similar_to="g1-4", placement="home", k=4)
    ask(engine, candidates=["g0-1", "g3-2"], placement="home", k=2)
    ask(engine, user_id=None, similar_to="g2-4", placement="home", k=4)
    assert engine.effects.flush()
    engine.store.catalogue.delete("g2-4")
    engine.refresh()
    found = preview(engine, home(values={"price": 500.0}))
    assert (found["logged"], found["replayed"]) == (3, 2)


def test_a_preview_is_bounded_in_number_and_time(engine: Engine) -> None:
    crowd(engine)
    assert preview(engine, home(), requests=2)["replayed"] == 2
    began = time.monotonic()
    found = preview(engine, home(), seconds=1e-9)
    assert (found["logged"], found["replayed"], found["overlap"], found["means"]["price"]["draft"]) == (
        6,
        0,
        None,
        None,
    )
    assert time.monotonic() - began < 5

    async def two() -> list[Any]:
        both = (engine.aside.preview(home(), requests=9, seconds=30.0) for _ in range(2))
        return await asyncio.gather(*both, return_exceptions=True)

    outcomes = asyncio.run(two())
    assert [isinstance(one, Overloaded) for one in outcomes] == [False, True]
    assert preview(engine, home())["replayed"] == 6


def test_lists_are_answered_while_a_preview_runs(engine: Engine) -> None:
    crowd(engine, people=12)

    async def both() -> tuple[dict[str, Any], int]:
        running = asyncio.create_task(engine.aside.preview(home(diversity=0.5), requests=50, seconds=30.0))
        answered = 0
        while not running.done():
            from serving.request.query import Query

            answer = await engine.recommend(Query(now=datetime.now(UTC), user_id="u1", placement="home", k=5))
            answered += len(answer.items) == 5 and not answer.degraded
        return running.result(), answered

    found, answered = asyncio.run(both())
    assert found["replayed"] == 12
    assert answered


def test_only_the_named_placement_is_replayed(engine: Engine) -> None:
    crowd(engine)
    placement(engine, "elsewhere", k=3)
    assert preview(engine, parse_placement({"id": "elsewhere"}))["logged"] == 1
    assert preview(engine, parse_placement({"id": "nowhere"}))["logged"] == 0


def test_the_preview_over_http(client: TestClient) -> None:  # noqa: F811
    client.post("/v1/events", json=view("g2-3"))
    recommend(client, placement="home")
    for _ in range(100):
        reply = client.post("/v1/placements/home/preview", json={"placement": {"novelty": 50.0}, "requests": 10})
        assert reply.status_code == 200, reply.text
        if reply.json()["logged"]:
            break
        time.sleep(0.05)
    body = reply.json()
    assert (body["placement"], body["replayed"], body["changed"]) == ("home", 1, 1)
    assert body["examples"][0]["current"] != body["examples"][0]["draft"]
    path = "/v1/placements/home/preview"
    assert error(client.post(path, json={"placement": {"k": 0}}), 422)["field"] == "placement.k"
    assert error(client.post(path, json={"placement": {"id": "x"}}), 422)["field"] == "placement.id"
    wrong = error(client.post(path, json={"placement": {"values": {"bran": 1.0}}}), 422)
    assert (wrong["field"], "did you mean 'brand'" in wrong["message"]) == ("placement.values.bran", True)
    assert error(client.post(path, json={"placement": {}, "requests": 5000}), 422)["field"] == "requests"
    assert error(client.post(path, json={}), 422)["field"] == "placement"
