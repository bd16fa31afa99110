"""Together: which items go into the same basket, counted once when a release is made.

A basket is what one person took within a day of the last thing they took. Closeness of two items is the number of baskets
with both, over the geometric mean of the numbers with each and a constant (cosine with shrinkage, as in `ItemKNN`): what
everybody buys goes with everything, and two baskets prove little.

Shapes: E events, B baskets, N items, M companions, C a chunk of items.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from embeddings.ids import UNKNOWN
from training.dataset import Dataset

TAKEN: Final = ("cart", "purchase")
"""Event types that put something into a basket; where the data has none of them, everything worth predicting does."""

APART_S: Final = 86_400.0
COMPANIONS: Final = 20
SUPPORT: Final = 2
"""Baskets that must hold both."""

SHRINKAGE: Final = 3.0
LARGEST: Final = 100
"""Of a larger basket only the first items count: its pairs say little and grow with its square."""

CHUNK: Final = 1024


def companions(data: Dataset) -> npt.NDArray[np.int32] | None:
    """Rows [N, M] of what goes with each item, closest first, -1 at the end; None where no two items go together."""
    baskets = baskets_of(data)
    by_item = baskets.T.tocsr()
    each = np.diff(by_item.indptr)
    found = np.full((len(data.items), COMPANIONS), UNKNOWN, dtype=np.int32)
    for start in range(0, len(data.items), CHUNK):
        part = (by_item[start : start + CHUNK] @ baskets).tocoo()
        items, others, counts = part.row + start, part.col, part.data
        kept = (items != others) & (counts >= SUPPORT)
        items, others, counts = items[kept], others[kept], counts[kept]
        closeness = counts / (np.sqrt(each[items] * each[others]) + SHRINKAGE)
        order = np.lexsort((others, -closeness, items))
        items, others = items[order], others[order]
        place = np.arange(len(items)) - np.searchsorted(items, items)
        first = place < COMPANIONS
        found[items[first], place[first]] = others[first]
    return found if (found >= 0).any() else None


def baskets_of(data: Dataset) -> csr_matrix:
    """Which items each basket holds: ones [B, N]."""
    kinds = [data.spec.event_row(name) for name in TAKEN if name in data.spec.event_types]
    taken = np.isin(data.types, kinds)
    at = np.flatnonzero(taken if taken.any() else data.positive)
    owners, times, rows = data.owners[at], data.times[at], data.rows[at]
    begins = np.ones(len(at), dtype=bool)
    begins[1:] = (owners[1:] != owners[:-1]) | (np.diff(times) > APART_S)
    basket = np.cumsum(begins) - 1
    place = np.arange(len(at)) - np.flatnonzero(begins)[basket] if len(at) else basket
    kept = place < LARGEST
    shape = (int(begins.sum()), len(data.items))
    held = csr_matrix((np.ones(int(kept.sum())), (basket[kept], rows[kept])), shape=shape)
    held.data[:] = 1.0  # an item twice in a basket is there once
    return held
