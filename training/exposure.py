"""Exposure: who gets the places of the lists, the few that everybody knows or the many that nobody has found yet.

Shape suffixes: Q targets, K places, N items, U people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from embeddings.arrays import Ints
from embeddings.ids import UNKNOWN
from training.contenders import Contest
from training.metrics import gini

TENTHS: Final = 10


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """Shares of each tenth of the catalogue, the best known items first, [10] each, adding up to 1.

    `lists` are the shares of list places by system, `chosen` those of the items that people really went on to, `known`
    those of the likes in training. `gini` is the inequality of list places over the catalogue by system.
    """

    lists: Mapping[str, tuple[float, ...]]
    chosen: tuple[float, ...]
    known: tuple[float, ...]
    gini: Mapping[str, float]


def measure_exposure(contest: Contest, known: Ints, *, k: int = 10) -> Exposure:
    """Share out the first k places of every list by the popularity `known` [N] of the items in training."""
    tenth = np.empty(len(known), dtype=np.int64)
    tenth[np.argsort(-known, kind="stable")] = np.arange(len(known)) * TENTHS // len(known)
    tops = {name: ranked[:, :k] for name, ranked in contest.lists.items()}
    return Exposure(
        lists={name: _shares(tenth[top[top != UNKNOWN]]) for name, top in tops.items()},
        chosen=_shares(tenth[contest.targets.rows]),
        known=_shares(tenth, known.astype(np.float64)),
        gini={name: gini(top, items=len(known), k=k) for name, top in tops.items()},
    )


def _shares(tenths: Ints, weights: npt.NDArray[np.float64] | None = None) -> tuple[float, ...]:
    counts = np.bincount(tenths, weights=weights, minlength=TENTHS).astype(np.float64)
    return tuple((counts / max(counts.sum(), 1e-12)).tolist())
