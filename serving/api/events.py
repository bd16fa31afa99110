"""Events: what people do. Durable before they are acknowledged, counted once."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from serving import metrics
from serving.api.errors import json_response
from serving.api.models import AcceptedOut, EventBatch, EventsIn
from serving.pipeline.engine import Engine


def router(engine: Engine) -> APIRouter:
    """Routes of events."""
    routes = APIRouter(tags=["events"])

    @routes.post("/v1/events", status_code=202, response_model=AcceptedOut)
    async def append(body: EventsIn) -> Response:
        """Store one event or up to a thousand, all or none; the person's next list already knows them."""
        events = body.events if isinstance(body, EventBatch) else [body]
        done = await run_in_threadpool(engine.store.events.append, events)
        metrics.EVENTS.labels("accepted").inc(done.accepted)
        metrics.EVENTS.labels("duplicate").inc(done.duplicates)
        answer = {"accepted": done.accepted, "duplicates": done.duplicates, "event_ids": done.event_ids}
        return json_response(answer, 202)

    return routes
