"""Surfaces: whole pages in one call, and what a change of a placement would move."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from embeddings.errors import InputError
from serving.api.documents import DocumentPath
from serving.api.errors import documented, json_response
from serving.api.models import EstimateIn, EstimateOut, PageIn, PageOut, PreviewIn, PreviewOut
from serving.api.recommendations import count, encoded_items
from serving.pipeline.engine import Engine
from serving.pipeline.page import PageAnswer, PageQuery
from serving.policy.placements import PLACEMENTS, Placement


def router(engine: Engine) -> APIRouter:
    """Routes of pages."""
    routes = APIRouter(tags=["pages"])

    @routes.post("/v1/pages", response_model=PageOut, responses=documented(404))
    async def pages(body: PageIn) -> Response:
        """Shelves, contents and alerts for one person in one answer: in their order, and no item twice."""
        found = await engine.page(PageQuery(now=datetime.now(UTC), **dict(body)))
        count(found)
        return json_response(encoded(found))

    @routes.post(
        "/v1/placements/{id}/preview",
        response_model=PreviewOut,
        responses=documented(429),
        tags=["placements"],
        summary="What a change would move",
    )
    async def preview(id: DocumentPath, body: PreviewIn) -> Response:  # noqa: A002 - the name that it has in every document
        """Ask the latest logged requests of a placement again, as it is and as the draft would have it; stores nothing."""
        return json_response(
            await engine.preview(draft_of(id, body.placement), requests=body.requests, seconds=body.seconds)
        )

    @routes.post(
        "/v1/placements/{id}/estimate",
        response_model=EstimateOut,
        responses=documented(429),
        tags=["placements"],
        summary="What a change would bring",
    )
    async def estimate(id: DocumentPath, body: EstimateIn) -> Response:  # noqa: A002
        """Judge a draft by the log of answers that left something to chance (`exploration`); shows nobody anything."""
        found = await engine.estimate(
            draft_of(id, body.placement),
            event_type=body.reward,
            by_value=body.by_value,
            requests=body.requests,
            seconds=body.seconds,
        )
        return json_response(found)

    def draft_of(name: str, raw: dict[str, Any]) -> Placement:
        """The draft of a placement; raises `InputError` with the path in the body."""
        if raw.get("id", name) != name:
            raise InputError(f"placement.id: '{raw['id']}' is not the '{name}' of the path", field="placement.id")
        attributes = engine.snapshot.catalogue.attributes
        try:
            return engine.policy.admit(PLACEMENTS, {**raw, "id": name}, item_attributes=attributes)
        except InputError as error:
            raise InputError(f"placement.{error.message}", field=f"placement.{error.field}") from None

    return routes


def encoded(found: PageAnswer) -> dict[str, Any]:
    """The answer as the documented JSON."""
    slots, above = [], 0
    for slot in found.slots:
        one: dict[str, Any] = {"id": slot.id, "type": slot.type, "pinned": slot.pinned, "title": slot.title}
        if slot.type == "shelf":
            one |= {"placement": slot.placement, "items": encoded_items(slot.items, above)}
            above += len(slot.items)
            if slot.anchor is not None:
                one["anchor"] = slot.anchor
            if slot.unserved:
                one["unserved"] = slot.unserved
        elif slot.content is not None:
            one["content"] = slot.content
        slots.append(one)
    body: dict[str, Any] = {
        "recommendation_id": found.recommendation_id,
        "page": found.page,
        "model_version": found.model_version,
        "policy_version": found.policy_version,
        "experiment": found.experiment,
        "degraded": found.degraded,
        "slots": slots,
    }
    if found.trace is not None:
        body["trace"] = found.trace
    return body
