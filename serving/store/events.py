"""Events: what people did, stored once, durably, and in an order that an export can follow.

`append` is the only writer. It stores events and brings the profiles of their users up to date in one transaction; an event
id that is known already changes nothing.
"""

from __future__ import annotations

import itertools
import math
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Connection, Double, Row, cast, func, select

from embeddings.errors import BespokeError, Damaged, InputError
from embeddings.schema import Event
from serving.store.bulk import inserting, selecting
from serving.store.checksums import checksum, refuse
from serving.store.database import RETRY, Database, check_limit
from serving.store.erasures import Erasures
from serving.store.histories import Entry, Histories
from serving.store.sequences import horizon
from serving.store.tables import DAY_US, EVENTS, HOUR_US, micros, moment

HOURLY_BELOW_S = 14 * 86_400.0
"""Counts with a shorter half-life are gathered by the hour, longer ones by the day."""

UNIQUE_VIOLATION = "23505"

_COLUMNS = [column for column in EVENTS.c if column.name not in ("sequence", "checksum")]
USER, WHEN = 1, 4
_STORED = [*(column.name for column in _COLUMNS), "checksum"]


Echoes = Mapping[tuple[str, str], tuple[int, float]]
"""Recommendation id and item -> how many events followed, and the sum of their values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Appended:
    """What became of a batch. `event_ids` has one id for each event given, in their order, duplicates included.

    `erased` counts events of people who were erased after they happened: they are not stored.
    """

    accepted: int
    duplicates: int
    event_ids: list[str]
    erased: int = 0


class Events:
    """The events of the store."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._histories = Histories(database)
        self._erasures = Erasures(database)
        self._insert = inserting(database, EVENTS, _STORED)
        self._known = selecting(database, "SELECT event_id FROM events WHERE event_id AMONG")

    def append(self, events: Sequence[Event]) -> Appended:
        """Store events, all or none, and update the profiles of their users; durable when it returns.

        Idempotent by `event_id`: a repeat, in this batch or of an earlier one, counts as a duplicate and changes
        nothing. An event without an id gets one (and can then not be recognised when it is sent again). An event that
        happened before its person was erased is left out and counted.
        """
        return self._append([events])[0]

    def append_each(self, batches: Sequence[Sequence[Event]]) -> list[Appended | BespokeError]:
        """Append several batches, each as `append` does, in one transaction if that can be.

        What came of each batch is returned in their order. A batch that cannot be stored for a reason of its own (a
        value that no database holds, a damaged profile) is refused alone; a database that fails refuses them all.
        """
        try:
            return [*self._append(batches)]
        except BespokeError as error:
            if len(batches) == 1 or not isinstance(error, InputError | Damaged):
                return [error] * len(batches)
        return [outcome for batch in batches for outcome in self.append_each([batch])]

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
        query = select(EVENTS).where(EVENTS.c.sequence > sequence, EVENTS.c.sequence <= upper)
        query = query.order_by(EVENTS.c.sequence).limit(check_limit(limit))
        rows = self._database.rows(query)
        return [(row.sequence, event_of(row)) for row in rows]

    def echoes(self, event_type: str, since: datetime, until: datetime) -> Echoes:
        """Count the events of a type that say which answer they came from, by answer and item, with their values."""
        table = EVENTS.c
        query = select(table.recommendation_id, table.item_id, func.count(), func.coalesce(func.sum(table.value), 0.0))
        query = query.where(table.timestamp >= micros(since), table.timestamp < micros(until))
        query = query.where(table.event_type == event_type, table.recommendation_id.is_not(None))
        rows = self._database.rows(query.group_by(table.recommendation_id, table.item_id))
        return {(answer, item_id): (int(count), float(value)) for answer, item_id, count, value in rows}

    def answers(self, event_type: str, since: datetime, until: datetime) -> dict[str, datetime]:
        """Return the answers that events of a type between two moments came from, each with the first of these."""
        table = EVENTS.c
        query = select(table.recommendation_id, func.min(table.timestamp).label("first"))
        query = query.where(table.timestamp >= micros(since), table.timestamp <= micros(until))
        query = query.where(table.event_type == event_type, table.recommendation_id.is_not(None))
        rows = self._database.rows(query.group_by(table.recommendation_id))
        return {row.recommendation_id: moment(row.first) for row in rows}

    def horizon(self) -> int:
        """Return the highest number up to which no further event can appear: see `sequences.horizon`."""
        return horizon(self._database, EVENTS)

    def _append(self, batches: Sequence[Sequence[Event]]) -> list[Appended]:
        event_ids = [[event.event_id or uuid.uuid4().hex for event in events] for events in batches]
        rows: dict[str, tuple[Any, ...]] = {}
        firsts: list[list[str]] = []  # by batch, the ids that stand in it and in none before
        try:
            for ids, events in zip(event_ids, batches, strict=True):
                held = len(rows)
                for event_id, event in zip(ids, events, strict=True):
                    if event_id not in rows:
                        rows[event_id] = _row(event_id, event)
                firsts.append([*itertools.islice(rows, held, None)])
        except orjson.JSONEncodeError as error:
            raise InputError(f"the database cannot hold this value: {error}") from error
        stored: set[str] = set()
        late: set[str] = set()
        if rows:
            # A unique violation is an event that another transaction has just stored, for another user.
            retry = RETRY | {UNIQUE_VIOLATION}
            stored, late = self._database.write(lambda connection: self._store(connection, rows), retry=retry)
        done = []
        for own, ids in zip(firsts, event_ids, strict=True):
            n, erased = sum(event_id in stored for event_id in own), sum(event_id in late for event_id in ids)
            done.append(Appended(accepted=n, duplicates=len(ids) - n - erased, event_ids=ids, erased=erased))
        return done

    def _store(self, connection: Connection, rows: dict[str, tuple[Any, ...]]) -> tuple[set[str], set[str]]:
        """Store the rows whose event ids are new, in the transaction of `connection`.

        Returns those ids, and the ids of events that come too late because their person was erased.
        """
        claimed = self._histories.claim(connection, {row[USER] for row in rows.values()})
        # An erasure of somebody whose profile is locked is over, or waits for it.
        erased = self._erasures.of(connection, {row[USER] for row in rows.values()})
        late = {event_id for event_id, row in rows.items() if row[WHEN] <= erased.get(row[USER], -1)}
        if late:
            rows = {event_id: row for event_id, row in rows.items() if event_id not in late}
        # The same event comes with the same user, whose profile is locked now: what is not there does not appear.
        known = {event_id for (event_id,) in self._known(connection, rows)}
        fresh = [row for event_id, row in rows.items() if event_id not in known]
        if fresh:
            self._insert(connection, fresh)
        seen: defaultdict[str, list[Entry]] = defaultdict(list)
        for _, user_id, item_id, event_type, timestamp, value, *_ in fresh:
            seen[user_id].append((item_id, event_type, timestamp / 1e6, value))
        self._histories.remember(connection, claimed, seen)
        return rows.keys() - known, late


def _row(event_id: str, event: Event) -> tuple[Any, ...]:
    """Values in the order of `_STORED`."""
    values = (
        event_id,
        event.user_id,
        event.item_id,
        event.event_type,
        micros(event.timestamp),
        event.value,
        event.session_id,
        event.channel,
        orjson.dumps(event.context, option=orjson.OPT_SORT_KEYS).decode(),
        event.recommendation_id,
        event.position,
    )
    return (*values, checksum(*values))


def values_of(row: Row[Any]) -> dict[str, Any]:
    """Return the columns of a stored event as they are stored; raises `Damaged` where they are not what was written."""
    values = {column.name: getattr(row, column.name) for column in _COLUMNS}
    if row.checksum != checksum(*values.values()):
        raise refuse(f"the stored event '{row.event_id}'")
    return values


def event_of(row: Row[Any]) -> Event:
    """Make the event that a row holds; raises as `values_of` does."""
    values = values_of(row)
    values["timestamp"] = moment(values["timestamp"])
    values["context"] = orjson.loads(values["context"])
    # Not validated again: what was right when it came stays right when the clock is set back.
    return Event.model_construct(**values)
