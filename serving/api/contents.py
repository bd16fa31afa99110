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


UserId = Annotated[Id, Field(description="The application's id of the person, or another one of theirs.")]
Happened = Annotated[
    list[Literal["exit_intent", "idle"]],
    Field(max_length=2, description="What has happened just now that only the application sees."),
]
Fact = Annotated[Label | None, Field(min_length=1, description="A fact of the request, for conditions.")]
Limit = Annotated[int, Field(ge=1, le=10)]
Personalized = Annotated[bool, Field(strict=True, description="False decides as for somebody unknown.")]


class DecisionsIn(Body):
    """A person is about to be shown some contents."""

    user_id: Id
    contents: Annotated[
        list[Id], Field(min_length=1, max_length=MAX_CONTENTS, description="Ids of contents; decided in this order.")
    ]
    context: Context = Field(default={})
    personalized: Personalized = True
    explain: Explain = False
    deadline_ms: Deadline = None


class AlertsIn(Body):
    """A person is there, and may be told what has happened."""

    user_id: UserId
    trigger: Happened = Field(default=[])
    context: Context = Field(default={})
    personalized: Personalized = True
    limit: Annotated[Limit, Field(strict=True)] = 1
    deadline_ms: Deadline = None


class AlertsOfPage(Body):
    """The same in an address, for a script in a page: of the context it has these facts."""

    user_id: UserId
    trigger: Happened = Field(default=[])
    channel: Fact = None
    device: Fact = None
    country: Fact = None
    limit: Limit = 1


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

    @direct.post("/v1/alerts", response_model=AlertsOut)
    async def alerts(body: AlertsIn) -> Response:
        """What it is time to tell this person: each thing once, within caps, and not in their quiet hours."""
        fields = body.model_dump(exclude={"trigger"})
        return await told(AlertsQuery(now=datetime.now(UTC), happened=frozenset(body.trigger), **fields))

    @routes.get("/v1/alerts", response_model=AlertsOut)
    async def alerts_of_page(asked: Annotated[AlertsOfPage, Query()]) -> Response:
        """The same for a script in a page. What is answered counts as told, so nothing may ask it ahead or keep it."""
        return await told(
            AlertsQuery(
                now=datetime.now(UTC),
                user_id=asked.user_id,
                happened=frozenset(asked.trigger),
                context=asked.model_dump(include={"channel", "device", "country"}, exclude_none=True),
                limit=asked.limit,
            )
        )

    async def told(query: AlertsQuery) -> Response:
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
