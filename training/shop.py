"""A simulated shop with a known answer: shoppers with hidden tastes browse, click, put into the cart, buy, and buy again.

The demo, the tests and the load come from here. The shop knows what no real shop knows: each shopper's true probability
of clicking an item (`Shop.click_probability`), so that the uplift and the regret of a list can be computed, and the taste
that each item was made for (`Shop.taste_of`). Everything follows from the seed, at any size, in bounded memory.

Its parts: `assortment` has the items, `shoppers` the people, `behaviour` what people do with items.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from rich.progress import track

from embeddings.arrays import Ints
from embeddings.errors import InputError, unknown_name
from embeddings.ids import stable_hash
from embeddings.schema import EVENTS, ITEMS, TIME, USERS, Event, Item, User, from_table, to_table
from training.assortment import DAY, Assortment, Tastes, item_rows, join
from training.behaviour import PURCHASE, TYPES, VIEW, Acts, Behaviour, Sessions, attention, sigmoid
from training.shoppers import BLOCK, CHANNELS, COUNTRIES, DEVICES, Shoppers, draw_shoppers, newcomer, user_rows

__all__ = ["Shop", "Shoppers", "Tables", "attention", "blocks"]

MAX_DAYS = 730
"""Older than this, too few of the items exist."""


class Tables(NamedTuple):
    """A world as tables of the schemas EVENTS, ITEMS and USERS."""

    events: pa.Table
    items: pa.Table
    users: pa.Table


class Shop:
    """A shop of `items` items and `users` people, drawn from `seed`; nothing in it happens after `end`.

    Raises `InputError` for a size that it cannot have: 200 to 10 million items, 1 to 10 million people, 2 to 64 tastes.
    """

    def __init__(
        self,
        *,
        items: int = 2000,
        users: int = 1000,
        seed: int = 0,
        tastes: int = 12,
        end: datetime = datetime(2025, 12, 1, tzinfo=UTC),
    ) -> None:
        _within("items", items, 200, 10_000_000)
        _within("users", users, 1, 10_000_000)
        _within("tastes", tastes, 2, 64)
        _within("seed", seed, 0, 2**63 - 1)
        self.seed = seed
        self.user_count = users
        self.end = end if end.tzinfo else end.replace(tzinfo=UTC)
        liked = Tastes.draw(tastes, seed=seed)
        self.assortment = Assortment.draw(items, tastes=liked, seed=seed, end=int(self.end.timestamp()))
        self.behaviour = Behaviour(self.assortment, seed=seed)
        self._people = lru_cache(maxsize=16)(self._draw_people)

    @property
    def tastes(self) -> int:
        """How many hidden tastes there are."""
        return len(self.assortment.tastes)

    def items(self) -> pa.Table:
        """The catalogue as a table of the schema ITEMS; with millions of items prefer `assortment.tables()`."""
        return pa.concat_tables(self.assortment.tables()).combine_chunks()

    def users(self) -> pa.Table:
        """The people as a table of the schema USERS."""
        return pa.concat_tables(self.user_tables()).combine_chunks()

    def user_tables(self) -> Iterator[pa.Table]:
        """Yield the people in tables of one block each."""
        return (self._people(block).table() for block in self._blocks())

    def events(self, days: int = 90) -> pa.Table:
        """What happened in the `days` (1 to 730) before `end`, oldest first, as a table of the schema EVENTS."""
        return pa.concat_tables(self.event_tables(days)).sort_by("timestamp").combine_chunks()

    def event_tables(self, days: int = 90) -> Iterator[pa.Table]:
        """Yield the same events in blocks of people, each oldest first: memory does not grow with the number of people."""
        _within("days", days, 1, MAX_DAYS)
        return (self._block_events(block, days) for block in self._blocks())

    def tables(self, days: int = 90) -> Tables:
        """Events, items and users at once."""
        return Tables(self.events(days), self.items(), self.users())

    def write(self, directory: Path, *, days: int = 90, progress: bool = False) -> Path:
        """Write the shop as Parquet, laid out as the service exports it, in bounded memory; returns `directory`.

        Raises `InputError` if there is something at `directory` already.
        """
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise InputError(f"'{directory}' exists already; name an empty or a new folder", field="directory")
        tables = self.event_tables(days)
        directory.mkdir(parents=True, exist_ok=True)
        steps = track(tables, "Simulating", total=len(self._blocks()), disable=not progress, transient=True)
        for block, events in enumerate(steps):
            _write_events(events, directory / "events", block)
        _write(self.assortment.tables(), directory / "items.parquet", ITEMS)
        _write(self.user_tables(), directory / "users.parquet", USERS)
        return directory

    def taste_of(self, items: Sequence[str]) -> Ints:
        """The hidden taste that each item was made for, 0..tastes-1: [N]. Raises `NotFound` for a foreign id."""
        return self.assortment.taste[self._rows(items)].astype(np.int64)

    def shopper(self, user: str) -> Shoppers:
        """One person of the shop; raises `NotFound` for anyone else (for whom there is `newcomer`)."""
        block, place = divmod(int(user_rows([user], users=self.user_count)[0]), BLOCK)
        return self._people(block).take(np.array([place]))

    def newcomer(self, user: str, *, taste: int) -> Shoppers:
        """Somebody new, who has one taste and no other; may be passed wherever a user is asked for."""
        _within("taste", taste, 0, self.tastes - 1)
        return newcomer(user, taste=taste, tastes=self.tastes)

    def click_probability(
        self, user: str | Shoppers, items: Sequence[str], when: datetime, context: Mapping[str, Any] | None = None
    ) -> npt.NDArray[np.float64]:
        """True probability of clicking each item once it has been looked at: [N], strictly between 0 and 1.

        The simulator itself draws from this, times `attention(place)` for how likely a place of a list is looked at.
        `context` may have `channel`, `device` and `country`; what it leaves out is as the person usually has it, and
        other keys mean nothing to the shop. Raises `NotFound` for an unknown user or item, and `InputError` for a
        channel, device or country that the shop does not know.
        """
        session = self._session(user, when, context or {})
        return sigmoid(self.behaviour.log_odds(session, self._rows(items)[None, :])[0])

    def visit(
        self,
        user: str | Shoppers,
        shown: Sequence[str],
        when: datetime,
        context: Mapping[str, Any] | None = None,
        *,
        recommendation_id: str | None = None,
    ) -> list[Event]:
        """What the person does with a served list, best place first: views, carts and purchases, oldest first.

        The same visit always ends the same way, whatever happens before or beside it. An event has no id: the service
        draws it. Errors as in `click_probability`.
        """
        session = self._session(user, when, context or {})
        visit = stable_hash("\x1f".join([*session.people.ids.to_pylist(), when.isoformat(), *shown]), salt="visit")
        rng = np.random.default_rng([self.seed, 6, visit])
        acts = self.behaviour.react(rng, session, self._rows(shown)[None, :])
        table = self._table(acts, session, pa.array([f"v{visit:016x}"]), event_ids=None)
        if recommendation_id is not None:
            column = pa.array([recommendation_id] * len(table), pa.string())
            table = table.set_column(EVENTS.get_field_index("recommendation_id"), "recommendation_id", column)
        return from_table(table, Event)

    def _rows(self, items: Sequence[str]) -> Ints:
        return item_rows(items, items=len(self.assortment))

    def _blocks(self) -> range:
        return range(-(-self.user_count // BLOCK))

    def _draw_people(self, block: int) -> Shoppers:
        people = draw_shoppers(block, tastes=self.tastes, seed=self.seed, end=self.end.timestamp())
        return people.take(np.arange(min(BLOCK, self.user_count - block * BLOCK)))

    def _session(self, user: str | Shoppers, when: datetime, context: Mapping[str, Any]) -> Sessions:
        person = self.shopper(user) if isinstance(user, str) else user
        moment = when if when.tzinfo else when.replace(tzinfo=UTC)
        return Sessions(
            people=person,
            when=np.array([moment.timestamp()]),
            channel=_place(context, "channel", CHANNELS, person.channel),
            device=_place(context, "device", DEVICES, person.device),
            country=_place(context, "country", COUNTRIES, person.country),
        )

    def _block_events(self, block: int, days: int) -> pa.Table:
        """Events of one block of people, oldest first; drawn by a generator of the block's own."""
        rng = np.random.default_rng([self.seed, 5, block])
        end = self.end.timestamp()
        sessions = self.behaviour.draw_sessions(rng, self._people(block), start=end - days * DAY, end=end)
        acts = self.behaviour.react(rng, sessions, self.behaviour.browse(rng, sessions))
        acts = Acts.join(acts, self.behaviour.refill(rng, acts, end=end))
        acts = acts.take(acts.when < end)
        names = join(f"s{block}-", pa.array(np.arange(len(sessions))).cast(pa.string()))
        numbers = join(f"e{block}-", pa.array(np.arange(len(acts))).cast(pa.string()))
        return self._table(acts, sessions, names, event_ids=numbers)

    def _table(self, acts: Acts, sessions: Sessions, session_ids: Any, *, event_ids: Any) -> pa.Table:
        """Acts as a table of the schema EVENTS, oldest first; a purchase has the price as its value."""
        acts = acts.take(np.argsort(acts.when, kind="stable"))
        listed = pa.array(acts.place >= 0)
        price = np.round(self.assortment.price[acts.item].astype(np.float64), 2)
        moments = pa.array((acts.when * 1e6).astype(np.int64), TIME)
        where = (sessions.country * len(DEVICES) + sessions.device)[acts.session]
        columns = {
            "user_id": sessions.people.ids.take(pa.array(acts.session)),
            "item_id": self.assortment.ids(acts.item),
            "event_type": pa.array(TYPES).take(pa.array(acts.type)),
            "timestamp": moments,
            "value": pc.if_else(pa.array(acts.type == PURCHASE), pa.array(price), None),
            "session_id": pc.if_else(listed, session_ids.take(pa.array(acts.session)), None),
            "channel": pa.array(CHANNELS).take(pa.array(sessions.channel[acts.session])),
            "context": _CONTEXTS.take(pa.array(where)),
            "recommendation_id": pa.nulls(len(acts), pa.string()),
            "position": pc.if_else(listed, pa.array(acts.place.astype(np.int32)), None),
            "event_id": event_ids if event_ids is not None else pa.nulls(len(acts), pa.string()),
        }
        return pa.table(columns, schema=EVENTS)


_CONTEXTS = pa.array(
    [f'{{"country": "{country}", "device": "{device}"}}' for country in COUNTRIES for device in DEVICES]
)


def blocks(*, users: int = 80, items: int = 40, groups: int = 4, seed: int = 0, events_per_user: int = 12) -> Tables:
    """A world with a known answer: people of a group only ever touch items of that group, each item at most once.

    Person `u<n>` and item `i<n>` belong to group `n % groups`; the item says so in its category `group-<g>` and the person
    in the attribute `group`. So the items to recommend are those of the group that the person has not touched. Every
    person touches `events_per_user` items, or all but two of the group if that is fewer, one an hour. Raises
    `InputError` where a group would have fewer than four items or nobody.
    """
    _within("groups", groups, 1, users)
    _within("items", items, 4 * groups, 10_000_000)
    rng = np.random.default_rng([seed, 7])
    start = datetime(2025, 11, 1, tzinfo=UTC)
    catalogue = [
        Item(item_id=f"i{n}", title=f"Item {n} of group {n % groups}", categories=[f"group-{n % groups}"])
        for n in range(items)
    ]
    people = [User(user_id=f"u{n}", attributes={"group": f"group-{n % groups}"}) for n in range(users)]
    events = []
    for user in range(users):
        mine = np.arange(user % groups, items, groups)
        touched = rng.permutation(mine)[: min(events_per_user, len(mine) - 2)]
        first = start.timestamp() + float(rng.integers(20 * DAY // 3600)) * 3600
        for nth, item in enumerate(touched.tolist()):
            when = datetime.fromtimestamp(first + 3600.0 * nth, UTC)
            events.append(Event(user_id=f"u{user}", item_id=f"i{item}", event_type=TYPES[VIEW], timestamp=when))
    events.sort(key=lambda event: event.timestamp)
    return Tables(to_table(events, Event), to_table(catalogue, Item), to_table(people, User))


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InputError(f"{name} must lie between {low} and {high}, not {value}", field=name)


def _place(context: Mapping[str, Any], name: str, known: Sequence[str], usual: Ints) -> Ints:
    if name not in context:
        return usual
    if context[name] not in known:
        raise unknown_name(name, str(context[name]), known, field=f"context.{name}")
    return np.array([known.index(context[name])])


def _write_events(events: pa.Table, folder: Path, block: int) -> None:
    ds.write_dataset(
        events.append_column("date", pc.strftime(events["timestamp"], "%Y-%m-%d")),
        folder,
        format="parquet",
        partitioning=ds.partitioning(pa.schema([("date", pa.string())]), flavor="hive"),
        basename_template=f"part-{block}-{{i}}.parquet",
        existing_data_behavior="overwrite_or_ignore",
        max_partitions=MAX_DAYS + 2,
    )


def _write(tables: Iterator[pa.Table], path: Path, schema: pa.Schema) -> None:
    with pq.ParquetWriter(path, schema) as writer:
        for table in tables:
            writer.write_table(table)
