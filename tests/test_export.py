from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from embeddings.errors import Conflict, DataError, StoreError
from embeddings.schema import EVENTS, ITEMS, USERS, Event, Item, User, from_table
from serving.store import Store
from serving.store import export as export_module
from serving.store.export import ALL_TIME, Band, Piece, export, plan
from tests.test_store import fresh_url

START = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with fresh_url(request.param, tmp_path) as url, Store.open(url) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ex port"


class Crash(BaseException):
    """Stands for the end of the process: nothing may catch it."""


def some_events(count: int, seed: int = 0, days: float = 5) -> list[Event]:
    dice = random.Random(seed)
    return [
        Event(
            user_id=f"u{dice.randrange(5)}", item_id=f"i{dice.randrange(9)}", event_type=dice.choice(["view", "purchase"]),
            timestamp=START + timedelta(days=dice.random() * days), value=dice.choice([None, 2.5]),
            context=dice.choice([{}, {"country": "DE", "n": 1.0, "new": True}]), position=dice.choice([None, 7]),
            channel=dice.choice([None, "wéb"]), event_id=f"e{seed}-{number}",
        )
        for number in range(count)
    ]  # fmt: skip


def read(folder: Path) -> list[Event]:
    table = ds.dataset(folder / "events", format="parquet", partitioning="hive").to_table()
    return from_table(table, Event)


def by_id(events: list[Event]) -> list[Event]:
    return sorted(events, key=lambda event: event.event_id or "")


def test_events_items_and_users_come_back_from_parquet(store: Store, folder: Path) -> None:
    events = some_events(120)
    items = [
        Item(item_id="i1", title="Oak", attributes={"n": 1.0}, categories=["a"], created_at=START),
        Item(item_id="i2"),
    ]
    users = [User(user_id="u0", attributes={"vip": True}), User(user_id="quiet", attributes={"tags": ["x"]})]
    store.events.append(events)
    store.catalogue.upsert([*items, Item(item_id="gone")])
    store.catalogue.delete("gone")
    store.profiles.upsert(users)
    report = export(store, folder)
    assert by_id(read(folder)) == by_id(events)
    assert from_table(pq.read_table(folder / "items.parquet"), Item) == items
    got = {user.user_id: user for user in from_table(pq.read_table(folder / "users.parquet"), User)}
    assert got == {f"u{number}": User(user_id=f"u{number}") for number in range(5)} | {
        user.user_id: user for user in users
    }
    assert (report.events, report.items, report.users, report.directory) == (120, 2, 6, folder)
    assert report.sequence == store.events.horizon()
    assert pq.read_schema(folder / "items.parquet").equals(ITEMS)
    assert pq.read_schema(folder / "users.parquet").equals(USERS)


def test_every_part_lies_under_its_day_and_tells_its_numbers(store: Store, folder: Path) -> None:
    store.events.append(some_events(60))
    sequence_of = {event.event_id: sequence for sequence, event in store.events.since(0)}
    report = export(store, folder)
    assert sorted(report.files) == sorted(str(path.relative_to(folder)) for path in folder.glob("events/date=*/*"))
    assert len(report.files) == 5
    for name in report.files:
        table = pq.ParquetFile(folder / name).read()
        assert table.schema.equals(EVENTS)
        rows = from_table(table, Event)
        day, part = Path(name).parts[1:]
        assert {f"date={row.timestamp.date().isoformat()}" for row in rows} == {day}
        numbers = [sequence_of[row.event_id] for row in rows]
        assert numbers == sorted(numbers)
        assert part == f"part-{numbers[0]}-{numbers[-1]}.parquet"


def test_an_empty_store(store: Store, folder: Path) -> None:
    report = export(store, folder)
    assert (report.events, report.files, report.items, report.users, report.sequence) == (0, (), 0, 0, 0)
    assert pq.read_table(folder / "items.parquet").schema.equals(ITEMS)
    assert pq.read_table(folder / "users.parquet").num_rows == 0


def test_each_event_is_written_once_over_many_exports(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "ROWS_PER_FILE", 7)
    events: list[Event] = []
    for turn in range(4):
        more = some_events(50, seed=turn)
        store.events.append(more)
        events += more
        report = export(store, folder)
        assert report.events == 50
        assert by_id(read(folder)) == by_id(events)
        assert export(store, folder).files == ()
    assert all(pq.read_metadata(path).num_rows <= 7 for path in folder.glob("events/date=*/*"))


def test_until_keeps_back_what_happened_later(store: Store, folder: Path) -> None:
    events = some_events(80, seed=1)
    store.events.append(events)
    moments = [START + timedelta(days=days) for days in (1.5, 1.2, 3.0, 3.0)]
    for turn, until in enumerate(moments):
        late = some_events(20, seed=10 + turn)
        store.events.append(late)
        before = read(folder) if turn else []
        export(store, folder, until=until)
        known = {event.event_id for event in before}
        events += late
        expected = [event for event in events if event.timestamp < until or event.event_id in known]
        assert by_id(read(folder)) == by_id(expected)
    export(store, folder)
    assert by_id(read(folder)) == by_id(events)
    assert len(json.loads((folder / "events" / "_exported.json").read_text())["bands"]) == 1


def test_a_crash_at_any_step_costs_and_doubles_nothing(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = some_events(40)
    store.events.append(events)
    export(store, folder, until=START + timedelta(days=2))
    replace = os.replace
    erased: set[str] = set()
    for survive in range(8):
        more = some_events(10, seed=survive + 1)
        store.events.append(more)
        events += more
        steps = iter(range(survive + 1))

        def until_the_end(source: Any, target: Any, steps: Iterator[int] = steps, last: int = survive) -> None:
            if next(steps) == last:
                raise Crash
            replace(source, target)

        monkeypatch.setattr(os, "replace", until_the_end)
        with pytest.raises(Crash):
            export(store, folder)
        monkeypatch.setattr(os, "replace", replace)
        twice = {name: n for name, n in Counter(event.event_id for event in read(folder)).items() if n > 1}
        assert not twice, "also a reader that comes before the next export sees no event twice"
        if survive % 2:
            gone = f"u{survive // 2}"
            store.profiles.erase(gone)
            erased.add(gone)
        events = [event for event in events if event.user_id not in erased]
        export(store, folder)
        assert by_id(read(folder)) == by_id(events)
        assert not list(folder.glob("events/date=*/.*"))


def test_the_plan_covers_every_pair_of_number_and_time_once() -> None:
    dice = random.Random(5)
    for _ in range(50):
        bands: list[Band] = []
        written: Counter[tuple[int, int]] = Counter()
        wanted: set[tuple[int, int]] = set()
        horizon = 0
        for _ in range(8):
            horizon += dice.randrange(3)
            until = dice.choice([2, 4, 6, 8, ALL_TIME])
            bands, pieces = plan(bands, horizon=horizon, until=until)
            for piece in pieces:
                assert piece == Piece(piece.first, piece.last, piece.start, until)
                for number in range(piece.first + 1, piece.last + 1):
                    written.update((number, t) for t in range(piece.start, min(until, 10)))
            wanted |= {(number, t) for number in range(1, horizon + 1) for t in range(min(until, 10))}
            assert set(written) == wanted
            assert set(written.values()) <= {1}
            assert [band.last for band in bands] == sorted({band.last for band in bands})


def test_a_directory_of_another_store_is_refused(tmp_path: Path, folder: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/a.db") as first, Store.open(f"sqlite:///{tmp_path}/b.db") as second:
        first.events.append(some_events(3))
        second.events.append(some_events(9, seed=2))
        export(first, folder)
        with pytest.raises(Conflict, match="another store"):
            export(second, folder)
        assert by_id(read(folder)) == by_id(some_events(3))
        shutil.rmtree(folder)
        assert export(second, folder).events == 9


def test_two_exports_at_once_are_refused(tmp_path: Path, folder: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/a.db") as store:
        export(store, folder)
        with (folder / "events" / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(Conflict, match="is running"):
                export(store, folder)
        export(store, folder)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 99}', '{"format": 1, "store": 1, "bands": [[1]], "files": []}']
)
def test_a_ledger_that_cannot_be_read_stops_the_export(tmp_path: Path, folder: Path, content: str) -> None:
    with Store.open(f"sqlite:///{tmp_path}/a.db") as store:
        store.events.append(some_events(3))
        export(store, folder)
        (folder / "events" / "_exported.json").write_text(content)
        with pytest.raises(DataError, match=r"_exported\.json"):
            export(store, folder)
        assert len(read(folder)) == 3


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Store.open(f"sqlite:///{tmp_path}/a.db") as store, pytest.raises(StoreError, match="cannot write the export"):
        export(store, tmp_path / "file" / "export")


def test_foreign_files_in_the_directory_are_left_alone(tmp_path: Path, folder: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/a.db") as store:
        store.events.append(some_events(3, days=0.5))
        export(store, folder)
        note = folder / "events" / "date=2026-03-01" / "README.txt"
        note.write_text("mine")
        table = pa.table({"a": [1]})
        pq.write_table(table, folder / "other.parquet")
        export(store, folder)
        assert note.read_text() == "mine"
        assert pq.read_table(folder / "other.parquet").equals(table)
