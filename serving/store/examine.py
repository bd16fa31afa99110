"""Examination: a look through an SQLite file before it is served from, so that damage is told at the start.

Checksums find a record that is not what was written; this finds the record that an index no longer leads to. PostgreSQL
looks after its own files.
"""

from __future__ import annotations

import time

from sqlalchemy import Connection, func, select
from sqlalchemy.exc import OperationalError

from embeddings.errors import Damaged
from serving.store.database import Database, number
from serving.store.tables import AUDIT, ITEMS

EXAMINE_S = 2.0
"""Seconds that it may add to a start; what it does not reach in that time is left to the checksums."""

STEPS_PER_LOOK = 10_000
"""Instructions of SQLite's machine between two looks at the clock: a millisecond or less."""


def examine(database: Database, limit_s: float = EXAMINE_S) -> bool:
    """Compare every table with its indexes, for `limit_s` seconds at most; returns whether that was all of them.

    Raises `Damaged` for what is found, `StoreError` when the file cannot be read at all.
    """
    if not database.embedded:
        return True
    found = database.read(lambda connection: _integrity(connection, limit_s))
    if found not in (None, "ok"):
        raise Damaged(f"the store at {database.where} is damaged: {found}; restore it from a copy")
    behind = database.read(_behind)
    if behind is not None:
        raise Damaged(f"the store at {database.where} is damaged: {behind}; restore it from a copy")
    return found is not None


def _integrity(connection: Connection, limit_s: float) -> str | None:
    """The first thing that is wrong, or ok, or None when the time was up before."""
    driver = connection.connection.driver_connection
    assert driver is not None
    deadline = time.monotonic() + limit_s
    driver.set_progress_handler(lambda: time.monotonic() > deadline, STEPS_PER_LOOK)
    try:
        return " ".join(connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar_one().split())
    except OperationalError as error:
        if str(error.orig) != "interrupted":
            raise
        return None
    finally:
        driver.set_progress_handler(None, 0)


def _behind(connection: Connection) -> str | None:
    """Counters have no checksum, but none is ever behind what it counts."""
    for name, column in (("catalogue", ITEMS.c.revision), ("documents", AUDIT.c.version)):
        reached = connection.execute(select(func.max(column))).scalar_one() or 0
        if number(connection, name) < reached:
            return f"the counter '{name}' is behind {reached}"
    return None
