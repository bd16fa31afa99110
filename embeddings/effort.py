"""Effort: how many cells a search reads to find what it should, measured when the index is made.

The k best of the rows that a filter allows lie as deep in the whole order as the best k / share of all rows, where share is
what the filter lets pass. So one table answers for every k and every filter: cells by depth. It holds the worse of two
filters of each share, rows allowed at random and rows on one side of the space: an attribute often allows neighbours
together, and a person may ask for what lies far from all they like.

Shape suffixes: Q queries, N rows, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from embeddings.arrays import Floats, Mask
from embeddings.cells import Cells
from embeddings.ids import Rows
from embeddings.scan import Matrix, ordered

SHARES: Final = (1.0, 0.5, 0.25, 0.1, 0.05, 0.02, 0.01)
"""Shares of allowed rows that are measured, until reading all allowed rows is cheaper."""

GROWTH: Final = 1.2
EXTRAS: Final = (0.25, 0.5, 1.0, 2.0, 4.0)
LEAST_EXTRA: Final = 16

SEARCH_NS: Final = 60_000.0
TESTED_NS, SCORED_NS = 6.0, 9.0
LISTED_NS, COMPUTED_NS = 0.4, 25.0
"""Time that a search takes; a row in a cell that is read, and more if it is allowed; a row of a mask, a row of a scan.

Measured at 100,000 x 64 on one core. Only their proportions count.
"""


class Effort(BaseModel):
    """What a search over cells does.

    `depths` ascend, `probes` are the cells to read for each; `extra` is how many rows more than k are put in order, in
    parts of k. `recall` is the mean recall@`tuned_k` found without a filter.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    tuned_k: int = Field(ge=1)
    recall: float = Field(ge=0, le=1)
    extra: float = Field(gt=0, le=100)
    depths: tuple[float, ...] = Field(min_length=1)
    probes: tuple[int, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _paired(self) -> Self:
        if len(self.depths) != len(self.probes) or min(self.probes) < 1 or list(self.depths) != sorted(self.depths):
            raise ValueError("depths must ascend and each have at least one probe")
        return self

    def room(self, k: int) -> int:
        """How many rows to put in order for k results: the bytes misplace a few around the last place."""
        return k + max(LEAST_EXTRA, math.ceil(k * self.extra))

    def probes_for(self, k: int, share: float) -> int | None:
        """Cells to read for the k best of a share of the rows; None if nothing so deep was measured."""
        depth = k / share
        if depth > self.depths[-1] * 1.0001:
            return None
        # A line on logarithmic paper between the measured depths; the last one of an unfiltered search also serves below.
        return math.ceil(math.exp(np.interp(math.log(depth), np.log(self.depths), np.log(self.probes))) - 1e-6)


def is_cheaper(cells: Cells, probes: int, share: float) -> bool:
    """Whether reading so many cells takes less time than computing the score of every allowed row."""
    read = cells.rows / cells.count * min(probes, cells.count)
    width = cells.width / 64
    scan = cells.rows * (share * COMPUTED_NS * width + (LISTED_NS if share < 1 else 0))
    return SEARCH_NS + read * (TESTED_NS + share * SCORED_NS * width) < scan


def tune(cells: Cells, matrix: Matrix, queries_QD: Floats, *, k: int, floor: float, seed: int) -> Effort:
    """Measure what it takes to keep a recall@k of `floor`, two standard errors below the mean included.

    The margin is there so that the floor also holds on another sample. The effort may end below the floor, where rows
    differ so much in length that a byte is too coarse; `recall` then says so.
    """
    k = min(k, len(matrix.vectors))
    best_Q = matrix.kth_scores(queries_QD, k, None)
    extra = _extra(cells, matrix, queries_QD, best_Q, k=k, floor=floor)
    depths: list[float] = []
    probes: list[int] = []
    recall, fewest = 0.0, 1
    for share in SHARES:
        measured = 0.0
        for mask in _masks(matrix, share, seed):
            if mask is not None and np.count_nonzero(mask) < k:
                return Effort(tuned_k=k, recall=recall, extra=extra, depths=tuple(depths), probes=tuple(probes))
            kth_Q = best_Q if mask is None else matrix.kth_scores(queries_QD, k, mask)
            fewest, measured = _least(cells, matrix, queries_QD, kth_Q, mask, k=k, extra=extra, floor=floor, at=fewest)
        if depths and not is_cheaper(cells, fewest, share):
            break
        recall = recall if depths else measured
        depths.append(k / share)
        probes.append(fewest)
    return Effort(tuned_k=k, recall=recall, extra=extra, depths=tuple(depths), probes=tuple(probes))


def found(kth_Q: Floats, scores_QK: Floats) -> Floats:
    """Recall [Q] of lists: the share of places whose score is at least the k-th best one, so that ties are no misses.

    As in Aumüller et al. 2020, "ANN-Benchmarks".
    """
    slack_Q = 1e-5 * np.abs(kth_Q)  # BLAS rounds differently
    return np.asarray((scores_QK >= (kth_Q - slack_Q)[:, None]).mean(axis=1), dtype=np.float32)


def shortlist(
    cells: Cells, matrix: Matrix, queries_QD: Floats, k: int, *, room: int, probes: int, mask: Mask | None
) -> tuple[Floats, Rows]:
    """The k best [Q, k] of what some cells hold: chosen by their bytes, put in order by the matrix."""
    rows_QM = cells.listed(queries_QD, min(room, cells.rows), probes, mask)
    return ordered(matrix.scores(queries_QD, rows_QM), rows_QM, k)


def perturbed_rows(matrix_ND: Floats, *, seed: int, count: int = 256) -> Floats:
    """Stand-ins for queries: drawn rows plus Gaussian noise of half the columns' spread.

    Real queries lie further from the items than these; tune on real ones where there are some.
    """
    generator = np.random.default_rng(seed)
    drawn_QD = matrix_ND[generator.integers(len(matrix_ND), size=min(count, len(matrix_ND)))]
    noise_QD = generator.standard_normal(drawn_QD.shape, dtype=np.float32)
    queries_QD: Floats = drawn_QD + 0.5 * drawn_QD.std(axis=0) * noise_QD
    return queries_QD


def _extra(cells: Cells, matrix: Matrix, queries_QD: Floats, kth_Q: Floats, *, k: int, floor: float) -> float:
    # With every cell read, what is missing is the bytes' fault: it may be a quarter of what the floor lets go.
    some = slice(0, 64)
    for extra in EXTRAS:
        room = k + max(LEAST_EXTRA, math.ceil(k * extra))
        scores_QK, _ = shortlist(cells, matrix, queries_QD[some], k, room=room, probes=cells.count, mask=None)
        if found(kth_Q[some], scores_QK).mean() >= 1 - (1 - floor) / 4:
            break
    return extra


def _least(
    cells: Cells,
    matrix: Matrix,
    queries_QD: Floats,
    kth_Q: Floats,
    mask: Mask | None,
    *,
    k: int,
    extra: float,
    floor: float,
    at: int,
) -> tuple[int, float]:
    """The fewest cells, from `at` on, that keep the floor, and the recall they have."""
    room = k + max(LEAST_EXTRA, math.ceil(k * extra))
    while True:
        scores_QK, _ = shortlist(cells, matrix, queries_QD, k, room=room, probes=at, mask=mask)
        recall_Q = found(kth_Q, scores_QK)
        recall = float(recall_Q.mean())
        if recall - 2 * float(recall_Q.std()) / len(recall_Q) ** 0.5 >= floor or at >= cells.count:
            return at, recall
        at = min(cells.count, max(at + 1, int(at * GROWTH)))


def _masks(matrix: Matrix, share: float, seed: int) -> Iterator[Mask | None]:
    if share == 1:
        yield None
        return
    generator = np.random.default_rng(seed)
    yield generator.random(matrix.rows) < share
    side_N = matrix.vectors @ generator.standard_normal(matrix.width, dtype=np.float32)
    yield np.asarray(side_N >= np.quantile(side_N, 1 - share))
