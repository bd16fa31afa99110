"""Aliases: ids of one person joined, and parted again. A join holds from the next request on, and nothing is lost by it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from embeddings.errors import NotFound
from embeddings.schema import Id
from serving.api.errors import documented, json_response
from serving.api.fields import Body
from serving.api.users import AliasOut, UserPath
from serving.replica.engine import Engine

AliasPath = Annotated[Id, Path(description="Another id of the person: a cookie, a device, an address.")]


class AliasesOut(Body):
    """A person, and every other id of theirs."""

    user_id: str
    aliases: list[AliasOut]


def router(engine: Engine) -> APIRouter:
    """Routes of aliases."""
    routes = APIRouter(prefix="/v1/users/{user_id}/aliases", tags=["users"])
    aliases = engine.store.aliases

    def every(user_id: str) -> dict[str, Any]:
        whose = aliases.resolve(user_id)
        found = [{"alias": one.alias, "created_at": one.created_at} for one in aliases.of(whose)]
        return {"user_id": whose, "aliases": found}

    @routes.get("", response_model=AliasesOut)
    async def of(user_id: UserPath) -> Response:
        """The person behind an id, and every other id of theirs."""
        return json_response(await run_in_threadpool(every, user_id))

    @routes.put("/{alias}", response_model=AliasesOut, responses=documented(409), summary="Join an id to a person")
    async def link(user_id: UserPath, alias: AliasPath) -> Response:
        """From now on both ids are one person, with one history; 409 where that would make a chain or a loop."""

        def join() -> dict[str, Any]:
            aliases.link(alias, user_id)
            return every(user_id)

        return json_response(await run_in_threadpool(join))

    @routes.delete("/{alias}", status_code=204, responses=documented(404), summary="Part an id from a person")
    async def unlink(user_id: UserPath, alias: AliasPath) -> Response:
        """The id stands for itself again, with everything that was done under it."""

        def part() -> None:
            if not aliases.unlink(alias, user_id=user_id):
                raise NotFound(f"'{alias}' is no alias of '{user_id}'", field="alias")

        await run_in_threadpool(part)
        return Response(status_code=204)

    return routes
