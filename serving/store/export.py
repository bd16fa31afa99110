"""Export: from the store to Parquet, the one way in which training learns what happened.

    DIRECTORY/events/date=2026-03-01/part-17-90412.parquet      columns of `embeddings.schema.EVENTS`
    DIRECTORY/events/_exported.json                             which events have been written, and the files that hold them
    DIRECTORY/decisions/date=…                                  the same for the decision log, columns of `DECISIONS`
    DIRECTORY/items.parquet, DIRECTORY/users.parquet            the catalogue and the people as they are now
    DIRECTORY/aliases.parquet                                   other ids of people: their events are the person's

Every event, and every decision, is written exactly once, however often and at whatever point an export is killed: files
become visible by a rename, and a file that the ledger does not name was left by an export that did not finish, so the next
one removes it and writes its rows again. People who were erased, or do not want to be learned from, are taken out of
the files, also of those that earlier exports wrote: see `withheld`. A part is named by the first
and the last number of its rows.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import ColumnElement, Table, literal_column, select

from embeddings import schema
from embeddings.durable import put
from embeddings.errors import Conflict, StoreError
from embeddings.schema import Item, User, allows, to_table
from serving.store import Store, tables
from serving.store.database import number
from serving.store.decisions import decision_of
from serving.store.events import values_of
from serving.store.ledger import Band, read_ledger, write_ledger
from serving.store.sequences import horizon
from serving.store.tables import DAY_US, EXPORTS, moment
from serving.store.tables import micros as micros_of
from serving.store.withheld import Removed, Withheld

ROWS_PER_FILE = 100_000
ROWS_PER_PAGE = 5_000
ALL_TIME = 2**62
"""A moment, in microseconds, after every event."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What one export wrote. `files` are the new parts, relative to `directory`.

    `sequence` is how far it followed the events.
    """

    directory: Path
    events: int
    decisions: int
    files: tuple[str, ...]
    items: int
    users: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Stream:
    """A table that only grows, on its way to the folder of its name: `time` is when a row happened.

    `personal` rows are nothing without their person, so they go with one who does not want to be learned from.
    """

    table: Table
    time: ColumnElement[int]
    to_arrow: Callable[[Sequence[Any]], pa.Table]
    personal: bool

    @property
    def name(self) -> str:
        """Name of table and folder."""
        return self.table.name

    @property
    def moment(self) -> str:
        """Name of the column that says when a row happened."""
        return str(self.time.key)


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows still to write: numbers above `first` up to `last`, times from `start` to before `end`."""

    first: int
    last: int
    start: int
    end: int


def export(store: Store, directory: str | os.PathLike[str], *, until: datetime | None = None) -> ExportReport:
    """Write the events and decisions that no earlier export to `directory` wrote, and the items and users as they are now.

    `until` keeps back those that happened at or after that moment (by their timestamp, not by when they arrived); a
    later export with a later `until`, or none, writes them. Raises `Conflict` when another export to the directory is
    running or the directory belongs to another store, `DataError` for a ledger that cannot be read, and `StoreError`
    when the database or the file system refuses.
    """
    root = Path(directory)
    try:
        (root / EVENTS.name).mkdir(parents=True, exist_ok=True)
        with _alone(root / EVENTS.name):
            _remember(store, root)
            last = micros_of(until) if until else ALL_TIME
            sequence, files, events = _export(store, EVENTS, root, last)
            _, more, decided = _export(store, DECISIONS, root, last)
            items = _write_all(root / "items.parquet", schema.ITEMS, _item_tables(store))
            _write_all(root / "aliases.parquet", ALIASES, _alias_tables(store))
            users = _write_all(root / "users.parquet", schema.USERS, _user_tables(store))
    except OSError as error:
        raise StoreError(f"cannot write the export to {root}: {error}") from error
    return ExportReport(
        directory=root,
        events=events,
        decisions=decided,
        files=tuple(files + more),
        items=items,
        users=users,
        sequence=sequence,
    )


def bands_of(store: Store, stream: Stream, directory: str | os.PathLike[str]) -> list[Band]:
    """Return which rows of a stream the export in a directory has; raises as `export` does."""
    return read_ledger(Path(directory) / stream.name, _identity(store)).bands


def take_out(store: Store, directory: str | os.PathLike[str]) -> Removed:
    """Take everybody who is withheld out of the export in a directory, now and not with the next export.

    Raises `Conflict` while an export to it is running.
    """
    root, rows = Path(directory), 0
    files: list[Path] = []
    with _alone(root / EVENTS.name):
        for stream in (EVENTS, DECISIONS):
            folder = root / stream.name
            ledger = read_ledger(folder, _identity(store))
            withheld = Withheld(store.database)
            done = withheld.take_out((folder / name for name in ledger.files), stream.moment, named=stream.personal)
            if ledger.files:
                write_ledger(folder, _identity(store), ledger.bands, ledger.files, withheld.mark)
            rows += done.rows
            files += done.files
    return Removed(rows, tuple(files))


def exported_to(store: Store) -> list[Path]:
    """Folders that something was exported to and that are still there."""
    rows = store.database.rows(select(EXPORTS.c.folder).order_by(EXPORTS.c.folder))
    return [Path(row.folder) for row in rows if (Path(row.folder) / EVENTS.name).is_dir()]


def _identity(store: Store) -> int:
    return store.database.read(lambda connection: number(connection, "identity"))


def _export(store: Store, stream: Stream, root: Path, until: int) -> tuple[int, list[str], int]:
    """Write what is new in one stream: how far it was followed, the new files relative to `root`, and their rows."""
    folder = root / stream.name
    folder.mkdir(exist_ok=True)
    identity = _identity(store)
    ledger = read_ledger(folder, identity)
    _sweep(folder, ledger.files)
    bands, pieces = plan(ledger.bands, horizon=horizon(store.database, stream.table), until=until)
    files: list[str] = []
    written = 0
    for piece in pieces:
        for name, rows in _write_piece(store, stream, folder, piece):
            files.append(name)
            written += rows
    # Who is withheld is asked when everything is written: somebody may have gone meanwhile.
    withheld = Withheld(store.database)
    written -= withheld.take_out((folder / name for name in files), stream.moment, named=stream.personal).rows
    if withheld.mark != ledger.mark:
        withheld.take_out((folder / name for name in ledger.files), stream.moment, named=stream.personal)
    write_ledger(folder, identity, bands, ledger.files | set(files), withheld.mark)
    return bands[-1].last if bands else 0, [f"{stream.name}/{name}" for name in files], written


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


def _write_piece(store: Store, stream: Stream, folder: Path, piece: Piece) -> Iterator[tuple[str, int]]:
    """Write one piece, day by day; yields the name and the rows of each file."""
    day = (stream.time // DAY_US).label("day")
    inside = (
        stream.table.c.sequence > piece.first,
        stream.table.c.sequence <= piece.last,
        stream.time >= piece.start,
        stream.time < piece.end,
    )
    for row in store.database.rows(select(day).where(*inside).distinct().order_by(day)):
        date = moment(row.day * DAY_US).date().isoformat()
        for rows in _pages(store, stream, piece, row.day):
            name = f"date={date}/part-{rows[0].sequence}-{rows[-1].sequence}.parquet"
            _put(folder / name, partial(pq.write_table, stream.to_arrow(rows), compression="zstd"))
            yield name, len(rows)


def _pages(store: Store, stream: Stream, piece: Piece, day: int) -> Iterator[Sequence[Any]]:
    """Read the rows of one piece and one day (counted from 1970), in the order of their numbers."""
    start, end = max(piece.start, day * DAY_US), min(piece.end, (day + 1) * DAY_US)
    # The unary plus hides the column from its index: the index over time is the narrow one here.
    sequence: ColumnElement[int] = literal_column(f"+{stream.name}.sequence", stream.table.c.sequence.type)
    of_day = select(stream.table).where(stream.time >= start, stream.time < end, sequence <= piece.last)
    page = of_day.order_by(sequence).limit(ROWS_PER_FILE)
    first = piece.first
    while rows := store.database.rows(page.where(sequence > first)):
        yield rows
        first = rows[-1].sequence


def _events_table(rows: Sequence[Any]) -> pa.Table:
    values = [values_of(row) for row in rows]
    columns = [pa.array([row[field.name] for row in values], _stored_type(field)) for field in schema.EVENTS]
    cast = [column.cast(field.type) for column, field in zip(columns, schema.EVENTS, strict=True)]
    return pa.table(cast, schema=schema.EVENTS)


def _decisions_table(rows: Sequence[Any]) -> pa.Table:
    decisions = [asdict(decision_of(row)) for row in rows]
    for one in decisions:
        one |= {name: json.dumps(one[name], sort_keys=True) for name in ("request", "arms")}
    return pa.Table.from_pylist(decisions, schema=schema.DECISIONS)


EVENTS = Stream(tables.EVENTS, tables.EVENTS.c.timestamp, _events_table, personal=True)
DECISIONS = Stream(tables.DECISIONS, tables.DECISIONS.c.at, _decisions_table, personal=False)
ALIASES = pa.schema([("alias", pa.string()), ("user_id", pa.string())])


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
    """People as they are now; of those who do not want personalization nothing but that."""
    for users in store.profiles.everyone(ROWS_PER_PAGE):
        allowed = (
            one if allows(one.consent, "personalization") else one.model_copy(update={"attributes": {}})
            for one in users
        )
        yield to_table(allowed, User)


def _alias_tables(store: Store) -> Iterator[pa.Table]:
    for some in store.aliases.every(ROWS_PER_PAGE):
        columns = ([one.alias for one in some], [one.user_id for one in some])
        yield pa.table([pa.array(column, pa.string()) for column in columns], schema=ALIASES)


def _remember(store: Store, root: Path) -> None:
    """Note the folder in the store, so that an erasure finds it."""
    at = time.time_ns() // 1000
    put_it = store.database.insert(EXPORTS).on_conflict_do_update(index_elements=["folder"], set_={"at": at})
    store.database.write(lambda connection: connection.execute(put_it, {"folder": str(root.resolve()), "at": at}))


def _write_all(path: Path, columns: pa.Schema, pages: Iterable[pa.Table]) -> int:
    rows = 0

    def write(temporary: Path) -> None:
        nonlocal rows
        with pq.ParquetWriter(temporary, columns, compression="zstd") as writer:
            for table in pages:
                writer.write_table(table)
                rows += table.num_rows

    _put(path, write)
    return rows


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
