"""Aliases: other ids of a person (a cookie, a device, an address), and the person that each of them leads to.

An alias leads to a person in one step: nobody is an alias and has aliases of their own, so there are no chains or loops.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, delete, func, insert, select

from embeddings.errors import Conflict, InputError
from serving.store.bulk import selecting
from serving.store.checksums import checksum, refuse
from serving.store.database import Database, advance, hold
from serving.store.histories import Histories
from serving.store.tables import ALIASES, moment

T = TypeVar("T")

MOST = 100
"""Aliases that a person may have: a request reads what is known of all of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alias:
    """Another id of a person, and since when it is one."""

    alias: str
    user_id: str
    created_at: datetime


class Aliases:
    """The aliases of the store."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._histories = Histories(database)
        self._groups = Groups(database)
        self._row = database.prepared("SELECT user_id, created_at, checksum FROM aliases WHERE alias = ?")

    def link(self, alias: str, user_id: str) -> bool:
        """Make an id an alias of a person; False if it is one already. A person who was not known is known from then on.

        Raises `Conflict` if it leads to somebody else, has aliases itself, the person's id is an alias, or they have as
        many aliases as they may have; `InputError` if both are the same.
        """
        if alias == user_id:
            raise InputError(f"alias: '{alias}' cannot be an alias of itself", field="alias")

        def work(connection: Connection) -> bool:
            hold(connection, "aliases")  # nobody else links between the look and the write
            found = connection.execute(select(ALIASES).where(ALIASES.c.alias.in_([alias, user_id]))).all()
            people = {row.alias: alias_of(row).user_id for row in found}
            if user_id in people:
                whose = people[user_id]
                raise Conflict(f"user_id: '{user_id}' is an alias of '{whose}'; link to that", field="user_id")
            if alias in people:
                if people[alias] != user_id:
                    raise Conflict(f"alias: '{alias}' is one of '{people[alias]}'; unlink it first", field="alias")
                return False
            if connection.execute(select(ALIASES.c.alias).where(ALIASES.c.user_id == alias).limit(1)).first():
                raise Conflict(f"alias: '{alias}' has aliases itself; unlink them first", field="alias")
            held = select(func.count()).where(ALIASES.c.user_id == user_id)
            if connection.execute(held).scalar_one() >= MOST:
                raise Conflict(f"alias: '{user_id}' has {MOST} aliases already, the most there may be", field="alias")
            self._histories.keep(connection, [user_id])
            advance(connection, "aliases")
            values = (alias, user_id, time.time_ns() // 1000)
            row = dict(zip(("alias", "user_id", "created_at"), values, strict=True))
            connection.execute(insert(ALIASES), {**row, "checksum": checksum(*values)})
            return True

        return self._database.write(work)

    def unlink(self, alias: str, *, user_id: str | None = None) -> bool:
        """Let an id stand for itself again; False if it did, or was one of somebody else than `user_id`."""

        def work(connection: Connection) -> bool:
            hold(connection, "aliases")
            mine = delete(ALIASES).where(ALIASES.c.alias == alias)
            mine = mine if user_id is None else mine.where(ALIASES.c.user_id == user_id)
            gone = connection.execute(mine).rowcount
            if gone:
                advance(connection, "aliases")
            return bool(gone)

        return self._database.write(work)

    def resolve(self, name: str) -> str:
        """Return the person behind an id: the one that it is an alias of, else itself."""
        row = self._row(name)
        return name if row is None else person(name, *row)

    def people(self, names: Iterable[str]) -> dict[str, str]:
        """Return the person behind each of some ids that is an alias."""
        return self._database.read(lambda connection: self._groups.people(connection, names))

    def of(self, user_id: str) -> tuple[Alias, ...]:
        """Return the aliases of a person, by id."""
        query = select(ALIASES).where(ALIASES.c.user_id == user_id).order_by(ALIASES.c.alias)
        return tuple(map(alias_of, self._database.rows(query)))

    def every(self, size: int) -> Iterator[tuple[Alias, ...]]:
        """Yield all aliases by id, `size` at a time."""
        query = select(ALIASES).order_by(ALIASES.c.alias).limit(size)
        found = tuple(map(alias_of, self._database.rows(query)))
        while found:
            yield found
            found = tuple(map(alias_of, self._database.rows(query.where(ALIASES.c.alias > found[-1].alias))))


class Groups:
    """Which ids belong together, for many people at once and inside somebody's transaction."""

    def __init__(self, database: Database) -> None:
        columns = "SELECT alias, user_id, created_at, checksum FROM aliases"
        self._by_alias = selecting(database, f"{columns} WHERE alias AMONG")
        self._by_person = selecting(database, f"{columns} WHERE user_id AMONG")

    def people(self, connection: Connection, names: Iterable[str]) -> dict[str, str]:
        """The person behind each of some ids that is an alias."""
        return {row[0]: person(*row) for row in self._by_alias(connection, names)}

    def aliases(self, connection: Connection, user_ids: Iterable[str]) -> dict[str, str]:
        """The aliases of some people, each with its person."""
        return {row[0]: person(*row) for row in self._by_person(connection, user_ids)}

    def ids(self, connection: Connection, name: str) -> list[str]:
        """Every id of the person behind an id, their own first."""
        whose = self.people(connection, [name]).get(name, name)
        return [whose, *sorted(self.aliases(connection, [whose]))]

    def spread(self, connection: Connection, said: Mapping[str, dict[T, bool]]) -> dict[str, dict[T, bool]]:
        """What is said under some ids, said under every id of the same people; later ones in the mapping win."""
        whose = self.people(connection, said)
        together: dict[str, dict[T, bool]] = {}
        for name, one in said.items():
            user_id = whose.get(name, name)
            together[user_id] = together.get(user_id, {}) | one
        for alias, user_id in self.aliases(connection, together).items():
            together[alias] = together[user_id]
        return together


def person(alias: str, user_id: str, created_at: int, stored: int) -> str:
    """Return the person of an alias's row; raises `Damaged` where it is not what was written."""
    if stored != checksum(alias, user_id, created_at):
        raise refuse(f"the stored alias '{alias}'")
    return user_id


def alias_of(row: Row[Any]) -> Alias:
    """Make the alias that a row holds; raises as `person` does."""
    user_id = person(row.alias, row.user_id, row.created_at, row.checksum)
    return Alias(alias=row.alias, user_id=user_id, created_at=moment(row.created_at))


def erase_aliases(connection: Connection, user_id: str) -> int:
    """Delete the aliases of a person in somebody's transaction; returns how many there were."""
    gone = connection.execute(delete(ALIASES).where(ALIASES.c.user_id == user_id)).rowcount
    if gone:
        advance(connection, "aliases")
    return gone
