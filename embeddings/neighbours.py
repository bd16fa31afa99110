"""The neighbours of every item, found once for a release: what a list for somebody who touched an item starts from.

Looking them up takes microseconds where a search would scan the catalogue, and it does not matter how long the search took.
A table knows nothing of filters or of items that came later; whoever needs either searches.

Shape suffixes: N items, D dimensions, M neighbours of each.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from embeddings.arrays import Floats, unit
from embeddings.ids import UNKNOWN
from embeddings.index import VectorIndex

Neighbours = npt.NDArray[np.int32]

KEPT: Final = 50
EXACT_ROWS: Final = 100_000
"""Comparing all pairs takes half a minute on one core here, and a hundred times that for ten times as many."""

BLOCK_CELLS: Final = 8_000_000


def nearest_items(matrix_ND: Floats, *, count: int = KEPT, exact_rows: int = EXACT_ROWS, seed: int = 0) -> Neighbours:
    """Rows [N, M] of the items with the largest cosine to each item, best first, itself left out.

    Exact up to `exact_rows` items, above by inverted lists. UNKNOWN fills the places that a small catalogue leaves.
    """
    N = len(matrix_ND)
    unit_ND = np.ascontiguousarray(unit(matrix_ND), dtype=np.float32)
    found = np.full((N, count), UNKNOWN, dtype=np.int32)
    kept = min(count, max(0, N - 1))
    index = VectorIndex.build(unit_ND, kind="ivf", k=count + 1, seed=seed) if exact_rows < N else None
    step = max(1, BLOCK_CELLS // max(1, N)) if index is None else 4_096
    items = torch.from_numpy(unit_ND)
    for start in range(0, N if kept else 0, step):
        block = unit_ND[start : start + step]
        own = np.arange(start, start + len(block))[:, None]
        if index is None:
            near = (torch.from_numpy(block) @ items.T).topk(kept + 1, dim=1).indices.numpy()
        else:
            near = index.search(block, kept + 1)[1]
        # The item itself is among them unless it has doubles; then the last of the doubles goes in its place.
        itself = near == own
        itself[~itself.any(1), -1] = True
        found[start : start + len(block), :kept] = near[~itself].reshape(len(block), kept)
    return found
