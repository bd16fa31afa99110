"""Users: people, what they are known by, and how to forget them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from embeddings.errors import NotFound
from embeddings.schema import Id, User
from serving.api.errors import json_response
from serving.api.models import MAX_BATCH, ErasedOut, ProfileOut, UpsertedOut, UserIn, UserOut, UserPageOut, UsersIn
from serving.pipeline.engine import Engine
from serving.store.profiles import Profile, UserSummary

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
        """Insert or replace the attributes of up to a thousand people, all or none."""
        await run_in_threadpool(engine.store.profiles.upsert, body.users)
        return json_response({"upserted": len(body.users)})

    @routes.get("/{user_id}", response_model=UserOut)
    async def get(user_id: UserPath) -> Response:
        """One person."""
        return json_response(_summary(await run_in_threadpool(known, user_id)))

    @routes.put("/{user_id}", response_model=UserOut)
    async def put(user_id: UserPath, body: UserIn) -> Response:
        """Set the attributes of one person."""

        def write() -> Profile:
            engine.store.profiles.upsert([User(user_id=user_id, attributes=body.attributes)])
            return known(user_id)

        return json_response(_summary(await run_in_threadpool(write)))

    @routes.get("/{user_id}/profile", response_model=ProfileOut)
    async def profile(user_id: UserPath) -> Response:
        """Everything the service remembers of one person, the latest event first."""
        found = await run_in_threadpool(known, user_id)
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
        return json_response(_summary(found) | {"history": history})

    @routes.delete("/{user_id}", response_model=ErasedOut)
    async def erase(user_id: UserPath) -> Response:
        """Forget a person: profile, history and every event."""

        def forget() -> int:
            known(user_id)
            return engine.store.profiles.erase(user_id)

        return json_response({"user_id": user_id, "erased_events": await run_in_threadpool(forget)})

    return routes


def _summary(user: UserSummary) -> dict[str, Any]:
    return {
        "user_id": user.user_id,
        "attributes": user.attributes,
        "events": user.events,
        "last_seen": None if user.last_seen is None else datetime.fromtimestamp(user.last_seen, UTC),
    }
