"""Segments at work: who is in one, which ones a person is in, and which groups of people there are."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from embeddings.errors import NotFound
from serving.api.documents import DocumentPath
from serving.api.errors import documented, json_response
from serving.api.fields import MAX_BATCH, Body
from serving.api.users import UserPath, known_person
from serving.people.segmentation import clusters, members, segments_of
from serving.replica.engine import Engine


class UserSegmentsOut(Body):
    """The segments that a person is in."""

    user_id: str
    segments: list[str]


class MembersOut(Body):
    """People of a segment among those that were looked at; `next` is the `after` of the page after it."""

    segment: str
    user_ids: list[str]
    looked_at: int
    next: str | None


class ClustersIn(Body):
    """How many groups, of how many of the people who were active last."""

    count: Annotated[int, Field(ge=2, le=30, strict=True)] = 8
    people: Annotated[int, Field(ge=10, le=5000, strict=True)] = 1000


class ClusterOut(Body):
    """A group of people, named by what is over-represented in what they do.

    `segment` is a document that holds the group; `agreement` is how well: people in both of those in either.
    """

    name: str
    people: int
    share: float
    agreement: float
    segment: dict[str, Any]


class ClustersOut(Body):
    """Groups of people, the largest first."""

    people: int
    clusters: list[ClusterOut]


def router(engine: Engine) -> APIRouter:
    """Routes beside those that every kind of documents has."""
    routes = APIRouter(tags=["segments"])
    store = engine.store

    @routes.get("/v1/segments/{id}/members", response_model=MembersOut, responses=documented(404))
    async def of_segment(
        id: DocumentPath,  # noqa: A002 - the name that it has in every document
        limit: Annotated[int, Query(ge=1, le=MAX_BATCH, description="People to look at.")] = 100,
        after: Annotated[str | None, Query(min_length=1, max_length=128, pattern=r"^[^\x00]*$")] = None,
    ) -> Response:
        """People who are in a segment now, page by page in the order of their ids; a page may be empty and not the last."""
        snapshot = engine.snapshot
        if id not in snapshot.policy.segments.by_id:
            raise NotFound(f"unknown segment '{id}'", field="id")
        found = await run_in_threadpool(members, store, snapshot, id, limit=limit, after=after)
        return json_response(
            {"segment": id, "user_ids": found.user_ids, "looked_at": found.looked_at, "next": found.next}
        )

    @routes.get("/v1/users/{user_id}/segments", response_model=UserSegmentsOut, responses=documented(404))
    async def of_user(user_id: UserPath) -> Response:
        """The segments that a person is in now."""
        profile = await run_in_threadpool(known_person, engine, user_id)
        found = await run_in_threadpool(segments_of, engine.snapshot, profile)
        return json_response({"user_id": profile.user_id, "segments": found})

    @routes.post("/v1/segments/clusters", response_model=ClustersOut)
    async def propose(body: ClustersIn = ClustersIn()) -> Response:
        """Groups of the people who were active last, by what they do, each with the segment that would hold it.

        Nothing is stored: a segment that is wanted is put under a name of one's own.
        """
        found = await run_in_threadpool(clusters, store, engine.snapshot, count=body.count, people=body.people)
        return json_response(found)

    return routes
