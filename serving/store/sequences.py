"""Sequences: tables that only grow and number their rows, and how far a reader may follow them without missing one."""

from __future__ import annotations

from sqlalchemy import Connection, Table, func, select, text

from serving.store.database import RETRY, Database

LOCK_NOT_AVAILABLE = "55P03"


def horizon(database: Database, table: Table) -> int:
    """Return the highest number up to which no further row can appear; 0 when there is none.

    PostgreSQL numbers a row when it is inserted, not when it is committed: a low number may show up after a higher
    one. Asking for a lock that conflicts with all writers waits for those that are under way; it holds up the next
    ones meanwhile, so it asks for a second at most, lets them pass and asks again. Raises `StoreError` when there
    was a writer under way each time. SQLite has one writer at a time, so there numbers appear in order.
    """
    query = select(func.max(table.c.sequence))

    def work(connection: Connection) -> int:
        connection.execute(text("SET LOCAL lock_timeout = '1s'"))
        connection.execute(text(f"LOCK TABLE {table.name} IN SHARE MODE"))
        return connection.execute(query).scalar_one() or 0

    if database.embedded:
        return database.rows(query)[0][0] or 0
    return database.write(work, retry=RETRY | {LOCK_NOT_AVAILABLE})
