"""Consent and aliases: what people said is kept as they said it, and another id of theirs leads to them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from embeddings.errors import Conflict, Damaged, InputError, StoreError
from embeddings.schema import Event, User, allows, from_table
from serving.api import create_api
from serving.replica.engine import Engine
from serving.settings import Settings
from serving.store import Store
from serving.store.export import export
from tests.test_api import error
from tests.test_decisions import decision
from tests.test_ladder import engine as topologies  # noqa: F401 - a fixture: fused and chained
from tests.test_pipeline import ask
from tests.test_store import fresh_url
from training.sources import read as read_for_training


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with fresh_url(request.param, tmp_path) as url, Store.open(url) as opened:
        yield opened


def said(store: Store, user_id: str = "u1") -> dict[str, bool]:
    found, read = store.profiles.get(user_id), store.profiles.read(user_id).profile
    assert found is not None
    assert found == read
    return dict(found.consent)


def test_what_is_said_stays_until_something_else_is_said(store: Store) -> None:
    store.profiles.upsert([User(user_id="u1"), User(user_id="u2", consent={"marketing": True})])
    assert (said(store), said(store, "u2")) == ({}, {"marketing": True})
    store.profiles.upsert([User(user_id="u1", consent={"analytics": False})])
    store.profiles.upsert([User(user_id="u1", attributes={"vip": True})])
    assert said(store) == {"analytics": False}
    store.profiles.upsert([User(user_id="u1", consent={"marketing": False}), User(user_id="u1", consent={})])
    assert said(store) == {"analytics": False, "marketing": False}
    store.profiles.upsert(
        [User(user_id="u1", consent={"analytics": True}), User(user_id="u1", consent={"personalization": False})]
    )
    assert said(store) == {"analytics": True, "marketing": False, "personalization": False}
    assert [one.consent for one in store.profiles.list().users] == [said(store), {"marketing": True}]


def test_two_who_speak_for_a_person_at_once_are_both_heard(store: Store) -> None:
    start = threading.Barrier(2)

    def speak(user: User) -> None:
        start.wait(30)
        store.profiles.upsert([user])

    for n in range(10):
        user_id = f"u{n}"
        with ThreadPoolExecutor(2) as threads:
            given = ({"analytics": False}, {"marketing": False})
            for done in [threads.submit(speak, User(user_id=user_id, consent=one)) for one in given]:
                done.result(30)
        assert said(store, user_id) == {"analytics": False, "marketing": False}


def test_silence_is_consent_and_nonsense_is_refused() -> None:
    assert all(allows({}, purpose) for purpose in ("personalization", "analytics", "marketing"))
    assert not allows({"analytics": False}, "analytics")
    for wrong in ({"advertising": True}, {"analytics": "no"}, {"analytics": None}, {"analytics": 0}):
        with pytest.raises(ValueError, match="consent"):
            User.model_validate({"user_id": "u", "consent": wrong})


def test_consent_is_exported_and_read_for_training(store: Store, tmp_path: Path) -> None:
    users = [User(user_id="u1", consent={"analytics": False, "marketing": True}), User(user_id="u2")]
    store.profiles.upsert(users)
    store.events.append([Event(user_id=one, item_id="i", timestamp=datetime.now(UTC)) for one in ("u1", "u2")])
    export(store, tmp_path / "out")
    assert from_table(pq.read_table(tmp_path / "out" / "users.parquet"), User) == users
    data = read_for_training(tmp_path / "out")
    assert from_table(data.users, User) == users
    assert data.events["user_id"].to_pylist() == ["u2"], "nothing is learned from who is not analysed"


def test_an_export_from_before_consent_is_read(tmp_path: Path) -> None:
    (tmp_path / "users.jsonl").write_text('{"user_id": "u1"}\n{"user_id": "u2", "consent": {"analytics": false}}\n')
    (tmp_path / "events.jsonl").write_text('{"user_id": "u1", "item_id": "i", "timestamp": 1}\n')
    users = from_table(read_for_training(tmp_path).users, User)
    assert [one.consent for one in users] == [{}, {"analytics": False}]


def test_erasing_takes_consent_and_aliases_along(store: Store) -> None:
    store.profiles.upsert([User(user_id="u1", consent={"analytics": False}), User(user_id="u2")])
    store.aliases.link("cookie", "u1")
    store.aliases.link("phone", "u2")
    store.profiles.erase("u1")
    assert store.aliases.resolve("cookie") == "cookie"
    assert store.aliases.resolve("phone") == "u2"
    store.profiles.upsert([User(user_id="u1")])
    assert said(store) == {}
    store.profiles.erase("phone")
    assert store.aliases.of("u2") == ()


def test_consent_over_http(releases: Path, tmp_path: Path) -> None:
    engine = Engine(Settings(releases=releases, store=f"sqlite:///{tmp_path / 's.db'}", deadline_ms=10_000))
    engine.start()
    with TestClient(create_api(engine)) as client:
        made = client.put("/v1/users/ann", json={"attributes": {"vip": True}, "consent": {"analytics": False}}).json()
        assert made["consent"] == {"personalization": True, "analytics": False, "marketing": True}
        client.post("/v1/users", json={"users": [{"user_id": "ann", "consent": {"marketing": False}}]})
        for path in ("/v1/users/ann", "/v1/users/ann/profile"):
            found = client.get(path).json()
            assert found["consent"] == {"personalization": True, "analytics": False, "marketing": False}
        detail = error(client.put("/v1/users/ann", json={"consent": {"adverts": True}}), 422)
        assert "analytics" in detail["message"]
        ids = {}
        for user in ("ann", "bob"):
            ids[user] = client.post("/v1/recommendations", json={"user_id": user}).json()["recommendation_id"]
        assert client.delete("/v1/users/ann").status_code == 200
        client.put("/v1/users/bob", json={})
        assert client.delete("/v1/users/bob").status_code == 200
    whose = {user: engine.store.decisions.get(name) for user, name in ids.items()}
    assert whose["ann"] is not None, "an answer to somebody who is not analysed stays, without them"
    assert whose["ann"].user_id is None
    assert whose["bob"] is None
    engine.stop()


def test_whose_answer_it_was_is_logged_only_with_consent(topologies: Engine, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    engine = topologies
    engine.store.profiles.upsert([User(user_id="no", consent={"analytics": False}), User(user_id="yes")])
    engine.store.aliases.link("cookie", "yes")
    engine.store.aliases.link("tablet", "never seen")
    answers = {user: ask(engine, user_id=user) for user in ("no", "yes", "unknown", "cookie", "tablet")}

    def away(_: object) -> None:
        raise StoreError("away")

    monkeypatch.setattr(engine.store.profiles, "read", away)
    answers["nobody can say"] = ask(engine, user_id="yes")
    assert engine.effects.flush()
    logged = {user: engine.store.decisions.get(one.recommendation_id) for user, one in answers.items()}
    assert {user: one.user_id for user, one in logged.items() if one is not None} == {
        "no": None,
        "yes": "yes",
        "unknown": "unknown",
        "cookie": "cookie",
        "tablet": "tablet",
        "nobody can say": None,
    }


def test_an_alias_reads_the_profile_of_its_person(store: Store) -> None:
    store.events.append([Event(user_id="ann", item_id="i", timestamp=datetime.now(UTC))])
    store.events.append([Event(user_id="cookie", item_id="j", timestamp=datetime.now(UTC))])
    before = store.profiles.read("cookie").profile
    assert store.aliases.link("cookie", "ann")
    assert store.profiles.read("cookie") == store.profiles.read("ann")
    assert store.profiles.read("cookie").profile == store.profiles.get("ann")
    assert store.aliases.resolve("cookie") == store.aliases.resolve("ann") == "ann"
    assert store.aliases.unlink("cookie")
    assert store.profiles.read("cookie").profile == before, "nothing is lost when they part again"
    assert not store.aliases.unlink("cookie")


def test_aliases_make_no_loops_and_no_chains(store: Store) -> None:
    assert store.aliases.link("a", "p")
    assert not store.aliases.link("a", "p")
    assert [(one.alias, one.user_id) for one in store.aliases.of("p")] == [("a", "p")]
    with pytest.raises(InputError, match="alias of itself"):
        store.aliases.link("p", "p")
    for alias, user_id, says in (
        ("a", "q", "'a' is one of 'p'; unlink it first"),
        ("b", "a", "'a' is an alias of 'p'; link to that"),
        ("p", "q", "'p' has aliases itself"),
        ("p", "a", "'a' is an alias of 'p'"),
    ):
        with pytest.raises(Conflict, match=says):
            store.aliases.link(alias, user_id)
    assert store.aliases.resolve("p") == "p"


def test_two_links_at_once_make_no_loop(store: Store) -> None:
    start = threading.Barrier(2)

    def link(pair: tuple[str, str]) -> bool:
        start.wait(30)
        try:
            return store.aliases.link(*pair)
        except Conflict:
            return False

    for n in range(10):
        with ThreadPoolExecutor(2) as threads:
            assert sorted(threads.map(link, [(f"a{n}", f"b{n}"), (f"b{n}", f"a{n}")])) == [False, True]


DAMAGE: dict[str, Any] = {
    "UPDATE consents SET consent = '{}'": lambda store: store.profiles.get("u1"),
    "UPDATE consents SET user_id = 'u2'": lambda store: store.profiles.list(),
    "UPDATE aliases SET user_id = 'u2'": lambda store: store.profiles.read("cookie"),
    "UPDATE aliases SET alias = 'tablet'": lambda store: store.aliases.resolve("tablet"),
}


@pytest.mark.parametrize("statement", DAMAGE)
def test_a_row_that_changed_on_its_own_is_refused(store: Store, statement: str) -> None:
    store.profiles.upsert([User(user_id="u1", consent={"analytics": False}), User(user_id="u2")])
    store.aliases.link("cookie", "u1")
    DAMAGE[statement](store)
    store.database.write(lambda connection: connection.execute(text(statement)))
    with pytest.raises(Damaged, match="is damaged: its checksum"):
        DAMAGE[statement](store)


def test_decisions_without_a_person_stay_when_people_go(store: Store) -> None:
    store.decisions.write([decision(user_id=None)])
    store.profiles.erase("u1")
    assert store.decisions.get("r1") is not None
