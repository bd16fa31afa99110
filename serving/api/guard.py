"""The guard, a middleware around all routes: what a request may bring along, and what is counted of every one.

Serve's control headers are dropped, so that a client cannot switch off timeouts or name its own request; the key is looked
at before the body; a body must be declared as JSON, arrive in time, be of bounded size and be sound; every answer carries
a request id.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Mapping

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import logs, metrics
from serving.api import bodies
from serving.api.access import ANYBODY, CALLER, Access
from serving.api.direct import PARSED
from serving.api.errors import error_response
from serving.settings import Settings

logger = logging.getLogger("bespoke.api")

CONTROL_HEADERS = frozenset({b"x-request-timeout-seconds", b"x-request-id", b"serve_multiplexed_model_id"})
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
]
BROWSERS = frozenset({b"origin", b"sec-fetch-site", b"content-type"})
"""What a browser says of every POST of a page, or of its form; a program that sends nothing says none of it."""

WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class Guard:
    """ASGI middleware around the whole application; without an `access` everybody may do everything."""

    def __init__(self, app: ASGIApp, *, settings: Settings, access: Access | None) -> None:
        self.app, self.access = app, access
        self.max_body_bytes, self.body_timeout_s = settings.max_body_bytes, settings.body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, pass on, count."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = uuid.uuid4().hex.encode()
        about = logs.REQUEST.set(request_id.decode())
        headers = dict(scope["headers"])
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name not in CONTROL_HEADERS]
        status, answering = 500, False

        async def reply(message: Message) -> None:
            nonlocal status, answering
            if message["type"] == "http.response.start":
                status, answering = message["status"], True
                message["headers"] = [*message["headers"], (b"x-request-id", request_id), *SECURITY_HEADERS]
            await send(message)

        try:
            admitted = await self._admit(scope, headers, receive)
            if isinstance(admitted, Response):
                await admitted(scope, receive, reply)
            else:
                await self.app(scope, admitted, reply)
        except Exception as error:
            logger.exception("unexpected %s", type(error).__name__)
            if answering:
                raise
            await error_response(500, "internal", "an unexpected error; it was logged")(scope, receive, reply)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            metrics.REQUESTS.labels(route, scope["method"], str(status)).inc()
            metrics.LATENCY.labels(route).observe(time.perf_counter() - started)
            logs.REQUEST.reset(about)

    async def _admit(self, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive) -> Receive | Response:
        """Return what the application receives from, or the answer that refuses the request."""
        caller = ANYBODY if self.access is None else self.access.caller(scope, headers)
        if isinstance(caller, Response):
            return caller
        scope[CALLER] = caller
        if scope["method"] not in WITH_BODY:
            return receive
        # A page of somebody else's may send a POST without a body from a browser, but no PUT unless we allow it.
        bare = _without_body(headers) and (scope["method"] != "POST" or not BROWSERS & headers.keys())
        if not bare and not _declared_as_json(headers.get(b"content-type", b"")):
            return error_response(415, "unsupported_type", "the body must be declared as application/json, in UTF-8")
        try:
            async with asyncio.timeout(self.body_timeout_s):
                body = await self._body(headers.get(b"content-length"), receive)
        except TimeoutError:
            late = f"the body did not arrive within {self.body_timeout_s:g} s"
            return error_response(408, "too_slow", late, headers={"Connection": "close"})
        if isinstance(body, Response):
            return body
        if body:
            try:
                scope[PARSED] = bodies.parsed(body)
            except bodies.Malformed as wrong:
                return error_response(400, "malformed_json", str(wrong))
        return _once(body, receive)

    async def _body(self, declared: bytes | None, receive: Receive) -> bytes | Response:
        if declared is not None and not declared.isdigit():
            return error_response(400, "malformed_request", "content-length is not a number")
        parts, size, more = [], int(declared or 0), True
        if size > self.max_body_bytes:
            return self._too_large()
        size = 0
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return error_response(400, "malformed_request", "the body ended early")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.max_body_bytes:
                return self._too_large()
            more = message.get("more_body", False)
        if declared is not None and int(declared) != size:
            return error_response(
                400, "malformed_request", f"content-length says {int(declared)}, the body has {size} bytes"
            )
        return b"".join(parts)

    def _too_large(self) -> Response:
        return error_response(413, "too_large", f"the body is larger than {self.max_body_bytes} bytes")


def _declared_as_json(content_type: bytes) -> bool:
    kind, _, parameters = content_type.lower().partition(b";")
    return kind.strip() == b"application/json" and parameters.replace(b" ", b"").replace(b'"', b"") in (
        b"",
        b"charset=utf-8",
    )


def _without_body(headers: Mapping[bytes, bytes]) -> bool:
    return headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers


def _once(body: bytes, receive: Receive) -> Receive:
    """Hand the body on in one piece; after it comes whatever the connection brings."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message
