"""API keys: who may ask the service what, and how often.

A key is `bk_<id>_<secret>`. The id is public and names the key in lists and in the audit; the secret is drawn with 192 bits
and shown once, and only its SHA-256 is stored. (A slow hash protects secrets that people choose; nobody can try 2^192.)
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from embeddings.errors import Conflict, InputError, NotFound, StoreError, unknown_name
from serving.logs import Outage
from serving.store.database import Database, advance, hold
from serving.store.documents import record
from serving.store.tables import KEYS, moment

logger = logging.getLogger("bespoke.keys")

SCOPES = ("read", "events", "browser", "catalogue", "policy", "admin")
PREFIX = "bk"
KIND = "key"
MAX_PER_MINUTE = 10_000_000
FOLLOW_S = 0.1
"""How often a keyring looks for changes: well within the second after which a revoked key must be dead."""

UNKNOWN_DIGEST = "0" * 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """A key as the store knows it, without its secret. `per_minute` is how many requests it may make in a minute."""

    id: str
    name: str
    scopes: tuple[str, ...]
    per_minute: int
    created_at: datetime
    revoked_at: datetime | None
    digest: str = field(repr=False)

    def allows(self, wanted: Iterable[str]) -> bool:
        """Whether it has one of these scopes; `admin` stands for all of them."""
        return "admin" in self.scopes or any(scope in self.scopes for scope in wanted)


class Keys:
    """The keys of the store."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._version = database.prepared("SELECT value FROM numbers WHERE name = 'documents'")

    def create(self, name: str, scopes: Iterable[str], *, per_minute: int, by: str) -> tuple[Key, str]:
        """Draw a new key and return it together with its text, which cannot be had again.

        Raises `InputError` for a name that is not 1 to 128 printable characters, an unknown scope, none at all, or a
        limit that is not between 1 and `MAX_PER_MINUTE`.
        """
        chosen = _checked(name, scopes, per_minute)
        key_id, secret = secrets.token_hex(6), secrets.token_hex(24)
        row = {
            "id": key_id,
            "name": name,
            "scopes": " ".join(chosen),
            "digest": _digest(secret),
            "per_minute": per_minute,
            "created_at": time.time_ns() // 1000,
            "revoked_at": None,
        }

        def work(connection: Connection) -> None:
            version = advance(connection, "documents")
            connection.execute(insert(KEYS), row)
            record(connection, KIND, key_id, by, time.time_ns() // 1000, version, None, _audited(row))

        self._database.write(work)
        return _key(row), f"{PREFIX}_{key_id}_{secret}"

    def list(self) -> tuple[Key, ...]:
        """Return every key, also the revoked ones, the oldest first."""
        query = select(KEYS).order_by(KEYS.c.created_at, KEYS.c.id)
        return tuple(_key(row._mapping) for row in self._database.rows(query))

    def active(self) -> dict[str, Key]:
        """Return the keys that are not revoked, by id."""
        return {key.id: key for key in self.list() if key.revoked_at is None}

    def revoke(self, key_id: str, *, by: str) -> Key:
        """End a key for good; raises `NotFound` for an unknown id, `Conflict` for one that was revoked before."""

        def work(connection: Connection) -> Key:
            hold(connection, "documents")  # nobody else revokes it between the check and the write
            stored: Row[Any] | None = connection.execute(select(KEYS).where(KEYS.c.id == key_id)).one_or_none()
            if stored is None:
                raise NotFound(f"there is no key '{key_id}'; `bespoke keys list` shows them", field="id")
            if stored.revoked_at is not None:
                raise Conflict(
                    f"key '{key_id}' was revoked on {moment(stored.revoked_at):%Y-%m-%d %H:%M} UTC", field="id"
                )
            version = advance(connection, "documents")
            at = time.time_ns() // 1000
            connection.execute(update(KEYS).where(KEYS.c.id == key_id).values(revoked_at=at))
            after = {**stored._mapping, "revoked_at": at}
            record(connection, KIND, key_id, by, at, version, _audited(stored._mapping), _audited(after))
            return _key(after)

        return self._database.write(work)

    def version(self) -> int:
        """Return the count of all audited changes; while it stays, no key has changed."""
        row = self._version()
        return int(row[0]) if row is not None else 0


class Keyring:
    """The active keys in memory, kept up to date by a thread of its own, so that no request asks the database.

    Of its own because the engine's follower may be busy for seconds with a new release. When the store cannot be
    reached the keys that were known stay in force.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._known: Mapping[str, Key] = MappingProxyType({})
        self._version = -1
        self._stopped = threading.Event()
        self._follower: threading.Thread | None = None

    def start(self) -> None:
        """Read the keys and begin to follow changes; raises `StoreError` if they cannot be read."""
        self.refresh()
        self._stopped.clear()
        self._follower = threading.Thread(target=self._follow, name="keyring", daemon=True)
        self._follower.start()

    def stop(self) -> None:
        """Stop following; it may start again."""
        self._stopped.set()
        if self._follower is not None:
            self._follower.join(timeout=5)

    def find(self, text: str) -> Key | None:
        """Return the active key that a text such as `bk_<id>_<secret>` is, or None; in constant time for any secret."""
        parts = text.split("_", 2)
        if len(parts) != 3 or parts[0] != PREFIX:
            return None
        key = self._known.get(parts[1])
        fits = hmac.compare_digest(_digest(parts[2]), key.digest if key else UNKNOWN_DIGEST)
        return key if fits else None

    def refresh(self) -> None:
        """Read the keys anew if anything has changed."""
        version = self._keys.version()
        if version != self._version:
            self._known = MappingProxyType(self._keys.active())
            self._version = version

    def _follow(self) -> None:
        outage = Outage(logger, "could not read the keys; those that are known stay in force")
        while not self._stopped.wait(FOLLOW_S):
            try:
                self.refresh()
                outage.over()
            except Exception:  # whatever the store does, the thread must be there when it comes back
                outage.failed()


def _checked(name: str, scopes: Iterable[str], per_minute: int) -> tuple[str, ...]:
    if not 1 <= len(name) <= 128 or not name.isprintable():
        raise InputError("name: must have 1 to 128 printable characters", field="name")
    chosen = tuple(dict.fromkeys(scopes))
    for scope in chosen:
        if scope not in SCOPES:
            raise unknown_name("scope", scope, SCOPES, field="scope")
    if not chosen:
        raise InputError(f"scope: at least one is needed; known: {', '.join(SCOPES)}", field="scope")
    if not 1 <= per_minute <= MAX_PER_MINUTE:
        raise InputError(f"per_minute: must lie between 1 and {MAX_PER_MINUTE}", field="per_minute")
    return chosen


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _audited(row: Mapping[Any, Any]) -> str:
    """What the audit keeps of a key: all but its digest."""
    at = None if row["revoked_at"] is None else moment(row["revoked_at"]).isoformat()
    shown = {"name": row["name"], "scopes": row["scopes"].split(), "per_minute": row["per_minute"], "revoked_at": at}
    return json.dumps(shown)


def _key(row: Mapping[Any, Any]) -> Key:
    try:
        revoked = row["revoked_at"]
        return Key(
            id=row["id"],
            name=row["name"],
            scopes=tuple(row["scopes"].split()),
            per_minute=int(row["per_minute"]),
            created_at=moment(row["created_at"]),
            revoked_at=None if revoked is None else moment(revoked),
            digest=row["digest"],
        )
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise StoreError(f"stored key '{row['id']}' is damaged: {error}") from error
