"""Lists: recommendations, similar items, rankings."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from serving import metrics
from serving.api.direct import DirectRoute
from serving.api.errors import documented, json_response
from serving.api.models import AnswerOut, RankingsIn, RecommendationsIn, SimilarIn
from serving.pipeline.engine import Engine
from serving.pipeline.page import PageAnswer, slot_name
from serving.pipeline.query import Answer, Query, Recommended


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
        query = Query(
            k=len(items),
            now=datetime.now(UTC),
            user_id=body.user_id,
            candidates=items,
            placement=body.placement,
            context=body.context,
            explain=body.explain,
            fields=body.fields,
        )
        return await answer(engine, query)

    return routes


def asked(body: RecommendationsIn | SimilarIn, **more: Any) -> Query:
    """The query of a body, whose fields are called the same but for four."""
    named = {name: value for name, value in body if name not in ("item_id", "page", "k")}
    named["explain"] = bool(body.explain)
    return Query(now=datetime.now(UTC), k=body.k or 0, **named, **more)


async def answer(engine: Engine, query: Query, *, page: str | None = None, what_if: bool = False) -> Response:
    """Answer a query and encode it: plain dictionaries straight to JSON, because this is the hot path."""
    if page is not None:
        query = engine.paging.opened(query, page)
    found = await engine.recommend(query)
    count(found)
    body = encoded(found, query)
    if what_if:
        body["counterfactuals"] = await engine.counterfactuals(query, found)
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
