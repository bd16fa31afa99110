"""Documents of the policy: rules, placements and every other kind, all in one way. A change is in force within a second."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi import Body as JsonBody
from pydantic import BaseModel, create_model
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from embeddings.errors import Conflict, InputError, NotFound
from embeddings.schema import Id
from serving.api.access import Caller
from serving.api.errors import documented, json_response
from serving.api.fields import Body
from serving.policy.compiled import KINDS
from serving.policy.experiments import Experiment
from serving.policy.kinds import Kind, PolicyDocument
from serving.policy.rules import RULES
from serving.policy.warnings import World, warnings
from serving.replica.engine import Engine
from serving.store.documents import Document

DocumentPath = Annotated[Id, Path(description="The id of the document.")]
Raw = Annotated[dict[str, Any], JsonBody()]
Expected = Annotated[
    int | None,
    Query(ge=0, le=2**63 - 1, description="Refuse with 409 unless the document is at this version; 0: it is new."),
]
Only = Annotated[bool, Query(description="Check everything, answer what would be stored, and store nothing.")]
Reason = Annotated[
    str | None, Query(min_length=1, max_length=500, pattern=r"^[^\x00]*$", description="Why; it goes into the audit.")
]


def router(engine: Engine) -> APIRouter:
    """Routes of every kind."""
    routes = APIRouter()
    for kind in KINDS:
        routes.include_router(routes_of(kind, engine))
    return routes


def models_of(kind: Kind[Any, Any]) -> tuple[type[BaseModel], type[BaseModel], type[BaseModel]]:
    """What a document, one that was just written, and a list of them, look like in answers.

    `problem` says why a document does not fit the catalogue and the documents in force, if it does not. One that is
    `ready_made` was never written: it has version 0 and nobody who made it.
    """
    name = kind.model.__name__
    written: dict[str, Any] = {"updated_at": (datetime, ...), "updated_by": (str, ...)}
    if kind.ready_made:
        written = {"updated_at": (datetime | None, None), "updated_by": (str | None, None), "ready_made": (bool, False)}
    one = create_model(
        f"{name}Out",
        __base__=kind.model,
        __doc__=f"A {kind.name} as it is stored; `problem` says why it does not fit what is in service, if it does not.",
        version=(int, ...),
        problem=(str | None, None),
        **written,
    )
    warned = create_model(
        f"{name}WrittenOut",
        __base__=one,
        __doc__=f"A {kind.name} as it was written; `warnings` are sentences on what is allowed and probably not meant.",
        warnings=(list[str], ...),
    )
    fields: dict[str, Any] = {kind.plural: (list[one], ...)}  # type: ignore[valid-type]
    return one, warned, create_model(f"{name}ListOut", __base__=Body, __doc__=f"All {kind.plural}.", **fields)


def world_of(engine: Engine) -> World | None:
    """What documents are held against beside the policy; None before the first release."""
    if not engine.ready:
        return None
    snapshot = engine.snapshot
    mask = partial(snapshot.catalogue.mask_of, now=time.time())
    ranker = snapshot.bundle.manifest.ranker
    objectives = ranker.objectives if ranker is not None else None
    return World(event_types=snapshot.bundle.spec.event_types, objectives=objectives, mask=mask)


def routes_of(kind: Kind[Any, Any], engine: Engine) -> APIRouter:
    """Routes of one kind."""
    routes = APIRouter(prefix=f"/v1/{kind.plural}", tags=[kind.plural])
    documents = engine.store.documents
    one_out, written_out, list_out = models_of(kind)

    never = {"version": 0, "problem": None, "updated_at": None, "updated_by": None, "ready_made": True}
    ready_made = {name: document.model_dump(mode="json") | never for name, document in kind.ready_made.items()}
    written: Mapping[str, Any] = {"ready_made": False} if ready_made else {}

    def encoded(*stored: Document) -> list[dict[str, Any]]:
        policy = engine.policy
        return [
            one.body
            | {
                "version": one.version,
                "problem": policy.problem(kind, one.id),
                "updated_at": one.updated_at,
                "updated_by": one.updated_by,
                **written,
            }
            for one in stored
        ]

    def refuse_direct() -> None:
        if kind is RULES and engine.settings.approval:
            raise Conflict(
                "rules change through drafts here: PUT /v1/drafts/{id}, then approve and release", field="id"
            )

    def refuse_switching(document: PolicyDocument) -> None:
        if not isinstance(document, Experiment) or document.state != "running" or not engine.settings.approval:
            return
        before = engine.policy.documents[kind.name].get(document.id)
        runs = before if isinstance(before, Experiment) and before.state == "running" else None
        if document.switched and (runs is None or runs.switched != document.switched):
            raise Conflict(
                "arms: rules change through drafts here, so no arm switches one on or off; release its draft to a share of "
                "the people instead",
                field="arms",
            )

    def write(raw: dict[str, Any], by: str, why: str | None, expected: int | None, only: bool) -> dict[str, Any]:
        if not only:
            refuse_direct()
        attributes = engine.snapshot.catalogue.attributes if engine.ready else None
        document = engine.policy.admit(kind, raw, item_attributes=attributes)
        refuse_switching(document)
        body = document.model_dump(mode="json")
        stored = documents.put(
            kind.name, document.id, body, by=by, why=why, expected_version=expected, validate_only=only
        )
        warned = {"warnings": warnings(document, engine.policy, world_of(engine))}
        if only:
            return encoded(stored)[0] | {"problem": None} | warned
        engine.take_changes()
        return encoded(stored)[0] | warned

    @routes.get("", response_model=list_out, summary=f"All {kind.plural}")
    async def list_all() -> Response:
        """All of them, in the order of their ids."""
        found = await run_in_threadpool(documents.list, kind.name)
        every = ready_made | {one["id"]: one for one in encoded(*found)}
        return json_response({kind.plural: [every[name] for name in sorted(every)]})

    foreseen: dict[int | str, dict[str, Any]] = {
        200: {"model": written_out, "description": "With `validate_only`: what would be stored"}
    }

    @routes.post(
        "",
        response_model=written_out,
        status_code=201,
        responses=documented(404, 409) | foreseen,
        summary=f"Create a {kind.name}",
    )
    async def create(
        body: Raw,
        by: Caller,
        expected_version: Expected = None,
        validate_only: Only = False,
        reason: Reason = None,
    ) -> Response:
        """Create or replace the one named by `id`."""
        done = await run_in_threadpool(write, body, by, reason, expected_version, validate_only)
        return json_response(done, 200 if validate_only else 201)

    @routes.get("/{id}", response_model=one_out, responses=documented(404), summary=f"One {kind.name}")
    async def get(id: DocumentPath) -> Response:  # noqa: A002 - the name that it has in every document
        """One of them."""
        found = await run_in_threadpool(documents.get, kind.name, id)
        if found is not None:
            return json_response(encoded(found)[0])
        if id in ready_made:
            return json_response(ready_made[id])
        raise NotFound(f"unknown {kind.name} '{id}'", field="id")

    @routes.put("/{id}", response_model=written_out, responses=documented(404, 409), summary=f"Set a {kind.name}")
    async def put(
        id: DocumentPath,  # noqa: A002
        body: Raw,
        by: Caller,
        expected_version: Expected = None,
        validate_only: Only = False,
        reason: Reason = None,
    ) -> Response:
        """Create or replace one."""
        if body.get("id", id) != id:
            raise InputError(f"id: '{body['id']}' is not the '{id}' of the path", field="id")
        done = await run_in_threadpool(write, body | {"id": id}, by, reason, expected_version, validate_only)
        return json_response(done)

    @routes.delete("/{id}", status_code=204, responses=documented(404, 409), summary=f"Remove a {kind.name}")
    async def delete(
        id: DocumentPath,  # noqa: A002
        by: Caller,
        expected_version: Expected = None,
        validate_only: Only = False,
        reason: Reason = None,
    ) -> Response:
        """Remove one, unless others need it."""

        def remove() -> None:
            if not validate_only:
                refuse_direct()
            engine.take_changes()
            engine.policy.check_needed(kind, id)
            documents.delete(
                kind.name, id, by=by, why=reason, expected_version=expected_version, validate_only=validate_only
            )
            engine.take_changes()

        await run_in_threadpool(remove)
        return Response(status_code=204)

    return routes
