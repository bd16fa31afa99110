"""The service itself: is it alive, is it ready, what is in service, what does it measure."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from starlette.responses import Response

from serving import metrics
from serving.api.errors import json_response
from serving.api.fields import Body
from serving.replica.engine import Engine


class InfoOut(Body):
    """What is in service."""

    model_version: str
    policy_version: int
    items: int
    topology: Literal["fused", "chained"]


class HealthOut(Body):
    """The process answers."""

    status: Literal["ok"]


class ReadyOut(Body):
    """Whether recommendations can be served."""

    ready: bool
    model_version: str | None


def router(engine: Engine) -> APIRouter:
    """Routes of the service."""
    routes = APIRouter(tags=["service"])

    @routes.get("/healthz", response_model=HealthOut)
    async def health() -> Response:
        """The process answers; a constant."""
        return json_response({"status": "ok"})

    @routes.get("/readyz", response_model=ReadyOut, responses={503: {"model": ReadyOut}})
    async def ready() -> Response:
        """200 when recommendations can be served, 503 before."""
        model = engine.snapshot.bundle.name if engine.ready else None
        return json_response({"ready": engine.ready, "model_version": model}, 200 if engine.ready else 503)

    @routes.get("/v1/info", response_model=InfoOut)
    async def info() -> Response:
        """What is in service."""
        snapshot = engine.snapshot
        return json_response(
            {
                "model_version": snapshot.bundle.name,
                "policy_version": snapshot.policy.version,
                "items": snapshot.catalogue.count,
                "topology": engine.settings.topology,
            }
        )

    @routes.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """All metrics in Prometheus' text format."""
        if engine.ready:
            metrics.ITEMS.set(engine.snapshot.catalogue.count)
        body, kind = metrics.exposition(engine.settings.site)
        return Response(body, media_type=kind)

    return routes
