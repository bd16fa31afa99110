"""Items: the catalogue. A written item is retrievable in the next answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Path, Query
from fastapi import Body as JsonBody
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from embeddings.errors import NotFound
from embeddings.schema import Id, Item, parse
from serving.api.errors import documented, json_response
from serving.api.fields import MAX_BATCH, Body
from serving.replica.engine import Engine

ItemPath = Annotated[Id, Path(description="The application's id of the item.")]


class ItemIn(Item):
    """An item whose id stands in the path."""

    item_id: SkipJsonSchema[str] = Field(default="", max_length=0)


class ItemsIn(Body):
    """Items to insert or replace."""

    items: Annotated[list[Item], Field(min_length=1, max_length=MAX_BATCH)]


class UpsertedOut(Body):
    """How many rows were written."""

    upserted: int


class ItemPageOut(Body):
    """Items in the order of their ids."""

    items: list[Item]
    next: str | None


def router(engine: Engine) -> APIRouter:
    """Routes of items."""
    routes = APIRouter(prefix="/v1/items", tags=["items"])

    def write(items: Sequence[Item]) -> None:
        engine.store.catalogue.upsert(items)
        engine.take_changes()

    @routes.get("", response_model=ItemPageOut)
    async def page(
        limit: Annotated[int, Query(ge=1, le=MAX_BATCH)] = 100,
        after: Annotated[str | None, Query(max_length=128)] = None,
        q: Annotated[str | None, Query(max_length=256, description="Part of a title or an id.")] = None,
    ) -> Response:
        """Items in the order of their ids."""
        found = await run_in_threadpool(engine.store.catalogue.list, limit, after, q)
        return json_response({"items": [item.model_dump(mode="json") for item in found.items], "next": found.next})

    @routes.post("", response_model=UpsertedOut)
    async def upsert(body: ItemsIn) -> Response:
        """Insert or replace up to a thousand items, all or none."""
        await run_in_threadpool(write, body.items)
        return json_response({"upserted": len(body.items)})

    @routes.get("/{item_id}", response_model=Item, responses=documented(404))
    async def get(item_id: ItemPath) -> Response:
        """One item."""
        item = await run_in_threadpool(engine.store.catalogue.get, item_id)
        if item is None:
            raise NotFound(f"unknown item '{item_id}'", field="item_id")
        return json_response(item.model_dump(mode="json"))

    @routes.put("/{item_id}", response_model=Item)
    async def put(item_id: ItemPath, body: Annotated[ItemIn, JsonBody()]) -> Response:
        """Insert or replace one item."""
        item = parse(Item, body.model_dump(exclude_unset=True) | {"item_id": item_id})
        await run_in_threadpool(write, [item])
        return json_response(item.model_dump(mode="json"))

    @routes.delete("/{item_id}", status_code=204, responses=documented(404))
    async def delete(item_id: ItemPath) -> Response:
        """Remove one item; it is on no list from now on."""

        def remove() -> bool:
            released = engine.ready and engine.snapshot.catalogue.row(item_id) >= 0
            existed = engine.store.catalogue.delete(item_id)
            engine.take_changes()
            return existed or released

        if not await run_in_threadpool(remove):
            raise NotFound(f"unknown item '{item_id}'", field="item_id")
        return Response(status_code=204)

    return routes
