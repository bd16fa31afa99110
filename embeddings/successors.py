"""Successors: what people took soon after each item, which the ranking model asks beside the towers.

Towers say what goes with a whole history; what followed one item, again and again, is a fact that a vector of a few dozen
numbers blurs. Item-to-item transitions of this kind are a strong baseline by themselves (Ludewig and Jannach, 2018).

Shape suffixes: N items, M successors, L events of a history, K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from embeddings.features import Floats, Ints

LATEST: Final = 10
"""Events of a history whose successors count."""

DECAY: Final = 0.8
"""How much less the successors of an event count than those of the next one."""


@dataclass(frozen=True, kw_only=True)
class Successors:
    """For each item the rows [N, M] of what followed it most, -1 where a place is free, and how closely: weights [N, M]."""

    rows: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float16]

    def follow(self, history_L: Ints, candidates_K: Ints) -> Floats:
        """How much each of K different candidates follows the latest events, and the last one alone: [K, 2].

        The history is oldest first. Rows outside of the table follow nothing, and nothing follows them.
        """
        found_K2 = np.zeros((len(candidates_K), 2), dtype=np.float32)
        latest = history_L[-LATEST:]
        weight = DECAY ** np.arange(len(latest) - 1, -1, -1, dtype=np.float32)
        known = (latest >= 0) & (latest < len(self.rows))
        if not known.any() or not len(candidates_K):
            return found_K2
        order = np.argsort(candidates_K)
        ascending = candidates_K[order]
        rows = self.rows[latest[known]]
        weights = self.weights[latest[known]] * weight[known, None]
        found_K2[order, 0] = _added(ascending, rows, weights)
        if known[-1]:
            found_K2[order, 1] = _added(ascending, rows[-1], weights[-1])
        return found_K2


def _added(ascending_K: Ints, rows: npt.NDArray[np.int32], weights: Floats) -> npt.NDArray[np.float64]:
    """Sums of weights by row, for ascending rows [K]."""
    rows, weights = rows.ravel(), weights.ravel()
    place = np.searchsorted(ascending_K, rows).clip(max=len(ascending_K) - 1)
    hit = ascending_K[place] == rows
    return np.bincount(place[hit], weights[hit], minlength=len(ascending_K)).astype(np.float64, copy=False)
