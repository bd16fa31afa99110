"""Erasures: who was erased, remembered in a way that names nobody, so that nothing of theirs comes back.

A person who is erased leaves a keyed digest of each of their ids and the moment. What arrives later and happened before
that moment is not stored any more: an event from the queue of a device, an answer that another replica is about to log.
What happens afterwards is somebody new. The key never leaves the store, so a digest cannot be tried out with a list of ids.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import NamedTuple

from sqlalchemy import Connection, func, insert, select

from serving.store.bulk import selecting
from serving.store.checksums import checksum, refuse
from serving.store.database import Database, advance
from serving.store.tables import ERASURES, NUMBERS, SECRETS


class Erased(NamedTuple):
    """What an erasure took away: all ids of the person, their own first, and how much of each kind there was."""

    ids: tuple[str, ...]
    at: int
    removed: Mapping[str, int]


class Erasures:
    """The erasures of the store; most methods work inside somebody's transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._key: bytes | None = None
        self._found = selecting(database, "SELECT digest, erased_at, checksum FROM erasures WHERE digest AMONG")

    def hold(self, connection: Connection) -> None:
        """Let no erasure end before this transaction does; others who write what may be erased are not held up."""
        query = select(NUMBERS.c.value).where(NUMBERS.c.name == "erasures").with_for_update(read=True)
        connection.execute(query)

    def begin(self, connection: Connection) -> int:
        """Begin an erasure: wait for those who hold, hold up the next ones, and return the moment (microseconds)."""
        advance(connection, "erasures")
        return time.time_ns() // 1000

    def bury(self, connection: Connection, user_ids: Iterable[str], at: int) -> None:
        """Remember that these ids were erased."""
        key = self._key_of(connection)
        rows = [{"digest": digest(key, user_id), "erased_at": at} for user_id in user_ids]
        connection.execute(
            insert(ERASURES), [row | {"checksum": checksum(row["digest"], row["erased_at"])} for row in rows]
        )

    def of(self, connection: Connection, user_ids: Iterable[str]) -> dict[str, int]:
        """When ids were erased last, in microseconds; who never was is missing."""
        key = self._key_of(connection)
        names = {digest(key, user_id): user_id for user_id in user_ids}
        found: dict[str, int] = {}
        for name, erased_at, stored in self._found(connection, names) if names else ():
            if stored != checksum(name, erased_at):
                raise refuse("a stored erasure")
            user_id = names[name]
            found[user_id] = max(erased_at, found.get(user_id, 0))
        return found

    def last(self) -> int:
        """The number of the latest erasure, 0 if there was none."""
        return int(self._database.rows(select(func.max(ERASURES.c.sequence)))[0][0] or 0)

    def among(self, user_ids: Iterable[str]) -> dict[str, int]:
        """The same as `of`, in a transaction of its own."""
        names = list(user_ids)
        return self._database.read(lambda connection: self.of(connection, names))

    def _key_of(self, connection: Connection) -> bytes:
        if self._key is None:
            self._key = secret(connection, "erasures")
        return self._key


def digest(key: bytes, user_id: str) -> str:
    """What is left of an erased id: HMAC-SHA256, in hexadecimal digits."""
    return hmac.digest(key, user_id.encode("utf-8", "surrogatepass"), sha256).hex()


def secret(connection: Connection, name: str) -> bytes:
    """A key [32 bytes] that was drawn when the store was made."""
    return bytes.fromhex(connection.execute(select(SECRETS.c.value).where(SECRETS.c.name == name)).scalar_one())
