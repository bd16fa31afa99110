"""Storing the events of many callers together: each is told its own outcome, and only once it is durable."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from embeddings.errors import BespokeError, Damaged, InputError, Overloaded, StoreError
from embeddings.schema import Event
from serving.api import create_api
from serving.replica.engine import Engine
from serving.settings import Settings
from serving.store import Appended, Store, Writer
from tests.test_store import assert_profiles_agree_with_events, event, fresh_url


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with fresh_url(request.param, tmp_path) as url, Store.open(url) as opened:
        yield opened


class Gate:
    """Stores nothing before it is opened; remembers the groups."""

    def __init__(self) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        self.groups: list[list[int]] = []

    def __call__(self, batches: Sequence[Sequence[Event]]) -> list[Appended | BespokeError]:
        self.groups.append([len(batch) for batch in batches])
        self.entered.set()
        assert self.open.wait(30)
        return [Appended(accepted=len(batch), duplicates=0, event_ids=[]) for batch in batches]


def broken(user: str = "u2") -> Event:
    return Event.model_construct(**{**dict(event(user, event_id="x")), "channel": "\ud800"})


def test_what_waits_is_stored_together() -> None:
    gate = Gate()
    writer = Writer(gate, what="events")
    first = writer.submit([event()])
    assert gate.entered.wait(30)
    rest = [writer.submit([event()] * size) for size in (2, 1000, 998, 1, 3000)]
    gate.open.set()
    assert [one.result(30).accepted for one in (first, *rest)] == [1, 2, 1000, 998, 1, 3000]
    assert gate.groups == [[1], [2, 1000, 998], [1], [3000]]
    writer.close()


def test_more_than_may_wait_is_refused_at_once_and_taken_again_later() -> None:
    gate = Gate()
    writer = Writer(gate, what="events", waiting_limit=10)
    writer.submit([event()])
    assert gate.entered.wait(30)
    large = writer.submit([event()] * 50)  # nothing waited: it may be as large as it likes
    with pytest.raises(Overloaded, match="50 events wait") as caught:
        writer.submit([event()])
    assert caught.value.status == 429
    gate.open.set()
    assert large.result(30).accepted == 50
    assert writer.submit([event()]).result(30).accepted == 1
    writer.close()


def test_a_caller_that_left_in_time_stores_nothing() -> None:
    gate = Gate()
    writer = Writer(gate, what="events")
    writer.submit([event()])
    assert gate.entered.wait(30)
    assert writer.submit([event()] * 7).cancel()
    last = writer.submit([event()] * 2)
    gate.open.set()
    assert last.result(30).accepted == 2
    assert gate.groups == [[1], [2]]
    writer.close()


def test_closing_stores_what_waits_and_refuses_the_rest() -> None:
    gate = Gate()
    writer = Writer(gate, what="events")
    waiting = [writer.submit([event()]) for _ in range(3)]
    gate.open.set()
    writer.close()
    writer.close()
    assert all(one.done() and one.result().accepted == 1 for one in waiting)
    with pytest.raises(StoreError, match="closed"):
        writer.submit([event()])


def test_the_writer_outlives_an_unexpected_error() -> None:
    outcomes: list[Any] = [ZeroDivisionError("oh"), [Appended(accepted=1, duplicates=0, event_ids=["a"])]]

    def store(_: Sequence[Sequence[Event]]) -> list[Appended | BespokeError]:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return list(outcome)

    writer = Writer(store, what="events")
    with pytest.raises(StoreError, match="ZeroDivisionError"):
        writer.submit([event()]).result(30)
    assert writer.submit([event()]).result(30).event_ids == ["a"]
    writer.close()


def test_repeats_within_a_group_count_for_the_later_caller(store: Store) -> None:
    store.events.append([event(event_id="old")])
    outcomes = store.events.append_each(
        [
            [event(event_id="a"), event(event_id="a"), event(event_id="old")],
            [],
            [event("u9", event_id="a"), event(event_id="b"), event()],
        ]
    )
    assert [(one.accepted, one.duplicates) for one in outcomes if isinstance(one, Appended)] == [(1, 2), (0, 0), (2, 1)]
    assert store.profiles.get("u9") is None
    assert_profiles_agree_with_events(store, 4)


def test_a_batch_that_cannot_be_stored_is_refused_alone(store: Store) -> None:
    store.events.append([event("hurt")])
    store.database.write(lambda c: c.execute(text("UPDATE profiles SET events = 7 WHERE user_id = 'hurt'")))
    batches = [[event()], [event(), broken()], [event("hurt")], [event("u3"), event()]]
    first, invalid, damaged, last = store.events.append_each(batches)
    assert isinstance(first, Appended)
    assert isinstance(invalid, InputError)
    assert isinstance(damaged, Damaged)
    assert isinstance(last, Appended)
    assert store.events.count("u1") == 2
    assert store.events.count("u2") == 0
    assert store.events.count("hurt") == 1


def test_many_callers_each_hear_of_their_own(store: Store) -> None:
    def send(number: int) -> list[Appended]:
        batches = [
            [event(f"u{number % 3}", event_id=f"{number}-{turn}"), event("u1", event_id=f"all-{turn}")]
            for turn in range(5)
        ]
        return [store.writer.submit(batch).result(60) for batch in batches]

    with ThreadPoolExecutor(8) as threads:
        outcomes = [one for found in threads.map(send, range(8)) for one in found]
    assert sum(one.accepted for one in outcomes) == 8 * 5 + 5
    assert_profiles_agree_with_events(store, 45)


def test_more_than_may_wait_is_told_over_http(tmp_path: Path) -> None:
    engine = Engine(Settings(releases=tmp_path / "none", store=f"sqlite:///{tmp_path / 'store.db'}"))
    gate = Gate()
    engine.store.writer = Writer(gate, what="events", waiting_limit=1)
    one = {"user_id": "u", "item_id": "i"}
    with TestClient(create_api(engine)) as client, ThreadPoolExecutor(2) as threads:
        stored = threads.submit(client.post, "/v1/events", json=one)
        assert gate.entered.wait(30)
        waiting = threads.submit(client.post, "/v1/events", json=one)
        while not engine.store.writer._waiting:
            time.sleep(0.001)
        refused = client.post("/v1/events", json=one)
        assert client.get("/healthz").status_code == 200, "whoever waits for the disk keeps nobody else waiting"
        gate.open.set()
        assert stored.result(30).status_code == waiting.result(30).status_code == 202
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "overloaded"
    assert refused.headers["retry-after"] == "1"
    engine.stop()
