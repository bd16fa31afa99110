"""Documents: the JSON that policy is made of, versioned and audited.

One counter runs over all kinds. A document's version is the count at which it was last written, so "the policy is at
version v" means that every document of version v and below is in force; replicas poll the counter and nothing else.
Changes of API keys raise the same counter, so that the audit has one order.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select

from embeddings.errors import Conflict, InputError, NotFound
from serving.store.checksums import checksum, refuse
from serving.store.database import Database, advance, check_limit, hold, number
from serving.store.tables import AUDIT, DOCUMENTS, moment

# What the checksum of a row covers, in this order.
DOCUMENT = ("kind", "id", "body", "version", "updated_at", "updated_by")
AUDITED = ("version", "at", "by", "action", "kind", "id", "before", "after")


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A document as it stands. Two documents never share a version, and a version is never used again."""

    kind: str
    id: str
    body: dict[str, Any]
    version: int
    updated_at: datetime
    updated_by: str


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditEntry:
    """Who changed what, when and why (None: nobody said).

    `action` is create, update, delete or rollback; `before` or `after` is None where nothing was.
    """

    version: int
    at: datetime
    by: str
    action: str
    kind: str
    id: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    why: str | None


def difference(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> dict[str, tuple[Any, Any]]:
    """The fields in which two bodies differ, in their order, with both values; None where there is none."""
    old, new = before or {}, after or {}
    return {name: (old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)}


class Documents:
    """The documents of the store."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._version = database.prepared("SELECT value FROM numbers WHERE name = 'documents'")
        put = database.insert(DOCUMENTS)
        changed = {name: put.excluded[name] for name in (*DOCUMENT[2:], "checksum")}
        self._put = put.on_conflict_do_update(index_elements=["kind", "id"], set_=changed)

    def put(
        self,
        kind: str,
        document_id: str,
        body: Mapping[str, Any],
        *,
        by: str,
        why: str | None = None,
        expected_version: int | None = None,
        validate_only: bool = False,
        action: str | None = None,
    ) -> Document:
        """Create or replace a document; `why` and `action` (None: create or update) go into the audit.

        `expected_version` is the version that the caller has seen, 0 for "there is none yet", None for whatever is
        there. Writing what is there already changes nothing and returns it. With `validate_only` nothing is written, and
        what comes back has the version that stands (0: none yet). Raises `Conflict` when the document is at
        another version, `NotFound` when it is gone, `InputError` when the body is not JSON.
        """
        _check_name("kind", kind)
        _check_name("id", document_id)
        written = _json(body)

        def work(connection: Connection) -> Document:
            hold(connection, "documents")  # nobody else writes a document between the check and the write
            stored = self._stored(connection, kind, document_id)
            _check_version(kind, document_id, stored, expected_version)
            if stored is not None and stored.body == written:
                return _document(stored)
            at = time.time_ns() // 1000
            if validate_only:
                version = 0 if stored is None else stored.version
                body = json.loads(written)
                return Document(
                    kind=kind, id=document_id, body=body, version=version, updated_at=moment(at), updated_by=by
                )
            version = advance(connection, "documents")
            row = {
                "kind": kind,
                "id": document_id,
                "body": written,
                "version": version,
                "updated_at": at,
                "updated_by": by,
            }
            connection.execute(self._put, {**row, "checksum": checksum(*(row[name] for name in DOCUMENT))})
            record(connection, kind, document_id, by, at, version, stored and stored.body, written, why, action)
            return Document(**{**row, "body": json.loads(written), "updated_at": moment(at)})

        return self._database.write(work)

    def get(self, kind: str, document_id: str) -> Document | None:
        """Return a document, or None."""
        stored = self._database.read(lambda connection: self._stored(connection, kind, document_id))
        return None if stored is None else _document(stored)

    def list(self, kind: str) -> tuple[Document, ...]:
        """Return the documents of a kind, by id."""
        query = select(DOCUMENTS).where(DOCUMENTS.c.kind == kind).order_by(DOCUMENTS.c.id)
        rows = self._database.rows(query)
        return tuple(_document(row) for row in rows)

    def snapshot(self) -> tuple[int, tuple[Document, ...]]:
        """Return the version and every document of every kind: what a replica compiles.

        The version is read first. A write in between makes the documents newer than it says, never older, and the next
        poll sees that write.
        """
        query = select(DOCUMENTS).order_by(DOCUMENTS.c.kind, DOCUMENTS.c.id)
        version, rows = self._database.read(lambda c: (number(c, "documents"), c.execute(query).all()))
        return version, tuple(_document(row) for row in rows)

    def delete(
        self,
        kind: str,
        document_id: str,
        *,
        by: str,
        why: str | None = None,
        expected_version: int | None = None,
        validate_only: bool = False,
        action: str | None = None,
    ) -> int:
        """Delete a document and return the version of that change; raises `NotFound`, or `Conflict` as `put` does.

        `why` and `action` (None: delete) go into the audit. With `validate_only` nothing is deleted, and the version of the
        document comes back.
        """

        def work(connection: Connection) -> int:
            hold(connection, "documents")
            stored = self._stored(connection, kind, document_id)
            if stored is None:
                raise NotFound(f"there is no document '{document_id}' of kind '{kind}'", field="id")
            _check_version(kind, document_id, stored, expected_version)
            if validate_only:
                return int(stored.version)
            version = advance(connection, "documents")
            connection.execute(delete(DOCUMENTS).where(DOCUMENTS.c.kind == kind, DOCUMENTS.c.id == document_id))
            at = time.time_ns() // 1000
            record(connection, kind, document_id, by, at, version, stored.body, None, why, action)
            return version

        return self._database.write(work)

    def version(self) -> int:
        """Return the count of all changes to all documents; one read of one row."""
        row = self._version()
        return int(row[0]) if row is not None else 0

    def audit(
        self, kind: str | None = None, document_id: str | None = None, limit: int = 100, below: int | None = None
    ) -> tuple[AuditEntry, ...]:
        """Return the latest changes, newest first, of everything, of a kind, or of one document.

        `below` is a version: only earlier changes are returned, so the last one of a page asks for the next page.
        """
        query = select(AUDIT).order_by(AUDIT.c.version.desc()).limit(check_limit(limit))
        if kind is not None:
            query = query.where(AUDIT.c.kind == kind)
        if document_id is not None:
            query = query.where(AUDIT.c.id == document_id)
        if below is not None:
            query = query.where(AUDIT.c.version < below)
        rows = self._database.rows(query)
        return tuple(_entry(row) for row in rows)

    @staticmethod
    def _stored(connection: Connection, kind: str, document_id: str) -> Row[Any] | None:
        query = select(DOCUMENTS).where(DOCUMENTS.c.kind == kind, DOCUMENTS.c.id == document_id)
        return connection.execute(query).one_or_none()


def record(
    connection: Connection,
    kind: str,
    document_id: str,
    by: str,
    at: int,
    version: int,
    before: str | None,
    after: str | None,
    why: str | None = None,
    action: str | None = None,
) -> None:
    """Add a change to the audit; `before` and `after` are JSON, `at` in microseconds since 1970."""
    action = action or ("delete" if after is None else "create" if before is None else "update")
    row: dict[str, Any] = {"version": version, "at": at, "by": by, "action": action, "kind": kind, "id": document_id}
    row |= {"before": before, "after": after, "why": why}
    connection.execute(insert(AUDIT), {**row, "checksum": checksum(*(row[name] for name in _audited(why)))})


def _check_version(kind: str, document_id: str, stored: Row[Any] | None, expected: int | None) -> None:
    found = 0 if stored is None else stored.version
    if expected is None or expected == found:
        return
    what = f"document '{document_id}' of kind '{kind}'"
    if stored is None:
        raise NotFound(f"{what} does not exist, expected version {expected}", field="id")
    raise Conflict(f"{what} is at version {found}, expected {expected or 'none'}", field="version")


def _check_name(field: str, name: str) -> None:
    if not 1 <= len(name) <= 128 or "\x00" in name:
        raise InputError(f"{field}: must have 1 to 128 characters and no NUL", field=field)


def _json(body: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(body), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"body: not JSON: {error}", field="body") from None


def _audited(why: str | None) -> tuple[str, ...]:
    # Reasons came later than checksums: an entry without one has the sum that it always had.
    return AUDITED if why is None else (*AUDITED, "why")


def _document(row: Row[Any]) -> Document:
    columns = _verified(row, DOCUMENT, f"the stored document '{row.id}' of kind '{row.kind}'")
    return Document(**{**columns, "body": json.loads(row.body), "updated_at": moment(row.updated_at)})


def _entry(row: Row[Any]) -> AuditEntry:
    columns = _verified(row, _audited(row.why), f"entry {row.version} of the audit")
    columns |= {"at": moment(row.at), "why": row.why}
    for name in ("before", "after"):
        columns[name] = None if columns[name] is None else json.loads(columns[name])
    return AuditEntry(**columns)


def _verified(row: Row[Any], names: tuple[str, ...], what: str) -> dict[str, Any]:
    columns = {name: getattr(row, name) for name in names}
    if row.checksum != checksum(*columns.values()):
        raise refuse(what)
    return columns
