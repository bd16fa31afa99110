"""Rules: what the business wants of every list. A changed rule is in force within a second, everywhere."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Path
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from embeddings.errors import InputError, NotFound
from embeddings.schema import Id
from serving.api.errors import json_response
from serving.api.models import RuleOut, RulesOut
from serving.pipeline.engine import Engine
from serving.policy.compiled import RULE
from serving.policy.rules import parse_rule
from serving.store.documents import Document

NOBODY = "api"
"""Who changed a document, until keys say so."""

RulePath = Annotated[Id, Path(description="The id of the rule.")]


def router(engine: Engine) -> APIRouter:
    """Routes of rules."""
    routes = APIRouter(prefix="/v1/rules", tags=["rules"])
    documents = engine.store.documents

    def write(raw: dict[str, Any]) -> Document:
        attributes = engine.snapshot.catalogue.attributes if engine.ready else None
        rule = parse_rule(raw, item_attributes=attributes)
        stored = documents.put(RULE, rule.id, rule.model_dump(mode="json"), by=NOBODY)
        engine.refresh()
        return stored

    @routes.get("", response_model=RulesOut)
    async def every() -> Response:
        """All rules, in the order of their ids."""
        found = await run_in_threadpool(documents.list, RULE)
        return json_response({"rules": [_encoded(one) for one in found]})

    @routes.post("", response_model=RuleOut, status_code=201)
    async def create(body: Annotated[dict[str, Any], Body()]) -> Response:
        """Create or replace the rule named by `id`."""
        return json_response(_encoded(await run_in_threadpool(write, body)), 201)

    @routes.get("/{rule_id}", response_model=RuleOut)
    async def get(rule_id: RulePath) -> Response:
        """One rule."""
        found = await run_in_threadpool(documents.get, RULE, rule_id)
        if found is None:
            raise NotFound(f"unknown rule '{rule_id}'", field="rule_id")
        return json_response(_encoded(found))

    @routes.put("/{rule_id}", response_model=RuleOut)
    async def put(rule_id: RulePath, body: Annotated[dict[str, Any], Body()]) -> Response:
        """Create or replace one rule."""
        if body.get("id", rule_id) != rule_id:
            raise InputError(f"id: '{body['id']}' is not the '{rule_id}' of the path", field="id")
        return json_response(_encoded(await run_in_threadpool(write, body | {"id": rule_id})))

    @routes.delete("/{rule_id}", status_code=204)
    async def delete(rule_id: RulePath) -> Response:
        """Remove one rule."""

        def remove() -> None:
            documents.delete(RULE, rule_id, by=NOBODY)
            engine.refresh()

        await run_in_threadpool(remove)
        return Response(status_code=204)

    return routes


def _encoded(stored: Document) -> dict[str, Any]:
    return stored.body | {"version": stored.version}
