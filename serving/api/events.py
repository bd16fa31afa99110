"""Events: what people do. Durable before they are acknowledged, counted once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from embeddings.schema import Event
from serving import metrics
from serving.api.errors import RESPONSES, json_response
from serving.api.models import AcceptedOut, EventBatch, EventsIn
from serving.pipeline.engine import Engine
from serving.store import Appended


def router(engine: Engine) -> APIRouter:
    """Routes of events."""
    routes = APIRouter(tags=["events"])

    refusals: dict[int | str, dict[str, Any]] = {status: RESPONSES[status] for status in (429, 503)}

    @routes.post("/v1/events", status_code=202, response_model=AcceptedOut, responses=refusals)
    async def append(body: EventsIn) -> Response:
        """Store one event or up to a thousand, all or none; the person's next list already knows them."""
        done = await store(engine, body.events if isinstance(body, EventBatch) else [body])
        answer: dict[str, Any] = {"accepted": done.accepted, "duplicates": done.duplicates, "event_ids": done.event_ids}
        if done.erased:
            answer["erased"] = done.erased
        return json_response(answer, 202)

    return routes


async def store(engine: Engine, events: Sequence[Event]) -> Appended:
    """Store events durably, all or none, and count them."""
    done = await asyncio.wrap_future(engine.store.writer.submit(events))
    engine.count(events)
    metrics.EVENTS.labels("accepted").inc(done.accepted)
    metrics.EVENTS.labels("duplicate").inc(done.duplicates)
    metrics.EVENTS.labels("erased").inc(done.erased)
    return done
