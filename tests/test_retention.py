"""Old events leave, what training has not seen stays, people keep their history, and the file becomes smaller."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from embeddings.errors import Conflict, InputError, NotFound
from embeddings.schema import Event, Item
from serving import upkeep
from serving.store import Store, retention
from serving.store.export import export
from serving.store.retention import retain
from tests.test_export import by_id, read
from tests.test_store import START, event, fresh_url
from training.sources import read as read_for_training

DAY = 24 * 60


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with fresh_url(request.param, tmp_path) as url, Store.open(url) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "export"


def days(store: Store) -> list[int]:
    return sorted((one.timestamp - START).days for _, one in store.events.since(0, 10_000))


def test_only_what_is_old_and_exported_goes(store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "ROWS_AT_ONCE", 2)
    store.events.append([event(minute=day * DAY, event_id=f"first-{day}") for day in range(6)])
    export(store, folder, until=START + timedelta(days=3))  # the days 3, 4 and 5 are kept back
    store.events.append([event(minute=day * DAY, event_id=f"late-{day}") for day in range(6)])
    history = store.profiles.get("u1")
    done = retain(store, before=START + timedelta(days=5), exported=folder)
    assert (done.deleted, done.kept) == (3, 7)
    assert days(store) == [0, 1, 2, 3, 3, 4, 4, 5, 5]
    assert store.profiles.get("u1") == history
    export(store, folder)
    assert retain(store, before=START + timedelta(days=5), exported=folder).deleted == 7
    assert days(store) == [5, 5]
    assert export(store, folder).events == 0
    assert {one.event_id for one in read(folder)} == {f"{kind}-{day}" for kind in ("first", "late") for day in range(6)}


def test_without_an_export_only_on_request(store: Store, folder: Path) -> None:
    store.events.append([event(minute=day * DAY) for day in range(4)])
    with pytest.raises(NotFound, match="no events of this store were exported"):
        retain(store, before=START + timedelta(days=2), exported=folder)
    assert retain(store, before=START + timedelta(days=2), exported=None).deleted == 2


def test_the_export_of_another_store_does_not_count(tmp_path: Path, folder: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/a.db") as first, Store.open(f"sqlite:///{tmp_path}/b.db") as second:
        first.events.append([event()])
        second.events.append([event()])
        export(first, folder)
        with pytest.raises(Conflict, match="another store"):
            retain(second, before=START + timedelta(days=9), exported=folder)
        assert second.events.count("u1") == 1


def test_the_file_becomes_smaller(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with Store.open(f"sqlite:///{path}") as store:
        store.events.append([event(f"u{n % 9}", minute=n, session_id="s" * 100) for n in range(4000)])
    before = path.stat().st_size
    with Store.open(f"sqlite:///{path}") as store:
        done = retain(store, before=START + timedelta(days=99), exported=None)
        assert done.deleted == 4000
        assert store.profiles.get("u3") is not None
    assert path.stat().st_size == before - done.freed
    assert done.freed > before / 2
    Store.open(f"sqlite:///{path}").close()


def test_the_commands_export_for_training_and_retain(tmp_path: Path, folder: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    now = datetime.now(UTC)
    ages = [1, 5, 40, 50]
    events = [Event(user_id="u", item_id="i", timestamp=now - timedelta(days=age), event_id=f"e{age}") for age in ages]
    with Store.open(url) as store:
        store.catalogue.upsert([Item(item_id="i", title="Oak")])
        store.events.append(events)
    run = CliRunner().invoke
    done = run(upkeep.app, ["export", "--to", str(folder), "--store", url])
    assert done.stdout.startswith("4 new events and 0 decisions in 4 files, 1 items, 1 users in")
    assert by_id(read(folder)) == by_id(events)
    data = read_for_training(folder)
    assert (data.events.num_rows, data.items.num_rows, data.users.num_rows) == (4, 1, 1)
    assert run(upkeep.app, ["export", "--to", str(folder), "--store", url]).stdout.startswith("0 new events")
    done = run(upkeep.app, ["retain", "--days", "30", "--exported", str(folder), "--store", url])
    assert done.stdout.startswith("2 events and 0 decisions older than 30 days deleted")
    again = run(upkeep.app, ["retain", "--days", "30", "--exported", str(folder), "--store", url])
    assert again.stdout == "0 events and 0 decisions older than 30 days deleted\n"
    with Store.open(url) as store:
        assert store.events.count("u") == 2
    refused = run(upkeep.app, ["retain", "--days", "30", "--store", url])
    assert isinstance(refused.exception, InputError)
    assert run(upkeep.app, ["retain", "--days", "2", "--unexported", "--store", url]).exit_code == 0
    with Store.open(url) as store:
        assert store.events.count("u") == 1
    day = run(upkeep.app, ["retain", "--days", "1", "--unexported", "--store", url])
    assert day.stdout.startswith("1 events and 0 decisions older than 1 day deleted")
