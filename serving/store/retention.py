"""Retention: old events and decisions leave the store, once an export has them, and their space goes back to the disk.

Profiles stay: a person keeps the history that a request reads. Everything happens in small transactions, so that those who
write meanwhile hardly wait.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, and_, delete, false, func, or_, select

from embeddings.errors import NotFound
from serving.store import Store
from serving.store.contacts import KEPT
from serving.store.export import DECISIONS, EVENTS, Stream, bands_of
from serving.store.tables import micros

ROWS_AT_ONCE = 2_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Retained:
    """What a retention did: rows deleted, rows as old that stay because no export has them, bytes given back."""

    deleted: int
    kept: int
    decisions: int
    decisions_kept: int
    freed: int


def retain(store: Store, *, before: datetime, exported: str | os.PathLike[str] | None) -> Retained:
    """Delete the events and decisions from before a moment that are in the export at `exported`; with None, all of them.

    The id of a deleted event is no longer known: sent again, the event counts as new. Raises `NotFound` where there is
    no export, `Conflict` for that of another store, `DataError` for one whose ledger cannot be read.
    """
    if exported is not None and not bands_of(store, EVENTS, exported):
        raise NotFound(f"no events of this store were exported to {exported}", field="exported")
    deleted, kept = _retain(store, EVENTS, micros(before), exported)
    decisions, decisions_kept = _retain(store, DECISIONS, micros(before), exported)
    store.contacts.forget(datetime.now(UTC) - KEPT)
    freed = store.database.compact()
    return Retained(deleted=deleted, kept=kept, decisions=decisions, decisions_kept=decisions_kept, freed=freed)


def _retain(store: Store, stream: Stream, before: int, exported: str | os.PathLike[str] | None) -> tuple[int, int]:
    """Delete what is old in one stream; returns how many rows, and how many as old stay."""
    table, old = stream.table, stream.time < before
    chosen = old if exported is None else and_(old, _written(store, stream, exported))
    some = select(table.c.sequence).where(chosen).limit(ROWS_AT_ONCE)
    deletion = delete(table).where(table.c.sequence.in_(some))
    deleted = 0
    while count := store.database.write(lambda connection: connection.execute(deletion).rowcount):
        deleted += count
    return deleted, store.database.rows(select(func.count()).select_from(table).where(old))[0][0]


def _written(store: Store, stream: Stream, directory: str | os.PathLike[str]) -> ColumnElement[bool]:
    sequence = stream.table.c.sequence
    first = 0
    within: list[ColumnElement[bool]] = []
    for band in bands_of(store, stream, directory):
        within.append(and_(sequence > first, sequence <= band.last, stream.time < band.before))
        first = band.last
    return or_(false(), *within)
