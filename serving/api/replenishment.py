"""Replenishment: when a person will need again what they have bought."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from embeddings.errors import NotFound
from embeddings.replenishment import DAY_S
from embeddings.schema import Id
from serving.api.errors import documented, json_response
from serving.api.fields import MAX_BATCH, Body
from serving.replica.engine import Engine
from serving.request.query import Query as Asked
from serving.request.replenishment import Repeat, due, moment_of, repeats
from serving.request.snapshot import Snapshot
from serving.request.work import Work

UserPath = Annotated[Id, Path(description="The application's id of the person, or another one of theirs.")]
Days = Annotated[float, Query(gt=0, le=365, allow_inf_nan=False, description="For `chance`: how far ahead to look.")]
OnlyDue = Annotated[bool, Query(description="Only what it is time for now, and what can be had.")]
Limit = Annotated[int, Query(ge=1, le=MAX_BATCH)]


class RepeatOut(Body):
    """One item that a person has bought; its state is `seldom` where it is usually not bought again.

    `due_at` is the median of the next purchase, `earliest` to `latest` hold it with 80%. `confidence` is the probability
    that it is bought again at all, `chance` that this is within `days` from now. `basis`: whose intervals tell most.
    """

    item_id: str
    title: str
    state: Literal["seldom", "early", "due", "late"]
    due: bool
    last_purchase: datetime
    purchases: int
    due_at: datetime
    earliest: datetime
    latest: datetime
    confidence: float
    chance: float
    basis: Literal["person", "item", "category", "everything"]


class ReplenishmentOut(Body):
    """What a person has bought, the soonest to be due first; nothing without their consent to personalization.

    What an include or exclude rule keeps from them on the placement `buy_again` is left out.
    """

    user_id: str
    at: datetime
    days: float
    items: list[RepeatOut]


def router(engine: Engine) -> APIRouter:
    """The one route."""
    routes = APIRouter(tags=["users"])

    @routes.get("/v1/users/{user_id}/replenishment", response_model=ReplenishmentOut, responses=documented(404))
    async def replenishment(
        user_id: UserPath, only_due: OnlyDue = False, days: Days = 7.0, limit: Limit = 100
    ) -> Response:
        """When this person will need again what they have bought, with a confidence."""

        def found() -> dict[str, Any]:
            snapshot, now = engine.snapshot, datetime.now(UTC)
            profile = engine.store.profiles.read(user_id).profile
            if profile is None:
                raise NotFound(f"unknown user '{user_id}'", field="user_id")
            # What a rule keeps from the person is not named here either; rules know this as the list of that name.
            work = Work(Asked(now=now, user_id=profile.user_id, placement="buy_again"), snapshot, profile)
            chosen = due(snapshot, profile, now.timestamp()) if only_due else repeats(snapshot, profile)
            permitted = [one for one in chosen if work.permits(one.row)]
            items = [_described(snapshot, one, now.timestamp(), days) for one in permitted[:limit]]
            return {"user_id": profile.user_id, "at": now, "days": days, "items": items}

        return json_response(await run_in_threadpool(found))

    return routes


def _described(snapshot: Snapshot, repeat: Repeat, now: float, days: float) -> dict[str, Any]:
    outlook = repeat.outlook
    return {
        "item_id": repeat.item_id,
        "title": snapshot.catalogue.title(repeat.row),
        "state": outlook.state(now),
        "due": outlook.due(now) and bool(snapshot.catalogue.available[repeat.row]),
        "last_purchase": moment_of(outlook.last),
        "purchases": outlook.purchases,
        "due_at": moment_of(outlook.due_at),
        "earliest": moment_of(outlook.earliest),
        "latest": moment_of(outlook.latest),
        "confidence": round(outlook.confidence(now), 4),
        "chance": round(outlook.chance(now, days * DAY_S), 4),
        "basis": outlook.basis,
    }
