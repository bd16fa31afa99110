"""Vectors: made-up item vectors and queries that lie as those of trained towers do, in clusters of very different size.

Two levels of clusters, 200 items in each of the lower ones on average, with sizes that fall like a power of their rank;
the columns' spread falls as well. A query is one place in the space and half of another, as that of a person with a main
interest and a second one. Made up, not trained: nobody has a million items with weights that may be passed on.
"""

from __future__ import annotations

import numpy as np

from embeddings.arrays import Floats, Mask

CLUSTER, GROUP = 200, 50
FALL = 0.35
SIZES = 0.7
SPREAD, ASIDE = 0.7, 1.0
LENGTHS = ("equal", "varied")


def make_vectors(items: int, width: int, queries: int, *, lengths: str, seed: int) -> tuple[Floats, Floats]:
    """Rows [items, width] and queries [queries, width]; the rows all of length 1, or varied by a quarter."""
    generator = np.random.default_rng(seed)
    count = max(8, items // CLUSTER)
    groups = generator.standard_normal((max(4, count // GROUP), width))
    centres = 0.8 * groups[generator.integers(len(groups), size=count)] + 0.8 * generator.standard_normal(
        (count, width)
    )
    shares = (1.0 + np.arange(count)) ** -SIZES
    shares /= shares.sum()
    fall = (1.0 + np.arange(width)) ** -FALL

    def draw(n: int, spread: float) -> Floats:
        found = np.empty((n, width), dtype=np.float32)
        for start in range(0, n, 100_000):
            block = found[start : start + 100_000]
            noise = generator.standard_normal(block.shape)
            block[:] = (centres[generator.choice(count, len(block), p=shares)] + spread * noise) * fall
        return found

    rows = draw(items, SPREAD)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    if lengths == "varied":
        rows *= np.exp(0.25 * generator.standard_normal((items, 1), dtype=np.float32))
    return rows, draw(queries, ASIDE) + 0.5 * draw(queries, ASIDE)


def make_mask(rows: Floats, share: float, *, together: bool, seed: int) -> Mask | None:
    """Which rows a filter allows: a share of them, at random or on one side of the space; None for all."""
    if share == 1:
        return None
    generator = np.random.default_rng(seed)
    allowed = max(1, round(share * len(rows)))
    mask = np.zeros(len(rows), dtype=bool)
    order = (
        rows @ generator.standard_normal(rows.shape[1], dtype=np.float32) if together else generator.random(len(rows))
    )
    mask[np.argpartition(order, allowed - 1)[:allowed]] = True
    return mask
