"""Successors: what people took soon after each item, which the ranking model asks beside the towers.

Towers say what goes with a whole history; what followed one item, again and again, is a fact that a vector of a few dozen
numbers blurs. Item-to-item transitions of this kind are a strong baseline by themselves (Ludewig and Jannach, 2018). Where
events have no order, what goes together stands in for what follows.

Shape suffixes: N items, M successors, L events of a history, K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from embeddings.arrays import Floats, Ints

LATEST: Final = 10
"""Events of a history whose successors count."""

DECAY: Final = 0.8
"""How much less the successors of an event count than those of the next one."""


@dataclass(frozen=True, kw_only=True)
class Successors:
    """For each item the rows [N, M] of what followed it most, -1 where a place is free, and how closely: weights [N, M].

    `ordered` says whether the order of events meant anything when they were counted.
    """

    rows: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float16]
    ordered: bool = True

    def follow(self, history_L: Ints, candidates_K: Ints) -> Floats:
        """How much each of K different candidates follows the latest events, and the last one alone: [K, 2].

        Without order it is all events, each counting the same, and of all that one which a candidate is closest to. The
        history is oldest first. Rows outside of the table follow nothing, and nothing follows them.
        """
        found_K2 = np.zeros((len(candidates_K), 2), dtype=np.float32)
        latest = history_L[-LATEST:] if self.ordered else history_L
        decay = DECAY if self.ordered else 1.0
        weight = decay ** np.arange(len(latest) - 1, -1, -1, dtype=np.float32)
        known = (latest >= 0) & (latest < len(self.rows))
        if not known.any() or not len(candidates_K):
            return found_K2
        order = np.argsort(candidates_K)
        ascending = candidates_K[order]
        rows = self.rows[latest[known]]
        weights = self.weights[latest[known]] * weight[known, None]
        place, close = _hits(ascending, rows, weights)
        found_K2[order, 0] = np.bincount(place, close, minlength=len(ascending))
        if not self.ordered:
            closest_K = np.zeros(len(ascending), dtype=np.float32)
            np.maximum.at(closest_K, place, close)
            found_K2[order, 1] = closest_K
        elif known[-1]:
            place, close = _hits(ascending, rows[-1], weights[-1])
            found_K2[order, 1] = np.bincount(place, close, minlength=len(ascending))
        return found_K2


def _hits(ascending_K: Ints, rows: npt.NDArray[np.int32], weights: Floats) -> tuple[Ints, Floats]:
    """Where rows of a table occur among ascending rows [K], and their weights."""
    rows, weights = rows.ravel(), weights.ravel()
    place = np.searchsorted(ascending_K, rows).clip(max=len(ascending_K) - 1)
    hit = ascending_K[place] == rows
    return place[hit], weights[hit]
