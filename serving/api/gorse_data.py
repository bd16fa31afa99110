"""Gorse's rows over HTTP: items, users, and the feedback of users on items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Body, Path
from fastapi import Query as Asked
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from embeddings.errors import NotFound
from embeddings.schema import Event, Id, Item, Label
from serving.api import events as event_routes
from serving.api.errors import json_response
from serving.api.gorse_rows import (
    FeedbackIn,
    ItemIn,
    ItemPatch,
    Types,
    UserIn,
    UserPatch,
    changed_user,
    gorse_item,
    gorse_user,
    item_of,
    user_of,
)
from serving.people.erasure import erase
from serving.replica.engine import Engine
from serving.store import FeedbackKey, cursors

AT_ONCE = 5_000
"""Rows that one request may bring."""

PAGE = 1_000
"""Rows that one answer has at most; the cursor leads to the rest."""

LOOKED_AT = 20
"""Pages of events that are looked through for one page of a rare type."""

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
N = Annotated[int, Asked(ge=0, le=2**31 - 1, description="Number of entries.")]
PageN = Annotated[int, Asked(ge=1, le=2**31 - 1, description="Number of rows.")]
Cursor = Annotated[str, Asked(max_length=512, description="The cursor of the page before.")]
FeedbackType = Annotated[str, Path(min_length=1, max_length=128)]
ItemRows = Annotated[list[ItemIn], Body(max_length=AT_ONCE)]
UserRows = Annotated[list[UserIn], Body(max_length=AT_ONCE)]
FeedbackRows = Annotated[list[FeedbackIn], Body(max_length=AT_ONCE)]


def on(routes: APIRouter, method: str, *paths: str) -> Callable[[Endpoint], Endpoint]:
    """Serve paths by a function, with and without a slash behind them: clients have both."""

    def register(endpoint: Endpoint) -> Endpoint:
        for path in paths:
            for form in (path, f"{path}/"):
                routes.add_api_route(form, endpoint, methods=[method], response_model=None)
        return endpoint

    return register


def affected(count: int) -> Response:
    """What every write answers."""
    return json_response({"RowAffected": count})


def add_data(routes: APIRouter, engine: Engine, types: Types) -> None:
    """Add the routes of items, users and feedback."""
    _add_items(routes, engine)
    _add_users(routes, engine)
    _add_feedback(routes, engine, types)
    _add_lists_of_feedback(routes, engine, types)


def _add_items(routes: APIRouter, engine: Engine) -> None:
    catalogue = engine.store.catalogue

    def upsert(rows: Sequence[ItemIn]) -> int:
        catalogue.upsert([item_of(row, row.ItemId) for row in rows])
        engine.take_changes()
        return len(rows)

    def change(item_id: str, how: Callable[[Item], Item]) -> int:
        if not catalogue.change(item_id, how):
            raise NotFound(f"unknown item '{item_id}'", field="ItemId")
        engine.take_changes()
        return 1

    def delete(item_id: str) -> int:
        existed = catalogue.delete(item_id)
        engine.take_changes()
        return int(existed)

    @on(routes, "POST", "/item")
    async def insert(body: ItemIn) -> Response:
        return affected(await run_in_threadpool(upsert, [body]))

    @on(routes, "POST", "/items")
    async def insert_many(body: ItemRows) -> Response:
        return affected(await run_in_threadpool(upsert, body))

    @on(routes, "GET", "/items")
    async def page(
        n: PageN = 10, cursor: Cursor = "", q: Annotated[str | None, Asked(max_length=256)] = None
    ) -> Response:
        after = _after(cursor)
        found = await run_in_threadpool(catalogue.list, _page(n), after, q)
        return json_response({"Cursor": _cursor(found.next), "Items": [gorse_item(item) for item in found.items]})

    @on(routes, "GET", "/item/{item_id}")
    async def get(item_id: Id) -> Response:
        item = await run_in_threadpool(catalogue.get, item_id)
        if item is None:
            raise NotFound(f"unknown item '{item_id}'", field="ItemId")
        return json_response(gorse_item(item))

    @on(routes, "PATCH", "/item/{item_id}")
    async def patch(item_id: Id, body: ItemPatch) -> Response:
        return affected(await run_in_threadpool(change, item_id, partial(_patched, body)))

    @on(routes, "DELETE", "/item/{item_id}")
    async def remove(item_id: Id) -> Response:
        return affected(await run_in_threadpool(delete, item_id))

    @on(routes, "PUT", "/item/{item_id}/category/{category}")
    async def add_category(item_id: Id, category: Label) -> Response:
        return affected(await run_in_threadpool(change, item_id, partial(_shelved, category, True)))

    @on(routes, "DELETE", "/item/{item_id}/category/{category}")
    async def remove_category(item_id: Id, category: Label) -> Response:
        return affected(await run_in_threadpool(change, item_id, partial(_shelved, category, False)))


def _patched(patch: ItemPatch, item: Item) -> Item:
    return item_of(patch, item.item_id, item)


def _shelved(category: str, there: bool, item: Item) -> Item:
    others = [one for one in item.categories if one != category]
    return item_of(ItemPatch(Categories=[*others, category] if there else others), item.item_id, item)


def _add_users(routes: APIRouter, engine: Engine) -> None:
    profiles = engine.store.profiles

    @on(routes, "POST", "/user")
    async def insert(body: UserIn) -> Response:
        await run_in_threadpool(profiles.upsert, [user_of(body)])
        return affected(1)

    @on(routes, "POST", "/users")
    async def insert_many(body: UserRows) -> Response:
        await run_in_threadpool(profiles.upsert, [user_of(row) for row in body])
        return affected(len(body))

    @on(routes, "GET", "/users")
    async def page(n: PageN = 10, cursor: Cursor = "") -> Response:
        found = await run_in_threadpool(profiles.by_id, _page(n), _after(cursor))
        rows = [gorse_user(user.user_id, user.attributes) for user in found]
        return json_response({"Cursor": _cursor(found[-1].user_id if len(found) == _page(n) else None), "Users": rows})

    @on(routes, "GET", "/user/{user_id}")
    async def get(user_id: Id) -> Response:
        found = await run_in_threadpool(profiles.get, user_id)
        if found is None:
            raise NotFound(f"unknown user '{user_id}'", field="UserId")
        return json_response(gorse_user(user_id, found.attributes))

    @on(routes, "PATCH", "/user/{user_id}")
    async def patch(user_id: Id, body: UserPatch) -> Response:
        if not await run_in_threadpool(profiles.change, user_id, partial(changed_user, body)):
            raise NotFound(f"unknown user '{user_id}'", field="UserId")
        return affected(1)

    @on(routes, "DELETE", "/user/{user_id}")
    async def delete(user_id: Id) -> Response:
        def forget() -> int:
            if profiles.get(user_id) is None:
                return 0
            erase(engine.store, engine.effects, user_id)
            return 1

        return affected(await run_in_threadpool(forget))


def _add_feedback(routes: APIRouter, engine: Engine, types: Types) -> None:
    feedback = engine.store.feedback

    @on(routes, "POST", "/feedback")
    async def insert(body: FeedbackRows) -> Response:
        now = datetime.now(UTC)
        if body:
            await event_routes.store(engine, [types.event(row, now) for row in body])
        return affected(len(body))

    @on(routes, "PUT", "/feedback")
    async def overwrite(body: FeedbackRows) -> Response:
        """The new one first, then without those before it: whatever ends this in between, it may be sent again."""
        now = datetime.now(UTC)
        events = {_key(event): event for event in (types.event(row, now, valued=True) for row in body)}
        if events:
            done = await event_routes.store(engine, [*events.values()])
            await run_in_threadpool(partial(feedback.withdraw, events, keep=done.event_ids))
        return affected(len(body))

    @on(routes, "DELETE", "/feedback/{user_id}/{item_id}")
    async def delete(user_id: Id, item_id: Id) -> Response:
        return affected(await run_in_threadpool(withdraw, user_id, item_id, None))

    @on(routes, "DELETE", "/feedback/{feedback_type}/{user_id}/{item_id}")
    async def delete_of_type(feedback_type: FeedbackType, user_id: Id, item_id: Id) -> Response:
        return affected(await run_in_threadpool(withdraw, user_id, item_id, types.event_type(feedback_type)))

    def withdraw(user_id: str, item_id: str, event_type: str | None) -> int:
        found = types.feedback(feedback.of_user(user_id, item_id=item_id, event_type=event_type))
        feedback.withdraw([FeedbackKey(user_id, item_id, event_type)])
        return len(found)


def _add_lists_of_feedback(routes: APIRouter, engine: Engine, types: Types) -> None:
    feedback = engine.store.feedback

    async def listed(find: Callable[[], list[Event]]) -> list[dict[str, Any]]:
        return types.feedback(await run_in_threadpool(find))

    def typed(feedback_type: str | None) -> str | None:
        return None if feedback_type is None else types.event_type(feedback_type)

    @on(routes, "GET", "/feedback", "/feedback/{feedback_type}")
    async def page(feedback_type: str | None = None, n: PageN = 10, cursor: Cursor = "") -> Response:
        after = cursors.cursor_read(cursor)[0] if cursor else 0
        found, end = await run_in_threadpool(_events, engine, after, _page(n), typed(feedback_type))
        rows = [types.feedback([event])[0] for event in found]
        return json_response({"Cursor": cursors.cursor(end, "") if end else "", "Feedback": rows})

    @on(routes, "GET", "/feedback/{user_id}/{item_id}")
    async def of_pair(user_id: Id, item_id: Id) -> Response:
        return json_response(await listed(partial(feedback.of_user, user_id, item_id=item_id)))

    @on(routes, "GET", "/feedback/{feedback_type}/{user_id}/{item_id}")
    async def one(feedback_type: FeedbackType, user_id: Id, item_id: Id) -> Response:
        of_type = partial(feedback.of_user, user_id, item_id=item_id, event_type=typed(feedback_type))
        found = await listed(of_type)
        if not found:
            raise NotFound(f"'{user_id}' has no feedback of the type '{feedback_type}' on '{item_id}'")
        return json_response(found[0])

    @on(routes, "GET", "/user/{user_id}/feedback", "/user/{user_id}/feedback/{feedback_type}")
    async def of_user(user_id: Id, feedback_type: str | None = None) -> Response:
        return json_response(await listed(partial(feedback.of_user, user_id, event_type=typed(feedback_type))))

    @on(routes, "GET", "/item/{item_id}/feedback", "/item/{item_id}/feedback/{feedback_type}")
    async def of_item(item_id: Id, feedback_type: str | None = None) -> Response:
        return json_response(await listed(partial(feedback.of_item, item_id, event_type=typed(feedback_type))))


def _events(engine: Engine, after: int, limit: int, event_type: str | None) -> tuple[list[Event], int]:
    """Up to `limit` events behind a number, in the order they came, and the number to go on from; 0 when it was all."""
    found: list[Event] = []
    for _ in range(LOOKED_AT):
        page = engine.store.events.since(after, PAGE if event_type is not None else limit)
        for after, event in page:
            if event_type in (None, event.event_type):
                found.append(event)
                if len(found) == limit:
                    return found, after
        if len(page) < (PAGE if event_type is not None else limit):
            return found, 0
    return found, after


def _key(event: Event) -> FeedbackKey:
    return FeedbackKey(event.user_id, event.item_id, event.event_type)


def _page(n: int) -> int:
    return min(n, PAGE)


def _after(cursor: str) -> str | None:
    return cursors.cursor_read(cursor)[1] if cursor else None


def _cursor(name: str | None) -> str:
    return "" if name is None else cursors.cursor(0, name)
