"""Experiments: what they have found, and what the log tells about contents without one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from embeddings.errors import NotFound
from embeddings.schema import Name
from serving.analysis.results import ACTIVITY, results
from serving.api.documents import DocumentPath
from serving.api.errors import documented, json_response
from serving.api.fields import Body
from serving.api.previews import IntervalOut, SideOut
from serving.aside.estimates import variants_estimated
from serving.policy.experiments import Metric, State, parse_experiment
from serving.policy.kinds import References
from serving.policy.layers import EXPERIMENTS
from serving.replica.engine import Engine

Segment = Annotated[
    Name | None,
    Query(description=f"Also by segment: an attribute of people, or `{ACTIVITY}` (new, or active before)."),
]
Requests = Annotated[int, Query(ge=100, le=100_000, description="At most so many logged decisions, the latest.")]


class MeasuredOut(Body):
    """A metric of one arm over `people`: its mean, and how it differs from the first arm's, null where that is not known.

    `lift` is the difference as a share of the first arm's mean. `explained` is the share of variance that behaviour before
    the experiment took out of the comparison.
    """

    people: int
    mean: float | None
    difference: IntervalOut | None
    lift: IntervalOut | None
    verdict: Literal["better", "worse"] | None
    explained: float


class ArmResultsOut(Body):
    """One arm, and every metric of it."""

    id: str
    stopped: str | None
    people: int
    answers: int
    metrics: dict[Metric, MeasuredOut]


class SampleRatioOut(Body):
    """Whether arms have the people they should have; on an alarm nothing else here can be trusted."""

    p_value: float
    alarm: bool
    expected: dict[str, float]
    found: dict[str, int]


class SegmentResultsOut(Body):
    """The primary metric of each arm among the people with one value of the segment."""

    value: str | None
    people: int
    arms: dict[str, MeasuredOut]


class ResultsOut(Body):
    """What an experiment has found until a moment. `mixed` people met several arms, by several ids, and are left out."""

    experiment: str
    state: State
    until: datetime
    primary: Metric
    alpha: float
    people: int
    mixed: int
    sample_ratio: SampleRatioOut
    arms: list[ArmResultsOut]
    segments: list[SegmentResultsOut]


class VariantsOut(Body):
    """What each variant of a content would bring if everybody were shown it; `shown` is what the logged decisions did."""

    content: str
    reward: str
    logged: int
    used: int
    shown: float
    variants: dict[str, SideOut]


def router(engine: Engine) -> APIRouter:
    """Routes beside those of the documents."""
    routes = APIRouter(tags=["experiments"])

    @routes.get("/v1/experiments/{id}/results", response_model=ResultsOut, responses=documented(404))
    async def get_results(id: DocumentPath, segment: Segment = None) -> Response:  # noqa: A002 - as in every document
        """Metrics of each arm against the first, with intervals that hold whenever one looks."""

        def found() -> dict[str, Any]:
            # As it is stored: what it found stays, also when something that an arm names is gone.
            document = engine.store.documents.get(EXPERIMENTS.name, id)
            if document is None:
                raise NotFound(f"unknown experiment '{id}'", field="id")
            experiment = parse_experiment(document.body, references=References())
            return results(engine.store, experiment, now=datetime.now(UTC), segment=segment)

        return json_response(await run_in_threadpool(found))

    @routes.get("/v1/contents/{id}/estimate", response_model=VariantsOut, responses=documented(404))
    async def estimate(id: DocumentPath, requests: Requests = 10_000) -> Response:  # noqa: A002
        """Each variant alone, judged by the latest logged decisions and the chances with which they were taken."""

        def found() -> dict[str, Any]:
            content = engine.policy.contents.get(id)
            if content is None:
                raise NotFound(f"unknown content '{id}'", field="id")
            return variants_estimated(engine.store, content, requests=requests)

        return json_response(await run_in_threadpool(found))

    return routes
