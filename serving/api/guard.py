"""The outermost middleware: what a request may bring along, and what is counted of every one.

Serve's control headers are dropped, so that a client cannot switch off timeouts or name its own request; a body must be
declared as JSON and be of bounded size; every answer carries a request id.
"""

from __future__ import annotations

import time
import uuid

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import metrics
from serving.api.errors import error_response

CONTROL_HEADERS = frozenset({b"x-request-timeout-seconds", b"x-request-id", b"serve_multiplexed_model_id"})
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
]


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self.app, self.max_body_bytes = app, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, pass on, count."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = uuid.uuid4().hex.encode()
        headers = dict(scope["headers"])
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name not in CONTROL_HEADERS]
        status = 500

        async def reply(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id), *SECURITY_HEADERS]
            await send(message)

        refusal = self._refusal(scope["method"], headers)
        try:
            if refusal is not None:
                await error_response(*refusal)(scope, receive, reply)
            else:
                await self.app(scope, self._bounded(receive), reply)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            metrics.REQUESTS.labels(route, scope["method"], str(status)).inc()
            metrics.LATENCY.labels(route).observe(time.perf_counter() - started)

    def _refusal(self, method: str, headers: dict[bytes, bytes]) -> tuple[int, str, str] | None:
        if method not in ("POST", "PUT", "PATCH"):
            return None
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if kind != b"application/json":
            return 415, "unsupported_type", "the body must be declared as application/json"
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_body_bytes:
            return 413, "too_large", self._limit()
        return None

    def _bounded(self, receive: Receive) -> Receive:
        read = 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.max_body_bytes:
                raise HTTPException(413, self._limit())
            return message

        return bounded

    def _limit(self) -> str:
        return f"the body is larger than {self.max_body_bytes} bytes"
