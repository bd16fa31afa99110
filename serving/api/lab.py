"""The lab of rules over HTTP: draft, simulate, approve, release to a share of the people, roll back."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from embeddings.errors import InputError
from serving.api.access import Caller
from serving.api.documents import DocumentPath, Reason, world_of
from serving.api.errors import documented, json_response
from serving.api.fields import Body
from serving.api.previews import ComparedOut
from serving.aside.drafts import Draft, Drafts
from serving.policy.rules import RULES, Rule
from serving.policy.warnings import idle, warnings
from serving.replica.engine import Engine
from serving.store import Document


class FiredOut(Body):
    """On how many replayed requests a rule was in force and had an item to act on: `current`, and with the `draft`."""

    rule: str
    current: int
    draft: int


class ConflictOut(Body):
    """Two rules, and what is wrong with them together."""

    rule: str
    other: str
    text: str


class SimulationOut(ComparedOut):
    """What the draft of a rule moves; `never` are rules that fired on none of the requests.

    `pages` are requests for whole pages in the same time (without any list, the last day), as many as lists were asked for
    at most: their lists are not asked again.
    """

    rule: str
    pages: int
    fired: list[FiredOut]
    never: list[str]
    conflicts: list[ConflictOut]


class SimulationIn(Body):
    """How much is asked again."""

    requests: Annotated[int, Field(ge=1, le=1000, strict=True, description="At most so many logged requests.")] = 200
    seconds: Annotated[float, Field(gt=0, le=8, description="Not longer than this.")] = 4.0


class DraftIn(Body):
    """A rule as it would stand; null to remove the one of that id."""

    rule: Annotated[dict[str, Any] | None, Field(description="The rule, as it would be stored.")]


class DraftOut(Body):
    """A draft, and how far it is.

    `author` wrote it as it is, `approved_by` is whoever else agreed to just that. `share` of the people get the rule, null
    before it is released. `needs_approval`: it cannot be released before somebody else agrees. `difference` is what it
    changes of the rule in force, by field.
    """

    id: str
    rule: dict[str, Any] | None
    author: str
    approved_by: str | None
    share: float | None
    needs_approval: bool
    difference: dict[str, dict[str, Any]]
    version: int
    updated_at: datetime
    updated_by: str


class DraftWrittenOut(DraftOut):
    """A draft as it was written; `warnings` are sentences on what is allowed and probably not meant."""

    warnings: list[str]


class DraftListOut(Body):
    """All drafts, by id."""

    drafts: list[DraftOut]


class StepIn(Body):
    """What is said about a step."""

    reason: Annotated[str | None, Field(min_length=1, max_length=500, description="Why; it goes into the audit.")] = (
        None
    )


class RampIn(StepIn):
    """To how many of the people, always the same; more are added, and nobody drops out."""

    share: Annotated[
        float | None,
        Field(gt=0, le=1, allow_inf_nan=False, description="1 is everybody; by default what the draft says."),
    ] = None


class RuleChangedOut(Body):
    """The rule that is in force after a change, null where there is none; `warnings` are sentences on what came of it."""

    id: str
    rule: dict[str, Any] | None
    version: int
    warnings: list[str]


def router(engine: Engine) -> APIRouter:
    """Routes of drafts, and the way back."""
    routes = APIRouter(tags=["drafts"])
    drafts = Drafts(engine.store.documents, approval=engine.settings.approval)

    def encoded(document: Document) -> dict[str, Any]:
        draft = Draft.of(document)
        return {
            "id": document.id,
            "rule": draft.rule,
            "author": draft.author,
            "approved_by": draft.approved_by,
            "share": draft.share,
            "needs_approval": drafts.approval and draft.approved_by is None,
            "difference": drafts.difference(document.id, draft),
            "version": document.version,
            "updated_at": document.updated_at,
            "updated_by": document.updated_by,
        }

    def admitted(name: str, raw: dict[str, Any] | None) -> Rule | None:
        if raw is None:
            return None
        if raw.get("id", name) != name:
            raise InputError(f"rule.id: '{raw['id']}' is not the '{name}' of the path", field="rule.id")
        attributes = engine.snapshot.catalogue.attributes if engine.ready else None
        try:
            return engine.policy.admit(RULES, {**raw, "id": name}, item_attributes=attributes)
        except InputError as error:
            raise error.within("rule") from None

    def changed(name: str, change: Callable[[], Document | None]) -> dict[str, Any]:
        held = {(one.kind, one.id) for one in engine.policy.problems}
        document = change()
        engine.take_changes()
        policy = engine.policy
        broken = [one for one in policy.problems if (one.kind, one.id) not in held]
        told = [f"the {one.kind} '{one.id}' does not hold any more: {one.message}" for one in broken]
        body = None if document is None else document.body
        rule = policy.documents[RULES.name].get(name)
        if isinstance(rule, Rule):
            told += [*idle(rule, time.time()), *warnings(rule, policy, world_of(engine))]
        version = engine.store.documents.version() if document is None else document.version
        return {"id": name, "rule": body, "version": version, "warnings": told}

    @routes.get("/v1/drafts", response_model=DraftListOut)
    async def every() -> Response:
        """All drafts, by id."""
        found = await run_in_threadpool(lambda: [encoded(one) for one in drafts.every()])
        return json_response({"drafts": found})

    @routes.get("/v1/drafts/{id}", response_model=DraftOut, responses=documented(404))
    async def get(id: DocumentPath) -> Response:  # noqa: A002 - the name that it has in every document
        """The draft of one rule."""
        return json_response(await run_in_threadpool(lambda: encoded(drafts.get(id)[0])))

    @routes.put("/v1/drafts/{id}", response_model=DraftWrittenOut, responses=documented(404, 409))
    async def put(id: DocumentPath, body: DraftIn, by: Caller, reason: Reason = None) -> Response:  # noqa: A002
        """Write the draft of a rule, new or in place of the one in force; nothing changes yet."""

        def write() -> dict[str, Any]:
            rule = admitted(id, body.rule)
            raw = None if rule is None else rule.model_dump(mode="json")
            told = [] if rule is None else warnings(rule, engine.policy, world_of(engine))
            return encoded(drafts.write(id, raw, by=by, why=reason)) | {"warnings": told}

        return json_response(await run_in_threadpool(write))

    @routes.delete("/v1/drafts/{id}", status_code=204, responses=documented(404))
    async def drop(id: DocumentPath, by: Caller, reason: Reason = None) -> Response:  # noqa: A002
        """Throw a draft away; what was released stays."""
        await run_in_threadpool(drafts.drop, id, by=by, why=reason)
        return Response(status_code=204)

    @routes.post("/v1/drafts/{id}/simulate", response_model=SimulationOut, responses=documented(404, 429))
    async def simulate(id: DocumentPath, body: SimulationIn = SimulationIn()) -> Response:  # noqa: A002
        """Ask the latest logged requests again, as they are and with the draft, and look for rules at odds with it."""
        draft = (await run_in_threadpool(drafts.get, id))[1]
        rule = admitted(id, None if draft.rule is None else dict(draft.rule))
        return json_response(await engine.aside.simulate(id, rule, requests=body.requests, seconds=body.seconds))

    @routes.post("/v1/drafts/{id}/approve", response_model=DraftOut, responses=documented(404, 409))
    async def approve(
        id: DocumentPath,  # noqa: A002
        by: Caller,
        body: StepIn = StepIn(),
        reason: Reason = None,
    ) -> Response:
        """Agree to a draft as it is; only somebody else than its author can."""
        return json_response(
            await run_in_threadpool(lambda: encoded(drafts.approve(id, by=by, why=body.reason or reason)))
        )

    @routes.post("/v1/drafts/{id}/release", response_model=RuleChangedOut, responses=documented(404, 409))
    async def release(
        id: DocumentPath,  # noqa: A002
        by: Caller,
        body: RampIn = RampIn(),
        reason: Reason = None,
    ) -> Response:
        """Put a draft in force for a share of the people; once more for a larger one."""

        def ramp() -> dict[str, Any]:
            draft = drafts.get(id)[1]
            admitted(id, None if draft.rule is None else dict(draft.rule))  # the catalogue may have changed since
            if draft.rule is None:
                engine.policy.check_needed(RULES, id)
            why = body.reason or reason
            return changed(id, lambda: drafts.release(id, body.share, by=by, why=why))

        return json_response(await run_in_threadpool(ramp))

    @routes.post("/v1/rules/{id}/rollback", response_model=RuleChangedOut, responses=documented(404, 409))
    async def roll_back(
        id: DocumentPath,  # noqa: A002
        by: Caller,
        body: StepIn = StepIn(),
        reason: Reason = None,
    ) -> Response:
        """Put a rule back to what it was before its draft was released, or else before its last change."""
        why = body.reason or reason
        return json_response(await run_in_threadpool(changed, id, lambda: drafts.roll_back(id, by=by, why=why)))

    return routes
