"""Serve's control headers, which callers have no business sending.

With `x-request-timeout-seconds: 0` a caller could switch the time limit off. Serve reads these headers before a request
reaches the application, so they are dropped in front of Serve: `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names
`middlewares`, and every process that takes HTTP requests wraps itself in them. Imports nothing heavy, because Serve's
proxies load it too.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

CONTROL_HEADERS = frozenset({b"x-request-timeout-seconds", b"x-request-disconnect-disabled"})


class WithoutControlHeaders:
    """ASGI middleware that passes everything else on as it came."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Drop the headers, whatever their case."""
        if scope["type"] == "http":
            kept = [(name, value) for name, value in scope["headers"] if name.lower() not in CONTROL_HEADERS]
            scope = {**scope, "headers": kept}
        await self.app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Serve puts in front of itself."""
    return [Middleware(WithoutControlHeaders)]
