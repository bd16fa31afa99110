"""The database: connections, transactions, waiting for locks, and the one place where its errors become ours.

Work runs in three ways: `write` (one transaction, durable when it returns), `read`, and `prepared` for the few
statements on the path of a request, which go to the driver directly and are parsed once.
"""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, Select, Table, create_engine, event, make_url, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DataError, SQLAlchemyError

from embeddings.errors import BespokeError, ConfigError, InputError, StoreError
from serving.store.tables import NUMBERS

T = TypeVar("T")
Insert = postgresql.Insert | sqlite.Insert
FetchOne = Callable[..., tuple[Any, ...] | None]

WAIT_S = 30.0
ATTEMPTS = 8
CHUNK = 5000
"""Values that one statement names at most: both databases limit the number of parameters."""

PAGES_AT_ONCE = 1000
"""Pages that compaction moves in one transaction."""

RETRY = frozenset({"40P01", "40001"})
"""PostgreSQL's codes for a transaction that lost a deadlock or a race: it did nothing and may simply run again."""


class Database:
    """One database by URL; thread-safe.

    SQLite: write-ahead log, synchronous=FULL, every write takes the write lock at its start and waits for it; PostgreSQL:
    psycopg, READ COMMITTED. Raises `ConfigError` for a URL that is not understood.
    """

    def __init__(self, url: str, *, wait_s: float = WAIT_S) -> None:
        self._url = _parsed(url)
        file = file_of(url)
        if file is not None:
            _make(file)
        self._wait_s = wait_s
        self.embedded = self._url.get_backend_name() == "sqlite"
        self.where = f"{self._url.get_backend_name()}://{self._url.host or ''}/{self._url.database or ''}"
        self._engine = self._engine_for(self._url)
        self._writer = self._engine.execution_options(begin="BEGIN IMMEDIATE")
        # SQLite has one writer. Threads of this process queue here in order; its own waiting is polling without one.
        self._writing: AbstractContextManager[Any] = threading.Lock() if self.embedded else nullcontext()
        self._driver: Any = self._engine.dialect.loaded_dbapi
        self._idle: deque[Any] = deque()
        self._closed = False

    def write(self, work: Callable[[Connection], T], *, retry: Collection[str] = RETRY) -> T:
        """Run `work` in one transaction and commit it; all of it happened when this returns, none when it raises.

        A transaction that PostgreSQL ends with a code in `retry` (by default: it lost a deadlock) runs again, so `work`
        must keep no state of its own between attempts.
        Raises `StoreError`, or `InputError` for a value that the database cannot hold.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._writing:
                    self._check_open()
                    with self._writer.begin() as connection:
                        return work(connection)
            except (SQLAlchemyError, self._driver.Error, UnicodeError, OverflowError) as error:
                if getattr(getattr(error, "orig", None), "sqlstate", None) not in retry or attempt == ATTEMPTS:
                    raise self._translated(error) from error
            time.sleep(random.uniform(0, 0.005 * attempt))
        raise AssertionError("unreachable")

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work`, which changes nothing. Raises as `write` does."""
        try:
            self._check_open()
            with self._engine.connect() as connection:
                return work(connection)
        except (SQLAlchemyError, self._driver.Error, UnicodeError, OverflowError) as error:
            raise self._translated(error) from error

    def rows(self, query: Select[Any]) -> Sequence[Any]:
        """Return every row of one query. Raises as `write` does."""
        return self.read(lambda connection: connection.execute(query).all())

    def prepared(self, sql: str) -> FetchOne:
        """Make a function of a SELECT with `?` for parameters: called with their values, it returns the first row.

        It borrows an idle connection of the driver in autocommit mode, so it sees everything committed before the call.
        Where the server has dropped an idle connection it asks once more on a fresh one.
        """
        statement = sql if self.embedded else sql.replace("?", "%s")
        options: dict[str, Any] = {} if self.embedded else {"prepare": True, "binary": True}
        failures = (self._driver.Error, UnicodeError, OverflowError)

        def fetch(*parameters: Any) -> tuple[Any, ...] | None:
            fresh = False
            while True:
                try:
                    connection = self._idle.pop()
                except IndexError:
                    connection, fresh = self._connect(), True
                try:
                    row: tuple[Any, ...] | None = connection.execute(statement, parameters, **options).fetchone()
                except failures as error:
                    connection.close()
                    if fresh or not isinstance(error, self._driver.OperationalError):
                        raise self._translated(error) from error
                else:
                    self._give_back(connection)
                    return row

        return fetch

    def insert(self, table: Table) -> Insert:
        """Start an INSERT that can say ON CONFLICT, in the dialect of this database."""
        return sqlite.insert(table) if self.embedded else postgresql.insert(table)

    def compact(self) -> int:
        """Give the space of what was deleted back to the disk; returns the bytes. PostgreSQL does so by itself.

        The pages move in small transactions. A file that an earlier version made keeps its size and uses it again.
        """
        if not self.embedded:
            return 0
        freed = 0
        while pages := self.write(_vacuum):
            freed += pages
        return freed * int(self.read(lambda connection: connection.exec_driver_sql("PRAGMA page_size").scalar_one()))

    def close(self) -> None:
        """Close every connection that is not in use; those in use close when they are given back."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()
        self._engine.dispose()

    def _give_back(self, connection: Any) -> None:
        self._idle.append(connection)
        if self._closed:
            self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed")

    def _connect(self) -> Any:
        """Open a connection of the driver itself, outside the pool of transactions."""
        self._check_open()
        dialect = self._engine.dialect
        arguments, options = dialect.create_connect_args(self._url)
        try:
            connection: Any = dialect.connect(*arguments, **{**options, **self._options(self._url)})
            self._prepare(connection)
        except (self._driver.Error, UnicodeError) as error:  # of a damaged file even the message may be damaged
            raise self._translated(error) from error
        if not self.embedded:
            connection.autocommit = True
        return connection

    def _options(self, url: URL) -> dict[str, Any]:
        if self.embedded:
            return {"timeout": self._wait_s}
        defaults = {"connect_timeout": 10, "application_name": "bespoke"}
        return {name: value for name, value in defaults.items() if name not in url.query}

    def _engine_for(self, url: URL) -> Engine:
        # Pinging costs a round trip; without it the first writes after a restart of the server would be refused.
        engine = create_engine(
            url,
            connect_args=self._options(url),
            pool_size=8,
            max_overflow=24,
            pool_timeout=self._wait_s,
            pool_pre_ping=not self.embedded,
            hide_parameters=True,  # they are people's ids, and an error may be logged
        )
        event.listen(engine, "connect", lambda connection, _record: self._prepare(connection))
        if self.embedded:
            event.listen(engine, "begin", _begin)
        return engine

    def _prepare(self, connection: Any) -> None:
        if not self.embedded:
            milliseconds = round(self._wait_s * 1000)
            connection.execute(
                f"SELECT set_config('lock_timeout', '{milliseconds}', false), CASE"
                " WHEN current_setting('synchronous_commit') = 'off'"  # an acknowledged write must be on disk
                " THEN set_config('synchronous_commit', 'on', false) END"
            )
            connection.commit()
            return
        connection.isolation_level = None  # transactions are begun by `_begin`, not guessed by the driver
        if not connection.execute("PRAGMA page_count").fetchone()[0]:
            # What `compact` needs. It counts for a new file only, and would ask for a lock on any other.
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        _retry_while_locked(lambda: connection.execute("PRAGMA journal_mode=WAL"), self._wait_s)
        connection.execute("PRAGMA synchronous=FULL")
        # 16 MB of log: a page that changes often is copied back less often. Measured 20 % on batches of 100 events.
        connection.execute("PRAGMA wal_autocheckpoint=4000")
        connection.execute("PRAGMA foreign_keys=ON")

    def _translated(self, error: Exception) -> BespokeError:
        cause = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        if isinstance(error, (DataError, self._driver.DataError, UnicodeEncodeError, OverflowError)):
            return InputError(f"the database cannot hold this value: {cause}")
        return StoreError(f"the database at {self.where} failed: {cause}")


def advance(connection: Connection, name: str) -> int:
    """Raise a counter by one and return it; every other write that needs it waits until this one ends."""
    raised = update(NUMBERS).where(NUMBERS.c.name == name).values(value=NUMBERS.c.value + 1)
    return int(connection.execute(raised.returning(NUMBERS.c.value)).scalar_one())


def hold(connection: Connection, name: str) -> int:
    """Return a counter's value and keep every other write that needs it waiting until this one ends."""
    query = select(NUMBERS.c.value).where(NUMBERS.c.name == name).with_for_update()
    return int(connection.execute(query).scalar_one())


def number(connection: Connection, name: str) -> int:
    """Return the value of a named number as this connection sees it."""
    return int(connection.execute(select(NUMBERS.c.value).where(NUMBERS.c.name == name)).scalar_one())


def chunks(values: Sequence[T], size: int = CHUNK) -> Iterable[Sequence[T]]:
    """Cut a sequence into pieces of at most `size`."""
    return (values[start : start + size] for start in range(0, len(values), size))


def check_limit(limit: int) -> int:
    """Return `limit`; raises `InputError` unless it is at least 1."""
    if limit < 1:
        raise InputError(f"limit: must be at least 1, not {limit}", field="limit")
    return limit


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))


def _vacuum(connection: Connection) -> int:
    """Move some pages from the end of an SQLite file to free places; returns how many the file lost."""
    pages: int = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    driver: Any = connection.connection.driver_connection
    driver.execute(f"PRAGMA incremental_vacuum({PAGES_AT_ONCE})").fetchall()  # each row that is fetched is a page
    return pages - int(connection.exec_driver_sql("PRAGMA page_count").scalar_one())


def _retry_while_locked(action: Callable[[], object], wait_s: float) -> None:
    """Repeat `action` while another process holds the lock: switching to the write-ahead log does not wait by itself."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            action()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _parsed(text: str) -> URL:
    allowed = "sqlite:///PATH or postgresql://USER@HOST/DATABASE"
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ConfigError(f"the store's URL cannot be read; allowed: {allowed}", field="store") from None
    if url.drivername in {"postgres", "postgresql", "postgresql+psycopg"}:
        return url.set(drivername="postgresql+psycopg")
    if url.drivername not in {"sqlite", "sqlite+pysqlite"}:
        raise ConfigError(f"unknown database '{url.drivername}'; allowed: {allowed}", field="store")
    if not url.database or url.database == ":memory:" or {"mode", "uri"} & url.query.keys():
        # Each connection would get a memory of its own, and nothing in it would be durable; a URI is no path.
        raise ConfigError(f"the store needs a file that outlives it; allowed: {allowed}", field="store")
    return url


def file_of(url: str) -> Path | None:
    """The file of an SQLite database, None for PostgreSQL. Raises `ConfigError` for a URL that is not understood."""
    parsed = _parsed(url)
    return Path(str(parsed.database)) if parsed.get_backend_name() == "sqlite" else None


def _make(file: Path) -> None:
    """Make the file, with its folder, where it is not there; others may not read it, nor the log beside it."""
    try:
        file.resolve().parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            file.touch(mode=0o600)
    except OSError as error:
        raise StoreError(f"cannot make {file}: {error.strerror}") from error
