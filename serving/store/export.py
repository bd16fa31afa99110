"""Export: from the store to Parquet, the one way in which training learns what happened.

    DIRECTORY/events/date=2026-03-01/part-17-90412.parquet      columns of `embeddings.schema.EVENTS`
    DIRECTORY/events/_exported.json                             which events have been written, and the files that hold them
    DIRECTORY/items.parquet, DIRECTORY/users.parquet            the catalogue and the people as they are now

Every event is written exactly once, however often and at whatever point an export is killed: files become visible by a
rename, and a file that the ledger does not name was left by an export that did not finish, so the next one removes it
and writes its events again. A part is named by the first and the last number of its events.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import ColumnElement, literal_column, select

from embeddings.durable import put
from embeddings.errors import Conflict, DataError, StoreError
from embeddings.schema import EVENTS, ITEMS, USERS, Item, User, to_table
from serving.store import Store
from serving.store.database import number
from serving.store.tables import DAY_US, moment
from serving.store.tables import EVENTS as TABLE
from serving.store.tables import micros as micros_of

LEDGER = "_exported.json"
FORMAT = 1
ROWS_PER_FILE = 100_000
ROWS_PER_PAGE = 5_000
ALL_TIME = 2**62
"""A moment, in microseconds, after every event."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What one export wrote. `files` are the new parts, relative to `directory`; `sequence` is how far it followed."""

    directory: Path
    events: int
    files: tuple[str, ...]
    items: int
    users: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Band:
    """Events up to the number `last` (and above the band before): those earlier than `before` have been written."""

    last: int
    before: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Events still to write: numbers above `first` up to `last`, times from `start` to before `end`."""

    first: int
    last: int
    start: int
    end: int


def export(store: Store, directory: str | os.PathLike[str], *, until: datetime | None = None) -> ExportReport:
    """Write the events that no earlier export to `directory` wrote, and the items and users as they are now.

    `until` keeps back events that happened at or after that moment (by their timestamp, not by when they arrived); a
    later export with a later `until`, or none, writes them. Raises `Conflict` when another export to the directory is
    running or the directory belongs to another store, `DataError` for a ledger that cannot be read, and `StoreError`
    when the database or the file system refuses.
    """
    root = Path(directory)
    try:
        (root / "events").mkdir(parents=True, exist_ok=True)
        with _alone(root / "events"):
            sequence, files, events = _export_events(store, root / "events", micros_of(until) if until else ALL_TIME)
            items = _write_all(root / "items.parquet", ITEMS, _item_tables(store))
            users = _write_all(root / "users.parquet", USERS, _user_tables(store))
    except OSError as error:
        raise StoreError(f"cannot write the export to {root}: {error}") from error
    names = tuple(f"events/{name}" for name in files)
    return ExportReport(directory=root, events=events, files=names, items=items, users=users, sequence=sequence)


def _export_events(store: Store, folder: Path, until: int) -> tuple[int, list[str], int]:
    identity = store.database.read(lambda connection: number(connection, "identity"))
    bands, known = _read_ledger(folder, identity)
    _sweep(folder, known)
    bands, pieces = plan(bands, horizon=store.events.horizon(), until=until)
    files: list[str] = []
    events = 0
    for piece in pieces:
        for name, rows in _write_piece(store, folder, piece):
            files.append(name)
            events += rows
    _write_ledger(folder, identity, bands, known | set(files))
    return bands[-1].last if bands else 0, files, events


def plan(bands: Iterable[Band], *, horizon: int, until: int) -> tuple[list[Band], list[Piece]]:
    """Compare what has been written with what is wanted: the bands as they will be, and the pieces to write for that.

    Bands lie in the order of their numbers. One that is written up to `until` or later stays as it is; neighbours that
    become equal are joined, so that exports without `until` keep a single band.
    """
    wanted = list(bands)
    if horizon > (wanted[-1].last if wanted else 0):
        wanted.append(Band(horizon, 0))
    after: list[Band] = []
    pieces = []
    first = 0
    for band in wanted:
        if band.before < until:
            pieces.append(Piece(first, band.last, band.before, until))
        if after and after[-1].before == max(band.before, until):
            after.pop()
        after.append(Band(band.last, max(band.before, until)))
        first = band.last
    return after, pieces


def _write_piece(store: Store, folder: Path, piece: Piece) -> Iterator[tuple[str, int]]:
    """Write one piece, day by day; yields the name and the rows of each file."""
    day = (TABLE.c.timestamp // DAY_US).label("day")
    inside = (
        TABLE.c.sequence > piece.first,
        TABLE.c.sequence <= piece.last,
        TABLE.c.timestamp >= piece.start,
        TABLE.c.timestamp < piece.end,
    )
    for row in store.database.rows(select(day).where(*inside).distinct().order_by(day)):
        date = moment(row.day * DAY_US).date().isoformat()
        for rows in _pages(store, piece, row.day):
            name = f"date={date}/part-{rows[0].sequence}-{rows[-1].sequence}.parquet"
            _put(folder / name, partial(pq.write_table, _events_table(rows), compression="zstd"))
            yield name, len(rows)


def _pages(store: Store, piece: Piece, day: int) -> Iterator[Sequence[Any]]:
    """Read the events of one piece and one day (counted from 1970), in the order of their numbers."""
    start, end = max(piece.start, day * DAY_US), min(piece.end, (day + 1) * DAY_US)
    # The unary plus hides the column from its index: the index over time is the narrow one here.
    sequence: ColumnElement[int] = literal_column("+events.sequence", TABLE.c.sequence.type)
    of_day = select(TABLE).where(TABLE.c.timestamp >= start, TABLE.c.timestamp < end, sequence <= piece.last)
    page = of_day.order_by(sequence).limit(ROWS_PER_FILE)
    first = piece.first
    while rows := store.database.rows(page.where(sequence > first)):
        yield rows
        first = rows[-1].sequence


def _events_table(rows: Sequence[Any]) -> pa.Table:
    columns = [pa.array([getattr(row, field.name) for row in rows], _stored_type(field)) for field in EVENTS]
    return pa.table([column.cast(field.type) for column, field in zip(columns, EVENTS, strict=True)], schema=EVENTS)


def _stored_type(field: pa.Field) -> pa.DataType:
    return pa.int64() if pa.types.is_timestamp(field.type) else field.type


def _item_tables(store: Store) -> Iterator[pa.Table]:
    after: str | None = None
    while True:
        page = store.catalogue.list(ROWS_PER_PAGE, after)
        yield to_table(page.items, Item)
        if (after := page.next) is None:
            return


def _user_tables(store: Store) -> Iterator[pa.Table]:
    for users in store.profiles.everyone(ROWS_PER_PAGE):
        yield to_table(users, User)


def _write_all(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    rows = 0

    def write(temporary: Path) -> None:
        nonlocal rows
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table)
                rows += table.num_rows

    _put(path, write)
    return rows


def _read_ledger(folder: Path, identity: int) -> tuple[list[Band], set[str]]:
    path = folder / LEDGER
    if not path.exists():
        return [], set()
    try:
        ledger = json.loads(path.read_bytes())
        if ledger["format"] != FORMAT:
            raise DataError(f"{path}: format {ledger['format']!r}, this version reads {FORMAT}")
        store, bands, files = ledger["store"], [Band(*band) for band in ledger["bands"]], set(ledger["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a ledger of exports: {error}") from error
    if store != identity:
        raise Conflict(f"{folder.parent} holds the export of another store; choose an empty directory")
    return bands, files


def _write_ledger(folder: Path, identity: int, bands: list[Band], files: set[str]) -> None:
    content = {
        "format": FORMAT,
        "store": identity,
        "bands": [[band.last, band.before] for band in bands],
        "files": sorted(files),
    }
    _put(folder / LEDGER, lambda temporary: temporary.write_text(json.dumps(content, indent=1), encoding="utf-8"))


def _sweep(folder: Path, known: set[str]) -> None:
    """Remove what an unfinished export left: parts that the ledger does not name, and temporary files."""
    for path in folder.glob("date=*/*"):
        leftover = path.name.startswith(".") or path.match("part-*.parquet")
        if leftover and path.relative_to(folder).as_posix() not in known:
            path.unlink()


def _put(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(exist_ok=True)
    put(path, write)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the directory's lock; the system lets go of it when the process ends, however it ends."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"another export to {folder.parent} is running") from None
        yield
