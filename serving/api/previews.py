"""Previews: what a change of a placement would move, and what it would bring, before anybody is shown it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from embeddings.errors import InputError
from embeddings.schema import Name as FieldName
from serving.api.documents import DocumentPath
from serving.api.errors import documented, json_response
from serving.api.fields import Body
from serving.policy.placements import PLACEMENTS, Placement
from serving.replica.engine import Engine


class PreviewIn(Body):
    """A draft of a placement, and how much is asked again to see what it would move."""

    placement: Annotated[dict[str, Any], Field(description="The draft, as it would be stored.")]
    requests: Annotated[int, Field(ge=1, le=1000, strict=True, description="At most so many logged requests.")] = 200
    seconds: Annotated[float, Field(gt=0, le=8, description="Not longer than this.")] = 4.0


class EstimateIn(Body):
    """A draft of a placement, and what of the log tells whether it would be better."""

    placement: Annotated[dict[str, Any], Field(description="The draft, as it would be stored.")]
    reward: Annotated[FieldName, Field(description="Type of the events that count, if they echo the answer.")] = "click"
    by_value: Annotated[bool, Field(strict=True, description="Sum their values instead of counting them.")] = False
    requests: Annotated[int, Field(ge=100, le=10_000, strict=True, description="At most so many logged requests.")] = (
        1000
    )
    seconds: Annotated[float, Field(gt=0, le=8, description="Not longer than this.")] = 6.0


class SidesOut(Body):
    """A figure with the placement in force, and with the draft; null where there is none."""

    current: float | None
    draft: float | None


class IntervalOut(Body):
    """An estimate and its bounds."""

    estimate: float
    low: float
    high: float


class SideOut(Body):
    """What one placement brings an answer, by three estimators.

    `effective` answers tell as much as the weighed ones do; `supported` is the share of the places that the log could have
    shown: of the others it knows nothing.
    """

    ips: IntervalOut
    snips: IntervalOut
    dr: IntervalOut
    effective: float
    supported: float


class EstimateOut(Body):
    """The placement in force beside the draft, both without exploration; `shown` is what the logged answers brought.

    `explored` is the share of the answers that were open to chance; `difference` is doubly robust, answer by answer.
    """

    placement: str
    reward: str
    by_value: bool
    logged: int
    replayed: int
    seconds: float
    explored: float
    shown: float
    current: SideOut
    draft: SideOut
    difference: IntervalOut


class CategoryOut(SidesOut):
    """Share of the places with an item of a category."""

    category: str


class BandOut(SidesOut):
    """Share of the places with a price in a band: above one bound, up to the other."""

    above: float | None
    up_to: float | None


class MoverOut(SidesOut):
    """Exposure of an item in a list, on average: 1 for the first place, 1 / log2(1 + place) for the others."""

    item_id: str
    title: str


class TitledOut(Body):
    """An item by name."""

    item_id: str
    title: str


class ExampleOut(Body):
    """One request, named by the answer that it got, and the heads of its two lists."""

    recommendation_id: str
    at: datetime
    current: list[TitledOut]
    draft: list[TitledOut]


class ComparedOut(Body):
    """What a draft moves: `logged` requests were found, `replayed` of them asked again, `changed` get another list.

    `means` are taken over all places, of values, price, novelty (0 for the best known item) and age.
    """

    logged: int
    replayed: int
    seconds: float
    changed: int
    overlap: float | None
    rank_biased_overlap: float | None
    means: dict[str, SidesOut]
    categories: list[CategoryOut]
    price_bands: list[BandOut]
    rising: list[MoverOut]
    falling: list[MoverOut]
    examples: list[ExampleOut]


class PreviewOut(ComparedOut):
    """What the draft of a placement moves."""

    placement: str


def router(engine: Engine) -> APIRouter:
    """Routes beside those that placements have as documents."""
    routes = APIRouter(tags=["placements"])

    @routes.post(
        "/v1/placements/{id}/preview",
        response_model=PreviewOut,
        responses=documented(429),
        summary="What a change would move",
    )
    async def preview(id: DocumentPath, body: PreviewIn) -> Response:  # noqa: A002 - the name that it has in every document
        """Ask the latest logged requests of a placement again, as it is and as the draft would have it; stores nothing."""
        return json_response(
            await engine.aside.preview(draft_of(id, body.placement), requests=body.requests, seconds=body.seconds)
        )

    @routes.post(
        "/v1/placements/{id}/estimate",
        response_model=EstimateOut,
        responses=documented(429),
        summary="What a change would bring",
    )
    async def estimate(id: DocumentPath, body: EstimateIn) -> Response:  # noqa: A002
        """Judge a draft by the log of answers that left something to chance (`exploration`); shows nobody anything."""
        found = await engine.aside.estimate(
            draft_of(id, body.placement),
            event_type=body.reward,
            by_value=body.by_value,
            requests=body.requests,
            seconds=body.seconds,
        )
        return json_response(found)

    def draft_of(name: str, raw: dict[str, Any]) -> Placement:
        """The draft of a placement; raises `InputError` with the path in the body."""
        if raw.get("id", name) != name:
            raise InputError(f"placement.id: '{raw['id']}' is not the '{name}' of the path", field="placement.id")
        attributes = engine.snapshot.catalogue.attributes
        try:
            return engine.policy.admit(PLACEMENTS, {**raw, "id": name}, item_attributes=attributes)
        except InputError as error:
            raise error.within("placement") from None

    return routes
