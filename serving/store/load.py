"""Filling a store from tables: how a catalogue, people and past events move in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pyarrow as pa

from embeddings.ids import stable_hash
from embeddings.schema import Event, Item, Row, User, from_table
from serving.store import Store

ROWS_AT_ONCE = 5_000

Progress = Callable[[int], None]


def load_tables(
    store: Store,
    *,
    items: pa.Table,
    users: pa.Table,
    events: pa.Table,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Write tables of the schema into a store; counts by kind come back.

    Loading the same tables again changes nothing: items and users are replaced by themselves, and an event without an id
    gets one that depends on its content and its place among equal events alone.
    """
    tell = progress or (lambda _: None)
    for rows in _pages(items, Item):
        store.catalogue.upsert(rows)
        tell(len(rows))
    for rows in _pages(users, User):
        store.profiles.upsert(rows)
        tell(len(rows))
    accepted = duplicates = 0
    seen: Counter[int] = Counter()
    for rows in _pages(events, Event):
        done = store.events.append([_named(event, seen) for event in rows])
        accepted, duplicates = accepted + done.accepted, duplicates + done.duplicates
        tell(len(rows))
    return {"items": items.num_rows, "users": users.num_rows, "events": accepted, "known_events": duplicates}


def _pages(table: pa.Table, kind: type[Row]) -> Iterator[list]:  # type: ignore[type-arg]
    for start in range(0, table.num_rows, ROWS_AT_ONCE):
        yield from_table(table.slice(start, ROWS_AT_ONCE), kind)


def _named(event: Event, seen: Counter[int]) -> Event:
    if event.event_id is not None:
        return event
    content = stable_hash(event.model_dump_json(exclude={"event_id"}))
    seen[content] += 1
    return event.model_copy(update={"event_id": f"load-{content:016x}-{seen[content]}"})
