"""The limit of patience: a request that takes too long is answered with an error of ours, before Serve gives up on it.

A list never comes near it, because lists have a deadline of their own. What waits in vain here is a write: it may still be
carried out, which is why events have ids of their own.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.errors import error_response


class Patience:
    """ASGI middleware around the routes."""

    def __init__(self, app: ASGIApp, *, seconds: float) -> None:
        self.app, self.seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, for so long."""
        begun = False

        async def reply(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            async with asyncio.timeout(self.seconds if scope["type"] == "http" else None) as limit:
                await self.app(scope, receive, reply)
        except TimeoutError:
            if begun or not limit.expired():
                raise
            message = f"no answer within {self.seconds:g} s; the request may still be carried out"
            await error_response(503, "timeout", message)(scope, receive, send)
