"""Access: who may call which route, and how often.

Everything is closed unless it stands in `OPEN`. What a key must be allowed for a route stands in `SCOPES`, by the noun that
follows `/v1/`, so that a new route of a noun is protected like its siblings and a new noun is the administrator's alone.
The check is a hash and a few look-ups in memory, before a byte of the body is read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends
from starlette._utils import get_route_path
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from serving.api.errors import RESPONSES, error_response
from serving.api.static import SWAGGER
from serving.browser import PATH as SCRIPT
from serving.console import files
from serving.policy.compiled import KINDS
from serving.store import Key, Keyring

OPEN = frozenset(
    {
        "/",
        "/healthz",
        "/readyz",
        "/docs",
        "/openapi.json",
        "/api/health/live",
        "/api/health/ready",
        SCRIPT,
        *SWAGGER,
        *files(),
    }
)
"""Paths that anybody may ask: is the service alive, and pages without anybody's data."""

READING = frozenset({"GET", "HEAD"})
LISTS = (("read", "browser"), ("read", "browser"))
"""What a page in a browser asks for itself; a key with this scope alone reads no profile, no item and no policy."""

SCOPES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "recommendations": LISTS,
    "similar": LISTS,
    "rankings": LISTS,
    "pages": LISTS,
    "decisions": LISTS,
    "alerts": LISTS,
    "info": (("read",), ("admin",)),
    "metrics": (("read",), ("admin",)),
    "events": (("read",), ("events", "browser")),
    "items": (("read", "catalogue"), ("catalogue",)),
    "users": (("read", "catalogue"), ("catalogue",)),
    "receipts": (("read", "catalogue"), ("read", "catalogue")),
    **{kind.plural: (("policy",), ("policy",)) for kind in KINDS},
    "drafts": (("policy",), ("policy",)),
    "releases": (("read",), ("admin",)),
    "audit": (("policy",), ("admin",)),
}
"""For each noun the scopes of which a key needs one: to read, and to do anything else. `admin` stands for all of them."""

ROWS = (("read", "catalogue"), ("catalogue",))
GORSE_LISTS = (("read",), ("read",))
GORSE_SCOPES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "item": ROWS,
    "items": ROWS,
    "user": ROWS,
    "users": ROWS,
    "feedback": (("read",), ("events",)),
    "recommend": GORSE_LISTS,
    "session": GORSE_LISTS,
    "collaborative-filtering": GORSE_LISTS,
    "intermediate": GORSE_LISTS,
    "popular": GORSE_LISTS,
    "non-personalized": GORSE_LISTS,
    "latest": GORSE_LISTS,
    "item-to-item": GORSE_LISTS,
    "user-to-user": GORSE_LISTS,
}
"""The same for Gorse's nouns, which follow `/api/`."""

ADMIN_ONLY = (("admin",), ("admin",))
ANYBODY = "local"
"""Who a caller is where no keys are asked for."""

CALLER = "bespoke.caller"
"""Where in the ASGI scope the guard leaves the id of the key that asks."""

HELD = "bespoke.held"
"""Where in the ASGI scope `Access` leaves the scopes of that key, for routes that need more than their noun says."""

BURST_S = 10.0
"""A key that was quiet may spend this many seconds of its limit at once."""

SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key: `Authorization: Bearer bk_…`."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key."},
}


class Access:
    """The check of every request. `caller` names who asks; what it returns instead of a name is the refusal."""

    def __init__(self, keyring: Keyring, *, replicas: int) -> None:
        self.keyring, self.replicas = keyring, replicas
        self.buckets: dict[str, Bucket] = {}

    def caller(self, scope: Scope, headers: Mapping[bytes, bytes]) -> str | Response:
        """The id of the key that asks, or the answer that refuses it: 401, 403 or 429."""
        path = get_route_path(scope)  # what the router will go by
        if path in OPEN:
            return ANYBODY
        key = self.keyring.find(presented(headers))
        if key is None:
            return error_response(
                401,
                "unauthorized",
                "an API key is needed and this request has none that is valid: Authorization: Bearer bk_…",
                headers={"WWW-Authenticate": "Bearer"},
            )
        wait = self._wait(key)
        if wait:
            return error_response(
                429,
                "rate_limited",
                f"key {key.id} may make {key.per_minute} requests a minute; try again in {wait} s",
                headers={"Retry-After": str(wait)},
            )
        wanted = needed(scope["method"], path)
        if not key.allows(wanted):
            one = " or ".join(f"'{name}'" for name in wanted)
            return error_response(
                403, "forbidden", f"this needs a key with the scope {one}; key {key.id} has not got it"
            )
        scope[HELD] = frozenset(key.scopes)
        return key.id

    def _wait(self, key: Key) -> int:
        rate = key.per_minute / 60 / self.replicas
        bucket = self.buckets.get(key.id)
        if bucket is None:
            bucket = self.buckets[key.id] = Bucket(rate)
        return bucket.take(rate)


class Bucket:
    """A token bucket: `rate` tokens a second flow in, a request takes one."""

    __slots__ = ("at", "tokens")

    def __init__(self, rate: float) -> None:
        self.at, self.tokens = time.monotonic(), max(1.0, rate * BURST_S)

    def take(self, rate: float) -> int:
        """Take one token; returns 0, or how many whole seconds it takes until there is one."""
        now = time.monotonic()
        self.tokens = min(max(1.0, rate * BURST_S), self.tokens + (now - self.at) * rate)
        self.at = now
        if self.tokens < 1:
            return math.ceil((1 - self.tokens) / rate)
        self.tokens -= 1
        return 0


async def caller_of(request: Request) -> str:
    """The id of the key that asks, for what is audited."""
    return str(request.scope[CALLER])


Caller = Annotated[str, Depends(caller_of)]


def require(request: Request, scope: str) -> None:
    """Raise 403 unless the key that asks has got a scope too; without keys everybody has it."""
    held = request.scope.get(HELD)
    if held is not None and not held & {scope, "admin"}:
        raise HTTPException(403, f"this needs a key with the scope '{scope}' as well")


def presented(headers: Mapping[bytes, bytes]) -> str:
    """The key that a request shows, in either of the two headers; empty if there is none."""
    kind, _, text = headers.get(b"authorization", b"").partition(b" ")
    shown = text if kind.lower() == b"bearer" else headers.get(b"x-api-key", b"")
    return shown.strip().decode("latin-1")


def needed(method: str, path: str) -> tuple[str, ...]:
    """The scopes of which one is needed for a path that is not open."""
    first, _, rest = path.removeprefix("/").partition("/")
    noun = rest.partition("/")[0] if first in ("v1", "api") else first
    reading, changing = (GORSE_SCOPES if first == "api" else SCOPES).get(noun, ADMIN_ONLY)
    return reading if method in READING else changing


def describe(document: dict[str, Any]) -> None:
    """Write into an OpenAPI document which key each operation needs, and how one is refused."""
    document.setdefault("components", {})["securitySchemes"] = SCHEMES
    body = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorOut"}}}
    refusals = {str(one): {"description": RESPONSES[one]["description"], "content": body} for one in (401, 403, 429)}
    for path, operations in document["paths"].items():
        if path in OPEN:
            continue
        for method, operation in operations.items():
            wanted = needed(method.upper(), path)
            operation["security"] = [{scheme: [scope]} for scope in (*wanted, "admin") for scheme in SCHEMES]
            operation["responses"] |= refusals
