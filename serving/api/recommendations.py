"""Lists: recommendations, similar items, rankings."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from serving import metrics
from serving.api.errors import json_response
from serving.api.models import AnswerOut, RankingsIn, RecommendationsIn, SimilarIn
from serving.pipeline.engine import Engine
from serving.pipeline.query import Answer, Query


def router(engine: Engine) -> APIRouter:
    """Routes of the lists."""
    routes = APIRouter(tags=["lists"])

    @routes.post("/v1/recommendations", response_model=AnswerOut)
    async def recommendations(body: RecommendationsIn) -> Response:
        """The items this person is most likely to want now, in order, with reasons."""
        return await answer(engine, Query(now=datetime.now(UTC), **dict(body)))

    @routes.post("/v1/similar", response_model=AnswerOut)
    async def similar(body: SimilarIn) -> Response:
        """The items most like one item."""
        query = {name: value for name, value in body if name != "item_id"}
        return await answer(engine, Query(now=datetime.now(UTC), similar_to=body.item_id, **query))

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


async def answer(engine: Engine, query: Query) -> Response:
    """Answer a query and encode it: plain dictionaries straight to JSON, because this is the hot path."""
    found = await engine.recommend(query)
    for stage in found.degraded:
        metrics.DEGRADED.labels(stage).inc()
    for stage, milliseconds in found.milliseconds.items():
        metrics.STAGE.labels(stage).observe(milliseconds / 1e3)
    return json_response(encoded(found, query))


def encoded(found: Answer, query: Query) -> dict[str, Any]:
    """The answer as the documented JSON."""
    items = []
    for position, one in enumerate(found.items):
        entry: dict[str, Any] = {
            "item_id": one.item_id,
            "score": one.score,
            "position": position,
            "reasons": one.reasons,
        }
        if one.item is not None:
            entry["item"] = one.item.model_dump(mode="json")
        items.append(entry)
    body: dict[str, Any] = {
        "recommendation_id": found.recommendation_id,
        "model_version": found.model_version,
        "policy_version": found.policy_version,
        "experiment": found.experiment,
        "degraded": found.degraded,
        "items": items,
    }
    if query.candidates is not None:
        body["unknown"] = found.unknown
    if found.trace is not None:
        body["trace"] = found.trace
    return body
