"""Lessons: what was learned about the variants of contents from the decision log and from the events that echo it.

The log is read on from where the last lesson ended, by whichever process comes first; what it made of it is written
together with how far it came. So every showing counts once, all processes know the same, and a restart forgets nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import orjson
from sqlalchemy import Connection, delete, exists, func, select, update

from embeddings.arrays import Doubles
from serving.store.checksums import checksum, checksum_of_blob, refuse
from serving.store.database import Database, hold, number
from serving.store.tables import DECISIONS, EVENTS, LESSONS, NUMBERS

FEATURES = "features"
"""Under which name the request of a logged decision has the context that the choice was made by."""


class Position(NamedTuple):
    """How far the log was read: numbers of the last decision and the last event, and when (microseconds since 1970)."""

    decisions: int
    events: int
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What is known of one content: for each of the K `arms` the sums of the bandit, [K, d, d] and [K, d].

    `basis` is the release whose view of people the sums were made with. `version` grows with every change, `at` is when the
    last one was (microseconds since 1970).
    """

    content: str
    version: int
    at: int
    basis: str
    arms: tuple[str, ...]
    outer: Doubles
    inner: Doubles


class Showing(NamedTuple):
    """A variant that was shown, by which release, and in which context."""

    content: str
    variant: str
    model_version: str
    context: Sequence[float]


class Response(NamedTuple):
    """An event that names a showing, the first of its type; `seconds` after it."""

    showing: Showing
    event_type: str
    seconds: float


class Lessons:
    """The lessons of the store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> dict[str, Lesson]:
        """Return every lesson by the id of its content; raises `Damaged` for one that is not what was written."""
        return {row.content: _lesson(row) for row in self._database.rows(select(LESSONS))}

    def versions(self) -> dict[str, int]:
        """Return the version of every lesson."""
        rows = self._database.rows(select(LESSONS.c.content, LESSONS.c.version))
        return {content: version for content, version in rows}  # noqa: C416 - a row is no pair

    def position(self) -> Position:
        """Return how far the log was read."""
        return self._database.read(_position)

    def heads(self) -> tuple[int, int]:
        """Return the highest numbers of a decision and of an event that can be seen now."""

        def work(connection: Connection) -> tuple[int, int]:
            found = [
                connection.execute(select(func.max(table.c.sequence))).scalar_one() for table in (DECISIONS, EVENTS)
            ]
            return found[0] or 0, found[1] or 0

        return self._database.read(work)

    def showings(self, after: int, upto: int) -> list[Showing]:
        """Return what was shown by the decisions after one number, up to another."""
        table = DECISIONS.c
        wanted = (table.placement, table["items"], table.model_version, table.request)
        query = select(*wanted).where(table.sequence > after, table.sequence <= upto, table.kind == "content")
        return [found for row in self._database.rows(query) if (found := _showing(row)) is not None]

    def responses(self, after: int, upto: int) -> list[Response]:
        """Return the events after one number, up to another, that are the first of their type to name a showing."""
        event, table, earlier = EVENTS.c, DECISIONS.c, EVENTS.alias("earlier")
        before = exists().where(
            earlier.c.user_id == event.user_id,
            earlier.c.recommendation_id == event.recommendation_id,
            earlier.c.event_type == event.event_type,
            earlier.c.sequence < event.sequence,
        )
        wanted = (table.placement, table["items"], table.model_version, table.request, event.event_type)
        seconds = (event.timestamp - table.at).label("micros")
        query = (
            select(*wanted, seconds)
            .select_from(EVENTS.join(DECISIONS, table.recommendation_id == event.recommendation_id))
            .where(event.sequence > after, event.sequence <= upto, table.kind == "content", ~before)
        )
        found = []
        for row in self._database.rows(query):
            showing = _showing(row)
            if showing is not None:
                found.append(Response(showing, row.event_type, row.micros / 1e6))
        return found

    def advance(self, before: Position, after: Position, lessons: Sequence[Lesson]) -> bool:
        """Write lessons and how far they come, unless somebody else has read on from `before` meanwhile; whether it did."""

        def work(connection: Connection) -> bool:
            hold(connection, "learned_at")
            if _position(connection) != before:
                return False
            for name, value in zip(Position._fields, after, strict=True):
                changed = update(NUMBERS).where(NUMBERS.c.name == f"learned_{name}").values(value=value)
                connection.execute(changed)
            for lesson in lessons:
                connection.execute(self._put, _row(lesson))
            return True

        return self._database.write(work)

    def forget(self, content: str) -> None:
        """Forget what was learned of a content."""
        gone = delete(LESSONS).where(LESSONS.c.content == content)
        self._database.write(lambda connection: connection.execute(gone))

    @property
    def _put(self) -> Any:
        put = self._database.insert(LESSONS)
        changed = {name: put.excluded[name] for name in ("version", "at", "basis", "arms", "sums", "checksum")}
        return put.on_conflict_do_update(index_elements=["content"], set_=changed)


def _position(connection: Connection) -> Position:
    return Position(*(number(connection, f"learned_{name}") for name in Position._fields))


def _showing(row: Any) -> Showing | None:
    """What a decision showed; None where it showed nothing, or left no context to learn from."""
    items, request = orjson.loads(row.items), orjson.loads(row.request)
    if not items or FEATURES not in request:
        return None
    return Showing(row.placement, items[0], row.model_version, request[FEATURES])


def _row(lesson: Lesson) -> Mapping[str, Any]:
    arms = orjson.dumps(lesson.arms).decode()
    sums = np.concatenate([lesson.outer.ravel(), lesson.inner.ravel()]).astype("<f8").tobytes()
    return {
        "content": lesson.content,
        "version": lesson.version,
        "at": lesson.at,
        "basis": lesson.basis,
        "arms": arms,
        "sums": sums,
        "checksum": _checksum(lesson.content, lesson.version, lesson.at, lesson.basis, arms, sums),
    }


def _lesson(row: Any) -> Lesson:
    if row.checksum != _checksum(row.content, row.version, row.at, row.basis, row.arms, row.sums):
        raise refuse(f"what was learned of the content '{row.content}'")
    arms = tuple(orjson.loads(row.arms))
    sums = np.frombuffer(row.sums, dtype="<f8")
    each = len(sums) // max(1, len(arms))  # d * d + d
    dim = int(((1 + 4 * each) ** 0.5 - 1) / 2)
    outer, inner = np.split(sums, [len(arms) * dim * dim])
    return Lesson(
        content=row.content,
        version=row.version,
        at=row.at,
        basis=row.basis,
        arms=arms,
        outer=outer.reshape(len(arms), dim, dim),
        inner=inner.reshape(len(arms), dim),
    )


def _checksum(content: str, version: int, at: int, basis: str, arms: str, sums: bytes) -> int:
    return checksum(content, version, at, basis, arms, checksum_of_blob(content, sums))
