"""Users: people, and what is known of them."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from embeddings.errors import NotFound
from embeddings.schema import PURPOSES, Attributes, Consent, Event, Id, User, allows
from serving.api.errors import NOT_KEPT, documented, json_response
from serving.api.fields import MAX_BATCH, Body
from serving.api.items import UpsertedOut
from serving.people.portrait import Portrait, everything
from serving.replica.engine import Engine
from serving.store.persons import Profile, UserSummary

UserPath = Annotated[Id, Path(description="The application's id of the person.")]


class UsersIn(Body):
    """People to insert or replace."""

    users: Annotated[list[User], Field(min_length=1, max_length=MAX_BATCH)]


class UserIn(Body):
    """Attributes of one person, replacing those before, and what they say about consent, beside what they said before.

    What is left out stays as it was.
    """

    attributes: Attributes = {}
    consent: Consent = {}


class ConsentOut(Body):
    """What a person allows; they allow what they never spoke about."""

    personalization: bool
    analytics: bool
    marketing: bool


class UserOut(Body):
    """A person in a list."""

    user_id: str
    attributes: dict[str, Any]
    consent: ConsentOut
    events: int
    last_seen: datetime | None


class UserPageOut(Body):
    """People, the most recently active first."""

    users: list[UserOut]
    next: str | None


class AliasOut(Body):
    """Another id of a person, and since when it is one."""

    alias: str
    created_at: datetime


class HistoryOut(Body):
    """One remembered event."""

    item_id: str
    title: str
    event_type: str
    timestamp: datetime
    value: float | None


class ProfileOut(UserOut):
    """Everything the service remembers of a person; `summary` says it in plain words.

    `interests` are categories of what they touched, `segments` those they are in, `answers` what the log says they were
    shown, `messages` the batches that hold a message for them.
    """

    summary: list[str]
    aliases: list[AliasOut]
    interests: list[str]
    segments: list[str]
    answers: int
    last_answer: datetime | None
    messages: list[str]
    history: list[HistoryOut]


class ContactOut(Body):
    """A content or an alert that was shown, under the name that it counts by; `subject` says what it was about."""

    counted: str
    subject: str
    at: datetime


class PersonOut(ProfileOut):
    """The same with every event, whether lists look at it or not, every answer of the decision log, and every contact.

    A contact says what was shown and may not come too often.
    """

    all_events: list[Event]
    all_answers: list[dict[str, Any]]
    all_contacts: list[ContactOut]


def router(engine: Engine) -> APIRouter:
    """Routes of users."""
    routes = APIRouter(prefix="/v1/users", tags=["users"])
    known = partial(known_person, engine)

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
        """Insert or replace the attributes of up to a thousand people, all or none; what is left out stays as it was."""
        await run_in_threadpool(engine.store.profiles.upsert, body.users)
        return json_response({"upserted": len(body.users)})

    @routes.get("/{user_id}", response_model=UserOut, responses=documented(404))
    async def get(user_id: UserPath) -> Response:
        """One person."""
        return json_response(_summary(await run_in_threadpool(known, user_id)))

    @routes.put("/{user_id}", response_model=UserOut)
    async def put(user_id: UserPath, body: UserIn) -> Response:
        """Set the attributes of one person, and what they say about consent; what is left out stays as it was."""

        def write() -> Profile:
            engine.store.profiles.upsert([User(user_id=user_id, **body.model_dump(exclude_unset=True))])
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


def known_person(engine: Engine, user_id: str) -> Profile:
    """The person behind an id; raises `NotFound` for one of whom nothing is known."""
    profile = engine.store.profiles.get(user_id)
    if profile is None:
        raise NotFound(f"unknown user '{user_id}'", field="user_id")
    return profile


def _summary(user: UserSummary) -> dict[str, Any]:
    return {
        "user_id": user.user_id,
        "attributes": user.attributes,
        "consent": {purpose: allows(user.consent, purpose) for purpose in PURPOSES},
        "events": user.events,
        "last_seen": None if user.last_seen is None else datetime.fromtimestamp(user.last_seen, UTC),
    }
