"""Preview: what a change of a placement would move, found by asking logged requests again with the old and the new one.

Exposure of an item is the sum of 1 / log2(1 + place) over the lists it is on: what is on top is seen more (as in DCG).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from embeddings.ids import Rows
from serving.aside.replay import Change, Replayed, replayed
from serving.pipeline.ladder import Ladder
from serving.pipeline.live import Live
from serving.pipeline.trial import overlap, rank_biased_overlap
from serving.policy.placements import Placement
from serving.request.catalogue import Catalogue
from serving.request.work import Work
from serving.stages.dial import age_days, novelty, values
from serving.store import Decision, Store

BANDS = 5
MOVERS = 10
EXAMPLES = 3
CATEGORIES = 30
MARGIN = "margin"


@dataclass
class Side:
    """One side of the comparison, summed over its lists."""

    names: tuple[str, ...]
    edges: npt.NDArray[np.float64]
    lists: int = 0
    places: int = 0
    sums: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    known: Counter[str] = field(default_factory=Counter)
    categories: Counter[str] = field(default_factory=Counter)
    bands: Counter[int] = field(default_factory=Counter)
    exposure: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, work: Work) -> None:
        """Add one list."""
        catalogue = work.catalogue
        rows: Rows = np.array([place.row for place in work.slate], dtype=np.int64)
        self.lists += 1
        self.places += len(rows)
        columns = {name: values(catalogue, name, rows) for name in self.names}
        columns |= {"novelty": novelty(catalogue, rows), "age_days": age_days(catalogue, rows, work.seconds)}
        for name, column in columns.items():
            there = np.isfinite(column)
            self.sums[name] += float(column[there].sum())
            self.known[name] += int(there.sum())
        prices = catalogue.prices[rows]
        priced = prices[np.isfinite(prices)]
        self.bands.update(np.searchsorted(self.edges, priced, side="left").tolist())
        for place, row in enumerate(rows.tolist()):
            self.exposure[catalogue.id(row)] += 1.0 / math.log2(2.0 + place)
            self.categories.update(set(catalogue.value(row, "categories") or ()))

    def mean(self, name: str) -> float | None:
        """Mean over the places where it is known."""
        return self.sums[name] / self.known[name] if self.known[name] else None

    def share(self, count: float) -> float:
        """Share of all places."""
        return count / self.places if self.places else 0.0


async def previewed(
    ladder: Ladder, live: Live, store: Store, draft: Placement, *, requests: int, seconds: float
) -> dict[str, Any]:
    """Compare the placement in force with a draft of it on the latest logged requests, in the form of `PreviewOut`."""
    until = time.monotonic() + seconds
    current = live.snapshot.policy.placement(draft.id)
    decisions = await asyncio.to_thread(store.decisions.latest, draft.id, requests, kind="list")
    values = [*current.values, *draft.values]
    found = await compared(
        ladder, live, store, decisions, lambda query: replace(query, draft=draft), values=values, until=until
    )
    return {"placement": draft.id} | found


async def compared(
    ladder: Ladder,
    live: Live,
    store: Store,
    decisions: Sequence[Decision],
    change: Change,
    *,
    values: Iterable[str] = (),
    until: float,
    look: Callable[[Replayed], None] | None = None,
) -> dict[str, Any]:
    """Compare logged requests as they would be answered now with a change of them, in the form of `ComparedOut`.

    `values` are attributes whose means are told beside price and margin; `look` sees every pair of lists.
    """
    began = time.monotonic()
    catalogue = live.snapshot.catalogue
    asked = [MARGIN] if MARGIN in catalogue.attributes else []
    names = tuple(dict.fromkeys(["price", *asked, *values]))
    edges = _edges(catalogue)
    before, after = Side(names, edges), Side(names, edges)
    overlaps, agreements, changed = [], [], 0
    examples: list[tuple[float, Replayed]] = []
    async for one in replayed(ladder, live, store, decisions, (lambda query: query, change), until=until):
        if look is not None:
            look(one)
        old, new = one.lists
        before.add(old)
        after.add(new)
        ours, theirs = _ids(old), _ids(new)
        changed += ours != theirs
        overlaps.append(overlap(ours, theirs))
        agreements.append(rank_biased_overlap(ours, theirs))
        if ours != theirs:
            examples = sorted([*examples, (agreements[-1], one)], key=lambda pair: pair[0])[:EXAMPLES]
    n = before.lists
    return {
        "logged": len(decisions),
        "replayed": n,
        "seconds": round(time.monotonic() - began, 3),
        "changed": changed,
        "overlap": float(np.mean(overlaps)) if n else None,
        "rank_biased_overlap": float(np.mean(agreements)) if n else None,
        "means": {
            name: {"current": before.mean(name), "draft": after.mean(name)} for name in (*names, "novelty", "age_days")
        },
        "categories": _categories(before, after),
        "price_bands": _bands(before, after, edges),
        **_movers(before, after, catalogue),
        "examples": [_example(one) for _, one in examples],
    }


def _ids(work: Work) -> list[str]:
    return [work.catalogue.id(place.row) for place in work.slate]


def _edges(catalogue: Catalogue) -> npt.NDArray[np.float64]:
    """Upper edges of all price bands but the last: each holds as many of the items that can be had."""
    prices = catalogue.prices[catalogue.available]
    prices = prices[np.isfinite(prices)]
    shares = np.arange(1, BANDS) / BANDS
    return np.unique(np.quantile(prices, shares, method="inverted_cdf")) if len(prices) else np.zeros(0)


def _categories(before: Side, after: Side) -> list[dict[str, Any]]:
    """Share of the places whose item is in each category, those that change most first."""
    shares = {
        name: (before.share(before.categories[name]), after.share(after.categories[name]))
        for name in sorted({*before.categories, *after.categories})
    }
    moved = sorted(shares.items(), key=lambda one: -abs(one[1][1] - one[1][0]))
    return [{"category": name, "current": old, "draft": new} for name, (old, new) in moved[:CATEGORIES]]


def _bands(before: Side, after: Side, edges: npt.NDArray[np.float64]) -> list[dict[str, Any]]:
    """Share of the places in each price band, the cheapest first."""
    bounds = [None, *edges.tolist(), None]
    return [
        {
            "above": low,
            "up_to": high,
            "current": before.share(before.bands[band]),
            "draft": after.share(after.bands[band]),
        }
        for band, (low, high) in enumerate(pairwise(bounds))
    ]


def _movers(before: Side, after: Side, catalogue: Catalogue) -> dict[str, list[dict[str, Any]]]:
    """The items that win and lose most exposure."""
    moved = {name: after.exposure[name] - before.exposure[name] for name in {*before.exposure, *after.exposure}}
    ranked = sorted((name for name, change in moved.items() if change), key=lambda name: (-moved[name], name))

    def told(names: Iterable[str]) -> list[dict[str, Any]]:
        return [
            {
                "item_id": name,
                "title": _title(catalogue, name),
                "current": before.exposure[name] / max(1, before.lists),
                "draft": after.exposure[name] / max(1, after.lists),
            }
            for name in names
        ]

    rising = [name for name in ranked[:MOVERS] if moved[name] > 0]
    falling = [name for name in reversed(ranked[-MOVERS:]) if moved[name] < 0]
    return {"rising": told(rising), "falling": told(falling)}


def _example(one: Replayed) -> dict[str, Any]:
    """One request, named by its answer: what is known of the person stays where it may be read."""
    lists = [
        [{"item_id": name, "title": _title(work.catalogue, name)} for name in _ids(work)[:MOVERS]] for work in one.lists
    ]
    return {
        "recommendation_id": one.decision.recommendation_id,
        "at": one.decision.at,
        "current": lists[0],
        "draft": lists[1],
    }


def _title(catalogue: Catalogue, name: str) -> str:
    row = catalogue.row(name)
    return catalogue.title(row) if row >= 0 else name
