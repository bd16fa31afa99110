"""Gorse's REST interface over this service: an application with one of its clients moves in by changing a URL.

The same engine, store, keys and rules stand behind it as behind `/v1`; lists are those of the placement `gorse`. Paths and
names are Gorse's, errors are ours. `docs/gorse.md` says what differs. Its rows are in `gorse_data`, this has the lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from operator import attrgetter
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header
from fastapi import Query as Asked
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from embeddings.errors import BespokeError, NotFound
from embeddings.schema import Event, Id, Label
from serving.api import events as event_routes
from serving.api.access import require
from serving.api.errors import json_response
from serving.api.gorse_data import AT_ONCE, N, add_data, on
from serving.api.gorse_rows import FeedbackIn, Types
from serving.api.recommendations import count
from serving.people.kindred import AMONG, kindred
from serving.pipeline.pipeline import STAGES
from serving.policy.placements import GORSE
from serving.replica.engine import Engine
from serving.request.query import Query
from serving.request.work import Work
from serving.stages.effects import Listed
from serving.stages.sources import first_allowed
from serving.stages.stage import Filter
from serving.store import HistoryEvent, Profile

MOST = 1000
"""Places of a list: whoever asks for more, or further down, finds its end there."""

Offset = Annotated[int, Asked(ge=0, description="Entries to leave out at the beginning.")]
Categories = Annotated[list[Label], Asked(max_length=16, description="Categories that an item must all have.")]
WithoutSeen = Annotated[Id | None, Asked(alias="user-id", description="Leave out what this person has feedback on.")]
WriteBack = Annotated[str | None, Asked(alias="write-back-type", max_length=128)]
Ignored = Annotated[str | None, Asked(alias="write-back-delay", max_length=32)]
Version = Annotated[str | None, Header(alias="X-API-Version", max_length=16)]
Session = Annotated[list[FeedbackIn], Body(max_length=AT_ONCE)]


def router(engine: Engine) -> APIRouter:
    """Every route of the adapter; none is in our OpenAPI document, because Gorse has one of its own."""
    routes = APIRouter(prefix="/api", include_in_schema=False)
    types = Types(engine.settings.gorse_feedback)
    add_data(routes, engine, types)
    _add_recommendations(routes, engine, types)
    _add_neighbours(routes, engine)
    _add_health(routes, engine)
    return routes


def _add_recommendations(routes: APIRouter, engine: Engine, types: Types) -> None:
    @on(routes, "GET", "/recommend/{user_id}", "/recommend/{user_id}/{shelf}")
    async def recommend(
        request: Request,
        user_id: Id,
        shelf: str = "",
        category: Categories = [],  # noqa: B006 - FastAPI copies it
        n: N = 10,
        offset: Offset = 0,
        write_back: WriteBack = None,
        _delay: Ignored = None,
        version: Version = None,
    ) -> Response:
        """A person's list: ids, or with version 2 of the interface ids and scores."""
        if write_back:
            require(request, "events")
        found = await _listed(engine, _query([shelf, *category], n, offset, user_id=user_id), offset)
        if write_back and found is not None:
            await event_routes.store(engine, _shown(found, user_id, types.event_type(write_back)))
        scored = _scored(found)
        return _named(found, scored if version == "2" else [one["Id"] for one in scored])

    @on(routes, "GET", "/collaborative-filtering/{user_id}", "/intermediate/recommend/{user_id}")
    @on(routes, "GET", "/intermediate/recommend/{user_id}/{shelf}")
    async def collaborative(
        user_id: Id,
        shelf: str = "",
        category: Categories = [],  # noqa: B006
        n: N = 10,
        offset: Offset = 0,
    ) -> Response:
        """The same with scores."""
        found = await _listed(engine, _query([shelf, *category], n, offset, user_id=user_id), offset)
        return _named(found, _scored(found))

    @on(routes, "POST", "/session/recommend", "/session/recommend/{shelf}")
    async def session(
        body: Session,
        shelf: str = "",
        category: Categories = [],  # noqa: B006
        n: N = 10,
        offset: Offset = 0,
    ) -> Response:
        """A list for somebody who is nobody: what they did in this session stands in the request."""
        now = datetime.now(UTC)
        did = [types.event(row.model_copy(update={"UserId": row.UserId or "session"}), now) for row in body]
        query = replace(_query([shelf, *category], n, offset), exclude=[event.item_id for event in did])
        found = await _listed(engine, query, offset, profile=_profile(did))
        return _named(found, _scored(found))

    @on(routes, "GET", "/popular", "/popular/{shelf}", "/non-personalized/{_name}")
    async def popular(
        shelf: str = "",
        _name: str = "",
        category: Categories = [],  # noqa: B006
        n: N = 10,
        offset: Offset = 0,
        user_id: WithoutSeen = None,
    ) -> Response:
        """What is in demand."""
        query = replace(_query([shelf, *category], n, offset, user_id=user_id), personalized=False)
        found = await _listed(engine, query, offset)
        return _named(found, _scored(found))

    @on(routes, "GET", "/latest", "/latest/{shelf}")
    async def latest(
        shelf: str = "",
        category: Categories = [],  # noqa: B006
        n: N = 10,
        offset: Offset = 0,
        user_id: WithoutSeen = None,
    ) -> Response:
        """The newest items, whatever their age; a score is the time in seconds."""
        query = _query([shelf, *category], n, offset, user_id=user_id)
        return json_response(await run_in_threadpool(_newest, engine, query, offset))


def _add_neighbours(routes: APIRouter, engine: Engine) -> None:
    @on(routes, "GET", "/item/{item_id}/neighbors", "/item/{item_id}/neighbors/{shelf}")
    @on(routes, "GET", "/item-to-item/{_name}/{item_id}")
    async def of_item(
        item_id: Id,
        shelf: str = "",
        _name: str = "",
        category: Categories = [],  # noqa: B006
        n: N = 10,
        offset: Offset = 0,
        user_id: WithoutSeen = None,
    ) -> Response:
        """Items like an item; none for one that is not there."""
        query = replace(_query([shelf, *category], n, offset, user_id=user_id), similar_to=item_id)
        try:
            found = await _listed(engine, query, offset)
        except NotFound:
            found = None
        return _named(found, _scored(found))

    @on(routes, "GET", "/user/{user_id}/neighbors", "/user-to-user/{_name}/{user_id}")
    async def of_user(user_id: Id, _name: str = "", n: N = 10, offset: Offset = 0) -> Response:
        """People like a person, among those who were active last."""

        def found() -> list[dict[str, Any]]:
            profiles = engine.store.profiles
            person = profiles.get(user_id)
            if person is None or not n:
                return []
            others = profiles.some(one.user_id for one in profiles.list(AMONG).users)
            alike = kindred(engine.snapshot, person, others.values(), datetime.now(UTC))
            return [{"Id": name, "Score": score} for name, score in alike[offset : offset + n]]

        return json_response(await run_in_threadpool(found))


def _add_health(routes: APIRouter, engine: Engine) -> None:
    @on(routes, "GET", "/health/live")
    async def live() -> Response:
        """The process answers."""
        return json_response(_health(ready=engine.ready, error=None))

    @on(routes, "GET", "/health/ready")
    async def ready() -> Response:
        """200 when there is a release and the store answers, 503 before."""
        error = None
        try:
            await run_in_threadpool(engine.store.profiles.read, None)
        except BespokeError as failure:
            error = failure.message
        good = engine.ready and error is None
        return json_response(_health(ready=good, error=error), 200 if good else 503)


def _health(*, ready: bool, error: str | None) -> dict[str, Any]:
    """Gorse asks after two stores; here one is both."""
    connected = {f"{kind}StoreConnected": error is None for kind in ("Data", "Cache")}
    return {"Ready": ready, **connected, **{f"{kind}StoreError": error for kind in ("Data", "Cache")}}


def _query(categories: Sequence[str], n: int, offset: int, *, user_id: str | None = None) -> Query:
    wanted = [{"attribute": "categories", "op": "contains", "value": one} for one in categories if one]
    k = min(MOST, offset + n) if n else 0
    return Query(
        k=k, now=datetime.now(UTC), user_id=user_id, placement=GORSE.id, filter={"all": wanted} if wanted else None
    )


async def _listed(engine: Engine, query: Query, offset: int, profile: Profile | None = None) -> Listed | None:
    """The list from an offset on, and that much of it in the decision log; None where nothing can be on it."""
    if query.k <= offset:
        return None
    whole = await engine.compose(query, profile)
    count(whole.answer)
    found = whole._replace(answer=replace(whole.answer, items=whole.answer.items[offset:]), slate=whole.slate[offset:])
    engine.afterwards(found)
    return found


def _scored(found: Listed | None) -> list[dict[str, Any]]:
    return [{"Id": one.item_id, "Score": one.score} for one in found.answer.items] if found else []


def _named(found: Listed | None, body: list[Any]) -> Response:
    """The answer; its id, which events may echo, has no place in Gorse's JSON and stands in a header."""
    return json_response(body, headers={"X-Recommendation-Id": found.recommendation_id} if found else None)


def _shown(found: Listed, user_id: str, event_type: str) -> list[Event]:
    return [
        Event(
            user_id=user_id,
            item_id=one.item_id,
            event_type=event_type,
            timestamp=found.query.now,
            recommendation_id=found.recommendation_id,
            position=place,
        )
        for place, one in enumerate(found.answer.items)
    ]


def _profile(did: Sequence[Event]) -> Profile:
    order = sorted(did, key=attrgetter("timestamp"))
    history = [HistoryEvent(one.item_id, one.event_type, one.timestamp.timestamp(), one.value) for one in order]
    last = history[-1].timestamp if history else None
    return Profile(user_id="", attributes={}, events=len(history), last_seen=last, history=history)


def _newest(engine: Engine, query: Query, offset: int) -> list[dict[str, Any]]:
    if query.k <= offset:
        return []
    snapshot = engine.snapshot
    work = Work(query, snapshot, engine.store.profiles.read(query.user_id).profile)
    for stage in STAGES:
        if isinstance(stage, Filter):
            stage.run(work)
    catalogue = snapshot.catalogue
    rows = first_allowed(work, catalogue.newest, query.k)[offset:].tolist()
    return [{"Id": catalogue.id(row), "Score": float(catalogue.created[row])} for row in rows]
