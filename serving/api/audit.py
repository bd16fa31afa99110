"""The audit: every change of policy and of keys, who made it and when."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from embeddings.errors import unknown_name
from serving.api.errors import json_response
from serving.api.fields import MAX_BATCH, Body
from serving.aside.drafts import KIND as DRAFT
from serving.pipeline.releases import RELEASE
from serving.policy.compiled import KINDS
from serving.replica.engine import Engine
from serving.store import AuditEntry, difference
from serving.store.keys import KIND as KEY

AUDITED = (*(kind.name for kind in KINDS), DRAFT, RELEASE, KEY)
"""Kinds of things whose changes are noted down."""

Name = Annotated[str | None, Query(min_length=1, max_length=128, pattern=r"^[^\x00]*$")]


class ChangeOut(Body):
    """A field before and after, null where there was none."""

    before: Any
    after: Any


class AuditEntryOut(Body):
    """Who changed what; `by` is the id of a key, `before` and `after` are None where nothing was, `why` if nobody said.

    `difference` has the fields that changed, with the value before and the one after.
    """

    version: int
    at: datetime
    by: str
    action: Literal["create", "update", "delete", "rollback"]
    kind: str
    id: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    why: str | None
    difference: dict[str, ChangeOut]


class AuditPageOut(Body):
    """Changes, the latest first; `next` is the `below` of the page after it."""

    entries: list[AuditEntryOut]
    next: int | None


def router(engine: Engine) -> APIRouter:
    """Routes of the audit."""
    routes = APIRouter(prefix="/v1/audit", tags=["audit"])

    @routes.get("", response_model=AuditPageOut)
    async def page(
        kind: Name = None,
        id: Name = None,  # noqa: A002 - the name that it has in every entry
        limit: Annotated[int, Query(ge=1, le=MAX_BATCH)] = 100,
        below: Annotated[int | None, Query(ge=0, le=2**63 - 1, description="`next` of the page before.")] = None,
    ) -> Response:
        """Changes of everything, of one kind (`rule`, `placement`, `key`, …) or of one thing, the latest first."""
        if kind is not None and kind not in AUDITED:
            raise unknown_name("kind", kind, AUDITED, field="kind")
        found = await run_in_threadpool(engine.store.documents.audit, kind, id, limit + 1, below)
        shown = found[:limit]
        rest = shown[-1].version if len(found) > limit else None
        return json_response({"entries": [_told(entry) for entry in shown], "next": rest})

    return routes


def _told(entry: AuditEntry) -> dict[str, Any]:
    changed = difference(entry.before, entry.after)
    return asdict(entry) | {"difference": {name: {"before": old, "after": new} for name, (old, new) in changed.items()}}
