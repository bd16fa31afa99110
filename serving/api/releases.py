"""Releases: what is in service, what is on trial, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Literal, TypeVar

from fastapi import APIRouter, Path
from fastapi import Body as JsonBody
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from embeddings.schema import Id
from serving.api.access import Caller
from serving.api.errors import documented, json_response
from serving.api.fields import Body
from serving.pipeline.releases import Mode
from serving.pipeline.trial import Share
from serving.replica.engine import Engine

T = TypeVar("T")
NamePath = Annotated[Id, Path(description="The name of the release.")]


class ReleaseOut(Body):
    """A release; `share` and `goal` of a trial, `reason` of a withdrawal, `problem`: what is wrong with it."""

    name: str
    state: Literal["current", "canary", "shadow", "withdrawn", "idle"]
    share: float | None
    goal: str | None
    reason: str | None
    changed_at: datetime | None
    created_at: datetime | None
    items: int | None
    metrics: dict[str, dict[str, float]]
    problem: str | None


class ArmOut(Body):
    """What one arm of a canary did on the replica that was asked; null without answers."""

    answers: int
    error_rate: float | None
    p50_ms: float | None
    p99_ms: float | None
    successes: int
    success_rate: float | None


class DifferenceOut(Body):
    """How the lists of a shadow differ from those that went out, as means over the compared requests."""

    compared: int
    dropped: int
    failed: int
    overlap: float | None
    rank_biased_overlap: float | None


class TrialOut(Body):
    """The trial under way on the replica that was asked."""

    name: str
    mode: Literal["canary", "shadow"]
    share: float
    goal: str
    control: ArmOut | None = None
    canary: ArmOut | None = None
    difference: DifferenceOut | None = None


class ReleasesOut(Body):
    """All releases, newest first, and the trial under way."""

    serving: str | None
    releases: list[ReleaseOut]
    trial: TrialOut | None


class RolledBackOut(Body):
    """Which release was withdrawn, and which one is current now."""

    withdrawn: str
    current: str


class RollbackIn(Body):
    """Why; it goes into the audit."""

    reason: Annotated[str, Field(min_length=1, max_length=500)] = "rolled back by hand"


def router(engine: Engine) -> APIRouter:
    """Routes of releases."""
    routes = APIRouter(prefix="/v1/releases", tags=["releases"])
    releases = engine.releases

    async def done(change: Callable[[], T]) -> T:
        """Verify and change in a thread: a release is read from end to end, and requests go on meanwhile."""

        def both() -> T:
            outcome = change()
            engine.refresh()
            return outcome

        return await run_in_threadpool(both)

    async def described(name: str) -> Response:
        found = await run_in_threadpool(releases.list)
        return json_response(next(one for one in found if one["name"] == name))

    async def tried(name: str, mode: Mode, how: Share, by: str) -> Response:
        await done(lambda: releases.try_out(name, mode, how, by=by))
        return await described(name)

    @routes.get("", response_model=ReleasesOut)
    async def every() -> Response:
        """All releases with their states, and what the trial under way has shown on this replica."""
        found = await run_in_threadpool(releases.list)
        trial = engine.trial
        report = None
        if trial is not None:
            report = {"name": trial.live.name, "mode": trial.mode, **trial.how.model_dump(), **trial.report()}
        serving = engine.snapshot.bundle.name if engine.ready else None
        return json_response({"serving": serving, "releases": found, "trial": report})

    @routes.post("/rollback", response_model=RolledBackOut, responses=documented(409))
    async def rollback(by: Caller, body: RollbackIn = RollbackIn()) -> Response:
        """Withdraw the trial if there is one, else go back to the release before the current one."""
        withdrawn, current = await done(lambda: releases.rollback(by=by, reason=body.reason))
        return json_response({"withdrawn": withdrawn, "current": current})

    @routes.post("/{name}/promote", response_model=ReleaseOut, responses=documented(404, 409))
    async def promote(name: NamePath, by: Caller) -> Response:
        """Verify a release and put it in service."""
        await done(lambda: releases.promote(name, by=by))
        return await described(name)

    @routes.post("/{name}/canary", response_model=ReleaseOut, responses=documented(404, 409))
    async def canary(name: NamePath, by: Caller, body: Annotated[Share, JsonBody()] = Share()) -> Response:
        """Let a release answer a share of the people; it is withdrawn by itself if it does worse than the current one."""
        return await tried(name, "canary", body, by)

    @routes.post("/{name}/shadow", response_model=ReleaseOut, responses=documented(404, 409))
    async def shadow(name: NamePath, by: Caller, body: Annotated[Share, JsonBody()] = Share()) -> Response:
        """Compute a share of the requests on a release too, after their answers, and compare the lists."""
        return await tried(name, "shadow", body, by)

    return routes
