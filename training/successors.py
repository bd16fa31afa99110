"""Counting successors: once, from the events that the towers learn from.

Where the order of events means something, every event is followed by the next few of the same person, the sooner the
closer; counts are divided by the geometric mean of how often both items occur: what everybody takes follows everything.
Where it means nothing, all of a person's items go with each other, and whoever took many says little by each of them:
closeness is a cell of R~' R~, with R~ = D_u^-1/2 R D_i^-1/2 (the linear filter of Shen et al., 2021).

Shapes: E events, N items, M successors, C a chunk of items.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np
from scipy.sparse import csr_matrix

from embeddings.arrays import Ints, Mask
from embeddings.heaviest import heaviest
from embeddings.successors import Successors
from training.dataset import Dataset
from training.spectrum import scaled, touched_matrix

CHUNK: Final = 1024
Sparse: TypeAlias = Any
"""A scipy CSR matrix (scipy carries no types)."""


def count_successors(data: Dataset, known: Mask, *, width: int, reach: int) -> Successors:
    """The `width` closest successors of every item, by the positive events [E] that are marked as known.

    An event is followed by the `reach` next ones of the same person, each counting one over its distance; with a reach of
    0 by all others, before and after.
    """
    n = len(data.items)
    if reach:
        at = np.flatnonzero(known & data.positive)
        closeness = _in_order(data.owners[at], data.rows[at], n, reach)
        return _closest(lambda start: closeness[start : start + CHUNK], n, width, ordered=True)
    people = scaled(touched_matrix(data, known))
    items = people.T.tocsr()
    return _closest(lambda start: items[start : start + CHUNK] @ people, n, width, ordered=False)


def _in_order(owners: Ints, items: Ints, n: int, reach: int) -> Sparse:
    """How closely one item follows another: [N, N]."""
    counts = csr_matrix((n, n), dtype=np.float32)
    for distance in range(1, reach + 1):
        before, after = items[:-distance], items[distance:]
        same = (owners[:-distance] == owners[distance:]) & (before != after)
        share = np.full(int(same.sum()), 1.0 / distance, dtype=np.float32)
        counts = counts + csr_matrix((share, (before[same], after[same])), shape=(n, n))
    often = 1.0 / np.sqrt(np.bincount(items, minlength=n) + 1.0)
    return counts.multiply(often[:, None]).multiply(often).tocsr()


def _closest(chunk: Callable[[int], Sparse], n: int, width: int, *, ordered: bool) -> Successors:
    """The largest cells of every row but the diagonal, from chunks of rows [C, N] by where they start."""
    rows = np.empty((n, width), dtype=np.int32)
    weights = np.empty((n, width), dtype=np.float16)
    for start in range(0, n, CHUNK):
        part, those = chunk(start).tocoo(), slice(start, min(start + CHUNK, n))
        off = part.row + start != part.col
        cells = part.row[off], part.col[off], part.data[off]
        rows[those], weights[those] = heaviest(*cells, rows=those.stop - start, width=width)
    return Successors(rows=rows, weights=weights, ordered=ordered)
