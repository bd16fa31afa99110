"""Events: what people did, stored once, durably, and in an order that an export can follow.

`append` is the only writer. It stores events and brings the profiles of their users up to date in one transaction; an event
id that is known already changes nothing.
"""

from __future__ import annotations

import math
import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import ValidationError
from sqlalchemy import Connection, Double, Row, cast, func, select, text

from embeddings.errors import InputError, StoreError
from embeddings.schema import Event
from serving.store.database import RETRY, Database, check_limit
from serving.store.profiles import Entry, claim, remember
from serving.store.tables import DAY_US, EVENTS, HOUR_US, micros, moment

HOURLY_BELOW_S = 14 * 86_400.0
"""Counts with a shorter half-life are gathered by the hour, longer ones by the day."""

LOCK_NOT_AVAILABLE = "55P03"

_COLUMNS = [column for column in EVENTS.c if column.name != "sequence"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Appended:
    """What became of a batch. `event_ids` has one id for each event given, in their order, duplicates included."""

    accepted: int
    duplicates: int
    event_ids: list[str]


class Events:
    """The events of the store."""

    def __init__(self, database: Database) -> None:
        self._database = database
        insert = database.insert(EVENTS).on_conflict_do_nothing(index_elements=["event_id"])
        self._insert = insert.returning(EVENTS.c.event_id)

    def append(self, events: Sequence[Event]) -> Appended:
        """Store events, all or none, and update the profiles of their users; durable when it returns.

        Idempotent by `event_id`: a repeat, in this batch or of an earlier one, counts as a duplicate and changes
        nothing. An event without an id gets one (and can then not be recognised when it is sent again).
        """
        event_ids = [event.event_id or uuid.uuid4().hex for event in events]
        rows: dict[str, dict[str, Any]] = {}
        for event_id, event in zip(event_ids, events, strict=True):
            if event_id not in rows:
                rows[event_id] = _row(event_id, event)
        if not rows:
            return Appended(accepted=0, duplicates=0, event_ids=[])
        accepted = self._database.write(lambda connection: self._store(connection, list(rows.values())))
        return Appended(accepted=accepted, duplicates=len(events) - accepted, event_ids=event_ids)

    def count(self, user_id: str) -> int:
        """Count the stored events of a person."""
        query = select(func.count()).select_from(EVENTS).where(EVENTS.c.user_id == user_id)
        return int(self._database.rows(query)[0][0])

    def counts(
        self, since: float, half_life_s: float | None = None, *, now: float | None = None
    ) -> dict[str, dict[str, float]]:
        """Count events by item and type from the moment `since` on; both moments in seconds since 1970.

        With a half-life an event counts 0.5 ** (age / half_life_s), its age taken from `now` (default: the clock) and
        never negative. The database gathers by hour or day and the decay is that of the mean age of such a bucket: the
        error is second order in bucket over half-life. Raises `InputError` for a half-life that is not positive.
        """
        if half_life_s is not None and not (math.isfinite(half_life_s) and half_life_s > 0):
            raise InputError("half_life_s: must be a positive number of seconds", field="half_life_s")
        table = EVENTS.c
        wanted = [table.item_id, table.event_type, func.count(), cast(func.avg(table.timestamp), Double)]
        query = select(*wanted).where(table.timestamp >= math.ceil(since * 1e6))
        query = query.group_by(table.item_id, table.event_type)
        if half_life_s is not None:
            query = query.group_by(table.timestamp // (HOUR_US if half_life_s < HOURLY_BELOW_S else DAY_US))
        until = time.time() if now is None else now
        found: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
        for item_id, event_type, n, mean in self._database.rows(query):
            age = max(0.0, until - mean / 1e6)
            found[item_id][event_type] += n * 0.5 ** (age / half_life_s) if half_life_s is not None else n
        return {item_id: dict(by_type) for item_id, by_type in found.items()}

    def since(self, sequence: int, limit: int = 1000) -> list[tuple[int, Event]]:
        """Return up to `limit` events that were stored after the one numbered `sequence`, in the order of their numbers.

        Reading on from the last number misses no event, also not one of a transaction that took longer: see `horizon`.
        """
        upper = self.horizon()
        query = select(EVENTS.c.sequence, *_COLUMNS).where(EVENTS.c.sequence > sequence, EVENTS.c.sequence <= upper)
        query = query.order_by(EVENTS.c.sequence).limit(check_limit(limit))
        rows = self._database.rows(query)
        return [(row.sequence, _event(row)) for row in rows]

    def horizon(self) -> int:
        """Return the highest number up to which no further event can appear; 0 when there is none.

        PostgreSQL numbers a row when it is inserted, not when it is committed: a low number may show up after a higher
        one. Asking for a lock that conflicts with all writers waits for those that are under way; it holds up the next
        ones meanwhile, so it asks for a second at most, lets them pass and asks again. Raises `StoreError` when there
        was a writer under way each time. SQLite has one writer at a time, so there numbers appear in order.
        """
        query = select(func.max(EVENTS.c.sequence))

        def work(connection: Connection) -> int:
            connection.execute(text("SET LOCAL lock_timeout = '1s'"))
            connection.execute(text("LOCK TABLE events IN SHARE MODE"))
            return connection.execute(query).scalar_one() or 0

        if self._database.embedded:
            return self._database.rows(query)[0][0] or 0
        return self._database.write(work, retry=RETRY | {LOCK_NOT_AVAILABLE})

    def _store(self, connection: Connection, rows: list[dict[str, Any]]) -> int:
        claimed = claim(self._database, connection, [row["user_id"] for row in rows])
        fresh = set(connection.execute(self._insert, rows).scalars())
        seen: defaultdict[str, list[Entry]] = defaultdict(list)
        for row in rows:
            if row["event_id"] in fresh:
                entry = (row["item_id"], row["event_type"], row["timestamp"] / 1e6, row["value"])
                seen[row["user_id"]].append(entry)
        remember(connection, claimed, seen)
        return len(fresh)


def _row(event_id: str, event: Event) -> dict[str, Any]:
    return {
        "event_id": event_id,
        "user_id": event.user_id,
        "item_id": event.item_id,
        "event_type": event.event_type,
        "timestamp": micros(event.timestamp),
        "value": event.value,
        "session_id": event.session_id,
        "channel": event.channel,
        "context": orjson.dumps(event.context, option=orjson.OPT_SORT_KEYS).decode(),
        "recommendation_id": event.recommendation_id,
        "position": event.position,
    }


def _event(row: Row[Any]) -> Event:
    columns = {column.name: getattr(row, column.name) for column in _COLUMNS}
    columns["timestamp"] = moment(columns["timestamp"])
    columns["context"] = orjson.loads(columns["context"])
    try:
        return Event(**columns)
    except ValidationError as error:
        raise StoreError(f"stored event '{row.event_id}' does not fit the schema: {error}") from error
