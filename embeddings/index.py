"""The vector index: which rows of the item matrix have the largest inner product with a query.

Two kinds behind one search: exact, which computes the score of every allowed row, and IVF, which reads the cells that look
best and puts what it finds there in order by the matrix. How much it reads is measured when it is made, for all filters;
where computing the allowed rows is cheaper, it does that. Cosine is the inner product of rows and queries that the caller
has normalised.

Shape suffixes: Q queries, N rows of the matrix, D width, K results.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from embeddings.arrays import Floats, Mask
from embeddings.cells import Cells
from embeddings.effort import Effort, found, is_cheaper, perturbed_rows, shortlist, tune
from embeddings.errors import InputError, unknown_name
from embeddings.ids import UNKNOWN, Rows
from embeddings.index_file import About, read, seal, write
from embeddings.scan import Matrix, threads

Kind = Literal["auto", "exact", "ivf"]

EXACT_ROWS: Final = 20_000
"""Up to here computing every score takes a third of a millisecond on one core at most, and nothing is ever missed."""


class VectorIndex:
    """An immutable index over N rows; searching is safe from several threads at once.

    `recall` is the mean recall@`tuned_k` measured when it was built, 1.0 for exact. `effort` is None for exact.
    """

    def __init__(self, matrix: Matrix, cells: Cells | None, *, effort: Effort | None, tuned_k: int) -> None:
        self._matrix, self._cells = matrix, cells
        self.effort, self.tuned_k = effort, tuned_k
        self.kind: Literal["exact", "ivf"] = "exact" if cells is None else "ivf"
        self.recall = 1.0 if effort is None else effort.recall

    def __len__(self) -> int:
        return self._matrix.rows

    @property
    def width(self) -> int:
        """D, the number of dimensions of a row and of a query."""
        return self._matrix.width

    @classmethod
    def build(
        cls,
        matrix: npt.ArrayLike,
        *,
        kind: Kind = "auto",
        seed: int = 0,
        recall_floor: float = 0.98,
        k: int = 100,
        queries: npt.ArrayLike | None = None,
        threads: int = 1,
    ) -> Self:
        """Index a matrix [N, D], so that recall@k keeps the floor for whatever a filter allows.

        `auto` is exact up to `EXACT_ROWS` and where IVF misses the floor. Give real `queries` [Q, D] to tune on
        (without them, perturbed rows stand in) and the k that is asked for most. The same seed gives the same index
        when `threads` is 1. The index keeps the matrix itself: do not change it afterwards.

        Raises `InputError` for a matrix or queries that are not finite numbers of two dimensions.
        """
        matrix_ND = _finite(matrix, "matrix")
        if kind not in get_args(Kind):
            raise unknown_name("index kind", kind, get_args(Kind), field="kind")
        if not 0 < recall_floor <= 1 or k < 1 or threads < 1:
            raise InputError("recall_floor must lie in (0, 1], k and threads must be at least 1")
        exact = cls(Matrix(matrix_ND), None, effort=None, tuned_k=k)
        if kind == "exact" or (kind == "auto" and len(matrix_ND) <= EXACT_ROWS):
            return exact
        if not len(matrix_ND):
            raise InputError(f"the matrix has no rows: '{kind}' needs some, 'exact' does not", field="matrix")
        sample_QD = perturbed_rows(matrix_ND, seed=seed) if queries is None else _finite(queries, "queries")
        if sample_QD.shape[1] != matrix_ND.shape[1] or not len(sample_QD):
            raise InputError(f"queries must be [at least 1, {matrix_ND.shape[1]}]", field="queries")
        ivf = cls._ivf(exact._matrix, sample_QD, seed=seed, floor=recall_floor, k=k, count=threads)
        return exact if kind == "auto" and ivf.recall < recall_floor else ivf

    @classmethod
    def _ivf(cls, matrix: Matrix, sample_QD: Floats, *, seed: int, floor: float, k: int, count: int) -> Self:
        with threads(count):
            cells = Cells.build(matrix, seed=seed)
            effort = tune(cells, matrix, sample_QD, k=k, floor=floor, seed=seed)
        return cls(matrix, cells, effort=effort, tuned_k=k)

    def search(self, queries: npt.ArrayLike, k: int, *, allowed: Mask | None = None) -> tuple[Floats, Rows]:
        """Return the k best rows of each query: scores [Q, K], best first, and rows [Q, K].

        `allowed` [N] says which rows may come back. Places beyond the last allowed row hold -inf and -1. Equal scores
        stand in row order, and in the exact kind the lowest rows win the last places as well. Raises `InputError` for
        queries that are not finite or not [Q, D], for k below 1 and for a mask that is not boolean [N].
        """
        queries_QD = _finite(queries, "queries")
        if queries_QD.shape[1] != self.width:
            raise InputError(f"queries are {queries_QD.shape[1]} wide, the index {self.width}", field="queries")
        if k < 1:
            raise InputError(f"k is {k}, must be at least 1", field="k")
        mask, count = self._mask(allowed)
        there = min(k, count)
        if there == k and len(queries_QD):
            return self._top(queries_QD, k, mask, count)
        scores_QK = np.full((len(queries_QD), k), -np.inf, dtype=np.float32)
        rows_QK = np.full((len(queries_QD), k), UNKNOWN, dtype=np.int64)
        if there and len(queries_QD):
            scores_QK[:, :there], rows_QK[:, :there] = self._top(queries_QD, there, mask, count)
        return scores_QK, rows_QK

    def measure_recall(self, queries: npt.ArrayLike, k: int, *, allowed: Mask | None = None) -> float:
        """Mean recall@k of `search` against exact search over the same (allowed) rows.

        A row counts as found if it scores at least the k-th best score, so that ties are not misses. Raises
        `InputError` as `search` does, and when there are no queries.
        """
        queries_QD = _finite(queries, "queries")
        mask, count = self._mask(allowed)
        if not len(queries_QD) or not count:
            raise InputError("recall needs at least one query and one allowed row", field="queries")
        k = min(k, count)
        scores_QK, _ = self.search(queries_QD, k, allowed=mask)
        return float(found(self._matrix.kth_scores(queries_QD, k, mask), scores_QK).mean())

    def _mask(self, allowed: Mask | None) -> tuple[Mask | None, int]:
        if allowed is None:
            return None, len(self)
        mask = np.asarray(allowed)
        if mask.dtype != np.bool_ or mask.shape != (len(self),):
            raise InputError(f"allowed is {mask.dtype} {mask.shape}, must be bool ({len(self)},)", field="allowed")
        count = int(np.count_nonzero(mask))
        return (None if count == len(self) else mask), count

    def _top(self, queries_QD: Floats, k: int, mask: Mask | None, count: int) -> tuple[Floats, Rows]:
        probes = self._probes(k, count / len(self))
        if self._cells is None or self.effort is None or probes is None:
            return self._matrix.best(queries_QD, k, mask)
        room = self.effort.room(k)
        scores_QK, rows_QK = shortlist(self._cells, self._matrix, queries_QD, k, room=room, probes=probes, mask=mask)
        short_Q = rows_QK[:, -1] == UNKNOWN
        if short_Q.any():
            scores_QK[short_Q], rows_QK[short_Q] = self._matrix.best(queries_QD[short_Q], k, mask)
        return scores_QK, rows_QK

    def _probes(self, k: int, share: float) -> int | None:
        """Cells to read for the k best of a share of the rows; None where computing every allowed row is better."""
        if self._cells is None or self.effort is None or self.effort.room(k) >= len(self):
            return None
        probes = self.effort.probes_for(k, share)
        return probes if probes is not None and is_cheaper(self._cells, probes, share) else None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to one file; the matrix is not in it.

        The file appears complete or not at all, and one that another process has mapped is replaced, not overwritten.
        """
        about = About(
            kind=self.kind,
            rows=len(self),
            width=self.width,
            tuned_k=self.tuned_k,
            seal=seal(self._matrix.vectors),
            effort=self.effort,
        )
        write(Path(path), self._cells, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str], matrix: Floats) -> Self:
        """Open a saved index over the matrix [N, D] it was made of, float32 and C-contiguous.

        The file stays on disk, mapped, and so may the matrix: the processes of a machine share their pages. All of them
        are in memory when this returns. The file must be trusted (verify its checksum first). Raises `BundleError` for
        a file that is missing, truncated, not an index of this kind, or made of another matrix, `InputError` for a
        matrix of another type or layout.
        """
        if matrix.ndim != 2 or matrix.dtype != np.float32 or not matrix.flags.c_contiguous:
            raise InputError(f"matrix is {matrix.dtype} {matrix.shape}, must be float32 [N, D] by rows", field="matrix")
        rows = Matrix(matrix)
        cells, about = read(Path(path), rows)
        rows.warm()
        if cells is not None:
            cells.warm()
        return cls(rows, cells, effort=about.effort, tuned_k=about.tuned_k)


def _finite(values: npt.ArrayLike, name: str) -> Floats:
    array = np.asarray(values)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating) or not array.shape[1]:
        raise InputError(f"{name} is {array.dtype} {array.shape}, must be float32 of two dimensions", field=name)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, which is refused below
        array = np.ascontiguousarray(array, dtype=np.float32)
    for start in range(0, len(array), 65_536):  # in blocks: the temporary of a large matrix is large as well
        finite = np.isfinite(array[start : start + 65_536])
        if not finite.all():
            row = start + int(np.argwhere(~finite)[0, 0])
            raise InputError(f"{name} has a NaN or infinite value in row {row}", field=name)
    return array
