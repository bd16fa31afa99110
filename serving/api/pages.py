"""Pages: whole pages in one call."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from embeddings.schema import Id
from serving.api.errors import documented, json_response
from serving.api.fields import Body, Context, Deadline, Exclude, Explain, Fields
from serving.api.recommendations import AnchorOut, RecommendedOut, count, encoded_items
from serving.pages.page import PageAnswer, PageQuery
from serving.replica.engine import Engine


class PageIn(Body):
    """A person opens a page; which shelves it has, and what else, is said by the layout of that name."""

    user_id: Id
    page: Annotated[Id, Field(description="Name of the layout.")] = "home"
    item_id: Annotated[Id | None, Field(description="The item that the page is about, on a product page.")] = None
    context: Context = {}
    exclude: Exclude = []
    personalized: Annotated[bool, Field(strict=True, description="False gives everybody's page.")] = True
    explain: Explain = False
    fields: Fields = False
    deadline_ms: Deadline = None


class SlotOut(Body):
    """One slot of the page, top to bottom; `content` is what was decided for a content or an alert."""

    id: str
    type: Literal["shelf", "content", "alert", "tile"]
    pinned: bool
    title: str | None
    placement: str | None = None
    anchor: AnchorOut | None = None
    items: list[RecommendedOut] = []
    content: dict[str, Any] | None = None
    unserved: dict[str, str] = {}


class PageOut(Body):
    """A page. Positions of items run through all shelves; events echo them with the `recommendation_id` of the page."""

    recommendation_id: str
    page: str
    model_version: str
    policy_version: int
    experiment: dict[str, str]
    degraded: list[str]
    slots: list[SlotOut]
    trace: dict[str, Any] | None = None


def router(engine: Engine) -> APIRouter:
    """Routes of pages."""
    routes = APIRouter(tags=["pages"])

    @routes.post("/v1/pages", response_model=PageOut, responses=documented(404))
    async def pages(body: PageIn) -> Response:
        """Shelves, contents and alerts for one person in one answer: in their order, and no item twice."""
        found = await engine.page(PageQuery(now=datetime.now(UTC), **dict(body)))
        count(found)
        return json_response(encoded(found))

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
