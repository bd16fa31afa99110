from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import make_url, text

from embeddings.errors import BespokeError, ConfigError, Conflict, InputError, NotFound, StoreError
from embeddings.schema import Event, Item, User
from serving.store import HISTORY_LIMIT, HistoryEvent, Store, tables
from serving.store.checksums import checksum
from serving.store.histories import IMPRESSIONS_LIMIT, merge

ROOT = Path(__file__).parents[1]
START = datetime(2026, 3, 1, tzinfo=UTC)


@contextmanager
def fresh_url(kind: str, folder: Path) -> Iterator[str]:
    """A database of its own: a file, or a schema of the PostgreSQL server that BESPOKE_TEST_POSTGRES names."""
    if kind == "sqlite":
        yield f"sqlite:///{folder}/store.db"
        return
    server = os.environ.get("BESPOKE_TEST_POSTGRES")
    if not server:
        if os.environ.get("CI"):
            pytest.fail("BESPOKE_TEST_POSTGRES is not set: CI tests the store on PostgreSQL")
        pytest.skip("BESPOKE_TEST_POSTGRES is not set: the store was not tested on PostgreSQL")
    import psycopg

    schema = f"bespoke_test_{secrets.token_hex(6)}"
    address = make_url(server).set(drivername="postgresql")
    plain = address.render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        try:
            options = f"-csearch_path={schema}"
            yield address.update_query_dict({"options": options}).render_as_string(hide_password=False)
        finally:
            connection.execute(f"DROP SCHEMA {schema} CASCADE")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with fresh_url(request.param, tmp_path) as address:
        yield address


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as opened:
        yield opened


def event(user: str = "u1", item: str = "i1", *, minute: float = 0, **fields: Any) -> Event:
    return Event(user_id=user, item_id=item, timestamp=START + timedelta(minutes=minute), **fields)


def python(script: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, **options)


# --- opening


def test_migrations_make_exactly_the_tables_of_the_code(store: Store) -> None:
    def difference(connection: Any) -> Any:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return compare_metadata(context, tables.METADATA)

    assert store.database.read(difference) == []


def test_opening_again_keeps_what_is_there(url: str) -> None:
    with Store.open(url) as first:
        first.events.append([event(event_id="e1")])
    with Store.open(url) as second:
        assert second.events.count("u1") == 1


def test_many_processes_and_threads_open_a_new_store_at_once(url: str) -> None:
    script = "import sys; from serving.store import Store; s = Store.open(sys.argv[1]); print(s.catalogue.revision())"
    processes = [python(script, url) for _ in range(2)]
    with ThreadPoolExecutor(4) as threads:
        stores = list(threads.map(lambda _: Store.open(url), range(4)))
    assert [process.communicate(timeout=60)[0] for process in processes] == ["0\n"] * 2
    assert [process.returncode for process in processes] == [0] * 2
    identities = {s.database.read(lambda c: c.execute(tables.NUMBERS.select()).all()[0]) for s in stores}
    assert len(identities) == 1
    for opened in stores:
        opened.close()


def test_a_store_of_a_newer_version_is_refused_and_left_alone(url: str) -> None:
    with Store.open(url) as opened:
        opened.database.write(lambda c: c.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(StoreError, match="another version"):
        Store.open(url)


def test_sqlite_files_in_awkward_places(tmp_path: Path) -> None:
    path = tmp_path / "a folder" / "50% größer" / "shop.db"
    with Store.open(f"sqlite:///{path}") as opened:
        opened.catalogue.upsert([Item(item_id="i")])
        assert path.exists()
        assert opened.database.read(lambda c: c.execute(text("PRAGMA journal_mode")).scalar()) == "wal"
        assert opened.database.read(lambda c: c.execute(text("PRAGMA synchronous")).scalar()) == 2
        assert opened.database.read(lambda c: c.execute(text("PRAGMA foreign_keys")).scalar()) == 1


@pytest.mark.parametrize(
    "bad",
    [
        "mysql://h/db",
        "postgresql+psycopg2://h/db",
        "sqlite://",
        "sqlite:///:memory:",
        "store.db",
        "",
        "sqlite:///f?mode=memory",
        "sqlite:///file:f?uri=true",
    ],
)
def test_urls_that_no_store_can_be_kept_at(bad: str) -> None:
    with pytest.raises(ConfigError, match="allowed: sqlite:///PATH or postgresql://"):
        Store.open(bad)


def test_a_new_file_is_read_by_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with Store.open(f"sqlite:///{tmp_path}/new.db") as store:
            store.events.append([Event(user_id="u", item_id="i", timestamp=START)])
            found = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert found == dict.fromkeys(("new.db", "new.db-wal", "new.db-shm"), 0o600)
    (tmp_path / "new.db").chmod(0o640)
    Store.open(f"sqlite:///{tmp_path}/new.db").close()
    assert (tmp_path / "new.db").stat().st_mode & 0o777 == 0o640, "who runs it may share it"


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("these are notes, not a database " * 100)
    with pytest.raises(StoreError, match="not a database"):
        Store.open(f"sqlite:///{tmp_path}/notes.db")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        Store.open(f"sqlite:///{tmp_path}/file/store.db")


def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    with pytest.raises(StoreError) as caught:
        Store.open("postgresql://someone:hush@127.0.0.1:1/shop")
    assert "127.0.0.1" in caught.value.message
    assert "hush" not in str(caught.value)


def test_a_closed_store_says_so(url: str) -> None:
    opened = Store.open(url)
    opened.profiles.get("u1")
    opened.close()
    opened.close()
    for call in (lambda: opened.profiles.get("u1"), lambda: opened.events.append([event()]), opened.profiles.list):
        with pytest.raises(StoreError, match="closed"):
            call()


# --- events


def test_an_event_comes_back_as_it_went_in(store: Store) -> None:
    full = Event(
        user_id="ü 1", item_id="鞋/1", event_type="rating", timestamp=START + timedelta(microseconds=123457), value=4.5,
        session_id="s", channel="web", context={"n": 1.0, "flag": True, "text": "a\"b'c\n"}, recommendation_id="r",
        position=3, event_id="é",
    )  # fmt: skip
    bare = event(event_id="bare")
    assert store.events.append([full, bare]).event_ids == ["é", "bare"]
    (first, got), (second, got_bare) = store.events.since(0)
    assert (got, got_bare) == (full, bare)
    assert type(got.context["flag"]) is bool
    assert first < second
    assert store.events.since(first) == [(second, bare)]
    assert store.events.since(0, limit=1) == [(first, full)]
    assert store.events.since(second) == []


def test_repeats_change_nothing(store: Store) -> None:
    assert store.events.append([]).event_ids == []
    first = store.events.append([event(event_id="a"), event(item="other", event_id="a"), event(event_id="b", minute=1)])
    assert (first.accepted, first.duplicates, first.event_ids) == (2, 1, ["a", "a", "b"])
    before = store.profiles.get("u1")
    again = store.events.append([event(event_id="b", minute=5), event("somebody else", event_id="a")])
    assert (again.accepted, again.duplicates) == (0, 2)
    assert store.profiles.get("u1") == before
    assert store.profiles.get("somebody else") is None
    drawn = store.events.append([event(), event()])
    assert drawn.accepted == 2
    assert len(set(drawn.event_ids)) == 2


def test_a_batch_is_stored_whole_or_not_at_all(store: Store) -> None:
    broken = Event.model_construct(**{**dict(event("u2", event_id="x")), "channel": "\ud800"})
    with pytest.raises(InputError):
        store.events.append([event(event_id="good"), broken])
    assert store.events.since(0) == []
    assert store.profiles.get("u1") is None
    store.events.append([event(event_id="good")])
    assert store.events.count("u1") == 1


def test_counts_agree_with_counting_by_hand(store: Store) -> None:
    dice = random.Random(1)
    events = [
        event(
            item=f"i{dice.randrange(4)}", minute=dice.random() * 60 * 24 * 20, event_type=dice.choice(["view", "buy"])
        )
        for _ in range(400)
    ]
    store.events.append(events)
    since = (START + timedelta(days=3)).timestamp()
    now = (START + timedelta(days=20)).timestamp()
    for half_life in (None, 2 * 86_400.0, 30 * 86_400.0):
        expected: dict[str, Counter[str]] = defaultdict(Counter)
        for one in events:
            if one.timestamp.timestamp() >= since:
                age = now - one.timestamp.timestamp()
                expected[one.item_id][one.event_type] += 1 if half_life is None else 0.5 ** (age / half_life)
        found = store.events.counts(since, half_life, now=now)
        assert found.keys() == expected.keys()
        for item, by_type in expected.items():
            assert found[item] == pytest.approx(dict(by_type), rel=1e-3)
    assert store.events.counts(now) == {}
    ahead = store.events.counts(since, 60.0, now=since)
    assert max(max(by_type.values()) for by_type in ahead.values()) <= 400, (
        "an event of the future weighs no more than one"
    )
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="half_life_s"):
            store.events.counts(since, bad)


def test_reading_on_never_passes_an_event_that_is_still_being_written(store: Store) -> None:
    if store.database.embedded:
        pytest.skip("SQLite has one writer at a time: numbers appear in order")
    inserted, commit = threading.Event(), threading.Event()
    columns = "event_id, user_id, item_id, event_type, timestamp, context, checksum"
    values = ("slow", "u", "i", "view", 0, "{}")
    sum_of_it = checksum(*values[:5], None, None, None, "{}", None, None)

    def slow(connection: Any) -> None:
        connection.exec_driver_sql(
            f"INSERT INTO events ({columns}) VALUES (%s, %s, %s, %s, %s, %s, %s)", (*values, sum_of_it)
        )
        inserted.set()
        assert commit.wait(30)

    with ThreadPoolExecutor(2) as threads:
        writer = threads.submit(store.database.write, slow)
        assert inserted.wait(30)
        store.events.append([event(event_id="fast")])
        reader = threads.submit(store.events.since, 0)
        time.sleep(0.2)
        assert not reader.done()
        commit.set()
        writer.result(30)
        assert [one.event_id for _, one in reader.result(30)] == ["slow", "fast"]


def test_numbers_of_erased_events_are_not_given_out_again(store: Store) -> None:
    store.events.append([event(event_id="1"), event("u2", event_id="2")])
    last = store.events.since(0)[-1][0]
    assert store.events.horizon() == last
    store.profiles.erase("u2")
    store.events.append([event(event_id="3")])
    assert store.events.since(last)[0][1].event_id == "3"


# --- profiles


def test_a_profile_is_what_its_events_say(store: Store) -> None:
    dice = random.Random(2)
    events = [
        event(f"u{dice.randrange(3)}", f"i{number}", minute=dice.random() * 1000, value=dice.choice([None, 1.5]))
        for number in range(300)
    ]
    for start in range(0, 300, 37):
        store.events.append(events[start : start + 37])
    for user in ("u0", "u1", "u2"):
        own = sorted((one for one in events if one.user_id == user), key=lambda one: one.timestamp)
        expected = [HistoryEvent(one.item_id, one.event_type, one.timestamp.timestamp(), one.value) for one in own]
        profile = store.profiles.get(user)
        assert profile is not None
        assert profile.history == expected
        assert profile.events == store.events.count(user) == len(own)
        assert profile.last_seen == own[-1].timestamp.timestamp()
        assert profile.history[0].item_id == own[0].item_id


def test_history_keeps_the_latest_and_takes_late_events(store: Store) -> None:
    store.events.append([event(item=f"i{number}", minute=number) for number in range(HISTORY_LIMIT)])
    store.events.append(
        [event(item="new", minute=HISTORY_LIMIT), event(item="late", minute=500.5), event(item="old", minute=-1)]
    )
    profile = store.profiles.get("u1")
    assert profile is not None
    items = [one.item_id for one in profile.history]
    assert len(items) == HISTORY_LIMIT
    assert items[0] == "i2"
    assert items[-1] == "new"
    assert items[items.index("late") - 1 : items.index("late") + 2] == ["i500", "late", "i501"]
    assert "old" not in items
    assert profile.events == HISTORY_LIMIT + 3


def test_events_of_one_moment_stay_in_their_order() -> None:
    first, second, third = ("a", "view", 1.0, None), ("b", "view", 1.0, None), ("c", "view", 0.5, None)
    assert merge([first, second, third]) == [third, first, second]


def test_what_was_only_shown_does_not_push_out_what_was_done(store: Store) -> None:
    store.events.append([event(item="bought", event_type="purchase", minute=0)])
    for start in (1, 501):
        shown = [event(item=f"i{at}", event_type="impression", minute=at) for at in range(start, start + 500)]
        store.events.append(shown)
    profile = store.profiles.get("u1")
    assert profile is not None
    assert [one.item_id for one in profile.history][:2] == ["bought", f"i{1001 - IMPRESSIONS_LIMIT}"]
    assert (len(profile.history), profile.events) == (1 + IMPRESSIONS_LIMIT, 1001)


def test_attributes_and_events_do_not_disturb_each_other(store: Store) -> None:
    assert store.profiles.get("nobody") is None
    store.profiles.upsert([])
    store.profiles.upsert(
        [User(user_id="u1", attributes={"x": 1.0}), User(user_id="u1", attributes={"vip": True, "tags": ["a", "é"]})]
    )
    fresh = store.profiles.get("u1")
    assert fresh is not None
    assert (fresh.attributes, fresh.history, fresh.events, fresh.last_seen) == (
        {"vip": True, "tags": ["a", "é"]},
        [],
        0,
        None,
    )
    store.events.append([event()])
    store.profiles.upsert([User(user_id="u1", attributes={})])
    later = store.profiles.get("u1")
    assert later is not None
    assert (later.attributes, len(later.history)) == ({}, 1)


def test_another_process_is_seen_at_once(store: Store, url: str) -> None:
    store.events.append([event()])
    assert store.profiles.get("u1") is not None
    assert store.catalogue.revision() == 0
    with Store.open(url) as other:
        other.events.append([event(item="click", minute=1)])
        other.catalogue.upsert([Item(item_id="i")])
    profile = store.profiles.get("u1")
    assert profile is not None
    assert profile.history[-1].item_id == "click"
    assert store.catalogue.revision() == 1


def test_people_are_listed_by_activity(store: Store) -> None:
    dice = random.Random(3)
    minutes = {f"u{number}": dice.randrange(6) for number in range(25)}
    store.events.append([event(user, minute=minute) for user, minute in minutes.items()])
    store.profiles.upsert([User(user_id=f"quiet {number}", attributes={"n": number}) for number in range(4)])
    expected = sorted(minutes, key=lambda user: (-minutes[user], user)) + [f"quiet {number}" for number in range(4)]
    for limit in (1, 4, 29, 100):
        seen, after = [], None
        while True:
            page = store.profiles.list(limit, after)
            assert 1 <= len(page.users) <= limit
            seen += [user.user_id for user in page.users]
            if (after := page.next) is None:
                break
        assert seen == expected
    assert store.profiles.list(100).users[-1].last_seen is None
    everyone = [user.user_id for page in store.profiles.everyone(7) for user in page]
    assert everyone == sorted(expected)
    for bad in ("x", "", "!!!", "bnVsbA", "W10", "ä"):
        with pytest.raises(InputError, match="not a cursor"):
            store.profiles.list(5, bad)
    with pytest.raises(InputError, match="limit"):
        store.profiles.list(0)


def test_erasing_a_person_leaves_nothing_of_them(store: Store) -> None:
    store.events.append([event(event_id="1"), event(event_id="2"), event("u2", event_id="3")])
    store.profiles.upsert([User(user_id="u1", attributes={"age": 30.0})])
    assert store.profiles.erase("u1").removed["events"] == 2
    assert store.profiles.get("u1") is None
    assert store.events.count("u1") == 0
    assert [one.user_id for _, one in store.events.since(0)] == ["u2"]
    assert store.profiles.erase("u1").removed["events"] == 0
    assert store.profiles.erase("never heard of").removed["events"] == 0
    assert store.events.append([event(event_id="1")]).erased == 1, "what happened before stays away"
    again = event(event_id="1").model_copy(update={"timestamp": datetime.now(UTC) + timedelta(minutes=1)})
    assert store.events.append([again]).accepted == 1, "an erased person may come back"


def test_text_that_no_database_holds_is_an_input_error(store: Store) -> None:
    for call in (
        lambda: store.profiles.get("\ud800"),
        lambda: store.profiles.erase("\ud800"),
        lambda: store.events.since(10**30),
    ):
        with pytest.raises(InputError, match="cannot hold"):
            call()
    assert store.profiles.get("u1") is None


# --- catalogue


def test_an_item_comes_back_as_it_went_in(store: Store) -> None:
    item = Item(
        item_id="ﬁ'%_", title="Söck\"e", description="long", categories=["a", "b"], price=3.0, available=False,
        attributes={"n": 1.0, "b": True, "s": "1", "l": ["x"]}, created_at=START + timedelta(microseconds=5),
    )  # fmt: skip
    store.catalogue.upsert([item, Item(item_id="bare")])
    got = store.catalogue.get("ﬁ'%_")
    assert got == item
    assert got is not None
    assert type(got.attributes["b"]) is bool
    assert store.catalogue.get("bare") == Item(item_id="bare")
    assert store.catalogue.get("none") is None


def test_revisions_tell_replicas_what_changed(store: Store) -> None:
    catalogue = store.catalogue
    assert catalogue.revision() == 0
    assert catalogue.upsert([]) == 0
    assert catalogue.upsert([Item(item_id="a", title="1"), Item(item_id="b"), Item(item_id="a", title="2")]) == 1
    assert catalogue.upsert([Item(item_id="b"), Item(item_id="a", title="2")]) == 1, "nothing changed"
    assert catalogue.upsert([Item(item_id="b"), Item(item_id="a", title="3")]) == 2
    assert catalogue.delete("b")
    assert not catalogue.delete("b")
    assert catalogue.revision() == 3
    assert catalogue.count() == 1
    everything = catalogue.changes(0)
    assert ([item.title for item in everything.upserted], everything.deleted, everything.revision) == (["3"], ["b"], 3)
    assert not everything.more
    assert catalogue.changes(2).upserted == []
    assert catalogue.changes(2).deleted == ["b"]
    assert catalogue.changes(3) == catalogue.changes(3, limit=1)
    assert catalogue.changes(3).revision == 3
    assert catalogue.upsert([Item(item_id="b")]) == 4, "back from the dead"
    assert catalogue.get("b") == Item(item_id="b")
    assert catalogue.changes(3).upserted == [Item(item_id="b")]


def test_a_deletion_is_told_even_of_an_item_the_store_never_held(store: Store) -> None:
    assert not store.catalogue.delete("of a release")
    assert store.catalogue.changes(0).deleted == ["of a release"]
    assert store.catalogue.get("of a release") is None
    assert not store.catalogue.delete("of a release")
    assert store.catalogue.revision() == 1


def test_a_large_upsert_can_be_followed_page_by_page(store: Store) -> None:
    names = [f"i{number:04}" for number in range(2500)]
    assert store.catalogue.upsert([Item(item_id=name) for name in names]) == 3
    assert store.catalogue.delete("i0007")
    for limit in (1, 999, 1000, 1001, 5000):
        replica: set[str] = set()
        revision, more = 0, True
        while more:
            page = store.catalogue.changes(revision, limit)
            assert len(page.upserted) + len(page.deleted) <= limit + 999
            replica |= {item.item_id for item in page.upserted}
            replica -= set(page.deleted)
            assert page.revision > revision
            revision, more = page.revision, page.more
        assert revision == store.catalogue.revision() == 4
        assert replica == set(names) - {"i0007"}


def test_items_are_listed_by_id_and_found_by_text(store: Store) -> None:
    titles = {"B1": "Oak Chair", "a1": "STRASSE 100%", "z_9": "Café noir", "zz9": "чай", "é": "Oak table", "Z": ""}
    store.catalogue.upsert([Item(item_id=name, title=title) for name, title in titles.items()])
    expected = sorted(titles, key=lambda name: name.encode())
    for limit in (1, 2, 6, 50):
        seen, after = [], None
        while True:
            page = store.catalogue.list(limit, after)
            seen += [item.item_id for item in page.items]
            if (after := page.next) is None:
                break
        assert seen == expected

    def find(q: str) -> set[str]:
        return {item.item_id for item in store.catalogue.list(q=q).items}

    assert find("oak") == {"B1", "é"}
    assert find("straße 100%") == {"a1"}
    assert find("0%") == {"a1"}
    assert find("_") == {"z_9"}
    assert find("CAFE\u0301") == {"z_9"}, "an accent may be a letter of its own"
    assert find("ЧАЙ") == {"zz9"}
    assert find("Z") == {"z_9", "zz9", "Z"}
    assert find("b1") == {"B1"}
    assert find("nothing") == set()
    assert store.catalogue.list(q="").items == store.catalogue.list().items
    store.catalogue.delete("B1")
    assert find("oak") == {"é"}


# --- documents


def test_documents_are_versioned_over_all_kinds(store: Store) -> None:
    documents = store.documents
    assert documents.version() == 0
    first = documents.put("rule", "r1", {"factor": 2.0, "text": "é\x00", "deep": [{"a": None}]}, by="ann")
    assert first.version == documents.version() == 1
    assert documents.get("rule", "r1") == first
    assert documents.put("rule", "r1", dict(first.body), by="bob") == first, "the same again changes nothing"
    second = documents.put("placement", "home", {}, by="ann", expected_version=0)
    third = documents.put("rule", "r1", {"factor": 3}, by="bob", expected_version=1)
    assert (second.version, third.version) == (2, 3)
    assert documents.list("rule") == (third,)
    assert documents.list("nothing") == ()
    assert documents.snapshot() == (3, (second, third))
    assert documents.delete("rule", "r1", by="cy", expected_version=3) == 4
    assert documents.get("rule", "r1") is None
    assert documents.put("rule", "r1", {}, by="ann", expected_version=0).version == 5


def test_a_stale_writer_is_refused_and_changes_nothing(store: Store) -> None:
    documents = store.documents
    kept = documents.put("rule", "r1", {"a": 1}, by="ann")
    for expected in (0, 2, 7):
        with pytest.raises(Conflict, match="is at version 1"):
            documents.put("rule", "r1", {"a": 2}, by="bob", expected_version=expected)
        with pytest.raises(Conflict):
            documents.delete("rule", "r1", by="bob", expected_version=expected)
    with pytest.raises(NotFound):
        documents.put("rule", "r2", {}, by="bob", expected_version=1)
    with pytest.raises(NotFound, match="'r2'"):
        documents.delete("rule", "r2", by="bob")
    assert documents.snapshot() == (1, (kept,))


def test_bodies_and_names_that_are_refused(store: Store) -> None:
    for body in ({"a": float("nan")}, {"a": {1, 2}}, {"a": START}):
        with pytest.raises(InputError, match="body: not JSON"):
            store.documents.put("rule", "r", body, by="ann")
    for name in ("", "x" * 129, "a\x00b"):
        with pytest.raises(InputError, match="id: must have"):
            store.documents.put("rule", name, {}, by="ann")
    assert store.documents.version() == 0


def test_the_audit_tells_who_did_what(store: Store) -> None:
    before = datetime.now(UTC)
    store.documents.put("rule", "r1", {"a": 1}, by="ann")
    store.documents.put("rule", "r1", {"a": 2}, by="bob")
    store.documents.put("placement", "r1", {}, by="ann")
    store.documents.delete("rule", "r1", by="cy")
    told = [(e.version, e.by, e.action, e.kind, e.before, e.after) for e in store.documents.audit()]
    assert told == [
        (4, "cy", "delete", "rule", {"a": 2}, None),
        (3, "ann", "create", "placement", None, {}),
        (2, "bob", "update", "rule", {"a": 1}, {"a": 2}),
        (1, "ann", "create", "rule", None, {"a": 1}),
    ]
    assert [e.version for e in store.documents.audit("rule")] == [4, 2, 1]
    assert [e.version for e in store.documents.audit("rule", "r1", 2)] == [4, 2]
    assert store.documents.audit("rule", "r2") == ()
    assert all(before - timedelta(seconds=1) <= e.at <= datetime.now(UTC) for e in store.documents.audit())


# --- many at once


def test_threads_that_send_the_same_events_in_other_orders(store: Store) -> None:
    events = [event(f"u{number % 5}", f"i{number}", minute=number, event_id=f"e{number}") for number in range(60)]

    def send(seed: int) -> int:
        mine = random.Random(seed).sample(events, len(events))
        return sum(store.events.append(mine[start : start + 20]).accepted for start in range(0, 60, 20))

    with ThreadPoolExecutor(6) as threads:
        assert sum(threads.map(send, range(6))) == 60
    assert_profiles_agree_with_events(store, 60)


def test_threads_that_write_everything_at_once(store: Store) -> None:
    def work(number: int) -> None:
        for turn in range(8):
            store.events.append([event(f"u{turn}", minute=number), event(f"u{7 - turn}", minute=turn)])
            store.profiles.upsert([User(user_id=f"u{(turn + number) % 8}", attributes={"by": number})])
            store.catalogue.upsert([Item(item_id=f"i{turn}", title=str(number)), Item(item_id=f"own {number} {turn}")])
            store.documents.put("rule", f"r{number}", {"turn": turn}, by="thread")
            assert store.profiles.get(f"u{turn}") is not None

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))
    assert_profiles_agree_with_events(store, 96)
    assert store.documents.version() == 48
    assert store.catalogue.count() == 8 + 48
    assert store.catalogue.revision() == 48


def test_appending_and_erasing_at_once_never_leaves_events_without_their_person(store: Store) -> None:
    def append(number: int) -> None:
        store.events.append([event("u", f"i{number}")])

    with ThreadPoolExecutor(4) as threads:
        jobs: list[Future[Any]] = [threads.submit(append, number) for number in range(40)]
        jobs += [threads.submit(store.profiles.erase, "u") for _ in range(10)]
        jobs += [threads.submit(store.events.since, 0) for _ in range(10)]
        for job in jobs:
            job.result(60)
    assert_profiles_agree_with_events(store, store.events.count("u"))


WRITER = """
import sys
from datetime import UTC, datetime, timedelta
from embeddings.schema import Event
from serving.store import Store

url, prefix, count = sys.argv[1:]
start = datetime(2026, 3, 1, tzinfo=UTC)
with Store.open(url) as store:
    for number in range(int(count)):
        batch = [
            Event(user_id=f"u{(number + k) % 3}", item_id="i", timestamp=start + timedelta(seconds=number), event_id=name)
            for k, name in enumerate([f"{prefix}-{number}", f"shared-{number}", f"{prefix}-{number}-b"])
        ]
        store.events.append(batch)
        print(" ".join(event.event_id for event in batch), flush=True)
"""


def test_two_processes_write_without_a_refusal(store: Store, url: str) -> None:
    writers = [python(WRITER, url, name, "60") for name in ("a", "b")]
    for writer in writers:
        writer.communicate(timeout=120)
        assert writer.returncode == 0
    assert_profiles_agree_with_events(store, 300)


def test_what_was_acknowledged_survives_a_kill(store: Store, url: str) -> None:
    acknowledged: set[str] = set()
    for turn in range(2):
        writer = python(WRITER, url, f"t{turn}", "1000000")
        assert writer.stdout is not None
        for _ in range(30 + 11 * turn):
            acknowledged.update(writer.stdout.readline().split())
        writer.send_signal(signal.SIGKILL)
        acknowledged.update(word for line in writer.stdout if line.endswith("\n") for word in line.split())
        assert writer.wait(30) == -signal.SIGKILL
        writer.stdout.close()
    assert len(acknowledged) > 100
    stored = [one.event_id for _, one in store.events.since(0, limit=1_000_000)]
    assert acknowledged <= set(stored)
    assert len(stored) == len(set(stored))
    assert_profiles_agree_with_events(store, len(stored))


def test_a_lock_held_too_long_is_a_store_error_and_then_work_goes_on(url: str) -> None:
    with Store.open(url) as holder, Store.open(url, wait_s=0.2) as other:
        held, done = threading.Event(), threading.Event()

        def hold(connection: Any) -> None:
            connection.execute(text("UPDATE numbers SET value = value WHERE name = 'catalogue'"))
            held.set()
            assert done.wait(30)

        with ThreadPoolExecutor(1) as threads:
            job = threads.submit(holder.database.write, hold)
            assert held.wait(30)
            with pytest.raises(StoreError, match="lock"):
                other.catalogue.upsert([Item(item_id="i")])
            assert other.profiles.get("u1") is None, "reading does not wait for a writer"
            done.set()
            job.result(30)
        assert other.catalogue.upsert([Item(item_id="i")]) == 1


def test_a_server_that_dropped_the_connections_is_asked_again(tmp_path: Path) -> None:
    name = f"bespoke {secrets.token_hex(6)}"
    end = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = :name")
    with fresh_url("postgresql", tmp_path) as url, Store.open(url) as other:
        store = Store.open(make_url(url).update_query_dict({"application_name": name}).render_as_string(False))
        store.events.append([event()])
        assert store.profiles.get("u1") is not None
        assert len(other.database.read(lambda c: c.execute(end, {"name": name}).all())) == 2
        assert store.profiles.get("u1") is not None
        assert store.events.append([event()]).accepted == 1
        store.close()


def test_only_errors_of_the_tree_leave_the_store(store: Store) -> None:
    store.database.write(lambda c: c.execute(text("DROP TABLE profiles")))
    for call in (lambda: store.profiles.get("u"), lambda: store.events.append([event()]), store.profiles.list):
        with pytest.raises(BespokeError) as caught:
            call()
        assert type(caught.value) is StoreError
        assert "profiles" in caught.value.message


def assert_profiles_agree_with_events(store: Store, total: int) -> None:
    events = [one for _, one in store.events.since(0, limit=1_000_000)]
    by_user: dict[str, list[Event]] = defaultdict(list)
    for one in events:
        by_user[one.user_id].append(one)
    assert len(events) == total
    for user, own in by_user.items():
        profile = store.profiles.get(user)
        assert profile is not None
        assert profile.events == len(own)
        times = sorted(one.timestamp.timestamp() for one in own)[-HISTORY_LIMIT:]
        assert [seen.timestamp for seen in profile.history] == times
        assert Counter(seen.item_id for seen in profile.history) == Counter(one.item_id for one in own[-HISTORY_LIMIT:])


def test_one_statement_reads_the_person_and_how_far_the_store_is(store: Store) -> None:
    assert store.profiles.read("u1") == (None, 0, 0)
    store.events.append([event()])
    store.documents.put("rule", "r", {}, by="test")
    store.catalogue.upsert([Item(item_id="i1")])
    assert store.profiles.read("u1") == (store.profiles.get("u1"), 1, 1)
    assert store.profiles.read(None) == (None, 1, 1)
