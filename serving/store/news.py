"""News of items: that one can be had again, and that one costs less, noted down by the write that brings it about.

Only the latest of each kind is kept for an item, so it takes no more room than the catalogue does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Connection, select

from embeddings.schema import Item
from serving.store.bulk import selecting
from serving.store.database import Database, chunks
from serving.store.tables import NEWS, micros, moment

BACK, CHEAPER = "back_in_stock", "price_drop"


class Piece(NamedTuple):
    """One piece of news; `before` and `after` are prices, of an item that is back both the present one."""

    item_id: str
    kind: str
    at: datetime
    before: float | None
    after: float | None


class News:
    """The news of the store; `note` runs inside the transaction that changes items."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._stored = selecting(database, "SELECT item_id, body FROM items WHERE item_id AMONG")
        put = database.insert(NEWS)
        changed = {name: put.excluded[name] for name in ("at", "before", "after")}
        self._put = put.on_conflict_do_update(index_elements=["item_id", "kind"], set_=changed)

    def note(self, connection: Connection, items: Iterable[Item]) -> None:
        """Compare items that are about to be written with those that are stored, and note down what is good news."""
        new = {item.item_id: item for item in items}
        at = int(time.time() * 1e6)
        rows = []
        for item_id, body in self._stored(connection, new):
            if body:  # a tombstone has none
                old = orjson.loads(body)
                rows += [
                    {"item_id": item_id, "kind": kind, "at": at, "before": before, "after": after}
                    for kind, before, after in _good(old, new[item_id])
                ]
        if rows:
            connection.execute(self._put, rows)

    def of(self, item_ids: Sequence[str], kind: str, since: datetime) -> list[Piece]:
        """Return the news of one kind about some items from a moment on, the latest first."""
        table = NEWS.c
        found = []
        for some in chunks(item_ids):
            query = select(NEWS).where(table.item_id.in_(some), table.kind == kind, table.at >= micros(since))
            found += [
                Piece(row.item_id, row.kind, moment(row.at), row.before, row.after)
                for row in self._database.rows(query)
            ]
        return sorted(found, key=lambda one: (one.at, one.item_id), reverse=True)


def _good(old: dict[str, Any], new: Item) -> Iterable[tuple[str, float | None, float | None]]:
    if new.available and not old["available"]:
        yield BACK, old["price"], new.price
    if old["price"] is not None and new.price is not None and new.price < old["price"]:
        yield CHEAPER, old["price"], new.price
