"""Bulk statements: many rows in one call, in the way that is fast on each database.

SQLite runs in this process and takes rows one after the other; PostgreSQL takes whole columns as arrays, in one statement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import orjson
from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql

from embeddings.errors import InputError
from serving.store.database import Database

Rows = Sequence[tuple[Any, ...]]
Write = Callable[[Connection, Rows], None]
Among = Callable[[Connection, Iterable[str]], Sequence[Any]]


def inserting(
    database: Database, table: Table, names: Sequence[str], *, known: Literal["refused", "ignored"] = "refused"
) -> Write:
    """Make a function that inserts rows; a row has the values of the columns `names`, in their order.

    `known` says what becomes of a row that is there already by one of its unique columns.
    """
    into = f"INSERT INTO {table.name} ({', '.join(names)})"
    end = " ON CONFLICT DO NOTHING" if known == "ignored" else ""
    if database.embedded:
        return _one_by_one(f"{into} VALUES ({', '.join('?' * len(names))}){end}")
    return _as_columns(f"{into} SELECT * FROM {_unnested(table, names)}{end}")


def updating(database: Database, table: Table, key: str, names: Sequence[str]) -> Write:
    """Make a function that updates rows; a row has the values of the columns `names`, then that of `key`."""
    if database.embedded:
        values = ", ".join(f"{name} = ?" for name in names)
        return _one_by_one(f"UPDATE {table.name} SET {values} WHERE {key} = ?")
    values = ", ".join(f"{name} = new.{name}" for name in names)
    new = f"{_unnested(table, [*names, key])} AS new({', '.join([*names, key])})"
    return _as_columns(f"UPDATE {table.name} SET {values} FROM {new} WHERE {table.name}.{key} = new.{key}")


def selecting(database: Database, sql: str) -> Among:
    """Make a function that runs a SELECT with `AMONG` for "is one of these texts", however many they are.

    The function raises `InputError` for text that no database holds.
    """
    if not database.embedded:
        statement = sql.replace("AMONG", "= ANY(%s)")
        return lambda connection, texts: connection.exec_driver_sql(statement, (list(texts),)).all()
    statement = sql.replace("AMONG", "IN (SELECT value FROM json_each(?))")

    def select(connection: Connection, texts: Iterable[str]) -> Sequence[Any]:
        try:
            listed = orjson.dumps(list(texts)).decode()
        except orjson.JSONEncodeError as error:
            raise InputError(f"the database cannot hold this value: {error}") from error
        return connection.exec_driver_sql(statement, (listed,)).all()

    return select


def _one_by_one(statement: str) -> Write:
    def write(connection: Connection, rows: Rows) -> None:
        connection.exec_driver_sql(statement, list(rows))

    return write


def _as_columns(statement: str) -> Write:
    def write(connection: Connection, rows: Rows) -> None:
        connection.exec_driver_sql(statement, tuple(map(list, zip(*rows, strict=True))))

    return write


def _unnested(table: Table, names: Sequence[str]) -> str:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    types = (table.c[name].type.compile(dialect).partition(" COLLATE")[0] for name in names)
    return f"unnest({', '.join(f'%s::{kind}[]' for kind in types)})"
