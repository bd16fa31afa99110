"""Feedback: events looked at by person and item, and taken back.

A like that is withdrawn, or a rating that takes the place of another: the event goes, and the history in the profile
follows in the same transaction. What an export has of it stays there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, delete, or_, select

from embeddings.schema import Event
from serving.store.aliases import Groups
from serving.store.bulk import selecting
from serving.store.database import Database, check_limit, chunks
from serving.store.events import event_of
from serving.store.histories import Entry, Histories
from serving.store.tables import EVENTS

MOST = 10_000
"""Events that a list returns at most."""

KEYS_AT_ONCE = 200


class Key(NamedTuple):
    """All events of a person with an item, of one type or (None) of any."""

    user_id: str
    item_id: str
    event_type: str | None = None


class Feedback:
    """The events of the store, by person and item."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._histories = Histories(database)
        self._groups = Groups(database)
        self._rows = selecting(
            database, "SELECT user_id, item_id, event_type, timestamp, value FROM events WHERE event_id AMONG"
        )

    def of_user(
        self, user_id: str, *, item_id: str | None = None, event_type: str | None = None, limit: int = MOST
    ) -> list[Event]:
        """Return what a person did, under any of their ids, in the order in which it was stored, up to `limit` events."""
        mine = EVENTS.c.user_id.in_(self._database.read(lambda connection: self._groups.ids(connection, user_id)))
        return self._list(mine if item_id is None else and_(mine, EVENTS.c.item_id == item_id), event_type, limit)

    def every(self, user_id: str, size: int) -> Iterator[Event]:
        """Yield what a person did, as `of_user` does, however much it is."""
        ids = self._database.read(lambda connection: self._groups.ids(connection, user_id))
        query = select(EVENTS).where(EVENTS.c.user_id.in_(ids)).order_by(EVENTS.c.sequence).limit(size)
        rows = self._database.rows(query)
        while rows:
            yield from map(event_of, rows)
            rows = self._database.rows(query.where(EVENTS.c.sequence > rows[-1].sequence))

    def of_item(self, item_id: str, *, event_type: str | None = None, limit: int = MOST) -> list[Event]:
        """Return what everybody did with an item; it looks at every event, because no index leads from items to them."""
        return self._list(EVENTS.c.item_id == item_id, event_type, limit)

    def withdraw(self, keys: Iterable[Key], *, keep: Collection[str] = ()) -> int:
        """Delete the events of these keys, except those whose ids are in `keep`; returns how many were there.

        A key speaks of a person, so of all their ids. Histories forget them in the same transaction, also where retention
        has deleted the event itself before.
        """
        by_user: defaultdict[str, set[Key]] = defaultdict(set)
        for key in keys:
            by_user[key.user_id].add(key)

        def work(connection: Connection) -> int:
            kept: defaultdict[str, list[Entry]] = defaultdict(list)
            for user_id, item_id, event_type, timestamp, value in self._rows(connection, keep) if keep else ():
                kept[user_id].append((item_id, event_type, timestamp / 1e6, value))
            gone = 0
            keyed: defaultdict[str, set[Key]] = defaultdict(set)
            for user_id, mine in by_user.items():
                for one in self._groups.ids(connection, user_id):
                    keyed[one] |= {key._replace(user_id=one) for key in mine}
            for user_id, mine in sorted(keyed.items()):  # in one order everywhere, or two could wait for each other
                self._histories.lock(connection, user_id)
                deleted = sum(_delete(connection, some, keep) for some in chunks(sorted(mine, key=repr), KEYS_AT_ONCE))
                taken = {key[1:] for key in mine}
                self._histories.forget(connection, user_id, taken, kept[user_id], deleted)
                gone += deleted
            return gone

        return self._database.write(work) if by_user else 0

    def _list(self, wanted: ColumnElement[bool], event_type: str | None, limit: int) -> list[Event]:
        query = select(EVENTS).where(wanted).order_by(EVENTS.c.sequence).limit(check_limit(limit))
        if event_type is not None:
            query = query.where(EVENTS.c.event_type == event_type)
        return [event_of(row) for row in self._database.rows(query)]


def _delete(connection: Connection, keys: Iterable[Key], keep: Collection[str]) -> int:
    """Delete the events of some keys of one person."""
    chosen: list[ColumnElement[bool]] = []
    for user_id, item_id, event_type in keys:
        of_type = EVENTS.c.event_type == event_type if event_type is not None else EVENTS.c.event_type.is_not(None)
        chosen.append(and_(EVENTS.c.user_id == user_id, EVENTS.c.item_id == item_id, of_type))
    return connection.execute(delete(EVENTS).where(or_(*chosen), EVENTS.c.event_id.not_in(list(keep)))).rowcount
