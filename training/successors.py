"""Counting successors: once, from the events that the towers learn from.

Every event is followed by the next few of the same person, the sooner the closer. Counts are divided by the geometric mean
of how often both items occur: what everybody takes follows everything.

Shapes: E events, N items, M successors, C a chunk of items.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy.sparse import csr_matrix

from embeddings.ids import UNKNOWN
from embeddings.successors import Successors
from training.dataset import Dataset, Mask

REACH: Final = 3
"""An event is followed by so many, each counting one over its distance."""

CHUNK: Final = 65_536


def count_successors(data: Dataset, known: Mask, *, width: int) -> Successors:
    """The `width` closest successors of every item, by the positive events [E] that are marked as known."""
    at = np.flatnonzero(known & data.positive)
    owners, items, n = data.owners[at], data.rows[at], len(data.items)
    counts = csr_matrix((n, n), dtype=np.float32)
    for distance in range(1, REACH + 1):
        before, after = items[:-distance], items[distance:]
        same = (owners[:-distance] == owners[distance:]) & (before != after)
        share = np.full(int(same.sum()), 1.0 / distance, dtype=np.float32)
        counts = counts + csr_matrix((share, (before[same], after[same])), shape=(n, n))
    often = np.sqrt(np.bincount(items, minlength=n) + 1.0)
    rows = np.full((n, width), UNKNOWN, dtype=np.int32)
    weights = np.zeros((n, width), dtype=np.float16)
    for start in range(0, n, CHUNK):
        part = counts[start : start + CHUNK].tocoo()
        first, then = part.row + start, part.col
        close = part.data / (often[first] * often[then])
        order = np.lexsort((then, -close, first))
        first, then, close = first[order], then[order], close[order]
        place = np.arange(len(first)) - np.searchsorted(first, first)
        kept = place < width
        rows[first[kept], place[kept]] = then[kept]
        weights[first[kept], place[kept]] = close[kept]
    return Successors(rows=rows, weights=weights)
