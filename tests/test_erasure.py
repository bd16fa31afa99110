"""Erasure: what a person is, everywhere, and how nothing of it stays or comes back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
from fastapi.testclient import TestClient

from embeddings.errors import Damaged, DataError
from embeddings.schema import Event, User
from serving.people.erasure import erase
from serving.replica.engine import Engine
from serving.settings import Settings
from serving.stages.effects import Effects
from serving.store import Store, tables
from serving.store.export import export
from tests.test_decisions import decision
from tests.test_store import fresh_url
from training.sources import read as read_for_training

START = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with fresh_url(request.param, tmp_path) as url, Store.open(url) as opened:
        yield opened


def did(user: str, item: str = "a", *, at: datetime = START) -> Event:
    return Event(user_id=user, item_id=item, timestamp=at)


def everywhere(store: Store, word: str) -> list[str]:
    """Tables that have a word in any of their columns."""
    found = []
    for table in tables.METADATA.sorted_tables:
        rows = store.database.read(lambda connection, table=table: connection.execute(table.select()).all())  # type: ignore[misc]
        if any(word in str(value) for row in rows for value in row):
            found.append(table.name)
    return found


def test_nothing_is_left_of_any_id(store: Store) -> None:
    store.events.append([did("zoe"), did("zoe-phone"), did("bob")])
    store.profiles.upsert([User(user_id="zoe", attributes={"name": "zoe"}, consent={"marketing": False})])
    store.aliases.link("zoe-phone", "zoe")
    store.decisions.write([decision(recommendation_id="r1", user_id="zoe"), decision(recommendation_id="r2")])
    assert everywhere(store, "zoe") == ["aliases", "consents", "decisions", "events", "profiles"]
    gone = store.profiles.erase("zoe-phone")
    assert gone.ids == ("zoe", "zoe-phone"), "any id leads to the person"
    assert gone.removed == {"events": 2, "decisions": 1, "aliases": 1, "contacts": 0, "consents": 1, "profiles": 2}
    assert everywhere(store, "zoe") == []
    assert store.profiles.get("bob") is not None
    assert dict(store.profiles.erase("zoe").removed) == dict.fromkeys(gone.removed, 0)


def test_what_arrives_late_is_left_out_and_a_new_beginning_is_one(store: Store) -> None:
    store.profiles.erase("zoe")
    late, later = did("zoe"), did("zoe", "b", at=datetime.now(UTC) + timedelta(minutes=1))
    done = store.events.append([late, later, did("bob"), did("bob")])
    assert (done.accepted, done.duplicates, done.erased, len(done.event_ids)) == (3, 0, 1, 4)
    both = store.events.append_each([[late], [did("cid")]])
    assert [(one.accepted, one.erased) for one in both if not isinstance(one, Exception)] == [(0, 1), (1, 0)]
    profile = store.profiles.get("zoe")
    assert profile is not None
    assert [event.item_id for event in profile.history] == ["b"]
    old, new = (
        decision(recommendation_id=name, user_id="zoe", at=at) for name, at in (("r1", START), ("r2", later.timestamp))
    )
    assert store.decisions.write([old, new]) == 1, "another replica logs what it showed before the erasure"
    assert [one.recommendation_id for one in store.decisions.of_user("zoe").decisions] == ["r2"]


def test_events_that_are_being_stored_do_not_slip_through(store: Store) -> None:
    start = threading.Barrier(2)

    def append() -> None:
        start.wait(30)
        for n in range(30):
            store.events.append([did(f"p{n}")])
            store.decisions.write([decision(recommendation_id=f"r{n}", user_id=f"p{n}")])

    writer = threading.Thread(target=append)
    writer.start()
    start.wait(30)
    for n in range(30):
        store.profiles.erase(f"p{n}")
    writer.join(60)
    assert [event.user_id for _, event in store.events.since(0)] == []
    assert everywhere(store, "p2") == []


def test_exports_lose_the_person_at_once_and_the_next_training_too(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    store.events.append([did("zoe"), did("zoe-phone", "b"), did("bob", "c")])
    store.aliases.link("zoe-phone", "zoe")
    store.decisions.write([decision(recommendation_id=name, user_id=name) for name in ("zoe", "bob")])
    export(store, folder)
    assert sorted(read_for_training(folder).events["user_id"].to_pylist()) == ["bob", "zoe", "zoe"], "one person"
    receipt = erase(store, Effects((), store, Settings()), "zoe")
    assert (receipt["removed"]["exported_rows"], receipt["removed"]["exports_pending"]) == (3, 0)
    assert read_for_training(folder).events["user_id"].to_pylist() == ["bob"]
    assert ds.dataset(folder / "decisions").to_table()["user_id"].to_pylist() == ["bob"]
    store.events.append([did("dan", "d")])
    export(store, folder)
    assert sorted(read_for_training(folder).events["user_id"].to_pylist()) == ["bob", "dan"]
    assert not any("zoe" in path.read_text("latin-1") for path in folder.rglob("*") if path.is_file())


def test_an_export_that_was_away_follows_with_the_next_one(store: Store, tmp_path: Path) -> None:
    folder, away = tmp_path / "out", tmp_path / "away"
    store.events.append([did("zoe"), did("bob", "c")])
    export(store, folder)
    folder.rename(away)
    assert erase(store, Effects((), store, Settings()), "zoe")["removed"]["exported_rows"] == 0
    away.rename(folder)
    export(store, folder)
    assert read_for_training(folder).events["user_id"].to_pylist() == ["bob"]


def test_who_refuses_is_not_learned_from_whenever_they_say_so(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    people = ("asked", "later", "yes", "tablet")
    store.profiles.upsert([User(user_id="asked", attributes={"age": 9.0}, consent={"personalization": False})])
    store.events.append([did(one, one) for one in people])
    store.aliases.link("tablet", "later")
    store.decisions.write([decision(recommendation_id=one, user_id=one) for one in people])
    export(store, folder)
    assert sorted(read_for_training(folder).events["user_id"].to_pylist()) == ["later", "later", "yes"]
    assert '"age"' not in str(read_for_training(folder).users["attributes"].to_pylist()), "nor from what they are"
    store.profiles.upsert([User(user_id="later", consent={"analytics": False})])
    export(store, folder)
    data = read_for_training(folder)
    assert (data.events["user_id"].to_pylist(), data.withheld) == (["yes"], 0), "they are out of the files"
    logged = ds.dataset(folder / "decisions").to_table().to_pylist()
    assert {one["recommendation_id"]: one["user_id"] for one in logged} == {
        "asked": "asked",
        "later": None,
        "tablet": None,
        "yes": "yes",
    }
    store.profiles.upsert([User(user_id="yes", consent={"analytics": False})])
    export(store, folder)
    with pytest.raises(DataError, match="no events"):
        read_for_training(folder)


def test_data_from_elsewhere_are_asked_for_consent_too(tmp_path: Path) -> None:
    lines = '{"user_id": "yes"}\n{"user_id": "no", "consent": {"analytics": false}}\n'
    (tmp_path / "users.jsonl").write_text(lines)
    events = "".join(f'{{"user_id": "{one}", "item_id": "i", "timestamp": 1}}\n' for one in ("yes", "no", "new"))
    (tmp_path / "events.jsonl").write_text(events)
    data = read_for_training(tmp_path)
    assert (sorted(data.events["user_id"].to_pylist()), data.withheld) == (["new", "yes"], 1)
    (tmp_path / "events.jsonl").write_text('{"user_id": "no", "item_id": "i", "timestamp": 1}\n')
    with pytest.raises(DataError, match="no events of people who want to be learned from"):
        read_for_training(tmp_path)


def test_a_damaged_erasure_is_refused(store: Store) -> None:
    store.profiles.erase("zoe")
    later = {"erased_at": 1}
    store.database.write(lambda connection: connection.execute(tables.ERASURES.update().values(later)))
    with pytest.raises(Damaged, match="a stored erasure"):
        store.events.append([did("zoe")])


def test_a_receipt_over_http_can_be_verified(client: TestClient) -> None:
    for user, item in (("zoe", "g1-3"), ("phone", "g2-3")):
        client.post("/v1/events", json={"user_id": user, "item_id": item})
    client.put("/v1/users/zoe/aliases/phone")
    shown = client.post("/v1/recommendations", json={"user_id": "phone"}).json()["recommendation_id"]
    done = client.post("/v1/users/phone/erase", json={"reason": "asked for by phone"}).json()
    receipt = done["receipt"]
    assert (done["erased_events"], receipt["user_id"], receipt["aliases"]) == (2, "zoe", ["phone"])
    assert receipt["reason"] == "asked for by phone"
    assert receipt["removed"]["decisions"] == 1, f"{shown} was still on its way into the log"
    verify: Any = lambda body: client.post("/v1/receipts/verify", json=body).json()  # noqa: E731
    assert verify(receipt) == {"valid": True}
    assert verify(receipt | {"removed": receipt["removed"] | {"events": 3}}) == {"valid": False}
    assert verify(receipt | {"signature": "0" * 64}) == {"valid": False}
    assert client.get("/v1/users/zoe").status_code == 404
    late = {"user_id": "phone", "item_id": "g1-3", "timestamp": "2026-03-01T00:00:00Z"}
    assert client.post("/v1/events", json=late).json() | {"event_ids": []} == {
        "accepted": 0,
        "duplicates": 0,
        "erased": 1,
        "event_ids": [],
    }
    assert client.get("/v1/users/phone").status_code == 404
    again = client.post("/v1/users/phone/erase", json={"reason": "asked for by phone"}).json()
    assert set(again["receipt"]["removed"].values()) == {0}, "nothing to erase is no error"


def test_a_profile_says_everything_in_plain_words(client: TestClient, engine: Engine) -> None:
    consent = {"marketing": False}
    client.put("/v1/users/zoe", json={"attributes": {"city": "Bern", "tags": ["a", "b"]}, "consent": consent})
    client.put("/v1/users/zoe/aliases/phone")
    client.post("/v1/events", json={"events": [{"user_id": "phone", "item_id": f"g1-{n}"} for n in range(3)]})
    client.post("/v1/recommendations", json={"user_id": "zoe"})
    assert engine.effects.flush()
    found = client.get("/v1/users/zoe/profile").json()
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    assert found["summary"] == [
        f"3 events, the last one on {today}, and the 3 latest are looked at for lists.",
        "What they looked at is mostly of group-1.",
        "Told about them: city: Bern; tags: a, b.",
        "Also known as phone.",
        "Allowed: lists made for them and being part of statistics.",
        "Refused: messages.",
        "The model learns from what they do.",
        f"The log has 1 answer to them, the last one of {today}.",
    ]
    assert (found["interests"], found["answers"], found["messages"]) == (["group-1"], 1, [])
    whole = client.get("/v1/users/phone/export").json()
    assert {name: value for name, value in whole.items() if not name.startswith("all_")} == found
    assert [one["item_id"] for one in whole["all_events"]] == ["g1-0", "g1-1", "g1-2"]
    assert len(whole["all_answers"][0]["items"]) == 20
    assert client.get("/v1/users/nobody/export").status_code == 404
    client.put("/v1/users/zoe", json={"consent": {"personalization": False}})
    refused = client.get("/v1/users/zoe/profile").json()
    assert refused["summary"][0] == f"3 events, the last one on {today}."
    assert "The model learns nothing from what they do." in refused["summary"]
    assert refused["attributes"] == {"city": "Bern", "tags": ["a", "b"]}, "what is left out stays as it was"
    assert client.put("/v1/users/zoe", json={"attributes": {}}).json()["attributes"] == {}
