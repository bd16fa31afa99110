"""News of items: that one can be had again, and how its price changed, noted down by the write that brings it about.

One row of each kind is kept for an item, so it takes no more room than the catalogue does.
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

BACK, PRICE = "back_in_stock", "price"
STEPS = 50
"""Changes of a price that are remembered for an item, the latest."""


class Piece(NamedTuple):
    """News of one kind about an item: `at` is when it happened last.

    `before` has for each of the latest changes of a price its moment (seconds since 1970) and the price until then.
    """

    item_id: str
    kind: str
    at: datetime
    before: Sequence[tuple[float, float]]

    def price_at(self, moment: float) -> float | None:
        """The price at a moment in seconds since 1970, as far back as is known; None if it has not changed since."""
        return next((price for changed, price in self.before if changed > moment), None)


class News:
    """The news of the store; `note` runs inside the transaction that changes items."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._stored = selecting(database, "SELECT item_id, body FROM items WHERE item_id AMONG")
        self._steps = selecting(database, f"SELECT item_id, before FROM news WHERE kind = '{PRICE}' AND item_id AMONG")
        put = database.insert(NEWS)
        changed = {name: put.excluded[name] for name in ("at", "before")}
        self._put = put.on_conflict_do_update(index_elements=["item_id", "kind"], set_=changed)

    def note(self, connection: Connection, items: Iterable[Item]) -> None:
        """Compare items that are about to be written with those that are stored, and note down what is news."""
        new = {item.item_id: item for item in items}
        at = int(time.time() * 1e6)
        old = {name: orjson.loads(body) for name, body in self._stored(connection, new) if body}  # a tombstone has none
        rows = [_row(name, BACK, at, []) for name, one in old.items() if new[name].available and not one["available"]]
        changed = {name: one["price"] for name, one in old.items() if one["price"] not in (None, new[name].price)}
        if changed:
            known = {name: orjson.loads(before) for name, before in self._steps(connection, changed)}
            rows += [
                _row(name, PRICE, at, [*known.get(name, ()), [at, price]][-STEPS:]) for name, price in changed.items()
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
                Piece(
                    row.item_id, row.kind, moment(row.at), [(at / 1e6, price) for at, price in orjson.loads(row.before)]
                )
                for row in self._database.rows(query)
            ]
        return sorted(found, key=lambda one: (one.at, one.item_id), reverse=True)


def _row(item_id: str, kind: str, at: int, before: Sequence[Any]) -> dict[str, Any]:
    return {"item_id": item_id, "kind": kind, "at": at, "before": orjson.dumps(before).decode()}
