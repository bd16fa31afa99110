"""Cells: the rows of the item matrix grouped around k-means centres, with a byte for each number.

A query reads the cells whose centres it likes best, and what looks good by the bytes is put in order by the matrix itself.
The bytes are a quarter of the matrix and lie cell by cell, so that a search reads little and reads it in one go. Measured
beside faiss's fast scan of 4-bit products, which must put 400 rows in order where this does with 110: at equal recall it
is slower at 100,000 rows, and at a million it does not reach .98 with 800.

Centres are found and rows assigned by distance, cells are chosen by inner product: with rows of unequal length a fifth
fewer cells are read than when long centres attract every row.

Shape suffixes: Q queries, N rows, D width, M listed for each query, C cells.
"""

from __future__ import annotations

import threading
from typing import Any, Final, Self

import numpy as np

from embeddings.arrays import Floats, Mask
from embeddings.ids import Rows
from embeddings.scan import Matrix, faiss, threads

CELLS: Final = 4.0
"""Times the square root of the rows: half as many are slower at a million rows, twice as many at 100,000."""

SAMPLE: Final = 48  # rows a cell that its centre is learned from
ROUNDS: Final = 10
BLOCK: Final = 16  # queries; from 20 on faiss compares centres by BLAS, whose rounding depends on the batch
_loading = threading.Lock()


class Cells:
    """faiss's inverted lists of 8-bit codes over N rows; immutable, and safe to search from several threads."""

    def __init__(self, index: Any) -> None:
        self.index = index
        self.rows, self.width, self.count = int(index.ntotal), int(index.d), int(index.nlist)

    @classmethod
    def build(cls, matrix: Matrix, *, seed: int) -> Self:
        """Group the rows of a matrix that has some. The same seed gives the same cells when faiss has one thread."""
        N, D = matrix.vectors.shape
        C = max(1, min(N, round(CELLS * N**0.5)))
        taken = np.random.default_rng(seed).choice(N, min(N, SAMPLE * C), replace=False)
        sample = matrix.vectors[np.sort(taken)]
        means = faiss.Clustering(D, C)
        means.seed, means.niter, means.min_points_per_centroid = seed, ROUNDS, 1
        by_distance = faiss.IndexFlatL2(D)
        means.train(sample, by_distance)
        centres = faiss.IndexFlatIP(D)
        centres.add(faiss.vector_to_array(means.centroids).reshape(C, D))
        index = faiss.IndexIVFScalarQuantizer(
            centres, D, C, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, False
        )
        index.train(sample if len(sample) < N else matrix.vectors)
        cell_N = np.ascontiguousarray(by_distance.search(matrix.vectors, 1)[1][:, 0])
        index.add_core(N, faiss.swig_ptr(matrix.vectors), None, faiss.swig_ptr(cell_N))
        return cls(index)

    def listed(self, queries_QD: Floats, count: int, probes: int, mask: Mask | None) -> Rows:
        """Rows [Q, count] that look best in the `probes` best cells, in ascending order; -1 where there are too few."""
        # New objects for each search: threads never share them. faiss's wrapper keeps the selector alive with its user.
        allowed = None if mask is None else faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
        how = faiss.SearchParametersIVF(sel=allowed, nprobe=max(1, min(probes, self.count)))
        found = []
        for start in range(0, len(queries_QD), BLOCK):
            block = queries_QD[start : start + BLOCK]
            with threads(min(faiss.omp_get_max_threads(), len(block))):
                found.append(self.index.search(block, count, params=how)[1])
        rows_QM: Rows = found[0] if len(found) == 1 else np.concatenate(found)
        rows_QM.sort(axis=1)
        return rows_QM

    def warm(self) -> None:
        """Read every cell once, so that the first requests do not wait for the disk."""
        how = faiss.SearchParametersIVF(
            sel=faiss.IDSelectorAll(), nprobe=self.count
        )  # a selector reads row numbers too
        self.index.search(np.zeros((1, self.width), dtype=np.float32), 1, params=how)

    def write(self, path: str) -> None:
        """Write faiss's own format."""
        faiss.write_index(self.index, path)

    @classmethod
    def read(cls, path: str, size: int) -> Self:
        """Map a file, `size` bytes of which are ours. Raises `RuntimeError` or `ValueError` if it holds something else."""
        # No vector in the file can be longer than the file: a forged length must not become an allocation.
        with _loading:
            before = faiss.get_deserialization_vector_byte_limit()
            faiss.set_deserialization_vector_byte_limit(size)
            try:
                index = faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)
            finally:
                faiss.set_deserialization_vector_byte_limit(before)
        if type(index) is not faiss.IndexIVFScalarQuantizer or index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError(f"it holds a {type(index).__name__}, not inverted lists of 8-bit codes")
        return cls(index)
