"""Estimates of a draft: from the log of the service, over HTTP and as a command, where the truth is known."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

import bespoke
from embeddings.schema import Event
from serving.api import create_api
from serving.aside import estimates
from serving.policy.placements import PLACEMENTS
from serving.replica.engine import Engine
from serving.settings import Settings
from serving.stages import selectors
from serving.stages.exploration import Order
from serving.store import Store
from tests.test_api import error
from tests.test_ladder import running
from tests.test_offpolicy import placement
from tests.test_pipeline import ask, ids
from tests.test_results import shown
from tests.test_store import fresh_url

PEOPLE = 120
HOUR = datetime(2026, 1, 15, 13, tzinfo=UTC)
FEW = {"attribute": "price", "op": "le", "value": 6}
DRAFT = {"values": {"price": 1000.0}, "k": 3}


@pytest.fixture(autouse=True)
def one_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is shown something else is drawn anew every hour, and in some hours too few of these people are."""
    draw = selectors.explored

    def explored(*args: Any, **fields: Any) -> Order:
        return draw(*args, **fields | {"at": HOUR})

    monkeypatch.setattr(selectors, "explored", explored)


@pytest.fixture(params=["fused", "chained"])
def engine(request: pytest.FixtureRequest, releases: Path, tmp_path: Path) -> Iterator[Engine]:
    with running(request.param, releases, tmp_path, 20.0) as one:
        yield one


@pytest.fixture
def fused(releases: Path, tmp_path: Path) -> Iterator[Engine]:
    with running("fused", releases, tmp_path, 20.0) as one:
        yield one


def told(engine: Engine, *, exploration: float) -> None:
    """Everybody is shown three of the six cheapest items of a group, and clicks on the dearest of them if it is first."""
    placement(engine, "home", k=3, exploration=exploration)
    now, clicks = datetime.now(UTC), []
    engine.store.events.append(
        [Event(user_id=f"p{n}", item_id="g2-8", event_type="view", timestamp=now) for n in range(PEOPLE)]
    )
    for n in range(PEOPLE):
        answer = ask(engine, user_id=f"p{n}", placement="home", k=0, filter=FEW)
        if ids(answer)[0] == "g2-5":
            clicks.append(
                Event(
                    user_id=f"p{n}",
                    item_id="g2-5",
                    event_type="click",
                    timestamp=datetime.now(UTC),
                    recommendation_id=answer.recommendation_id,
                    value=2.0,
                )
            )
    if clicks:
        engine.store.events.append(clicks)
    assert engine.effects.flush()


def judged(engine: Engine, **fields: Any) -> dict[str, Any]:
    """The estimate of the draft, with as much time as a busy machine may need."""
    draft = engine.policy.admit(PLACEMENTS, {**DRAFT, "id": "home"}, item_attributes=None)
    how = {"event_type": "click", "by_value": False, "requests": 1000, "seconds": 120.0} | fields
    return asyncio.run(engine.aside.estimate(draft, **how))


def test_a_draft_is_judged_before_anybody_is_shown_it(engine: Engine) -> None:
    told(engine, exploration=1.0)
    found = judged(engine)
    assert (found["logged"], found["replayed"], found["explored"]) == (PEOPLE, PEOPLE, 1.0)
    assert found["shown"] < 0.15
    for name in ("ips", "snips", "dr"):
        assert found["current"][name]["low"] <= 0.0 <= found["current"][name]["high"] < 0.1
        assert 0.1 < found["draft"][name]["low"] <= 1.0 <= found["draft"][name]["high"]
    assert found["difference"]["low"] > 0
    assert found["draft"]["effective"] < found["current"]["effective"] < PEOPLE


def test_values_other_events_and_what_is_wrong(fused: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    told(fused, exploration=1.0)
    rates, valued = (judged(fused, by_value=by) for by in (False, True))
    assert valued["draft"]["snips"]["estimate"] == pytest.approx(2 * rates["draft"]["snips"]["estimate"])
    monkeypatch.setattr(estimates, "LEAST", 5)  # of what is asked again in the time of a request
    with TestClient(create_api(fused), raise_server_exceptions=False) as client:
        url = "/v1/placements/home/estimate"
        reply = client.post(url, json={"placement": DRAFT, "reward": "purchase", "seconds": 3.0})
        assert reply.status_code == 200, reply.text
        nothing = reply.json()
        assert (nothing["shown"], nothing["draft"]["ips"]["estimate"]) == (0.0, 0.0)
        assert error(client.post(url, json={"placement": {"diversity": 2}}), 422)["field"] == "placement.diversity"
        few = error(client.post("/v1/placements/elsewhere/estimate", json={"placement": {}}), 422)
        assert "has 0 logged answers" in few["message"]


def test_a_log_without_exploration_is_told_to_be_one(fused: Engine) -> None:
    told(fused, exploration=0.0)
    with TestClient(create_api(fused), raise_server_exceptions=False) as client:
        detail = error(client.post("/v1/placements/home/estimate", json={"placement": DRAFT}), 422)
    assert detail["field"] == "exploration"
    assert "give the one in force an 'exploration'" in detail["message"]


def test_the_command_says_the_same(releases: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    engine = Engine(Settings(releases=releases, store=url, deadline_ms=10_000))
    engine.start()
    told(engine, exploration=1.0)
    engine.stop()
    draft = tmp_path / "draft.json"
    draft.write_text(json.dumps(DRAFT))

    def run(*options: str) -> Any:
        command = ["policy", "estimate", "--releases", str(releases), "--store", url, "--draft", str(draft), *options]
        return CliRunner().invoke(bespoke.app, command)

    done = run("--placement", "home", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["draft"]["dr"]["low"] > found["current"]["dr"]["high"]
    table = run("--placement", "home")
    assert "effective" in table.output
    assert f"{PEOPLE} of {PEOPLE} answers, 100% open to chance" in table.output
    assert "has no 'id'" in run().stderr
    draft.write_text("{")
    assert "is not JSON" in run("--placement", "home").stderr


def test_each_variant_of_a_content_is_judged_by_the_chances_it_had(fused: Engine, tmp_path: Path) -> None:
    """Of every three decisions two show `a`, which one in two clicks; `b` nobody clicks."""
    variants = [{"id": name, "payload": {"text": name}} for name in ("a", "b")]
    fused.store.documents.put("content", "hero", {"id": "hero", "variants": variants}, by="test")
    fused.take_changes()
    now = datetime.now(UTC)
    decisions = [
        shown(
            n,
            f"p{n % 90}",
            "as_is",
            now,
            kind="content",
            placement="hero",
            items=["b" if n % 3 == 2 else "a"],
            propensities=[1 / 3 if n % 3 == 2 else 2 / 3],
        )
        for n in range(300)
    ]
    clicked = [one.recommendation_id for one in decisions if one.items == ["a"]][::2]
    # The log goes on, and yet what comes a day after its own decision is too late.
    decisions[2] = replace(decisions[2], at=now - timedelta(hours=25))
    fused.store.decisions.write(decisions)
    fused.store.events.append(
        [
            Event(user_id="p1", item_id="hero", event_type="click", timestamp=now, recommendation_id=name)
            for name in [*clicked, decisions[2].recommendation_id]
        ]
    )
    with TestClient(create_api(fused), raise_server_exceptions=False) as client:
        found = client.get("/v1/contents/hero/estimate").json()
        assert error(client.get("/v1/contents/none/estimate"), 404)["field"] == "id"
    assert (found["used"], found["shown"]) == (300, pytest.approx(1 / 3))
    for name in ("ips", "snips"):
        assert found["variants"]["a"][name]["estimate"] == pytest.approx(0.5)
        assert found["variants"]["b"][name]["estimate"] == 0.0
    assert found["variants"]["a"]["dr"]["low"] < 0.5 < found["variants"]["a"]["dr"]["high"]
    assert found["variants"]["a"]["effective"] == pytest.approx(200)
    assert found["variants"]["b"]["supported"] == pytest.approx(1.0)
    command = ["policy", "estimate", "--releases", str(fused.settings.releases), "--store", fused.settings.store]
    done = CliRunner().invoke(bespoke.app, [*command, "--content", "hero", "--json"])
    assert json.loads(done.stdout) == found
    assert "give either --draft FILE or --content NAME" in CliRunner().invoke(bespoke.app, command).stderr


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_events_are_counted_by_the_answer_that_they_echo(kind: str, tmp_path: Path) -> None:
    moment = datetime(2026, 3, 1, tzinfo=UTC)

    def event(answer: str | None, item: str, **fields: Any) -> Event:
        return Event(
            **{"user_id": "u", "item_id": item, "event_type": "click", "timestamp": moment, "recommendation_id": answer}
            | fields
        )

    with fresh_url(kind, tmp_path) as url, Store.open(url) as store:
        store.events.append(
            [
                event("r1", "a", value=2.0),
                event("r1", "a"),
                event("r1", "b"),
                event(None, "a"),
                event("r2", "a", event_type="view"),
                event("r3", "a", timestamp=moment.replace(year=2025)),
            ]
        )
        found = store.events.echoes("click", moment, moment.replace(day=2))
        assert found == {("r1", "a"): (2, 2.0), ("r1", "b"): (1, 0.0)}
