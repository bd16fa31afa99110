"""Consents: what people said about what may be done with what is known of them.

A row has what was said, by purpose; what a person never spoke about is missing and counts as allowed.
"""

from __future__ import annotations

from collections.abc import Mapping

import orjson
from sqlalchemy import Connection, delete

from embeddings.schema import Purpose
from serving.store.bulk import selecting
from serving.store.checksums import checksum, refuse
from serving.store.database import Database
from serving.store.tables import CONSENTS

Said = dict[Purpose, bool]


class Consents:
    """The consents of the store, inside a transaction that has locked the profiles of the people concerned."""

    def __init__(self, database: Database) -> None:
        self._select = selecting(database, "SELECT user_id, consent, checksum FROM consents WHERE user_id AMONG")
        put = database.insert(CONSENTS)
        changed = {name: put.excluded[name] for name in ("consent", "checksum")}
        self._put = put.on_conflict_do_update(index_elements=["user_id"], set_=changed)

    def add(self, connection: Connection, said: Mapping[str, Said]) -> None:
        """Add what people say to what they said before; raises `Damaged` where that is not what was written."""
        before = {user_id: consent_of(user_id, *row) for user_id, *row in self._select(connection, said)}
        rows = []
        for user_id, new in said.items():
            consent = orjson.dumps(before.get(user_id, {}) | new, option=orjson.OPT_SORT_KEYS).decode()
            rows.append({"user_id": user_id, "consent": consent, "checksum": checksum(user_id, consent)})
        if rows:
            connection.execute(self._put, rows)


def consent_of(user_id: str, consent: str | None, stored: int | None) -> Said:
    """Return what a row says, or what a missing row says; raises `Damaged` where it is not what was written."""
    if consent is None and stored is None:
        return {}
    if consent is None or stored != checksum(user_id, consent):
        raise refuse(f"the stored consent of '{user_id}'")
    said: Said = orjson.loads(consent)
    return said


def erase_consent(connection: Connection, user_id: str) -> int:
    """Delete what a person said, in somebody's transaction; returns whether there was anything, as 1 or 0."""
    return connection.execute(delete(CONSENTS).where(CONSENTS.c.user_id == user_id)).rowcount
