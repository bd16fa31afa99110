"""The whole HTTP application, put together around an engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import Depends, FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware

from serving.api import (
    aliases,
    audit,
    contents,
    documents,
    erasures,
    errors,
    events,
    experiments,
    gorse,
    items,
    lab,
    pages,
    previews,
    recommendations,
    releases,
    replenishment,
    segments,
    system,
    users,
)
from serving.api.access import Access, describe
from serving.api.guard import Guard
from serving.api.parameters import known_parameters
from serving.api.patience import Patience
from serving.api.static import add_console, add_documentation, add_script, add_start
from serving.replica.engine import Engine
from serving.store import Keyring

ROUTERS = (
    recommendations.router,
    pages.router,
    previews.router,
    contents.router,
    events.router,
    items.router,
    users.router,
    erasures.router,
    aliases.router,
    replenishment.router,
    segments.router,
    lab.router,
    documents.router,
    experiments.router,
    releases.router,
    audit.router,
    system.router,
)


def create_api(engine: Engine) -> FastAPI:
    """Make the application; the caller starts and stops the engine."""
    settings = engine.settings
    keyring = Keyring(engine.store.keys)

    @asynccontextmanager
    async def following(_: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(keyring.start)
        try:
            yield
        finally:  # a server that is forced to exit cancels this, and nothing can be awaited then
            keyring.stop()

    api = FastAPI(
        title="Bespoke",
        version=version("bespoke"),
        description="Personal lists in real time: two-tower retrieval, a ranking model, and rules.",
        responses=errors.documented(400, 408, 413, 415, 422, 503),
        lifespan=following if settings.protected else None,
        docs_url=None,
        redoc_url=None,
    )
    for make in ROUTERS:
        api.include_router(make(engine), dependencies=[Depends(known_parameters)])
    if settings.gorse:
        api.include_router(gorse.router(engine))
    add_documentation(api)
    add_script(api)
    if settings.console:
        add_console(api)
    add_start(api, "/console" if settings.console else "/docs")
    errors.install(api)
    api.add_middleware(Patience, seconds=settings.request_timeout_s)
    access = Access(keyring, replicas=settings.replicas) if settings.protected else None
    api.add_middleware(Guard, settings=settings, access=access)
    if settings.cors_origins:
        api.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["authorization", "content-type", "x-api-key"],
            expose_headers=["retry-after", "x-request-id"],
        )
    if access is not None:
        _document_access(api)
    return api


def _document_access(api: FastAPI) -> None:
    plain = api.openapi

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            describe(plain())
        return plain()

    api.openapi = openapi  # type: ignore[method-assign]
