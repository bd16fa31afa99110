"""What a store does when the disk fails it: it refuses clearly, acknowledges nothing, and goes on when it can."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from benchmarks.chaos_store import full_disk
from embeddings.errors import BespokeError, Damaged, StoreError
from embeddings.schema import Item, User
from serving.api import create_api
from serving.replica.engine import Engine
from serving.settings import Settings
from serving.store import Store
from serving.store.examine import examine
from serving.store.export import export
from tests.test_store import START, assert_profiles_agree_with_events, event, fresh_url


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with fresh_url(request.param, tmp_path) as url, Store.open(url) as opened:
        yield opened


def test_a_full_disk_refuses_and_the_store_goes_on_when_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    stored = 0
    with Store.open(f"sqlite:///{path}") as store:
        stored += store.events.append([event(f"u{number}") for number in range(200)]).accepted
        with full_disk(os.path.getsize(f"{path}-wal") + 20_000):
            with pytest.raises(StoreError, match=r"full|I/O"):
                store.events.append([event(f"u{number}") for number in range(2000)])
            assert store.profiles.get("u7") is not None, "reading goes on"
        stored += store.events.append([event()]).accepted
        assert_profiles_agree_with_events(store, stored)
    with Store.open(f"sqlite:///{path}") as store:
        assert_profiles_agree_with_events(store, stored)


def test_a_full_disk_is_told_over_http(tmp_path: Path) -> None:
    engine = Engine(Settings(releases=tmp_path / "none", store=f"sqlite:///{tmp_path / 'store.db'}"))
    client = TestClient(create_api(engine), raise_server_exceptions=False)
    batch = {"events": [{"user_id": f"u{number}", "item_id": "i"} for number in range(200)]}
    with full_disk(os.path.getsize(tmp_path / "store.db-wal") + 20_000):
        replies = [client.post("/v1/events", json=batch) for _ in range(5)]
    refused = replies[-1]
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "store_unavailable"
    assert refused.headers["retry-after"] == "1"
    assert client.post("/v1/events", json=batch).status_code == 202
    taken = 1 + sum(reply.status_code == 202 for reply in replies)
    assert client.get("/v1/users/u3").json()["events"] == taken
    engine.stop()


DAMAGE = {
    "profile": "UPDATE profiles SET history = '[]' WHERE user_id = 'u1'",
    "activity": "UPDATE profiles SET events = events + 1 WHERE user_id = 'u1'",
    "attributes": "UPDATE profiles SET attributes = '{}' WHERE user_id = 'u1'",
    "item": "UPDATE items SET body = replace(body, 'Oak', 'Elm')",
    "tombstone": "UPDATE items SET deleted = true",
    "document": "UPDATE documents SET body = '{}'",
    "audit": "UPDATE audit SET \"by\" = 'you'",
    "event": "UPDATE events SET item_id = 'other'",
}
READS: dict[str, Callable[[Store, Path], Any]] = {
    "profile": lambda store, _: store.profiles.get("u1"),
    "activity": lambda store, _: store.profiles.list(),
    "attributes": lambda store, folder: export(store, folder),
    "item": lambda store, _: store.catalogue.get("i1"),
    "tombstone": lambda store, _: store.catalogue.changes(0),
    "document": lambda store, _: store.documents.snapshot(),
    "audit": lambda store, _: store.documents.audit(),
    "event": lambda store, folder: export(store, folder / str(len(os.listdir(folder)))),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_record_that_changed_on_its_own_is_not_served(store: Store, tmp_path: Path, what: str) -> None:
    store.events.append([event()])
    store.profiles.upsert([User(user_id="u1", attributes={"vip": True})])
    store.catalogue.upsert([Item(item_id="i1", title="Oak")])
    store.documents.put("rule", "r", {"a": 1}, by="me")
    READS[what](store, tmp_path)
    statement = DAMAGE[what]
    if store.database.embedded:
        statement = statement.replace("'[]'", "x'5b5d'")
    store.database.write(lambda connection: connection.execute(text(statement)))
    with pytest.raises(Damaged, match="is damaged: its checksum"):
        READS[what](store, tmp_path)
    store.profiles.erase("u1")
    again = event().model_copy(update={"timestamp": datetime.now(UTC) + timedelta(minutes=1)})
    assert store.events.append([again]).accepted == 1, "an erased person may come back"


def test_a_file_with_a_flipped_bit_or_a_lost_end_is_whole_or_refused(tmp_path: Path) -> None:
    """A few of the places that `python -m benchmarks chaos` goes through one by one."""
    path, broken = tmp_path / "store.db", tmp_path / "broken.db"
    connection = sqlite3.connect(path)
    connection.executescript("PRAGMA page_size = 512; VACUUM")  # the smaller the file, the likelier a hit
    connection.close()
    with Store.open(f"sqlite:///{path}") as store:
        store.events.append([event(f"u{n % 3}", minute=n, event_id=f"e{n}") for n in range(20)])
        store.catalogue.upsert([Item(item_id=f"i{n}", title=f"Item {n}") for n in range(9)])
        sound = _contents(store)
    content = path.read_bytes()
    dice = random.Random(3)
    outcomes = set()
    for _ in range(120):
        place = dice.randrange(len(content))
        changed = content[:place] + bytes([content[place] ^ 1 << dice.randrange(8)]) + content[place + 1 :]
        broken.write_bytes(changed if dice.random() < 0.8 else content[: place + 2])
        try:
            with Store.open(f"sqlite:///{broken}") as store:
                assert _contents(store) == sound, place
            outcomes.add("whole")
        except BespokeError as error:
            outcomes.add(type(error).__name__)
        for left in tmp_path.glob("broken.db*"):
            left.unlink()
    assert outcomes == {"whole", "StoreError", "Damaged"}


def _contents(store: Store) -> list[Any]:
    users = [store.profiles.get(f"u{n}") for n in range(3)]
    return [users, store.events.since(0), store.catalogue.changes(0), store.catalogue.get("i3"), store.profiles.list()]


def test_counters_that_went_back_are_noticed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    with Store.open(url) as store:
        store.catalogue.upsert([Item(item_id="i")])
        store.catalogue.delete("i")
        store.database.write(lambda c: c.execute(text("UPDATE numbers SET value = 1 WHERE name = 'catalogue'")))
    with pytest.raises(Damaged, match="counter 'catalogue' is behind 2"):
        Store.open(url)


def test_the_examination_ends_in_time(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path / 'store.db'}") as store:
        assert examine(store.database)
        store.events.append([event(event_id=f"e{n}", minute=n) for n in range(3000)])
        assert not examine(store.database, limit_s=0)
        assert store.events.count("u1") == 3000


def test_what_was_stored_is_served_after_the_clock_went_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A moment is checked against the clock when it comes, not again when it is read."""
    monkeypatch.setattr("embeddings.schema.time.time", lambda: START.timestamp())
    tomorrow = START + timedelta(hours=23)
    store.events.append([event(minute=23 * 60)])
    store.catalogue.upsert([Item(item_id="i", created_at=tomorrow)])
    monkeypatch.setattr("embeddings.schema.time.time", lambda: START.timestamp() - 86_400)
    with pytest.raises(ValueError, match="more than a day in the future"):
        Item(item_id="i", created_at=tomorrow)
    item = store.catalogue.get("i")
    assert item is not None
    assert item.created_at == tomorrow
    assert [one.timestamp for _, one in store.events.since(0)] == [tomorrow]
