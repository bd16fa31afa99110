"""Candidates: one columnar batch of items on their way to the list, never a list of objects."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from embeddings.arrays import Floats
from embeddings.ids import Rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """K candidates: catalogue rows, a bit per source that found them, the retrieval score, and the score they stand by.

    Every column has the same length and order. A stage returns a new batch; it never changes one in place.
    """

    rows: Rows  # [K]
    found_by: npt.NDArray[np.uint32]  # [K], bit i is set when source i of the pipeline found the row
    retrieval: Floats  # [K]
    score: Floats  # [K]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: npt.NDArray[Any]) -> Candidates:
        """Some of the candidates, by position or by mask."""
        return Candidates(
            rows=self.rows[chosen],
            found_by=self.found_by[chosen],
            retrieval=self.retrieval[chosen],
            score=self.score[chosen],
        )

    def scored(self, score: npt.NDArray[Any]) -> Candidates:
        """The same candidates with another score."""
        return replace(self, score=np.asarray(score, dtype=np.float32))

    def best_first(self) -> Candidates:
        """Sorted by score, ties by row, so that equal inputs always give equal lists."""
        return self.take(np.lexsort((self.rows, -self.score)))
