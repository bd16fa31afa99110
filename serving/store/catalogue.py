"""The catalogue: every item as the application last described it, with a revision that replicas can follow.

A write raises one counter and stamps what it changed with it; a deleted item leaves a tombstone. `changes` therefore
tells a replica, from any revision on, exactly what it has to encode again and what to forget.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import orjson
from sqlalchemy import Connection, false, func, select

from embeddings.schema import Item
from serving.store.checksums import checksum, refuse
from serving.store.database import Database, advance, check_limit, chunks, hold, number
from serving.store.news import News
from serving.store.tables import ITEMS

_STORED = (ITEMS.c.item_id, ITEMS.c.deleted, ITEMS.c.body, ITEMS.c.checksum)

ITEMS_PER_REVISION = 1000
"""A larger upsert takes several revisions, so that a page of changes never has to be larger than this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """What changed after a revision: each item once, in its latest state. Ask again from `revision` while `more`."""

    revision: int
    upserted: list[Item]
    deleted: list[str]
    more: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemPage:
    """Some items, and the cursor of the page after it (None: this was the last)."""

    items: tuple[Item, ...]
    next: str | None


class Catalogue:
    """The items of the store."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.news = News(database)
        self._item = database.prepared("SELECT item_id, deleted, body, checksum FROM items WHERE item_id = ?")
        self._revision = database.prepared("SELECT value FROM numbers WHERE name = 'catalogue'")
        insert = database.insert(ITEMS)
        new = insert.excluded
        names = ("revision", "deleted", "search", "body", "checksum")
        self._upsert = insert.on_conflict_do_update(
            index_elements=["item_id"],
            set_={name: new[name] for name in names},
            where=ITEMS.c.body != new.body,  # a tombstone's is empty, so an item that comes back differs too
        ).returning(ITEMS.c.item_id)

    def upsert(self, items: Sequence[Item]) -> int:
        """Add items or replace them whole, in one transaction; the last of two equal ids wins. Returns the revision.

        Only what differs from the stored item counts as changed: importing the same catalogue again costs replicas
        nothing and returns the revision that was there.
        """
        latest = list({item.item_id: item for item in items}.values())
        if not latest:
            return self.revision()

        def work(connection: Connection) -> int:
            revision = hold(connection, "catalogue")
            for some in chunks(latest, ITEMS_PER_REVISION):
                self.news.note(connection, some)
                rows = [_row(item, revision + 1) for item in some]
                if connection.execute(self._upsert, rows).first() is not None:
                    revision = advance(connection, "catalogue")
            return revision

        return self._database.write(work)

    def change(self, item_id: str, how: Callable[[Item], Item]) -> bool:
        """Replace an item by what `how` makes of it, in one transaction; False where there is none."""
        stored = select(*_STORED).where(ITEMS.c.item_id == item_id)

        def work(connection: Connection) -> bool:
            revision = hold(connection, "catalogue")
            row = connection.execute(stored).first()
            item = None if row is None else _item(*row)
            if item is None:
                return False
            changed = how(item)
            self.news.note(connection, [changed])
            if connection.execute(self._upsert, [_row(changed, revision + 1)]).first() is not None:
                advance(connection, "catalogue")
            return True

        return self._database.write(work)

    def get(self, item_id: str) -> Item | None:
        """Return an item, or None where there is none or it was deleted; raises `Damaged` as all reading of items does."""
        row = self._item(item_id)
        return None if row is None else _item(*row)

    def delete(self, item_id: str) -> bool:
        """Delete an item, leaving a tombstone; False where there was none.

        The tombstone is left even then: a release in service may hold an item that this store never saw.
        """
        living = select(ITEMS.c.item_id).where(ITEMS.c.item_id == item_id, ITEMS.c.deleted == false())

        def work(connection: Connection) -> bool:
            revision = hold(connection, "catalogue") + 1
            existed = connection.execute(living).first() is not None
            tombstone = {
                "item_id": item_id,
                "revision": revision,
                "deleted": True,
                "search": "",
                "body": "",
                "checksum": checksum(item_id, True, ""),
            }
            if connection.execute(self._upsert, [tombstone]).first() is not None:
                advance(connection, "catalogue")
            return existed

        return self._database.write(work)

    def list(self, limit: int = 100, after: str | None = None, q: str | None = None) -> ItemPage:
        """Return up to `limit` items by id; `after` is the `next` of the page before.

        `q` keeps the items whose title or id contains it, whatever the case, in any alphabet.
        """
        query = select(*_STORED).where(ITEMS.c.deleted == false()).order_by(ITEMS.c.item_id)
        if after is not None:
            query = query.where(ITEMS.c.item_id > after)
        if q:
            query = query.where(ITEMS.c.search.contains(_folded(q), autoescape=True))
        query = query.limit(check_limit(limit) + 1)
        rows = self._database.rows(query)
        items = tuple(item for row in rows[:limit] if (item := _item(*row)))
        return ItemPage(items=items, next=items[-1].item_id if len(rows) > limit else None)

    def revision(self) -> int:
        """Return the number of the latest change; one read of one row."""
        row = self._revision()
        return int(row[0]) if row is not None else 0

    def changes(self, since_revision: int, limit: int = 1000) -> Changes:
        """Return what changed after a revision, oldest change first, in whole revisions.

        `limit` is a wish: a single revision is never cut, and holds at most `ITEMS_PER_REVISION` items.
        """
        newer = select(ITEMS).where(ITEMS.c.revision > since_revision)
        newer = newer.order_by(ITEMS.c.revision, ITEMS.c.item_id)
        reached = newer.with_only_columns(ITEMS.c.revision).offset(check_limit(limit) - 1).limit(1)

        def work(connection: Connection) -> Changes:
            latest = number(connection, "catalogue")
            # A page ends with the revision that holds its row number `limit`; without such a row, with the latest.
            last = connection.execute(reached).scalar_one_or_none() or max(latest, since_revision)
            rows = connection.execute(newer.where(ITEMS.c.revision <= last).with_only_columns(*_STORED)).all()
            found = [(row.item_id, _item(*row)) for row in rows]
            upserted = [item for _, item in found if item is not None]
            deleted = [item_id for item_id, item in found if item is None]
            return Changes(revision=last, upserted=upserted, deleted=deleted, more=latest > last)

        return self._database.read(work)

    def count(self) -> int:
        """Count the items that are not deleted."""
        query = select(func.count()).select_from(ITEMS).where(ITEMS.c.deleted == false())
        return int(self._database.rows(query)[0][0])


def _row(item: Item, revision: int) -> dict[str, object]:
    body = orjson.dumps(item.model_dump(), option=orjson.OPT_SORT_KEYS).decode()
    return {
        "item_id": item.item_id,
        "revision": revision,
        "deleted": False,
        "search": _folded(f"{item.title}\n{item.item_id}"),
        "body": body,
        "checksum": checksum(item.item_id, False, body),
    }


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _item(item_id: str, deleted: bool, body: str, expected: int) -> Item | None:
    """Read a row: the item, or None for a tombstone. Raises `Damaged` where it is not what was written."""
    if expected != checksum(item_id, bool(deleted), body):  # SQLite's driver knows no booleans
        raise refuse(f"the stored item '{item_id}'")
    if deleted:
        return None
    values = orjson.loads(body)
    if values["created_at"] is not None:
        values["created_at"] = datetime.fromisoformat(values["created_at"])
    # Not validated again: what was right when it came stays right when the clock is set back.
    return Item.model_construct(**values)
