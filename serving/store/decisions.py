"""Decisions: every answer that went out, with what it takes to ask for it again and to judge another policy by it.

Rows are written in batches after the answers and deleted by retention and erasure; nobody changes one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import orjson
from sqlalchemy import Connection, Row, Select, delete, func, or_, select

from serving.store.aliases import Groups
from serving.store.bulk import inserting
from serving.store.checksums import checksum, refuse
from serving.store.cursors import cursor, cursor_read
from serving.store.database import Database, check_limit
from serving.store.erasures import Erasures
from serving.store.sequences import horizon
from serving.store.tables import DECISIONS, micros, moment

KINDS = ("list", "page", "content")

USER, WHEN = 1, 2
_COLUMNS = [column.name for column in DECISIONS.c if column.name not in ("sequence", "checksum")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """One answer. `items`, `scores`, `propensities` and `sources` have an entry for each place, in order.

    `user_id` is None for nobody, and for people who do not want to be analysed. `kind` is one of `KINDS`. `request` has
    what was asked beside person, placement and time. A propensity is the probability that this item was put on this
    place, 1.0 where nothing was left to chance. `sources` name what found an item, alphabetically. `arms` are
    experiment -> arm. `scores` are kept as 32-bit floats.
    """

    recommendation_id: str
    user_id: str | None
    at: datetime
    kind: str
    placement: str
    channel: str | None
    request: Mapping[str, Any]
    items: Sequence[str]
    scores: Sequence[float]
    propensities: Sequence[float]
    sources: Sequence[Sequence[str]]
    arms: Mapping[str, str]
    model_version: str
    policy_version: int
    degraded: Sequence[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionPage:
    """Some decisions, and the cursor of the page after it (None: this was the last)."""

    decisions: tuple[Decision, ...]
    next: str | None


class Decisions:
    """The decisions of the store."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._groups = Groups(database)
        self._erasures = Erasures(database)
        self._insert = inserting(database, DECISIONS, [*_COLUMNS, "checksum"], known="ignored")

    def write(self, decisions: Iterable[Decision]) -> int:
        """Store decisions in one transaction and return how many; one whose id is known changes nothing, but counts.

        What was shown to somebody before they were erased is left out. Everything is encoded before the transaction
        begins. Raises `InputError` for a value that no database holds.
        """
        rows = [_row(decision) for decision in decisions]

        def work(connection: Connection) -> int:
            self._erasures.hold(connection)
            erased = self._erasures.of(connection, {row[USER] for row in rows if row[USER] is not None})
            living = [row for row in rows if row[WHEN] > erased.get(row[USER], -1)] if erased else rows
            if living:
                self._insert(connection, living)
            return len(living)

        return self._database.write(work) if rows else 0

    def get(self, recommendation_id: str) -> Decision | None:
        """Return the decision behind an answer, or None; raises `Damaged` for one that is not what was written."""
        rows = self._database.rows(select(DECISIONS).where(DECISIONS.c.recommendation_id == recommendation_id))
        return decision_of(rows[0]) if rows else None

    def of_user(self, user_id: str, limit: int = 100, after: str | None = None) -> DecisionPage:
        """Return what was shown to a person under any of their ids, newest first; `after` is the `next` of a page."""
        ids = self._database.read(lambda connection: self._groups.ids(connection, user_id))
        query = select(DECISIONS).where(DECISIONS.c.user_id.in_(ids))
        return self._page(query, limit, after, newest_first=True)

    def tally(self, user_ids: Sequence[str]) -> tuple[int, datetime | None]:
        """Return how many decisions there are about some ids, and when the last one was."""
        query = select(func.count(), func.max(DECISIONS.c.at)).where(DECISIONS.c.user_id.in_(user_ids))
        count, last = self._database.read(lambda connection: connection.execute(query).one())
        return count, None if last is None else moment(last)

    def between(
        self, start: datetime, end: datetime, limit: int = 1000, after: str | None = None, *, kind: str | None = None
    ) -> DecisionPage:
        """Return the decisions from `start` until before `end`, oldest first, of one kind or of all."""
        query = select(DECISIONS).where(DECISIONS.c.at >= micros(start), DECISIONS.c.at < micros(end))
        if kind is not None:
            query = query.where(DECISIONS.c.kind == kind)
        return self._page(query, limit, after, newest_first=False)

    def latest(self, placement: str | None, limit: int, *, kind: str) -> tuple[Decision, ...]:
        """Return the latest decisions of one kind about a placement (or a page), or about any, newest first."""
        query = select(DECISIONS).where(DECISIONS.c.kind == kind)
        if placement is not None:
            query = query.where(DECISIONS.c.placement == placement)
        query = query.order_by(DECISIONS.c.at.desc(), DECISIONS.c.recommendation_id.desc()).limit(check_limit(limit))
        return tuple(map(decision_of, self._database.rows(query)))

    def count(self, kind: str, since: datetime, limit: int) -> int:
        """Return how many decisions of one kind there are from a moment on, or `limit` if there are more."""
        found = select(DECISIONS.c.at).where(DECISIONS.c.at >= micros(since), DECISIONS.c.kind == kind).limit(limit)
        count = select(func.count()).select_from(found.subquery())
        return int(self._database.read(lambda connection: connection.execute(count).scalar_one()))

    def horizon(self) -> int:
        """Return the highest number up to which no further decision can appear: see `sequences.horizon`."""
        return horizon(self._database, DECISIONS)

    def _page(self, query: Select[Any], limit: int, after: str | None, *, newest_first: bool) -> DecisionPage:
        at, name = DECISIONS.c.at, DECISIONS.c.recommendation_id
        query = query.order_by(*((at.desc(), name.desc()) if newest_first else (at, name)))
        if after is not None:
            last_at, last = cursor_read(after)
            # The first condition is implied by the second; it lets the index begin at the right place.
            if newest_first:
                query = query.where(at <= last_at, or_(at < last_at, name < last))
            else:
                query = query.where(at >= last_at, or_(at > last_at, name > last))
        rows = self._database.rows(query.limit(check_limit(limit) + 1))
        more = cursor(rows[limit - 1].at, rows[limit - 1].recommendation_id) if len(rows) > limit else None
        return DecisionPage(decisions=tuple(map(decision_of, rows[:limit])), next=more)


def erase_decisions(connection: Connection, user_id: str) -> int:
    """Delete the decisions about a person in somebody's transaction; returns how many there were."""
    return connection.execute(delete(DECISIONS).where(DECISIONS.c.user_id == user_id)).rowcount


def decision_of(row: Row[Any]) -> Decision:
    """Make the decision that a row holds; raises `Damaged` where it is not what was written."""
    values = {name: getattr(row, name) for name in _COLUMNS}
    if row.checksum != checksum(*values.values()):
        raise refuse(f"the stored decision '{row.recommendation_id}'")
    for name in ("request", "items", "scores", "propensities", "sources", "arms", "degraded"):
        values[name] = None if values[name] is None else orjson.loads(values[name])
    found_by: list[list[str]] = [[] for _ in values["items"]]
    for source, places in values["sources"].items():
        for place in places:
            found_by[place].append(source)
    certain = [1.0] * len(found_by)
    values |= {"at": moment(row.at), "sources": found_by, "propensities": values["propensities"] or certain}
    return Decision(**values)


def _row(decision: Decision) -> tuple[Any, ...]:
    """Values in the order of the table; what is the same for most answers takes little room."""
    places: dict[str, list[int]] = {}
    for place, names in enumerate(decision.sources):
        for name in names:
            places.setdefault(name, []).append(place)
    chance = any(one != 1.0 for one in decision.propensities)
    values = (
        decision.recommendation_id,
        decision.user_id,
        micros(decision.at),
        decision.kind,
        decision.placement,
        decision.channel,
        _json(decision.request),
        _json(decision.items),
        _json(np.array(decision.scores, dtype=np.float32)),
        _json(decision.propensities) if chance else None,
        _json(places),
        _json(decision.arms),
        decision.model_version,
        decision.policy_version,
        _json(decision.degraded),
    )
    return (*values, checksum(*values))


def _json(value: object) -> str:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_SORT_KEYS, default=dict).decode()
