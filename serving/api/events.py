"""Events: what people do. Durable before they are acknowledged, counted once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Discriminator, Field, Tag
from starlette.responses import Response

from embeddings.schema import Event, Moment
from serving import metrics
from serving.api.errors import RESPONSES, json_response
from serving.api.fields import MAX_BATCH, Body
from serving.replica.engine import Engine
from serving.store import Appended


class EventIn(Event):
    """One event; without a timestamp it happened now."""

    timestamp: Moment = Field(default_factory=lambda: datetime.now(UTC))


class EventBatch(Body):
    """Several events, all of them or none."""

    events: Annotated[list[EventIn], Field(min_length=1, max_length=MAX_BATCH)]


def _shape(body: Any) -> str:
    return "batch" if isinstance(body, dict) and "events" in body else "single"


EventsIn = Annotated[
    Annotated[EventBatch, Tag("batch")] | Annotated[EventIn, Tag("single")],
    Discriminator(_shape),
]


class AcceptedOut(Body):
    """Events that are durable now.

    `erased` are events of people who were erased after they happened; they are not stored. It is left out when there are
    none.
    """

    accepted: int
    duplicates: int
    event_ids: list[str]
    erased: int = 0


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
