"""The decision log: what went out is written down after it went out, whole or not at all, and can be asked for again."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from embeddings.errors import Damaged, InputError
from embeddings.releases import point_to
from embeddings.schema import DECISIONS, Event
from serving import metrics
from serving.api import create_api
from serving.pipeline.pipeline import SOURCES
from serving.pipeline.trial import Share
from serving.replica.engine import Engine
from serving.request.query import Answer, Query
from serving.settings import Settings
from serving.stages import effects as effects_module
from serving.stages.effects import DecisionLog, Effect, Effects, Made, query_of
from serving.store import Decision, Store
from serving.store.export import export
from serving.store.retention import retain
from tests.conftest import write_world
from tests.test_ladder import engine as topologies  # noqa: F401 - a fixture: fused and chained
from tests.test_pipeline import ask, do, ids, rule
from tests.test_store import START, fresh_url


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with fresh_url(request.param, tmp_path) as url, Store.open(url) as opened:
        yield opened


def decision(name: str = "r1", **changes: Any) -> Decision:
    one = Decision(
        recommendation_id=name,
        user_id="u1",
        at=START,
        kind="list",
        placement="home",
        channel="web",
        request={"k": 2, "context": {"country": "DE", "n": 1.5}, "personalized": True},
        items=["i1", "i2"],
        scores=[0.5, 0.25],
        propensities=[1.0, 1.0],
        sources=[["trending", "two_tower"], ["trending"]],
        arms={"test": "b"},
        model_version="m",
        policy_version=3,
        degraded=[],
    )
    return replace(one, **changes)


def test_a_decision_comes_back_as_it_was(store: Store) -> None:
    rich = decision()
    bare = decision("r2", user_id=None, channel=None, request={"k": 1}, items=[], scores=[], propensities=[])
    bare = replace(bare, sources=[], arms={}, degraded=["ranker"], kind="content")
    chance = decision("r3", propensities=[0.125, 1.0], scores=[-1.5, 2e-9], items=['q"ö', "☃"])
    assert store.decisions.write([rich, bare, chance]) == 3
    assert [store.decisions.get(name) for name in ("r1", "r2")] == [rich, bare]
    back = store.decisions.get("r3")
    assert back is not None
    assert back.scores == pytest.approx(chance.scores, rel=1e-6)
    assert replace(back, scores=chance.scores) == chance
    assert store.decisions.get("r4") is None
    store.decisions.write([decision(placement="other"), decision("r4")])
    assert store.decisions.get("r1") == rich, "an id that is known changes nothing"
    assert store.decisions.get("r4") == decision("r4")
    assert store.decisions.write([]) == 0


def test_pages_hold_each_decision_once_in_order(store: Store) -> None:
    made = [
        decision(f"r{n:02}", user_id=None if n % 3 == 2 else f"u{n % 3}", at=START + timedelta(seconds=n // 4))
        for n in range(24)
    ]
    store.decisions.write(made)

    def pages(read: Any) -> list[str]:
        found: list[str] = []
        after = None
        while True:
            page = read(after)
            found += [one.recommendation_id for one in page.decisions]
            after = page.next
            if after is None:
                return found

    mine = [one.recommendation_id for one in made if one.user_id == "u1"]
    assert pages(lambda after: store.decisions.of_user("u1", 3, after)) == mine[::-1]
    first, last = START + timedelta(seconds=1), START + timedelta(seconds=4)
    assert pages(lambda after: store.decisions.between(first, last, 5, after)) == [f"r{n:02}" for n in range(4, 16)]
    assert store.decisions.between(first, last, kind="page").decisions == ()
    with pytest.raises(InputError, match="not a cursor"):
        store.decisions.of_user("u1", 3, "x")


def test_an_erased_person_leaves_no_decision(store: Store) -> None:
    store.decisions.write([decision(), decision("r2", user_id="u2"), decision("r3", user_id=None)])
    store.profiles.erase("u1")
    assert [store.decisions.get(name) is None for name in ("r1", "r2", "r3")] == [True, False, False]


def test_a_decision_that_changed_on_its_own_is_refused(store: Store) -> None:
    store.decisions.write([decision()])
    store.database.write(lambda connection: connection.execute(text("""UPDATE decisions SET items = '["i2","i1"]'""")))
    for read in (lambda: store.decisions.get("r1"), lambda: store.decisions.of_user("u1")):
        with pytest.raises(Damaged, match="decision 'r1' is damaged"):
            read()


def test_decisions_are_exported_once_and_retained_like_events(store: Store, tmp_path: Path) -> None:
    made = [decision(f"r{n}", at=START + timedelta(days=n), propensities=[0.5, 1.0]) for n in range(6)]
    store.decisions.write(made[:3])
    store.events.append([Event(user_id="u1", item_id="i", timestamp=START + timedelta(days=9))])
    report = export(store, tmp_path / "out")
    assert (report.decisions, report.events) == (3, 1)
    store.decisions.write(made[3:])
    kept = retain(store, before=START + timedelta(days=5), exported=tmp_path / "out")
    assert (kept.decisions, kept.decisions_kept, kept.deleted) == (3, 2, 0)
    assert export(store, tmp_path / "out").decisions == 3
    table = ds.dataset(tmp_path / "out" / "decisions", format="parquet", partitioning="hive").to_table()
    table = table.select(DECISIONS.names).sort_by("at")
    assert table.schema.equals(DECISIONS)
    rows = table.to_pylist()
    assert [row["recommendation_id"] for row in rows] == [one.recommendation_id for one in made]
    assert rows[0]["sources"] == made[0].sources
    assert (rows[0]["arms"], rows[0]["propensities"], rows[0]["at"]) == ('{"test": "b"}', [0.5, 1.0], START)
    assert retain(store, before=START + timedelta(days=9), exported=None).decisions == 3
    assert store.decisions.between(START, START + timedelta(days=9)).decisions == ()


def logged(engine: Engine, answer: Answer) -> Decision:
    assert engine.effects.flush()
    found = engine.store.decisions.get(answer.recommendation_id)
    assert found is not None
    return found


def test_every_answer_is_written_down(topologies: Engine) -> None:  # noqa: F811
    engine = topologies
    now = datetime(2026, 11, 1, tzinfo=UTC)
    answer = ask(engine, now=now, placement="home", context={"channel": "app", "country": "DE"}, exclude=["g1-1"])
    found = logged(engine, answer)
    assert (found.user_id, found.at, found.kind, found.placement, found.channel) == ("ann", now, "list", "home", "app")
    assert found.items == ids(answer)
    assert found.scores == pytest.approx([one.score for one in answer.items], rel=1e-6)
    assert found.propensities == [1.0] * 10
    assert (found.model_version, found.policy_version) == ("world-1", answer.policy_version)
    assert (found.arms, found.degraded) == ({}, [])
    assert all(found.sources)
    assert {name for names in found.sources for name in names} <= set(SOURCES)
    assert any("two_tower" in names for names in found.sources)
    assert found.request["exclude"] == ["g1-1"]
    assert metrics.REGISTRY.get_sample_value("bespoke_decisions_total", {"outcome": "logged"})


SHAPES: list[dict[str, Any]] = [
    {"k": 7, "context": {"country": "DE"}, "exclude": ["g2-5"], "placement": "home"},
    {"filter": {"attribute": "price", "op": "lt", "value": 9}},
    {"personalized": False},
    {"user_id": None, "similar_to": "g1-4"},
    {"k": 3, "candidates": ["g1-1", "g2-1", "nothing"]},
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: next(iter(shape)))
def test_a_logged_request_can_be_asked_again(engine: Engine, shape: dict[str, Any]) -> None:
    do(engine, "g2-3")
    answer = ask(engine, **shape)
    again = asyncio.run(engine.recommend(query_of(logged(engine, answer))))
    assert ids(again) == ids(answer)
    rule(engine, "out", {"type": "exclude"}, items={"attribute": "price", "op": "ge", "value": 2})
    changed = asyncio.run(engine.recommend(query_of(logged(engine, answer))))
    assert (ids(changed) != ids(answer)) == ("candidates" not in shape), "the caller's own list is kept"


def test_a_canary_is_an_arm(releases: Path, tmp_path: Path) -> None:
    write_world(releases, "world-2")
    point_to(releases, "world-1")
    engine = Engine(Settings(releases=releases, store=f"sqlite:///{tmp_path / 's.db'}", deadline_ms=10_000))
    engine.start()
    engine.releases.try_out("world-2", "canary", Share(share=1.0), by="test")
    engine.refresh()
    with TestClient(create_api(engine)) as client:
        body = client.post("/v1/recommendations", json={"user_id": "ann"}).json()
    assert body["experiment"] == {"release": "canary"}
    assert engine.effects.flush()
    found = engine.store.decisions.get(body["recommendation_id"])
    assert found is not None
    assert (found.arms, found.model_version) == ({"release": "canary"}, "world-2")
    engine.stop()


def test_a_share_of_the_answers_is_always_the_same_one(releases: Path, tmp_path: Path) -> None:
    settings = Settings(releases=releases, store=f"sqlite:///{tmp_path / 's.db'}", decisions=0.25)
    chosen = [n for n in range(4000) if DecisionLog().applies(Waiting(f"r{n}"), settings)]
    assert 0.22 < len(chosen) / 4000 < 0.28
    assert chosen == [n for n in range(4000) if DecisionLog().applies(Waiting(f"r{n}"), settings)]
    for share, count in ((0.0, 0), (1.0, 4000)):
        changed = settings.model_copy(update={"decisions": share})
        assert sum(DecisionLog().applies(Waiting(f"r{n}"), changed) for n in range(4000)) == count


def test_what_waits_at_the_end_is_written(releases: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 's.db'}"
    engine = Engine(Settings(releases=releases, store=url, deadline_ms=10_000))
    engine.start()
    answers = [ask(engine) for _ in range(5)]
    engine.stop()
    with Store.open(url) as store:
        assert all(store.decisions.get(answer.recommendation_id) for answer in answers)


@dataclass
class Waiting:
    recommendation_id: str

    def decision(self) -> Decision:
        return decision(self.recommendation_id)


class Slow(Effect):
    name = "slow"

    def __init__(self) -> None:
        self.go, self.begun = threading.Event(), threading.Event()
        self.done: list[str] = []
        self.losses: list[tuple[int, str]] = []

    def work(self, made: Any, store: Store) -> None:
        self.begun.set()
        assert self.go.wait(30)
        self.done += [one.recommendation_id for one in made]

    def lost(self, count: int, outcome: str) -> None:
        self.losses.append((count, outcome))


class Broken(Slow):
    name = "broken"

    def work(self, made: Any, store: Store) -> None:
        raise ValueError("ann@example.org")


def test_a_full_queue_drops_the_newest_and_delays_nobody(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effects_module, "WAITING_LIMIT", 5)
    monkeypatch.setattr(effects_module, "GATHER_S", 0.0)
    slow = Slow()
    running = Effects([slow], store, Settings(releases=tmp_path))
    running.take(Waiting("first"))
    assert slow.begun.wait(30)
    for n in range(8):
        running.take(Waiting(f"r{n}"))
    assert slow.losses == [(1, "dropped")] * 3
    assert not running.flush(0.05)
    slow.go.set()
    assert running.flush()
    assert slow.done == ["first", "r0", "r1", "r2", "r3", "r4"]
    running.stop()
    running.take(Waiting("late"))
    assert slow.losses[3:] == [(1, "dropped")]


def test_an_effect_that_fails_harms_no_other_and_tells_nothing_personal(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken, slow = Broken(), Slow()
    slow.go.set()
    running = Effects([broken, slow], store, Settings(releases=tmp_path))
    made: Made = Waiting("r1")
    with caplog.at_level(logging.ERROR):
        running.take(made)
        assert running.flush()
    assert (broken.losses, slow.done) == ([(1, "failed")], ["r1"])
    assert "broken failed for 1 answers: ValueError" in caplog.text
    assert "ann@" not in caplog.text
    running.stop()


def test_a_query_without_a_person_is_logged_as_nobodys(engine: Engine) -> None:
    found = logged(engine, asyncio.run(engine.recommend(Query(k=3, now=START, similar_to="g1-1"))))
    assert found.user_id is None
    assert found.request == {"k": 3, "similar_to": "g1-1", "personalized": True}
