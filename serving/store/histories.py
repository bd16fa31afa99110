"""Histories: the most recent events of a person, kept in their profile by whoever stores events.

Every writer first locks the profiles concerned, in one order and before it touches events; so none waits for another in a
circle, and a profile never says anything else than its events do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, TypeVar

import orjson
from sqlalchemy import Connection, delete

from serving.store.bulk import selecting, updating
from serving.store.checksums import checksum, checksum_of_blob, refuse
from serving.store.database import Database, chunks
from serving.store.tables import PROFILES

HISTORY_LIMIT = 1000
"""A profile remembers this many events, the most recent by time; the events themselves are all kept."""

IMPRESSION: Final = "impression"
IMPRESSIONS_LIMIT = 200
"""When a profile is full, older ones than so many go first: there are many, and they must not push out what was done."""

Entry = Sequence[Any]
"""An event as the blob holds it: item_id, event_type, timestamp in seconds, value."""

E = TypeVar("E", bound=Entry)
TYPE, TIME = itemgetter(1), itemgetter(2)


@dataclass(frozen=True, slots=True)
class Claim:
    """Profiles locked by a transaction: events, last_seen and history by user id; `created` were not there before."""

    stored: dict[str, tuple[int, int, bytes]]
    created: set[str]


class Histories:
    """The histories of the store, inside a transaction of somebody who writes events."""

    def __init__(self, database: Database) -> None:
        self._select = selecting(
            database,
            "SELECT user_id, events, last_seen, activity_sum, history_sum, history FROM profiles"
            " WHERE user_id AMONG ORDER BY user_id" + ("" if database.embedded else " FOR UPDATE"),
        )
        changed = ("events", "last_seen", "activity_sum", "history_sum", "history")
        self._update = updating(database, PROFILES, "user_id", changed)
        blank = database.insert(PROFILES).on_conflict_do_nothing(index_elements=["user_id"])
        self._blank = blank.returning(PROFILES.c.user_id)

    def claim(self, connection: Connection, user_ids: Iterable[str]) -> Claim:
        """Lock the profiles of these people until the transaction ends, creating those that are missing.

        Raises `Damaged` for a profile that is not what was written.
        """
        wanted = sorted(set(user_ids))
        claimed = Claim(stored=self._lock(connection, wanted), created=set())
        while missing := [user_id for user_id in wanted if user_id not in claimed.stored]:
            # Somebody else may be creating the same person: the insert waits for them, then their row is there to lock,
            # unless yet another has erased it in between.
            claimed.created.update(connection.execute(self._blank, [blank(user_id) for user_id in missing]).scalars())
            claimed.stored.update(self._lock(connection, missing))
        return claimed

    def remember(self, connection: Connection, claimed: Claim, seen: Mapping[str, Sequence[Entry]]) -> None:
        """Add new events, by user, to the claimed profiles; forget those that were created and got none."""
        if seen:
            rows = [_updated(user_id, *claimed.stored[user_id], new) for user_id, new in seen.items()]
            self._update(connection, rows)
        for some in chunks(sorted(claimed.created - seen.keys())):
            connection.execute(delete(PROFILES).where(PROFILES.c.user_id.in_(some)))

    def keep(self, connection: Connection, user_ids: Iterable[str]) -> None:
        """Make people known of whom there is nothing yet; those who are known stay as they are."""
        rows = [blank(user_id) for user_id in sorted(set(user_ids))]
        if rows:
            connection.execute(self._blank, rows)

    def settle(self, connection: Connection, user_ids: Sequence[str]) -> int:
        """Lock the profiles of people, in whatever state they are, and wait for those who are making one.

        Returns how many there were.
        """
        made: set[str] = set()
        for user_id in sorted(user_ids):
            made.update(connection.execute(self._blank, [blank(user_id)]).scalars())
        self._select(connection, user_ids)
        return len(user_ids) - len(made)

    def forget(
        self,
        connection: Connection,
        user_id: str,
        taken: Collection[tuple[str, str | None]],
        kept: Sequence[Entry],
        deleted: int,
    ) -> None:
        """Take events by item and type (None: any) out of a history, put back those to be kept, count `deleted` fewer."""
        found = self._lock(connection, [user_id])
        if user_id not in found:
            return
        events, last_seen, blob = found[user_id]
        before = orjson.loads(blob)
        after = [entry for entry in before if (entry[0], entry[1]) not in taken and (entry[0], None) not in taken]
        gone = len(before) - len(after)
        if not gone and not deleted:
            return
        after = merge([*after, *kept] if gone else after)
        events = max(len(after), events - max(deleted, gone - len(kept)))
        last_seen = round(TIME(after[-1]) * 1e6) if after else last_seen if events else 0
        blob = orjson.dumps(after)
        self._update(connection, [(events, last_seen, *_sums(user_id, events, last_seen, blob), blob, user_id)])

    def lock(self, connection: Connection, user_id: str) -> None:
        """Lock the profile of one person, where there is one, in whatever state it is."""
        self._select(connection, [user_id])

    def _lock(self, connection: Connection, user_ids: Sequence[str]) -> dict[str, tuple[int, int, bytes]]:
        found = {}
        for user_id, events, last_seen, activity_sum, history_sum, history in self._select(connection, user_ids):
            if (activity_sum, history_sum) != _sums(user_id, events, last_seen, history):
                raise refuse(f"the stored profile of '{user_id}'")
            found[user_id] = (events, last_seen, history)
        return found


def merge(events: Iterable[E]) -> list[E]:
    """The most recent of some events in the order of time, those of one moment in the order given."""
    merged = sorted(events, key=TIME)
    if len(merged) > HISTORY_LIMIT:
        shown = [at for at, entry in enumerate(merged) if TYPE(entry) == IMPRESSION]
        old = set(shown[:-IMPRESSIONS_LIMIT])
        merged = [entry for at, entry in enumerate(merged) if at not in old]
    return merged[-HISTORY_LIMIT:]


def extended(history: bytes, events: int, last_seen: int, new: Sequence[Entry]) -> bytes:
    """Return `merge` of a history, as its blob, and new events after it; `events` and `last_seen` are those of the history.

    Nearly always the new events are the latest and there is room: then nothing of the history need be read.
    """
    ordered = sorted(new, key=TIME)
    if events + len(ordered) <= HISTORY_LIMIT and round(TIME(ordered[0]) * 1e6) >= last_seen:
        return history[:-1] + (b"," if history != b"[]" else b"") + orjson.dumps(ordered)[1:]
    return orjson.dumps(merge([*orjson.loads(history), *ordered]))


def blank(user_id: str) -> dict[str, Any]:
    """Make the row of a person of whom nothing is known."""
    activity, history = _sums(user_id, 0, 0, b"[]")
    return {
        "user_id": user_id,
        "attributes": "{}",
        "attributes_sum": checksum(user_id, "{}"),
        "events": 0,
        "last_seen": 0,
        "activity_sum": activity,
        "history_sum": history,
        "history": b"[]",
    }


def _updated(user_id: str, events: int, last_seen: int, history: bytes, new: Sequence[Entry]) -> tuple[Any, ...]:
    blob = extended(history, events, last_seen, new)
    events += len(new)
    last_seen = max(last_seen, *(round(TIME(entry) * 1e6) for entry in new))
    return (events, last_seen, *_sums(user_id, events, last_seen, blob), blob, user_id)


def _sums(user_id: str, events: int, last_seen: int, history: bytes) -> tuple[int, int]:
    return checksum(user_id, events, last_seen), checksum_of_blob(user_id, history)
