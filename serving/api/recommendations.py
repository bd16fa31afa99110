"""Lists: recommendations, similar items, rankings."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from embeddings.schema import Id, Item
from serving import metrics
from serving.api.direct import DirectRoute
from serving.api.errors import documented, json_response
from serving.api.fields import MAX_BATCH, Body, Context, Deadline, Exclude, Explain, Fields, Filter, K, Page, WhatIf
from serving.pages.page import PageAnswer, slot_name
from serving.replica.engine import Engine
from serving.request.query import Answer, Query, Recommended


class RecommendationsIn(Body):
    """A person asks for a list."""

    user_id: Id
    placement: Id = "default"
    k: K = None
    context: Context = {}
    filter: Filter = None
    exclude: Exclude = []
    anchor: Annotated[
        Id | None,
        Field(
            description="The item that a placement such as `because_you_watched` starts from; by default the latest."
        ),
    ] = None
    page: Page = None
    personalized: Annotated[bool, Field(strict=True, description="False gives everybody's list.")] = True
    explain: WhatIf = False
    fields: Fields = False
    deadline_ms: Deadline = None


class SimilarIn(Body):
    """An item asks for its like; with `user_id`, what that person has consumed is left out."""

    item_id: Id
    user_id: Id | None = None
    placement: Id = "similar"
    k: K = None
    context: Context = {}
    filter: Filter = None
    exclude: Exclude = []
    page: Page = None
    explain: Explain = False
    fields: Fields = False
    deadline_ms: Deadline = None


class RankingsIn(Body):
    """The caller's own list, to be put in the person's order."""

    user_id: Id
    items: Annotated[list[Id], Field(min_length=1, max_length=MAX_BATCH)]
    placement: Id = "default"
    context: Context = {}
    explain: Explain = False
    fields: Fields = False
    deadline_ms: Deadline = None


class ReasonOut(Body):
    """Why an item is on the list."""

    code: str
    text: str
    item_id: str | None
    rule_id: str | None


class RecommendedOut(Body):
    """One item of the answer."""

    item_id: str
    score: float
    position: int
    reasons: list[ReasonOut]
    item: Item | None = None


class AnchorOut(Body):
    """The item that a list starts from; `event_type` is what the person did with it, if that is why."""

    item_id: str
    title: str
    event_type: str | None


class CounterfactualOut(Body):
    """The list without one thing: an event (by its item), a rule, the item of a place, or everything known of the person.

    `items` is that list; `entered` and `left` are the difference, `moved` counts those on both that stand elsewhere.
    """

    kind: Literal["event", "rule", "place", "person"]
    id: str
    text: str
    items: list[str]
    entered: list[str]
    left: list[str]
    moved: int
    same: bool


class AnswerOut(Body):
    """A list, with everything needed to account for it.

    `unserved` says of sources and values of the placement why this release or catalogue cannot serve them, and of a
    `placement` that nobody has described that the default one answers.
    """

    recommendation_id: str
    model_version: str
    policy_version: int
    experiment: dict[str, str]
    degraded: list[str]
    items: list[RecommendedOut]
    next_page: str | None
    anchor: AnchorOut | None = None
    unserved: dict[str, str] = {}
    unknown: list[str] = []
    trace: dict[str, Any] | None = None
    counterfactuals: list[CounterfactualOut] = []


def router(engine: Engine) -> APIRouter:
    """Routes of the lists."""
    routes = APIRouter(tags=["lists"], route_class=DirectRoute)

    @routes.post("/v1/recommendations", response_model=AnswerOut, responses=documented(404, 410))
    async def recommendations(body: RecommendationsIn) -> Response:
        """The items this person is most likely to want now, in order, with reasons; with `page`, those that come below."""
        return await answer(engine, asked(body), page=body.page, what_if=body.explain == "counterfactual")

    @routes.post("/v1/similar", response_model=AnswerOut, responses=documented(404, 410))
    async def similar(body: SimilarIn) -> Response:
        """The items most like one item, or what goes with it where the placement says so."""
        return await answer(engine, asked(body, similar_to=body.item_id), page=body.page)

    @routes.post("/v1/rankings", response_model=AnswerOut)
    async def rankings(body: RankingsIn) -> Response:
        """The caller's own items in this person's order; ids that are not in the catalogue come back as `unknown`."""
        items = list(dict.fromkeys(body.items))
        return await answer(engine, asked(body, k=len(items), candidates=items))

    return routes


def asked(body: RecommendationsIn | SimilarIn | RankingsIn, **more: Any) -> Query:
    """The query of a body: its fields are called the same but for some, of which `more` says what is not plain."""
    named = {name: value for name, value in body if name not in ("item_id", "items", "page")} | more
    return Query(now=datetime.now(UTC), **named | {"explain": bool(body.explain), "k": named.get("k") or 0})


async def answer(engine: Engine, query: Query, *, page: str | None = None, what_if: bool = False) -> Response:
    """Answer a query and encode it: plain dictionaries straight to JSON, because this is the hot path."""
    if page is not None:
        query = engine.paging.opened(query, page)
    found = await engine.recommend(query)
    count(found)
    body = encoded(found, query)
    if what_if:
        body["counterfactuals"] = await engine.aside.counterfactuals(query, found)
    return json_response(body)


def count(found: Answer | PageAnswer) -> None:
    """Count what an answer took, and what it had to do without; slots of a page together, their names are not bounded."""
    for stage in found.degraded:
        metrics.DEGRADED.labels("slot" if stage.startswith(slot_name("")) else stage).inc()
    for stage, milliseconds in found.milliseconds.items():
        metrics.stage(stage).observe(milliseconds / 1e3)


def encoded(found: Answer, query: Query) -> dict[str, Any]:
    """The answer as the documented JSON."""
    body: dict[str, Any] = {
        "recommendation_id": found.recommendation_id,
        "model_version": found.model_version,
        "policy_version": found.policy_version,
        "experiment": found.experiment,
        "degraded": found.degraded,
        "items": encoded_items(found.items, len(query.shown)),
        "next_page": found.next_page,
    }
    if found.anchor is not None:
        body["anchor"] = found.anchor
    if found.unserved:
        body["unserved"] = found.unserved
    if query.candidates is not None:
        body["unknown"] = found.unknown
    if found.trace is not None:
        body["trace"] = found.trace
    return body


def encoded_items(items: Sequence[Recommended], above: int) -> list[dict[str, Any]]:
    """Items as the documented JSON; so many stand above them."""
    encoded = []
    for position, one in enumerate(items, above):
        entry: dict[str, Any] = {
            "item_id": one.item_id,
            "score": one.score,
            "position": position,
            "reasons": one.reasons,
        }
        if one.item is not None:
            entry["item"] = one.item.model_dump(mode="json")
        encoded.append(entry)
    return encoded
