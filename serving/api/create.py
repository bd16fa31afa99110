"""The whole HTTP application, put together around an engine."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from serving.api import errors, events, items, recommendations, rules, system, users
from serving.api.guard import Guard
from serving.console import files
from serving.pipeline.engine import Engine

ROUTERS = (recommendations.router, events.router, items.router, users.router, rules.router, system.router)
CONSOLE_POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def create_api(engine: Engine) -> FastAPI:
    """Make the application; the caller starts and stops the engine."""
    api = FastAPI(
        title="Bespoke",
        version=version("bespoke"),
        description="Personal lists in real time: two-tower retrieval, a ranking model, and rules.",
        responses={status: response for status, response in errors.RESPONSES.items() if status in (400, 413, 415, 422)},
        redoc_url=None,
    )
    for make in ROUTERS:
        api.include_router(make(engine))
    if engine.settings.console:
        _add_console(api)
    errors.install(api)
    api.add_middleware(Guard, max_body_bytes=engine.settings.max_body_bytes)
    return api


def _add_console(api: FastAPI) -> None:
    pages = files()

    async def asset(request: Request) -> Response:
        content, kind = pages[request.url.path.removeprefix(request.scope.get("root_path", ""))]
        headers = {"content-security-policy": CONSOLE_POLICY, "cache-control": "no-cache"}
        return Response(content, headers=headers, media_type=kind)

    for path in pages:
        api.router.add_route(path, asset, methods=["GET"], include_in_schema=False)
