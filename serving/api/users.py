"""Users: people, what they are known by, and how to forget them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from embeddings.errors import NotFound
from embeddings.schema import PURPOSES, Id, User, allows
from serving.api.errors import NOT_KEPT, documented, json_response
from serving.api.models import (
    MAX_BATCH,
    ErasedOut,
    EraseIn,
    PersonOut,
    ProfileOut,
    ReceiptIn,
    UpsertedOut,
    UserIn,
    UserOut,
    UserPageOut,
    UsersIn,
    VerifiedOut,
)
from serving.pipeline.engine import Engine
from serving.pipeline.erasure import erase
from serving.pipeline.portrait import Portrait, everything
from serving.store.persons import Profile, UserSummary

UserPath = Annotated[Id, Path(description="The application's id of the person.")]


def router(engine: Engine) -> APIRouter:
    """Routes of users."""
    routes = APIRouter(prefix="/v1/users", tags=["users"])

    def known(user_id: str) -> Profile:
        profile = engine.store.profiles.get(user_id)
        if profile is None:
            raise NotFound(f"unknown user '{user_id}'", field="user_id")
        return profile

    def titles(item_ids: set[str]) -> dict[str, str]:
        if not engine.ready:
            return {}
        catalogue = engine.snapshot.catalogue
        rows = {item_id: catalogue.row(item_id) for item_id in item_ids}
        return {item_id: catalogue.title(row) for item_id, row in rows.items() if row >= 0}

    @routes.get("", response_model=UserPageOut)
    async def page(
        limit: Annotated[int, Query(ge=1, le=MAX_BATCH)] = 100,
        after: Annotated[str | None, Query(max_length=512)] = None,
    ) -> Response:
        """People, the most recently active first."""
        found = await run_in_threadpool(engine.store.profiles.list, limit, after)
        return json_response({"users": [_summary(user) for user in found.users], "next": found.next})

    @routes.post("", response_model=UpsertedOut)
    async def upsert(body: UsersIn) -> Response:
        """Insert or replace the attributes of up to a thousand people, all or none; a consent left out stays as it was."""
        await run_in_threadpool(engine.store.profiles.upsert, body.users)
        return json_response({"upserted": len(body.users)})

    @routes.get("/{user_id}", response_model=UserOut, responses=documented(404))
    async def get(user_id: UserPath) -> Response:
        """One person."""
        return json_response(_summary(await run_in_threadpool(known, user_id)))

    @routes.put("/{user_id}", response_model=UserOut)
    async def put(user_id: UserPath, body: UserIn) -> Response:
        """Set the attributes of one person, and what they say about consent."""

        def write() -> Profile:
            engine.store.profiles.upsert([User(user_id=user_id, **dict(body))])
            return known(user_id)

        return json_response(_summary(await run_in_threadpool(write)))

    @routes.get("/{user_id}/profile", response_model=ProfileOut, responses=documented(404))
    async def profile(user_id: UserPath) -> Response:
        """Everything the service remembers of one person, in plain words and as data; the latest event first."""
        return json_response(await run_in_threadpool(portrait, user_id))

    @routes.get("/{user_id}/export", response_model=PersonOut, responses=documented(404))
    async def export(user_id: UserPath) -> Response:
        """The same with every event and every logged answer, to be taken along; it streams, however much it is."""
        whole = await run_in_threadpool(portrait, user_id)
        pieces = everything(engine.store, whole, user_id)
        return StreamingResponse(pieces, media_type="application/json", headers=NOT_KEPT)

    @routes.delete("/{user_id}", response_model=ErasedOut, responses=documented(404))
    async def delete(user_id: UserPath) -> Response:
        """Forget a person who is known; the same as `erase`."""

        def forget() -> dict[str, Any]:
            known(user_id)
            return gone(user_id)

        return json_response(await run_in_threadpool(forget))

    @routes.post("/{user_id}/erase", response_model=ErasedOut)
    async def erase_person(user_id: UserPath, body: EraseIn) -> Response:
        """Forget the person behind an id, also one who is hardly known, and return a signed receipt of what went.

        Profile, consent, aliases, events, answers of the decision log, messages that wait, and rows of exports, so that the
        next training does not have them. Events that happened before and arrive later are not stored.
        """
        return json_response(await run_in_threadpool(gone, user_id, body.reason))

    def gone(user_id: str, reason: str | None = None) -> dict[str, Any]:
        receipt = erase(engine.store, engine.effects, user_id, reason=reason)
        return {"user_id": user_id, "erased_events": receipt["removed"]["events"], "receipt": receipt}

    def portrait(user_id: str) -> dict[str, Any]:
        found = known(user_id)
        drawn = Portrait.of(engine.store, found, engine.snapshot if engine.ready else None)
        names = titles({event.item_id for event in found.history})
        history = [
            {
                "item_id": event.item_id,
                "title": names.get(event.item_id, event.item_id),
                "event_type": event.event_type,
                "timestamp": datetime.fromtimestamp(event.timestamp, UTC),
                "value": event.value,
            }
            for event in reversed(found.history)
        ]
        return _summary(found) | {
            "summary": list(drawn.sentences),
            "aliases": [{"alias": one.alias, "created_at": one.created_at} for one in drawn.aliases],
            "interests": drawn.interests,
            "segments": drawn.segments,
            "answers": drawn.answers,
            "last_answer": drawn.last_answer,
            "messages": drawn.messages,
            "history": history,
        }

    return routes


def receipts(engine: Engine) -> APIRouter:
    """The route of receipts."""
    routes = APIRouter(prefix="/v1/receipts", tags=["users"])

    @routes.post("/verify", response_model=VerifiedOut)
    async def verify(body: ReceiptIn) -> Response:
        """Whether a receipt of an erasure is one of this service's, and nothing in it was changed."""
        valid = await run_in_threadpool(engine.store.receipts.verify, body.model_dump())
        return json_response({"valid": valid})

    return routes


def _summary(user: UserSummary) -> dict[str, Any]:
    return {
        "user_id": user.user_id,
        "attributes": user.attributes,
        "consent": {purpose: allows(user.consent, purpose) for purpose in PURPOSES},
        "events": user.events,
        "last_seen": None if user.last_seen is None else datetime.fromtimestamp(user.last_seen, UTC),
    }
