"""An answer always comes, in time, and never with what must not be shown: what is slow or dead is gone without."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from embeddings.errors import StoreError
from embeddings.manifest import PARTS
from embeddings.schema import Event, User
from serving.pipeline.circuit import Circuit
from serving.pipeline.pipeline import NEEDS, SECTIONS
from serving.pipeline.workers import LOST_LIMIT
from serving.replica.engine import Engine
from serving.request.query import Answer, Query
from serving.settings import Settings
from serving.stages.scorers import RankerScore
from serving.stages.selectors import Slate
from serving.stages.sources import TwoTowerSource
from serving.store.profiles import Profiles

DEADLINE_S = 0.4
SLACK_S = 0.35  # shared machines pause


@contextmanager
def running(topology: str, releases: Path, tmp_path: Path, deadline_s: float) -> Iterator[Engine]:
    """An engine of either topology, over the same releases and store."""
    settings = Settings(releases=releases, store=f"sqlite:///{tmp_path / 'store.db'}", deadline_ms=deadline_s * 1e3)
    one = Engine(settings, parts=PARTS if topology == "fused" else frozenset())
    far = {}
    if topology == "chained":
        far = {section: Engine(settings, parts=NEEDS[section]) for section in SECTIONS}
        one.ladder.sections = {section: call(engine, section) for section, engine in far.items()}
        one.aside.ladder.sections = one.ladder.sections
    for each in (one, *far.values()):
        each.start()
    one.store.events.append([event("g2-3", "view"), event("g2-4", "purchase")])
    yield one
    for each in (one, *far.values()):
        each.stop()


@pytest.fixture(params=["fused", "chained"])
def engine(request: pytest.FixtureRequest, releases: Path, tmp_path: Path) -> Iterator[Engine]:
    with running(request.param, releases, tmp_path, DEADLINE_S) as one:
        yield one


def call(engine: Engine, section: Any) -> Callable[[bytes], Awaitable[bytes]]:
    async def run(payload: bytes) -> bytes:
        return await engine.run_section_in_time(section, payload)

    return run


def event(item_id: str, event_type: str) -> Event:
    return Event(user_id="ann", item_id=item_id, event_type=event_type, timestamp=datetime.now(UTC))


class Hang:
    """Stands in for a method; hangs until it is released, in every thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        self.original = getattr(owner, name)
        self.free = threading.Event()
        self.calls = 0
        hang = self

        def method(*args: Any) -> Any:
            hang.calls += 1
            assert hang.free.wait(30)
            return hang.original(*args)

        monkeypatch.setattr(owner, name, method)


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[type, str], Hang]]:
    made: list[Hang] = []

    def make(owner: type, name: str) -> Hang:
        made.append(Hang(monkeypatch, owner, name))
        return made[-1]

    yield make
    for one in made:
        one.free.set()


async def ask(engine: Engine, **fields: Any) -> Answer:
    began = time.monotonic()
    answer = await engine.recommend(Query(**{"k": 10, "now": datetime.now(UTC), "user_id": "ann"} | fields))
    assert time.monotonic() - began < DEADLINE_S + SLACK_S
    return answer


def asked(engine: Engine, times: int = 1, **fields: Any) -> list[Answer]:
    async def several() -> list[Answer]:
        return [await ask(engine, **fields) for _ in range(times)]

    return asyncio.run(several())


def test_a_list_that_caps_keep_short_is_short_and_never_empty(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.request.work.CANDIDATES", 2)
    cap = {"id": "cap", "action": {"type": "cap", "attribute": "categories", "limit": 1}}
    engine.store.documents.put("rule", "cap", cap, by="test")
    for k in (1, 2, 3, 4, 9):
        (answer,) = asked(engine, k=k)
        assert 1 <= len(answer.items) <= k
        assert not answer.degraded


def ids(answer: Answer) -> list[str]:
    return [one.item_id for one in answer.items]


def groups(answer: Answer) -> set[str]:
    return {name.split("-")[0] for name in ids(answer)}


@pytest.fixture
def patient(engine: Engine) -> Engine:
    """The same for what is not about time."""
    engine.ladder.deadline_s = 20.0
    return engine


def test_a_hanging_ranker_costs_the_ranking_and_is_left_alone(engine: Engine, hang: Any) -> None:
    ranker = hang(RankerScore, "score")
    answers = asked(engine, 5)
    assert all("ranker" in one.degraded and groups(one) == {"g2"} and len(one.items) == 10 for one in answers)
    assert 1 < ranker.calls <= 3  # then the circuit is open
    began = time.monotonic()
    asked(engine, 3)
    assert time.monotonic() - began < DEADLINE_S / 2 + SLACK_S


def test_the_ranker_comes_back_by_itself(engine: Engine, hang: Any) -> None:
    ranker = hang(RankerScore, "score")
    asked(engine, 3)
    circuit = engine.holdings.current().circuits["ranking"]
    assert circuit.open
    ranker.free.set()
    circuit.cooling_s, circuit._retry_at = 0.0, 0.0
    engine.ladder.deadline_s = 20.0
    assert [one.degraded for one in asked(engine, 2)] == [(), ()]
    assert not circuit.open


def test_a_raising_ranker_is_left_alone_too(patient: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(RankerScore, "score", lambda *_: calls.append(1) or 1 / 0)
    assert {one.degraded for one in asked(patient, 6)} == {("ranker",)}
    if patient.ladder.sections is None:
        assert len(calls) == 3


@pytest.mark.parametrize("fields", [{}, {"similar_to": "g1-4"}, {"candidates": ["g3-1", "g0-1", "x"]}])
def test_a_hanging_retrieval_gives_what_is_in_demand(engine: Engine, hang: Any, fields: dict[str, Any]) -> None:
    source = {"": TwoTowerSource, "similar_to": _source("Similar"), "candidates": _source("CallersList")}
    hang(source[next(iter(fields), "")], "find")
    answer = asked(engine, **fields)[0]
    assert answer.degraded == ("retrieval",)
    if "candidates" in fields:
        assert ids(answer) == ["g3-1", "g0-1"]
        assert answer.unknown == ("x",)
    else:
        assert len(answer.items) == 10
        assert answer.items[0].reasons[0].code == "trending"


def _source(name: str) -> type:
    from serving.stages import sources

    found: type = getattr(sources, name)
    return found


def test_what_must_not_be_shown_is_not_shown_on_any_rung(engine: Engine, hang: Any) -> None:
    for name, condition in (
        ("cheap", {"attribute": "price", "op": "lt", "value": 4}),
        ("group", {"attribute": "categories", "op": "contains", "value": "group-3"}),
    ):
        body = {"id": name, "action": {"type": "exclude"}, "items": condition}
        engine.store.documents.put("rule", name, body, by="test")
    engine.refresh()
    engine.store.catalogue.delete("g0-7")
    engine.refresh()
    hang(TwoTowerSource, "find")
    dear = {"attribute": "price", "op": "le", "value": 12}
    answers = asked(engine, 4, k=60, exclude=["g1-5"], filter=dear)
    for answer in answers:
        assert answer.degraded == ("retrieval",)
        assert {int(name.split("-")[1]) for name in ids(answer)} == set(range(3, 12))
        assert groups(answer) == {"g0", "g1", "g2"}
        assert not {"g1-5", "g0-7", "g2-4"} & set(ids(answer))  # excluded, deleted, bought


def test_rules_that_hang_leave_the_ranked_list(engine: Engine, hang: Any) -> None:
    hang(Slate, "_explored")
    answer = asked(engine)[0]
    assert groups(answer) == {"g2"}
    assert len(answer.items) == 10
    assert set(answer.degraded) & {"rules", "slate"}


def test_a_dead_store_answers_as_for_somebody_new(patient: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []

    def dead(*_: object) -> None:
        reads.append(1)
        raise StoreError("gone")

    monkeypatch.setattr(Profiles, "read", dead)
    answers = asked(patient, 6)
    assert all(one.degraded == ("profile",) and len(one.items) == 10 for one in answers)
    assert len(reads) == 3
    monkeypatch.undo()
    patient.ladder.circuit._retry_at = 0.0
    assert groups(asked(patient)[0]) == {"g2"}


def test_a_hanging_store_does_not_hold_up_the_answer(engine: Engine, hang: Any) -> None:
    profiles = hang(Profiles, "read")
    answers = asked(engine, 5)
    assert all("profile" in one.degraded and len(one.items) == 10 for one in answers)
    assert profiles.calls == 3


def test_whom_nobody_knows_is_protected_like_everybody(patient: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    patient.store.profiles.upsert([User(user_id="kid", attributes={"child": True})])
    body = {
        "id": "young",
        "action": {"type": "exclude"},
        "when": {"attribute": "user.child", "op": "eq", "value": True},
        "items": {"attribute": "categories", "op": "contains", "value": "group-0"},
    }
    patient.store.documents.put("rule", "young", body, by="test")
    patient.refresh()
    assert "g0" in groups(asked(patient, user_id="grown", k=100)[0])
    monkeypatch.setattr(Profiles, "read", _raises)
    assert "g0" not in groups(asked(patient, user_id="kid", k=100)[0])


def _raises(*_: object) -> None:
    raise StoreError("gone")


def test_a_request_behind_a_hanging_one_is_answered(releases: Path, tmp_path: Path, hang: Any) -> None:
    engine = Engine(Settings(releases=releases, store=f"sqlite:///{tmp_path / 's.db'}", deadline_ms=DEADLINE_S * 1e3))
    engine.start()
    source = hang(TwoTowerSource, "find")

    async def crowd() -> list[Answer]:
        return await asyncio.gather(*(ask(engine) for _ in range(20)))

    for _ in range(3):
        answers = asyncio.run(crowd())
        assert all(len(one.items) == 10 and one.degraded for one in answers)
    assert source.calls <= LOST_LIMIT
    source.free.set()
    circuit = engine.holdings.current().circuits["retrieval"]
    for _ in range(3):  # the threads that come back find nobody waiting
        circuit._retry_at = 0.0
        last = asked(engine)[0]
    assert last.degraded == ()
    engine.stop()


def test_a_request_may_ask_for_less_time(engine: Engine, hang: Any) -> None:
    hang(TwoTowerSource, "find")
    began = time.monotonic()
    assert len(asked(engine, deadline_ms=40.0)[0].items) == 10
    assert time.monotonic() - began < DEADLINE_S


def test_a_store_that_is_no_database_any_more(releases: Path, tmp_path: Path) -> None:
    path = tmp_path / "torn.db"
    engine = Engine(Settings(releases=releases, store=f"sqlite:///{path}", deadline_ms=10_000))
    engine.start()
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE profiles")
    assert asked(engine)[0].degraded == ("profile",)
    engine.stop()


def test_a_circuit_opens_cools_and_tries_with_one() -> None:
    now = 0.0
    circuit = Circuit("part", failures=2, cooling_s=5.0, clock=lambda: now)
    circuit.failed()
    circuit.succeeded()
    circuit.failed()
    assert circuit.allows()
    circuit.failed()
    assert not circuit.allows()
    now = 5.0
    assert [circuit.allows(), circuit.allows()] == [True, False]
    circuit.failed()
    now = 9.0
    assert not circuit.allows()
    now = 10.0
    assert circuit.allows()
    circuit.succeeded()
    assert [circuit.allows(), circuit.allows()] == [True, True]
