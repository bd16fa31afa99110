"""Profiles: what is known of each person, in one row that a request reads once.

The row holds the attributes and the most recent events, sorted by time, as one JSON blob; appending events keeps it true in
the same transaction, so the next request of that person sees the last click.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Connection, bindparam, delete, or_, select, update

from embeddings.errors import InputError
from embeddings.schema import User
from serving.store.database import CHUNK, Database, check_limit, chunks
from serving.store.tables import EVENTS, PROFILES

HISTORY_LIMIT = 1000
"""A profile remembers this many events, the most recent by time; the events themselves are all kept."""

Entry = Sequence[Any]
"""An event as the blob holds it: item_id, event_type, timestamp in seconds, value."""

_LOCK = select(PROFILES.c.user_id, PROFILES.c.events, PROFILES.c.last_seen, PROFILES.c.history).with_for_update()
_UPDATE = (
    update(PROFILES)
    .where(PROFILES.c.user_id == bindparam("key"))
    .values(events=bindparam("n"), last_seen=bindparam("seen"), history=bindparam("blob"))
)


class HistoryEvent(NamedTuple):
    """One remembered event; `timestamp` in seconds since 1970."""

    item_id: str
    event_type: str
    timestamp: float
    value: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class UserSummary:
    """A person without their history. `events` counts all of them; `last_seen` in seconds since 1970, None for never."""

    user_id: str
    attributes: dict[str, Any]
    events: int
    last_seen: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile(UserSummary):
    """A person: `history` is oldest first and holds at most `HISTORY_LIMIT` events."""

    history: list[HistoryEvent]


@dataclass(frozen=True, kw_only=True, slots=True)
class UserPage:
    """Some users, and the cursor of the page after it (None: this was the last)."""

    users: tuple[UserSummary, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class Claim:
    """Profiles locked by a transaction: events, last_seen and history by user id; `created` were not there before."""

    stored: dict[str, tuple[int, int, bytes]]
    created: set[str]


class Profiles:
    """The people of the store."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._row = database.prepared("SELECT attributes, events, last_seen, history FROM profiles WHERE user_id = ?")
        insert = database.insert(PROFILES)
        self._upsert = insert.on_conflict_do_update(
            index_elements=["user_id"], set_={"attributes": insert.excluded.attributes}
        )

    def get(self, user_id: str) -> Profile | None:
        """Return the profile of a person, or None; it holds every event that was acknowledged before the call."""
        row = self._row(user_id)
        if row is None:
            return None
        attributes, events, last_seen, history = row
        return Profile(
            user_id=user_id,
            attributes=orjson.loads(attributes),
            history=list(map(HistoryEvent._make, orjson.loads(history))),
            events=events,
            last_seen=last_seen / 1e6 if events else None,
        )

    def upsert(self, users: Sequence[User]) -> None:
        """Set the attributes of people, known or new, in one transaction; the last of two equal ids wins."""
        attributes = {user.user_id: orjson.dumps(user.attributes).decode() for user in users}
        # In one order everywhere, or two such writes could wait for each other.
        rows = [{**_blank(user_id), "attributes": attributes[user_id]} for user_id in sorted(attributes)]
        if rows:
            self._database.write(lambda connection: connection.execute(self._upsert, rows))

    def list(self, limit: int = 100, after: str | None = None) -> UserPage:
        """Return up to `limit` people, most recently active first; `after` is the `next` of the page before.

        Raises `InputError` for a cursor that no page gave out.
        """
        query = select(PROFILES.c.user_id, PROFILES.c.attributes, PROFILES.c.events, PROFILES.c.last_seen)
        query = query.order_by(PROFILES.c.last_seen.desc(), PROFILES.c.user_id).limit(check_limit(limit) + 1)
        if after is not None:
            seen, user_id = _cursor_read(after)
            same_time = (PROFILES.c.last_seen == seen) & (PROFILES.c.user_id > user_id)
            # The first condition is implied by the second; it lets the index begin at the right place.
            query = query.where(PROFILES.c.last_seen <= seen, or_(PROFILES.c.last_seen < seen, same_time))
        rows = self._database.rows(query)
        users = tuple(_summary(*row) for row in rows[:limit])
        return UserPage(users=users, next=_cursor(*rows[limit - 1]) if len(rows) > limit else None)

    def everyone(self, size: int = CHUNK) -> Iterator[tuple[User, ...]]:
        """Yield all users by id, `size` at a time; each person once, also while others are being active."""
        query = select(PROFILES.c.user_id, PROFILES.c.attributes).order_by(PROFILES.c.user_id).limit(check_limit(size))
        after = query  # then: from the last id of the page before
        while rows := self._database.rows(after):
            yield tuple(User(user_id=row.user_id, attributes=orjson.loads(row.attributes)) for row in rows)
            after = query.where(PROFILES.c.user_id > rows[-1].user_id)

    def erase(self, user_id: str) -> int:
        """Forget a person: profile, attributes and every event, in one transaction. Returns the number of events."""

        def work(connection: Connection) -> int:
            # The profile before the events: an append that has it locked commits before they are looked for.
            connection.execute(_LOCK.where(PROFILES.c.user_id == user_id))
            gone = connection.execute(delete(EVENTS).where(EVENTS.c.user_id == user_id)).rowcount
            connection.execute(delete(PROFILES).where(PROFILES.c.user_id == user_id))
            return gone

        return self._database.write(work)


def claim(database: Database, connection: Connection, user_ids: Iterable[str]) -> Claim:
    """Lock the profiles of these people until the transaction ends, creating those that are missing.

    Every writer locks profiles in one order and before it touches events, so that none waits for another in a circle.
    """
    wanted = sorted(set(user_ids))
    claimed = Claim(stored=_locked(connection, wanted), created=set())
    blank = database.insert(PROFILES).on_conflict_do_nothing(index_elements=["user_id"]).returning(PROFILES.c.user_id)
    while missing := [user_id for user_id in wanted if user_id not in claimed.stored]:
        # Somebody else may be creating the same person: the insert waits for them, then their row is there to lock,
        # unless yet another has erased it in between.
        claimed.created.update(connection.execute(blank, [_blank(user_id) for user_id in missing]).scalars())
        claimed.stored.update(_locked(connection, missing))
    return claimed


def remember(connection: Connection, claimed: Claim, seen: Mapping[str, Sequence[Entry]]) -> None:
    """Add new events, by user, to the claimed profiles; forget those that were created and got none."""
    if seen:
        connection.execute(_UPDATE, [_updated(user_id, *claimed.stored[user_id], new) for user_id, new in seen.items()])
    for some in chunks(sorted(claimed.created - seen.keys())):
        connection.execute(delete(PROFILES).where(PROFILES.c.user_id.in_(some)))


def merge(history: Iterable[Entry], new: Iterable[Entry]) -> list[Entry]:
    """Put new events to their place in time, after those of the same moment, and keep the most recent."""
    merged = [*history, *new]
    merged.sort(key=itemgetter(2))
    return merged[-HISTORY_LIMIT:]


def _locked(connection: Connection, user_ids: Sequence[str]) -> dict[str, tuple[int, int, bytes]]:
    found = {}
    for some in chunks(user_ids):
        query = _LOCK.where(PROFILES.c.user_id.in_(some)).order_by(PROFILES.c.user_id)
        for user_id, events, last_seen, history in connection.execute(query):
            found[user_id] = (events, last_seen, history)
    return found


def _updated(user_id: str, events: int, last_seen: int, history: bytes, new: Sequence[Entry]) -> dict[str, Any]:
    latest = max(round(entry[2] * 1e6) for entry in new)
    blob = orjson.dumps(merge(orjson.loads(history), new))
    return {"key": user_id, "n": events + len(new), "seen": max(last_seen, latest), "blob": blob}


def _blank(user_id: str) -> dict[str, Any]:
    return {"user_id": user_id, "attributes": "{}", "events": 0, "last_seen": 0, "history": b"[]"}


def _summary(user_id: str, attributes: str, events: int, last_seen: int) -> UserSummary:
    seen = last_seen / 1e6 if events else None
    return UserSummary(user_id=user_id, attributes=orjson.loads(attributes), events=events, last_seen=seen)


def _cursor(user_id: str, _attributes: str, _events: int, last_seen: int) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([last_seen, user_id])).decode().rstrip("=")


def _cursor_read(cursor: str) -> tuple[int, str]:
    try:
        decoded = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        seen, user_id = orjson.loads(decoded)
        if isinstance(seen, int) and isinstance(user_id, str):
            return seen, user_id
    except (binascii.Error, ValueError, TypeError):
        pass
    raise InputError("after: not a cursor; use the `next` of the page before", field="after")
