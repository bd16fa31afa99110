"""Static files: console, documentation and script, the first two under a content security policy of their own."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files as resources
from pathlib import Path

from fastapi import FastAPI
from starlette._utils import get_route_path
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response

from serving.browser import PATH as SCRIPT
from serving.browser import script
from serving.console import files

EDGES = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
CONSOLE_POLICY = f"default-src 'self'; {EDGES}"

SWAGGER: Mapping[str, str] = {
    "/docs/swagger-ui.css": "text/css; charset=utf-8",
    "/docs/swagger-ui-bundle.js": "text/javascript; charset=utf-8",
}
"""Paths of Swagger UI with their content types. The files come with a package, so that the page works without a network."""

START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true});'
DOCUMENTATION = f"""<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <title>Bespoke: the API</title>
  <link rel="icon" href="data:,">
  <link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
  <div id="swagger-ui"></div>
  <script src="docs/swagger-ui-bundle.js"></script>
  <script>{START}</script>
</body>
</html>
"""
# People type keys into this page: nothing that it loads or sends leaves the service.
DOCUMENTATION_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; script-src 'self' "
    f"'sha256-{base64.b64encode(hashlib.sha256(START.encode()).digest()).decode()}'; {EDGES}"
)


def add_start(api: FastAPI, page: str) -> None:
    """Lead whoever opens the address of the service itself to a page of it."""

    async def start(request: Request) -> Response:
        return RedirectResponse(request.scope.get("root_path", "") + page)

    api.router.add_route("/", start, methods=["GET"], include_in_schema=False)


def add_script(api: FastAPI) -> None:
    """Serve the script for a shop's pages at /bespoke.js; it holds nobody's data, and pages of any origin may load it."""
    content = script()
    stamp = f'"{hashlib.sha256(content).hexdigest()[:32]}"'

    async def asset(request: Request) -> Response:
        headers = {
            "cache-control": "public, max-age=300",
            "etag": stamp,
            "cross-origin-resource-policy": "cross-origin",
        }
        if request.headers.get("if-none-match") == stamp:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type="text/javascript; charset=utf-8")

    api.router.add_route(SCRIPT, asset, methods=["GET"], include_in_schema=False)


def add_console(api: FastAPI) -> None:
    """Serve the console at /console."""
    pages = files()

    async def asset(request: Request) -> Response:
        content, kind = pages[get_route_path(request.scope)]
        headers = {"content-security-policy": CONSOLE_POLICY, "cache-control": "no-cache"}
        return Response(content, headers=headers, media_type=kind)

    for path in pages:
        api.router.add_route(path, asset, methods=["GET"], include_in_schema=False)


def add_documentation(api: FastAPI) -> None:
    """Serve the documentation at /docs."""

    async def documentation(_: Request) -> Response:
        return Response(
            DOCUMENTATION, headers={"content-security-policy": DOCUMENTATION_POLICY}, media_type="text/html"
        )

    async def asset(request: Request) -> Response:
        path = get_route_path(request.scope)
        headers = {"cache-control": "public, max-age=86400"}
        return FileResponse(folder / path.rpartition("/")[2], headers=headers, media_type=SWAGGER[path])

    folder = Path(str(resources("fastapi_offline"))) / "static"
    api.router.add_route("/docs", documentation, methods=["GET"], include_in_schema=False)
    for path in SWAGGER:
        api.router.add_route(path, asset, methods=["GET"], include_in_schema=False)
