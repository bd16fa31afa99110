"""Contents: decisions on what somebody is shown, and the alerts that are due for them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from embeddings.schema import Id, Label
from serving import metrics
from serving.api.direct import DirectRoute
from serving.api.errors import documented, json_response
from serving.api.fields import Body, Context, Deadline, Explain
from serving.decisions.alerts import AlertsQuery
from serving.decisions.deciding import REASONS, Decided, DecisionQuery
from serving.replica.engine import Engine
from serving.request.work import Work

MAX_CONTENTS = 20


UserId = Annotated[Id, Query(description="The application's id of the person, or another one of theirs.")]
Happened = Annotated[
    list[Literal["exit_intent", "idle"]],
    Query(default_factory=list, max_length=2, description="What has happened just now that only the application sees."),
]
Fact = Annotated[Label | None, Query(min_length=1, description="A fact of the request, for conditions.")]
Limit = Annotated[int, Query(ge=1, le=10)]


class DecisionsIn(Body):
    """A person is about to be shown some contents."""

    user_id: Id
    contents: Annotated[
        list[Id], Field(min_length=1, max_length=MAX_CONTENTS, description="Ids of contents; decided in this order.")
    ]
    context: Context = Field(default={})
    personalized: Annotated[bool, Field(strict=True, description="False decides as for somebody unknown.")] = True
    explain: Explain = False
    deadline_ms: Deadline = None


class WhyOut(Body):
    """Why this variant, or why none."""

    code: Literal[tuple(REASONS)]  # type: ignore[valid-type]
    text: str


class DecisionOut(Body):
    """What was decided about one content; `variant` and `payload` are null where there is nothing to be shown.

    Events that follow send the `recommendation_id` along. `propensity` is the probability with which the variant was drawn;
    `chances` and `means` are that, and the expected success, of every variant, for whoever asked for an explanation.
    """

    content: str
    recommendation_id: str
    variant: str | None
    payload: dict[str, Any] | None
    propensity: float | None
    reason: WhyOut
    experiment: dict[str, str] = Field(default={})
    chances: dict[str, float] = Field(default={})
    means: dict[str, float] = Field(default={})


class AlertItemOut(Body):
    """An item that an alert is about; `before` is the price that it fell from, `due_at` when it is needed again."""

    item_id: str
    title: str
    price: float | None
    before: float | None = None
    due_at: datetime | None = None


class AlertOut(DecisionOut):
    """An alert that is due."""

    trigger: Literal["exit_intent", "idle", "cart_abandonment", "back_in_stock", "price_drop", "replenishment"]
    items: list[AlertItemOut]


class AlertsOut(Body):
    """The alerts that are due, the most important first; none of them will be answered again."""

    alerts: list[AlertOut]
    model_version: str
    policy_version: int
    experiment: dict[str, str]
    degraded: list[str]


class DecisionsOut(Body):
    """Decisions in the order of the request."""

    decisions: list[DecisionOut]
    model_version: str
    policy_version: int
    experiment: dict[str, str]
    degraded: list[str]


def router(engine: Engine) -> APIRouter:
    """Routes of contents."""
    routes = APIRouter(tags=["contents"])
    direct = APIRouter(route_class=DirectRoute)

    @direct.post("/v1/decisions", response_model=DecisionsOut, responses=documented(404))
    async def decisions(body: DecisionsIn) -> Response:
        """The best variant of each content for this person now."""
        decided, work = await engine.decide(DecisionQuery(now=datetime.now(UTC), **dict(body)))
        count(decided, work)
        return json_response({"decisions": [encoded(one) for one in decided], **accounted(decided, work)})

    @routes.get("/v1/alerts", response_model=AlertsOut)
    async def alerts(
        user_id: UserId,
        trigger: Happened,
        channel: Fact = None,
        device: Fact = None,
        country: Fact = None,
        limit: Limit = 1,
    ) -> Response:
        """What it is time to tell this person: each thing once, within caps, and not in their quiet hours."""
        facts = {"channel": channel, "device": device, "country": country}
        query = AlertsQuery(
            now=datetime.now(UTC),
            user_id=user_id,
            happened=frozenset(trigger),
            context={name: value for name, value in facts.items() if value is not None},
            limit=limit,
        )
        found, work = await engine.alerts(query)
        count(found, work)
        return json_response({"alerts": [encoded(one) for one in found], **accounted(found, work)})

    routes.include_router(direct)
    return routes


def count(decided: list[Decided], work: Work) -> None:
    """Count what was decided, and what had to be done without."""
    for one in decided:
        metrics.DECIDED.labels(one.reason).inc()
    for stage in work.degraded:
        metrics.DEGRADED.labels(stage).inc()


def encoded(one: Decided) -> dict[str, Any]:
    """A decision as the documented JSON."""
    more = {"chances": one.chances, "means": one.means} if one.chances else {}
    return one.shown() | more


def accounted(decided: list[Decided], work: Work) -> dict[str, Any]:
    """What every answer carries beside what was asked for."""
    return {
        "model_version": work.snapshot.bundle.name,
        "policy_version": work.snapshot.policy.version,
        "experiment": work.arms | {name: arm for one in decided for name, arm in one.arms.items()},
        "degraded": work.degraded,
    }
