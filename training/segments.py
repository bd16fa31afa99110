"""Segments: how well each system serves the new and the active, the popular and the rare, and every large category.

A segment of people is a choice of targets; a segment of items keeps, of each target, the items to find that belong to it.
The bounds come from the training events, never from the results.

Shape suffixes: Q targets, K places, N items.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from embeddings.arrays import Ints, Mask
from training.contenders import Contest
from training.dataset import Dataset, Split
from training.evaluate import LEVEL, item_categories, popularity
from training.metrics import Interval, Scores, Values, score

CATEGORIES: Final = 8
"""The largest categories have a segment each."""

FEWEST: Final = 20
"""A segment of fewer targets says nothing and is left out."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One segment: the metric of each system over its `queries` targets, with intervals.

    `gap` is the paired difference of the last system to the `rival` that it is measured against.
    """

    kind: str
    name: str
    queries: int
    systems: Mapping[str, Interval]
    gap: Interval


def segments(
    contest: Contest, data: Dataset, split: Split, *, ours: str, rival: str, metric: str = "ndcg", k: int = 10
) -> tuple[Segment, ...]:
    """Score every system of a contest in every segment; `gap` is that of `ours` to `rival`, two of its systems."""
    found = []
    for kind, name, mask in (
        *_of_people(contest, data),
        *_of_items(contest, data, split),
        *_of_categories(contest, data),
    ):
        per_query = _values(contest, mask, metric, k)
        counted = int((~np.isnan(per_query[ours])).sum())
        if counted >= FEWEST:
            intervals = Scores(per_query | {"gap": per_query[ours] - per_query[rival]}).intervals(level=LEVEL)
            gap = intervals.pop("gap")
            found.append(Segment(kind=kind, name=name, queries=counted, systems=intervals, gap=gap))
    return tuple(found)


Choice = tuple[str, str, Mask]
"""Kind and name of a segment, and which of the items to find [sum of the targets' rows] belong to it."""


def _values(contest: Contest, mask: Mask, metric: str, k: int) -> dict[str, Values]:
    """The metric of every target that has an item of the segment to find, by system."""
    asked = contest.targets
    owner = np.repeat(np.arange(len(asked)), np.diff(asked.bounds))[mask]
    kept, counts = np.unique(owner, return_counts=True)
    bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    name = f"{metric}@{k}"
    return {
        system: score(ranked[kept], (bounds, asked.rows[mask]), k=[k], metrics=[metric]).per_query[name]
        for system, ranked in contest.lists.items()
    }


def _of_people(contest: Contest, data: Dataset) -> Iterator[Choice]:
    """Thirds of the people by how much was known of them when they were asked for."""
    asked = contest.targets
    length_Q = asked.ends - data.offsets[asked.users]
    low, high = (int(bound) for bound in np.quantile(length_Q, [1 / 3, 2 / 3]))
    each = np.repeat(length_Q, np.diff(asked.bounds))
    for name, inside in (
        ("new", each <= low),
        ("regular", (each > low) & (each <= high)),
        ("active", each > high),
    ):
        if inside.any():
            yield "people", f"{name} ({_range(each[inside])} events)", inside


def _of_items(contest: Contest, data: Dataset, split: Split) -> Iterator[Choice]:
    """Popular items are the few that half of all training likes go to; the others are rare, or were never seen."""
    known_N = popularity(data, split)
    order = np.argsort(-known_N, kind="stable")
    head = order[: 1 + int(np.searchsorted(np.cumsum(known_N[order]), known_N.sum() / 2))]
    popular_N = np.zeros(len(known_N), dtype=np.bool_)
    popular_N[head] = True
    for name, inside_N in (
        ("popular", popular_N),
        ("rare", ~popular_N & (known_N > 0)),
        ("never seen in training", known_N == 0),
    ):
        if inside_N.any():
            yield "items", f"{name} ({inside_N.sum():,} items)", inside_N[contest.targets.rows]


def _of_categories(contest: Contest, data: Dataset) -> Iterator[Choice]:
    """The categories that most targets belong to."""
    found = item_categories(data)
    if found is None:
        return
    table, names = found
    member = table[contest.targets.rows]
    counts: Ints = np.asarray(member.sum(axis=0), dtype=np.int64).ravel()
    for column in np.argsort(-counts, kind="stable")[:CATEGORIES].tolist():
        yield "categories", names[column], member[:, [column]].toarray().ravel() > 0


def _range(lengths: Ints) -> str:
    low, high = int(lengths.min()), int(lengths.max())
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"
