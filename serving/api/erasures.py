"""Erasures: people are forgotten, and the receipts of that can be verified."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from embeddings.schema import Id
from serving.api.errors import documented, json_response
from serving.api.fields import Body
from serving.api.users import UserPath, known_person
from serving.people.erasure import erase
from serving.replica.engine import Engine

Why = Annotated[str | None, Field(min_length=1, max_length=500, description="Why; it stands in the receipt.")]


class EraseIn(Body):
    """What is said about an erasure."""

    reason: Why = None


class ReceiptOut(Body):
    """What an erasure took away, signed; `removed` counts by kind.

    `exports_pending` among them are exports that could not be written at that moment: the next one takes the person out.
    `messages_pending` are folders of messages that were out of reach: nothing may be sent from those.
    """

    receipt_id: str
    user_id: str
    aliases: list[str]
    erased_at: str
    reason: str | None
    removed: dict[str, int]
    signature: str


class ErasedOut(Body):
    """How many events went, and the receipt that lists everything."""

    user_id: str
    erased_events: int
    receipt: ReceiptOut


class ReceiptIn(Body):
    """A receipt as it was given out."""

    receipt_id: Annotated[str, Field(max_length=64)]
    user_id: Id
    aliases: Annotated[list[Id], Field(max_length=1000)]
    erased_at: Annotated[str, Field(max_length=64)]
    reason: Why = None
    removed: Annotated[
        dict[Annotated[str, Field(max_length=64)], Annotated[int, Field(ge=0, lt=2**53)]], Field(max_length=32)
    ]
    signature: Annotated[str, Field(max_length=128)]


class VerifiedOut(Body):
    """Whether a receipt is one of this service's, and as it was given out."""

    valid: bool


def router(engine: Engine) -> APIRouter:
    """Routes of erasures and their receipts."""
    routes = APIRouter(tags=["users"])

    @routes.delete("/v1/users/{user_id}", response_model=ErasedOut, responses=documented(404))
    async def delete(user_id: UserPath) -> Response:
        """Forget a person who is known; the same as `erase`."""

        def forget() -> dict[str, Any]:
            known_person(engine, user_id)
            return gone(user_id)

        return json_response(await run_in_threadpool(forget))

    @routes.post("/v1/users/{user_id}/erase", response_model=ErasedOut)
    async def erase_person(user_id: UserPath, body: EraseIn = EraseIn()) -> Response:
        """Forget the person behind an id, also one who is hardly known, and return a signed receipt of what went.

        Profile, consent, aliases, events, answers of the decision log, messages that wait, and rows of exports, so that the
        next training does not have them. Events that happened before and arrive later are not stored.
        """
        return json_response(await run_in_threadpool(gone, user_id, body.reason))

    @routes.post("/v1/receipts/verify", response_model=VerifiedOut)
    async def verify(body: ReceiptIn) -> Response:
        """Whether a receipt of an erasure is one of this service's, and nothing in it was changed."""
        valid = await run_in_threadpool(engine.store.receipts.verify, body.model_dump())
        return json_response({"valid": valid})

    def gone(user_id: str, reason: str | None = None) -> dict[str, Any]:
        receipt = erase(engine.store, engine.effects, user_id, reason=reason)
        return {"user_id": user_id, "erased_events": receipt["removed"]["events"], "receipt": receipt}

    return routes
