"""Scan: exact inner products of a query with some rows of the item matrix, and the best of them.

faiss computes each product on its own, by the same instructions wherever a row stands and however many are asked for. So
equal rows get equal scores, a batch answers as its queries one by one, and a short list put in order here scores to the
last bit as a scan of everything would. BLAS is no faster for one query (1.0 ms each for 100,000 x 64) and keeps none of
this.

Shape suffixes: Q queries, N rows of the matrix, M of them listed, D width, K results.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from embeddings.arrays import Floats, Mask
from embeddings.ids import Rows

faiss: Any = importlib.import_module("faiss")  # its stubs lack the search parameters and much of the rest


class Matrix:
    """The item matrix [N, D], float32 and C-contiguous; it may be a file's mapped pages and is never written to."""

    def __init__(self, vectors_ND: Floats) -> None:
        self.vectors = vectors_ND.view(np.ndarray)  # a memmap object pays for its class at every access
        self.rows, self.width = int(vectors_ND.shape[0]), int(vectors_ND.shape[1])
        self._address = faiss.swig_ptr(self.vectors)

    def scores(self, queries_QD: Floats, rows_QM: Rows) -> Floats:
        """Inner products [Q, M] of each query with its own rows; -inf for row -1."""
        scores_QM = np.empty(rows_QM.shape, dtype=np.float32)
        Q, M = rows_QM.shape
        with threads(min(faiss.omp_get_max_threads(), Q)):
            faiss.fvec_inner_products_by_idx(
                *map(faiss.swig_ptr, (scores_QM, queries_QD)), self._address, faiss.swig_ptr(rows_QM), self.width, Q, M
            )
        scores_QM[rows_QM < 0] = -np.inf
        return scores_QM

    def best(self, queries_QD: Floats, k: int, mask: Mask | None) -> tuple[Floats, Rows]:
        """Scores and rows [Q, k] of the best of the allowed rows, of which there must be k; ties in row order."""
        rows_M = np.arange(self.rows) if mask is None else np.flatnonzero(mask)
        scores_QK = np.empty((len(queries_QD), k), dtype=np.float32)
        rows_QK = np.empty((len(queries_QD), k), dtype=np.int64)
        for q, query_D in enumerate(queries_QD):  # one at a time: the scores of a batch over millions of rows are large
            scores_M = self.scores(query_D[None], rows_M[None])[0]
            places_K = _top(scores_M, k)
            scores_QK[q], rows_QK[q] = scores_M[places_K], rows_M[places_K]
        return scores_QK, rows_QK

    def kth_scores(self, queries_QD: Floats, k: int, mask: Mask | None) -> Floats:
        """The k-th best score [Q] among the allowed rows, up to rounding: by BLAS, for many queries at a time."""
        vectors_MD = self.vectors if mask is None else self.vectors[mask]
        scores_QK, _ = faiss.knn(queries_QD, vectors_MD, k, metric=faiss.METRIC_INNER_PRODUCT)
        kth_Q: Floats = scores_QK[:, -1]
        return kth_Q

    def warm(self) -> None:
        """Touch every page, so that the first requests do not wait for the disk."""
        self.vectors.reshape(-1).view(np.uint8)[::4096].max(initial=0)


def ordered(scores_QM: Floats, rows_QM: Rows, k: int) -> tuple[Floats, Rows]:
    """The first k of lists whose rows ascend, best first; equal scores stay in row order."""
    order_QK = np.argsort(-scores_QM, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores_QM, order_QK, axis=1), np.take_along_axis(rows_QM, order_QK, axis=1)


def _top(scores_M: Floats, k: int) -> Rows:
    kth = np.partition(scores_M, len(scores_M) - k)[len(scores_M) - k]
    places = np.flatnonzero(scores_M >= kth)
    return places[np.argsort(-scores_M[places], kind="stable")[:k]]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let faiss use so many threads for the calls of this thread."""
    before = faiss.omp_get_max_threads()
    if before == count:
        yield
        return
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
