"""Events as arrays, and splits that never look into the future.

A `Dataset` holds every event sorted by person and time, stably, so that events of one second keep the order they came
in. A split marks the events that training may see and lists `Targets`: at this point of this person's history, these
items were to be found. Nothing is copied: a target is a position, its history is what lies before it.

Shapes: U people, E events, N items, Q targets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embeddings.arrays import Ints, Mask
from embeddings.errors import DataError, InputError
from embeddings.features import DEFAULT_EVENT_TYPES, EventKind, FeatureSpec
from embeddings.ids import IdMap
from embeddings.schema import ABOUT_CONTENT, EVENTS, ITEMS, Item, from_table, to_table

Times = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """All events of all people, oldest first: those of person u lie at `offsets[u]:offsets[u + 1]`."""

    users: IdMap
    items: IdMap
    item_table: pa.Table
    user_attributes: tuple[Mapping[str, Any], ...]
    contexts: tuple[Mapping[str, Any], ...]
    spec: FeatureSpec
    offsets: Ints
    owners: Ints  # [E] row of the person
    rows: Ints  # [E] row of the item
    types: Ints  # [E] row of the event type
    times: Times  # [E] seconds since 1970
    values: Times  # [E] NaN where an event has none
    context: Ints  # [E] position in `contexts`
    positive: Mask  # [E] worth predicting

    def __len__(self) -> int:
        return len(self.rows)

    def item_rows(self) -> list[Item]:
        """The catalogue as validated rows, in row order."""
        return from_table(self.item_table, Item)

    def fingerprint(self) -> str:
        """Hash of everything a model could learn from: equal data, equal fingerprint, on every machine."""
        digest = hashlib.sha256()
        for array in (self.offsets, self.rows, self.types, self.times, self.values, self.context, self.positive):
            digest.update(np.ascontiguousarray(array).tobytes())
        for names in (self.users.all, self.items.all):
            digest.update("\n".join(names).encode())
        for facts in (self.user_attributes, self.contexts, self.spec.model_dump(mode="json")):
            digest.update(json.dumps(facts, sort_keys=True, default=dict).encode())
        for batch in self.item_table.combine_chunks().to_batches(max_chunksize=10_000):
            digest.update(json.dumps(batch.to_pylist(), sort_keys=True, default=str).encode())
        return digest.hexdigest()

    def context_tokens(self, event: int, *, now: float, last: float | None) -> list[int]:
        """Context tokens of a request at the time and in the context of an event."""
        attributes = self.user_attributes[self.owners[event]]
        return self.spec.context_tokens(attributes, self.contexts[self.context[event]], now, last)


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Q places where an answer is known.

    The history of target q is `offsets[users[q]]:ends[q]` of the data set; the request came at `times[q]`, in the
    context of event `events[q]`; the items to find are `rows[bounds[q]:bounds[q + 1]]`.
    """

    users: Ints
    ends: Ints
    events: Ints
    times: Times
    bounds: Ints
    rows: Ints

    def __len__(self) -> int:
        return len(self.users)

    def relevant(self) -> list[Ints]:
        """Items to find, one array a target."""
        return np.split(self.rows, self.bounds[1:-1]) if len(self) else []

    def take(self, chosen: Ints) -> Targets:
        """Some of the targets, in the order asked for."""
        parts = [self.rows[self.bounds[q] : self.bounds[q + 1]] for q in chosen.tolist()]
        return Targets(
            users=self.users[chosen],
            ends=self.ends[chosen],
            events=self.events[chosen],
            times=self.times[chosen],
            bounds=np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64),
            rows=np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64),
        )


@dataclass(frozen=True, kw_only=True)
class Split:
    """What training may see, and what it is judged by. `train` [E] marks the events before every target."""

    train: Mask
    validation: Targets
    test: Targets


def load(
    events: pa.Table,
    items: pa.Table | None = None,
    users: pa.Table | None = None,
    *,
    event_types: Mapping[str, EventKind] | None = None,
    min_count: int = 2,
    text_buckets: int = 0,
    context_buckets: int = 0,
) -> Dataset:
    """Build a data set from tables of the schema; items that only events name get a bare row behind the catalogue.

    Events that are about contents are left out: a banner is nothing to recommend. So are those of types that say nothing
    about a taste: who was shown an item has not touched it. Raises `DataError` where no event is left.
    """
    events = _worth_reading(events.select(EVENTS.names), event_types or DEFAULT_EVENT_TYPES)
    item_table = _complete_catalogue(events, items)
    item_map = IdMap(item_table["item_id"].to_pylist())
    user_map = IdMap(pc.unique(events["user_id"]).sort().to_pylist())
    spec = FeatureSpec.fit(
        from_table(item_table, Item),
        event_types=event_types,
        min_count=min_count,
        text_buckets=text_buckets,
        context_buckets=context_buckets,
    )
    owners = _codes(events["user_id"], user_map)
    times = events["timestamp"].cast(pa.int64()).to_numpy() / 1e6
    order = np.lexsort((times, owners))  # stable: ties keep the order of the file
    context, contexts = _contexts(events)
    type_names = events["event_type"].to_pandas()
    owners = owners[order]
    return Dataset(
        users=user_map,
        items=item_map,
        item_table=item_table,
        user_attributes=_attributes(users, user_map),
        contexts=contexts,
        spec=spec,
        offsets=np.searchsorted(owners, np.arange(len(user_map) + 1)).astype(np.int64),
        owners=owners,
        rows=_codes(events["item_id"], item_map)[order],
        types=type_names.map(spec.event_row).to_numpy(dtype=np.int64)[order],
        times=times[order],
        values=events["value"].to_numpy(zero_copy_only=False).astype(np.float64)[order],
        context=context[order],
        positive=type_names.isin(spec.positive_types()).to_numpy(dtype=bool)[order],
    )


def first_touches(data: Dataset) -> Mask:
    """Mark the events in which a person touches an item for the first time: [E].

    Where seen items are filtered from lists, only these can be found again, so only these are targets.
    """
    keys = data.owners * np.int64(len(data.items)) + data.rows
    _, first = np.unique(keys, return_index=True)
    mask = np.zeros(len(data), dtype=bool)
    mask[first] = True
    return mask


def leave_last_out(data: Dataset, *, new_items_only: bool = True) -> Split:
    """Test on each person's last target, validate on the one before, train on everything earlier.

    A target is a positive event, by default on an item the person had not touched before. People with fewer than three
    of them are trained on whole. The history of the test target includes the validation event.
    """
    eligible = data.positive & first_touches(data) if new_items_only else data.positive
    places = np.flatnonzero(eligible)
    counts = np.bincount(data.owners[places], minlength=len(data.users))
    lasts = np.cumsum(counts) - 1
    kept = np.flatnonzero(counts >= 3)
    test, validation = places[lasts[kept]], places[lasts[kept] - 1]
    train = np.ones(len(data), dtype=bool)
    for user, place in zip(kept.tolist(), validation.tolist(), strict=True):
        train[place : data.offsets[user + 1]] = False
    return Split(
        train=train, validation=single_targets(data, validation, validation), test=single_targets(data, test, test)
    )


def leave_share_out(data: Dataset, *, share: float = 0.1, test_share: float = 0.0) -> Split:
    """Hold out the last events of each person: `test_share` of them to test, `share` of them before to validate.

    For people without times: where the order of events carries nothing, the last ones are random ones. Targets are first
    touches of an item by positive events; shares are rounded, and at least one event of each person stays in training.
    """
    if not 0 < share + test_share < 1 or min(share, test_share) < 0:
        raise InputError("share and test_share must not be negative and add up to less than 1")
    lengths = np.diff(data.offsets)
    tested = np.minimum(np.rint(lengths * test_share), lengths - 1).astype(np.int64)
    held = np.minimum(np.rint(lengths * share), lengths - tested - 1).astype(np.int64)
    second = data.offsets[1:] - tested
    first = second - held
    train = np.arange(len(data)) < first[data.owners]
    return Split(train=train, validation=_between(data, first, second), test=_between(data, second, data.offsets[1:]))


def temporal(data: Dataset, *, validation_share: float = 0.1, test_share: float = 0.1) -> Split:
    """Train on the past, validate on the days after it, test on the days after those: one clock for everybody.

    The shares are shares of events. A target is what one person newly and positively touches within a window; its
    history is what that person did before the window began.
    """
    if not 0 < validation_share + test_share < 1 or min(validation_share, test_share) <= 0:
        raise InputError("validation_share and test_share must be positive and add up to less than 1")
    first, second = np.quantile(data.times, [1 - validation_share - test_share, 1 - test_share])
    return Split(
        train=data.times < first,
        validation=_window(data, first, second),
        test=_window(data, second, np.inf),
    )


def single_targets(data: Dataset, places: Ints, ends: Ints) -> Targets:
    """Targets [Q] of one item each: that of event `places[q]`, to be found by what its person did before `ends[q]`."""
    return Targets(
        users=data.owners[places],
        ends=ends,
        events=places,
        times=data.times[places],
        bounds=np.arange(len(places) + 1, dtype=np.int64),
        rows=data.rows[places],
    )


def _window(data: Dataset, start: float, stop: float) -> Targets:
    # Events are sorted by person and time: what lies before a moment is a beginning of everybody's events.
    before, until = (
        data.offsets[:-1] + np.bincount(data.owners[data.times < moment], minlength=len(data.users))
        for moment in (start, stop)
    )
    return _between(data, before, until)


def _between(data: Dataset, starts: Ints, stops: Ints) -> Targets:
    """What each person newly and positively touches in the events `starts:stops` of their own: [U] each."""
    at = np.arange(len(data))
    inside = (at >= starts[data.owners]) & (at < stops[data.owners]) & data.positive & first_touches(data)
    places = np.flatnonzero(inside)
    users, first, counts = np.unique(data.owners[places], return_index=True, return_counts=True)
    return Targets(
        users=users.astype(np.int64),
        ends=starts[users],
        events=places[first],
        times=data.times[places[first]],
        bounds=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        rows=data.rows[places],
    )


def _worth_reading(events: pa.Table, event_types: Mapping[str, EventKind]) -> pa.Table:
    events = events.filter(pc.invert(pc.starts_with(events["item_id"], ABOUT_CONTENT)))
    kinds, found = FeatureSpec(event_types=dict(event_types)), pc.unique(events["event_type"]).to_pylist()
    telling = [name for name in found if kinds.telling(name)]
    if not telling:
        idle = f": their types have weight 0 ({', '.join(sorted(found))})" if found else ""
        raise DataError(f"there are no events to learn from{idle}")
    return events.filter(pc.is_in(events["event_type"], pa.array(telling, pa.string())))


def _complete_catalogue(events: pa.Table, items: pa.Table | None) -> pa.Table:
    named = items.select(ITEMS.names).cast(ITEMS) if items is not None else ITEMS.empty_table()
    bare = pc.unique(events["item_id"])
    missing = bare.filter(pc.invert(pc.is_in(bare, named["item_id"]))).sort().to_pylist()
    return pa.concat_tables([named, to_table([Item(item_id=name) for name in missing], Item)]).combine_chunks()


def _codes(column: pa.ChunkedArray, ids: IdMap) -> Ints:
    codes: Ints = pc.index_in(column, pa.array(ids.all, pa.string())).to_numpy().astype(np.int64)
    return codes


def _contexts(events: pa.Table) -> tuple[Ints, tuple[Mapping[str, Any], ...]]:
    channel = pc.fill_null(events["channel"], "")
    raw = pc.fill_null(events["context"], "{}")
    keys = pc.binary_join_element_wise(channel, raw, "\x1f").combine_chunks().dictionary_encode()
    contexts = []
    for key in keys.dictionary.to_pylist():
        name, _, text = key.partition("\x1f")
        contexts.append(json.loads(text or "{}") | ({"channel": name} if name else {}))
    return keys.indices.to_numpy().astype(np.int64), tuple(contexts)


def _attributes(users: pa.Table | None, ids: IdMap) -> tuple[Mapping[str, Any], ...]:
    known: dict[str, Mapping[str, Any]] = {}
    if users is not None:
        for name, text in zip(users["user_id"].to_pylist(), users["attributes"].to_pylist(), strict=True):
            known[name] = json.loads(text or "{}")
    return tuple(known.get(name, {}) for name in ids.all)
