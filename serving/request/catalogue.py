"""The live catalogue: the items of the release, and beside them what changed since it was made.

The base segment is the bundle's item table with its index. A new or changed item is encoded by the item tower and joins a
small delta segment that is searched exactly; the base row of a changed item is retired. A row number counts base items
first, then delta items. A catalogue is immutable: a change makes a new one, and a request reads one from beginning to end.

Shapes: N rows in all, D dimensions, Q queries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from embeddings.arrays import Floats, Mask
from embeddings.bundle import Bundle
from embeddings.ids import UNKNOWN, IdMap, Rows
from embeddings.schema import ITEM_COLUMNS, Item, from_table
from embeddings.traits import Traits
from serving.policy.columns import ItemColumns
from serving.policy.compiled import REFRESH_S
from serving.policy.conditions import Condition

MASKS_KEPT = 64
"""Masks of conditions that a catalogue remembers: a byte for each item and mask."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Items with everything a stage asks of them, row by row."""

    ids: IdMap
    items: Sequence[Item]
    titles: Sequence[str]
    vectors: Floats  # [n, D]
    columns: ItemColumns
    available: Mask  # [n]
    prices: npt.NDArray[np.float64]  # [n], NaN where unknown
    created: npt.NDArray[np.float64]  # [n], seconds, NaN where unknown
    popularity: npt.NDArray[np.float64]  # [n, 2]: all events, recent events
    traits: Traits

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> Segment:
        """The release's own items; the vectors stay memory-mapped."""
        table = bundle.items.table
        created = table["created_at"].to_numpy(zero_copy_only=False).astype("datetime64[us]")
        return cls(
            ids=bundle.ids,
            items=bundle.items,
            titles=bundle.items.titles,
            vectors=bundle.matrix.view(np.ndarray),  # a memmap object pays for its class at every access
            columns=ItemColumns.of(bundle.items),
            available=table["available"].to_numpy(zero_copy_only=False).astype(bool),
            prices=table["price"].to_numpy(zero_copy_only=False).astype(np.float64),
            created=np.where(np.isnat(created), np.nan, created.astype(np.int64) / 1e6),
            popularity=bundle.popularity,
            traits=bundle.traits,
        )

    @classmethod
    def of_items(cls, items: Sequence[Item], bundle: Bundle, vectors: Floats) -> Segment:
        """New and changed items; a changed one keeps the popularity it had in the release."""
        known = bundle.ids.rows(item.item_id for item in items)
        popularity = np.where((known >= 0)[:, None], bundle.popularity[np.maximum(known, 0)], 0.0)
        return cls(
            ids=IdMap(item.item_id for item in items),
            items=items,
            titles=[item.title for item in items],
            vectors=vectors,
            columns=ItemColumns.of(items),
            available=np.array([item.available for item in items], dtype=bool),
            prices=np.array([np.nan if item.price is None else item.price for item in items], dtype=np.float64),
            created=np.array(
                [item.created_at.timestamp() if item.created_at else np.nan for item in items], dtype=np.float64
            ),
            popularity=popularity.reshape(len(items), 2),
            traits=bundle.traits_of(items),
        )


class Catalogue:
    """Base and delta as one range of rows."""

    def __init__(self, bundle: Bundle, base: Segment, delta: Segment, *, retired: Mask) -> None:
        self.bundle, self.base, self.delta, self.retired = bundle, base, delta, retired
        self.split = len(base.ids)
        self.available: Mask = np.concatenate([base.available & ~retired, delta.available])
        self.retired_rows: Mask = np.concatenate([retired, np.zeros(len(delta.ids), dtype=bool)])
        self._masks: dict[Condition, tuple[float, Mask]] = {}

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> Catalogue:
        """The catalogue as the release knows it."""
        nothing = np.zeros((0, bundle.manifest.towers.dim), dtype=np.float32)
        return cls(
            bundle,
            Segment.of_bundle(bundle),
            Segment.of_items([], bundle, nothing),
            retired=np.zeros(len(bundle.ids), dtype=bool),
        )

    def changed(self, upserted: Sequence[Item], deleted: Iterable[str]) -> Catalogue:
        """The catalogue after some changes, in the order of the store; only what is really new is encoded again."""
        delta: dict[str, tuple[Item, Floats]] = {
            item.item_id: (item, vector) for item, vector in zip(self.delta.items, self.delta.vectors, strict=True)
        }
        retired = self.retired.copy()
        fresh = self._unlike_the_release(upserted)
        for item in upserted:
            row = self.base.ids.row(item.item_id)
            delta.pop(item.item_id, None)
            if row != UNKNOWN:
                retired[row] = item.item_id in fresh
        for item_id, vector in zip(fresh, self.bundle.encode_items(list(fresh.values())), strict=True):
            delta[item_id] = (fresh[item_id], vector)
        for item_id in deleted:
            delta.pop(item_id, None)
            row = self.base.ids.row(item_id)
            if row != UNKNOWN:
                retired[row] = True
        vectors = np.array([vector for _, vector in delta.values()], dtype=np.float32)
        vectors = vectors.reshape(len(delta), self.bundle.manifest.towers.dim)
        segment = Segment.of_items([item for item, _ in delta.values()], self.bundle, vectors)
        return Catalogue(self.bundle, self.base, segment, retired=retired)

    def __len__(self) -> int:
        return self.split + len(self.delta.ids)

    @property
    def count(self) -> int:
        """Items that exist now, available or not."""
        return len(self) - int(self.retired.sum())

    @cached_property
    def attributes(self) -> frozenset[str]:
        """Names that a condition over items may use."""
        return ITEM_COLUMNS | self.base.columns.names | self.delta.columns.names

    @cached_property
    def prices(self) -> npt.NDArray[np.float64]:
        """Prices [N], NaN where unknown."""
        return np.concatenate([self.base.prices, self.delta.prices])

    @cached_property
    def created(self) -> npt.NDArray[np.float64]:
        """Times of appearance [N] in seconds, NaN where unknown."""
        return np.concatenate([self.base.created, self.delta.created])

    @cached_property
    def popularity(self) -> npt.NDArray[np.float64]:
        """Event counts [N, 2] at the time of the release: all, recent."""
        return np.concatenate([self.base.popularity, self.delta.popularity])

    @cached_property
    def best_known(self) -> float:
        """The highest event count of any item at the time of the release."""
        return float(self.popularity[:, 0].max(initial=0.0))

    @cached_property
    def newest(self) -> Rows:
        """Rows with a known time of appearance, newest first."""
        order = np.argsort(-np.nan_to_num(self.created, nan=-np.inf), kind="stable")
        return order[: int(np.isfinite(self.created).sum())]

    def newer_than(self, moment: float) -> Rows:
        """Rows that appeared after a moment in seconds, newest first."""
        newest = self.newest
        after = np.searchsorted(self._ages, -moment, side="left")
        return newest[:after]

    @cached_property
    def _ages(self) -> npt.NDArray[np.float64]:
        return -self.created[self.newest]

    def neighbours(self, rows: Rows) -> Rows | None:
        """Nearest items [len(rows), M] as the release found them, UNKNOWN at the end; None if it knows not all of them."""
        known = self.bundle.neighbours
        if known is None or (len(rows) and int(rows.max()) >= self.split):
            return None
        found = known[rows].astype(np.int64)
        there = found >= 0
        found[there] = self.current(found[there])
        return found

    def current(self, rows: Rows) -> Rows:
        """Where items of the release stand now; one that changed since has another row, one that is gone UNKNOWN."""
        changed = self.retired[rows]
        if not changed.any():
            return rows
        rows = rows.copy()
        rows[changed] = self.rows(self.base.ids.ids(rows[changed]))
        return rows

    def row(self, item_id: str) -> int:
        """Row of a living item, or UNKNOWN."""
        row = self.delta.ids.row(item_id)
        if row != UNKNOWN:
            return row + self.split
        row = self.base.ids.row(item_id)
        return UNKNOWN if row == UNKNOWN or self.retired[row] else row

    def rows(self, item_ids: Iterable[str]) -> Rows:
        """Rows of many items, UNKNOWN where there is none."""
        if len(self.delta.ids):
            return np.fromiter(map(self.row, item_ids), dtype=np.int64)
        rows = self.base.ids.rows(item_ids)
        rows[self.retired[rows] & (rows >= 0)] = UNKNOWN
        return rows

    def mask_of(self, condition: Condition, now: float) -> Mask:
        """The rows [N] that satisfy a condition at a moment in seconds; shared between requests, so read-only.

        Applications ask with the same few conditions again and again. One that depends on the time is kept for a minute.
        """
        at, mask = self._masks.get(condition, (now, None))
        if mask is None or (condition.timed and abs(now - at) >= REFRESH_S):
            mask = condition.mask(self.base.columns, now=now)
            if len(self.delta.ids):
                mask = np.concatenate([mask, condition.mask(self.delta.columns, now=now)])
            mask.flags.writeable = False
            if len(self._masks) >= MASKS_KEPT:
                self._masks.clear()
            self._masks[condition] = (now, mask)
        return mask

    def id(self, row: int) -> str:
        """Id of a row."""
        return self.base.ids.id(row) if row < self.split else self.delta.ids.id(row - self.split)

    def title(self, row: int) -> str:
        """Title of a row, its id where it has none."""
        title = self.base.titles[row] if row < self.split else self.delta.titles[row - self.split]
        return title or self.id(row)

    def item(self, row: int) -> Item:
        """The whole item."""
        return self.base.items[row] if row < self.split else self.delta.items[row - self.split]

    def value(self, row: int, attribute: str) -> Any:
        """One attribute of one item, None where it has none."""
        if row < self.split:
            return self.base.columns.value(row, attribute)
        return self.delta.columns.value(row - self.split, attribute)

    def values(self, rows: Rows, attribute: str) -> list[Any]:
        """One attribute of many items, None where one has none."""
        if not len(self.delta.ids) or not len(rows) or int(rows.max()) < self.split:
            return self.base.columns.column(attribute).values(rows)
        return [self.value(row, attribute) for row in rows.tolist()]

    def vectors(self, rows: Rows) -> Floats:
        """Vectors [len(rows), D]."""
        if not len(self.delta.ids) or not len(rows) or int(rows.max()) < self.split:
            return np.asarray(self.base.vectors[rows], dtype=np.float32)
        found = np.empty((len(rows), self.base.vectors.shape[1]), dtype=np.float32)
        late = rows >= self.split
        found[~late] = self.base.vectors[rows[~late]]
        found[late] = self.delta.vectors[rows[late] - self.split]
        return found

    def traits(self, rows: Rows) -> Traits:
        """What the ranking model knows of the attributes of some items."""
        if not len(self.delta.ids) or not len(rows) or int(rows.max()) < self.split:
            return self.base.traits.take(rows)
        found, late = Traits.none(len(rows)), rows >= self.split
        for segment, at, own in ((self.base, ~late, rows[~late]), (self.delta, late, rows[late] - self.split)):
            taken = segment.traits.take(own)
            found.tokens[at], found.weights[at] = taken.tokens, taken.weights
        return found

    def search(self, queries: Floats, k: int, allowed: Mask) -> tuple[Floats, Rows]:
        """The k allowed items with the highest dot product: scores [Q, k] and rows [Q, k], -inf and UNKNOWN at the end."""
        scores, rows = self.bundle.index.search(queries, k, allowed=allowed[: self.split])
        late = np.flatnonzero(allowed[self.split :])
        if not len(late):
            return scores, rows
        scores = np.concatenate([scores, queries @ self.delta.vectors[late].T], axis=1)
        rows = np.concatenate([rows, np.broadcast_to(late + self.split, (len(queries), len(late)))], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)

    def _unlike_the_release(self, upserted: Sequence[Item]) -> dict[str, Item]:
        """Those of the items, last one first served, that the release does not hold in just this form."""
        latest: Mapping[str, Item] = {item.item_id: item for item in upserted}
        known = [(name, self.base.ids.row(name)) for name in latest if name in self.base.ids]
        held = from_table(self.bundle.items.table.take([row for _, row in known]), Item) if known else []
        same = {name for (name, _), item in zip(known, held, strict=True) if item == latest[name]}
        return {name: item for name, item in latest.items() if name not in same}
