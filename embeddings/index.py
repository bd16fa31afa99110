"""The vector index: which rows of the item matrix have the largest inner product with a query.

Three kinds behind one search: exact (flat), HNSW (a graph) and IVF (inverted lists of k-means cells). The approximate
kinds are tuned at build time by measuring recall against exact search; filters never cost recall, because a narrow
filter is answered by scoring the allowed rows only. Cosine is the inner product of rows and queries that the caller
has normalised.

Shape suffixes: Q queries, N rows of the matrix, D width, K results.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from embeddings.durable import put
from embeddings.errors import BundleError, InputError, unknown_name
from embeddings.ids import UNKNOWN, Rows

faiss: Any = importlib.import_module("faiss")  # its stubs lack the search parameters and the random generator

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Kind = Literal["auto", "exact", "hnsw", "ivf"]

EXACT_ROWS: Final = 200_000
"""Up to here a flat scan takes about a millisecond on one core, and filters cost nothing in recall."""

HNSW_ROWS: Final = 1_000_000
"""Above this many rows `auto` does not try a graph: one core needs an hour to build it."""

ROWS_PER_STEP: Final = 200
"""One unit of efSearch costs as much time as scanning this many rows of IVF (measured 100 to 260 at 300k x 64)."""

FILTER_SHARES: Final = (0.9, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1)
"""Shares of allowed rows at which an approximate kind is measured; below the last that holds the floor it scans."""

GATHER_SHARE: Final = 0.05
"""Below this share, copying the allowed rows out beats testing every row's bit (measured at 10k and 100k x 64)."""

OVERFETCH_SHARES: Final = (0.35, 0.8)
"""Between these shares, dropping rows after a scan takes half as long as testing every row's bit in it (at 100k x 64)."""

GATHER_BYTES: Final = 32 << 20
BLOCK: Final = 16  # queries; below the batch at which faiss turns to BLAS, whose rounding depends on the batch
FOOTER: Final = struct.Struct("<I8s")
MAGIC: Final = b"BESPIDX1"
ABOUT: Final = frozenset({"kind", "rows", "width", "effort", "tuned_k", "recall", "filter_share", "filter_boost"})
_loading = threading.Lock()


class VectorIndex:
    """An immutable index over N rows; searching is safe from several threads at once.

    `recall` is the mean recall@`tuned_k` measured at build time (1.0 for exact), `effort` is efSearch or nprobe. A filter
    multiplies the effort by `filter_boost` over its share of allowed rows; below `filter_share` the search is exact.
    """

    def __init__(
        self,
        index: Any,
        *,
        kind: str,
        effort: int,
        tuned_k: int,
        recall: float,
        filter_share: float,
        filter_boost: float = 1.0,
        matrix_ND: Floats | None,
    ) -> None:
        self._index = index
        self.kind, self.effort, self.tuned_k = kind, effort, tuned_k
        self.recall, self.filter_share, self.filter_boost = recall, filter_share, filter_boost
        self._flat = faiss.downcast_index(index.storage) if kind == "hnsw" else index
        self._vectors = matrix_ND if kind == "ivf" else _stored(self._flat)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def width(self) -> int:
        """D, the number of dimensions of a row and of a query."""
        return int(self._index.d)

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
        """Index a matrix [N, D] and raise efSearch or nprobe until recall@k reaches the floor.

        `auto` is exact up to `EXACT_ROWS`, above it the cheaper of IVF and HNSW among those that reach the floor. Give
        real `queries` [Q, D] to tune on (without them, perturbed rows stand in) and the largest `k` you will ask for.
        The floor must hold two standard errors below the measured mean, so that it also holds on another sample. HNSW
        may end below the floor (graphs suit rows of equal length); `recall` then says so. The same seed gives the same
        index when `threads` is 1.

        IVF keeps the matrix itself: do not change it afterwards.
        Raises `InputError` for a matrix or queries that are not finite numbers of two dimensions.
        """
        matrix_ND = _finite(matrix, "matrix")
        if kind not in get_args(Kind):
            raise unknown_name("index kind", kind, get_args(Kind), field="kind")
        if not 0 < recall_floor <= 1 or k < 1 or threads < 1:
            raise InputError("recall_floor must lie in (0, 1], k and threads must be at least 1")
        if kind == "exact" or (kind == "auto" and len(matrix_ND) <= EXACT_ROWS):
            flat = faiss.IndexFlatIP(matrix_ND.shape[1])
            flat.add(matrix_ND)
            return cls(flat, kind="exact", effort=0, tuned_k=k, recall=1.0, filter_share=1.0, matrix_ND=None)
        if not len(matrix_ND):
            raise InputError(f"the matrix has no rows: '{kind}' needs some, 'exact' does not", field="matrix")
        sample_QD = perturbed_rows(matrix_ND, seed=seed) if queries is None else _finite(queries, "queries")
        if sample_QD.shape[1] != matrix_ND.shape[1] or not len(sample_QD):
            raise InputError(f"queries must be [at least 1, {matrix_ND.shape[1]}]", field="queries")
        with _threads(threads):
            if kind == "hnsw":
                return cls._hnsw(matrix_ND, seed, k)._tuned(sample_QD, recall_floor, seed)
            ivf = cls._ivf(matrix_ND, seed, k)._tuned(sample_QD, recall_floor, seed)
            least = ROWS_PER_STEP * max(k, 64)
            if kind == "ivf" or ivf._cost() <= least or len(matrix_ND) > HNSW_ROWS:
                return ivf
            hnsw = cls._hnsw(matrix_ND, seed, k)._tuned(sample_QD, recall_floor, seed)
            return hnsw if hnsw.recall >= recall_floor and hnsw._cost() < ivf._cost() else ivf

    @classmethod
    def _hnsw(cls, matrix_ND: Floats, seed: int, k: int) -> Self:
        index = faiss.IndexHNSWFlat(matrix_ND.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 100
        index.hnsw.rng = faiss.RandomGenerator(seed)
        index.add(matrix_ND)
        return cls(index, kind="hnsw", effort=max(k, 64), tuned_k=k, recall=0.0, filter_share=0.0, matrix_ND=None)

    @classmethod
    def _ivf(cls, matrix_ND: Floats, seed: int, k: int) -> Self:
        rows, width = matrix_ND.shape
        cells = min(rows, int(2 * rows**0.5))
        quantizer = faiss.IndexFlatIP(width)
        index = faiss.IndexIVFFlat(quantizer, width, cells, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed, index.cp.min_points_per_centroid = seed, 1
        taken = np.random.default_rng(seed).choice(rows, min(rows, 64 * cells), replace=False)
        index.train(matrix_ND[np.sort(taken)])
        index.add(matrix_ND)
        return cls(index, kind="ivf", effort=1, tuned_k=k, recall=0.0, filter_share=0.0, matrix_ND=matrix_ND)

    def _tuned(self, sample_QD: Floats, floor: float, seed: int) -> Self:
        most = self._index.nlist if self.kind == "ivf" else min(len(self), 4096)
        kth_Q = self._kth_score(sample_QD, self.tuned_k, None)
        while True:
            recall_Q = self._recall(sample_QD, self.tuned_k, kth_Q, None)
            self.recall = float(recall_Q.mean())
            if self.recall - 2 * recall_Q.std() / len(recall_Q) ** 0.5 >= floor or self.effort >= most:
                break
            self.effort = min(most, max(self.effort + 1, int(self.effort * 1.5)))
        self.filter_share = self._measured_share(sample_QD, floor, seed)
        return self

    def _measured_share(self, sample_QD: Floats, floor: float, seed: int) -> float:
        """Return the least share of allowed rows at which a filtered search keeps the floor and beats a full scan."""
        held, boost = 1.0, self.filter_boost
        for share in FILTER_SHARES:
            masks = list(self._masks(share, seed))
            while self._cost() * self._thinning(share) <= len(self):
                if min(self.measure_recall(sample_QD, self.tuned_k, allowed=mask) for mask in masks) >= floor:
                    held, boost = share, self.filter_boost
                    break
                self.filter_boost *= 2
            if held != share:
                break
        self.filter_boost = boost
        return held

    def _thinning(self, share: float) -> float:
        # A filter thins out what the same effort finds; in a graph it also cuts the ways.
        return self.filter_boost / (share if self.kind == "ivf" else share**2)

    def _masks(self, share: float, seed: int) -> Iterator[Mask]:
        # Rows drawn evenly, and rows on one side of the space: an attribute often allows neighbours together.
        generator = np.random.default_rng(seed)
        yield generator.random(len(self)) < share
        vectors_ND: Any = self._vectors
        side_N = vectors_ND @ generator.standard_normal(self.width, dtype=np.float32)
        yield side_N >= np.quantile(side_N, 1 - share)

    def _cost(self) -> float:
        """Rows scanned for one query, HNSW's steps converted."""
        return self.effort * (len(self) / self._index.nlist if self.kind == "ivf" else ROWS_PER_STEP)

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
        scores_QK = np.full((len(queries_QD), k), -np.inf, dtype=np.float32)
        rows_QK = np.full((len(queries_QD), k), UNKNOWN, dtype=np.int64)
        found = min(k, count)
        if found and len(queries_QD):
            scores_QK[:, :found], rows_QK[:, :found] = self._top(queries_QD, found, mask, count)
        return scores_QK, rows_QK

    def measure_recall(self, queries: npt.ArrayLike, k: int, *, allowed: Mask | None = None) -> float:
        """Mean recall@k of `search` against exact search over the same (allowed) rows.

        A row counts as found if it scores at least the k-th best score, so that ties are not misses (as in
        Aumüller et al. 2020, "ANN-Benchmarks"). Raises `InputError` as `search` does, and when there are no queries.
        """
        queries_QD = _finite(queries, "queries")
        count = self._mask(allowed)[1]
        if not len(queries_QD) or not count:
            raise InputError("recall needs at least one query and one allowed row", field="queries")
        k = min(k, count)
        self.search(queries_QD[:1], k)  # refuses a wrong width or k before the long part
        kth_Q = self._kth_score(queries_QD, k, allowed)
        return float(self._recall(queries_QD, k, kth_Q, allowed).mean())

    def _kth_score(self, queries_QD: Floats, k: int, allowed: Mask | None) -> Floats:
        mask, count = self._mask(allowed)
        scores_QK, _ = self._exact(queries_QD, min(k, count), mask, count)
        kth_Q: Floats = scores_QK[:, -1]
        return kth_Q

    def _recall(self, queries_QD: Floats, k: int, kth_Q: Floats, allowed: Mask | None) -> npt.NDArray[np.float64]:
        scores_QK, _ = self.search(queries_QD, min(k, len(self)), allowed=allowed)
        slack_Q = 1e-5 * np.abs(kth_Q)  # rounding differs between the kinds
        return np.asarray((scores_QK >= (kth_Q - slack_Q)[:, None]).mean(axis=1))

    def _mask(self, allowed: Mask | None) -> tuple[Mask | None, int]:
        if allowed is None:
            return None, len(self)
        mask = np.asarray(allowed)
        if mask.dtype != np.bool_ or mask.shape != (len(self),):
            raise InputError(f"allowed is {mask.dtype} {mask.shape}, must be bool ({len(self)},)", field="allowed")
        count = int(np.count_nonzero(mask))
        return (None if count == len(self) else mask), count

    def _top(self, queries_QD: Floats, k: int, mask: Mask | None, count: int) -> tuple[Floats, Rows]:
        share = count / len(self)
        if self.kind == "exact" or share < self.filter_share:
            return self._exact(queries_QD, k, mask, count)
        effort = self.effort * max(1.0, k / self.tuned_k) * (1.0 if mask is None else self._thinning(share))
        parameters = self._parameters(_selector(mask), effort)
        with _threads(min(faiss.omp_get_max_threads(), len(queries_QD))):
            found = self._index.search(queries_QD, k, params=parameters)
        scores_QK, rows_QK = _ordered(*found)
        short_Q = rows_QK[:, -1] == UNKNOWN
        if short_Q.any():
            scores_QK[short_Q], rows_QK[short_Q] = self._exact(queries_QD[short_Q], k, mask, count)
        return scores_QK, rows_QK

    def _exact(self, queries_QD: Floats, k: int, mask: Mask | None, count: int) -> tuple[Floats, Rows]:
        if mask is None:
            return self._scanned(queries_QD, k, None)
        share, size = count / len(self), count * self.width * 4
        if share > GATHER_SHARE or size > GATHER_BYTES or self._vectors is None:
            return self._filtered(queries_QD, k, mask, share)
        rows_M = np.flatnonzero(mask)
        gathered = faiss.IndexFlatIP(self.width)
        gathered.add(np.ascontiguousarray(self._vectors[rows_M]))
        scores_QK, places_QK = _scan(gathered, queries_QD, k, None)
        return scores_QK, rows_M[places_QK]

    def _filtered(self, queries_QD: Floats, k: int, mask: Mask, share: float) -> tuple[Floats, Rows]:
        # Rows that fall on either side at random mislead the branch predictor; not so in a scan that fetches a few more.
        wanted = int(1.25 * k / share) + 16
        if not OVERFETCH_SHARES[0] <= share <= OVERFETCH_SHARES[1] or wanted > len(self) // 100:
            return self._scanned(queries_QD, k, mask)
        scores_QW, rows_QW = self._scanned(queries_QD, wanted, None)
        allowed_QW = mask[rows_QW]
        first_QK = np.argsort(~allowed_QW, axis=1, kind="stable")[:, :k]
        scores_QK = np.take_along_axis(scores_QW, first_QK, axis=1)
        rows_QK = np.take_along_axis(rows_QW, first_QK, axis=1)
        few_Q = allowed_QW.sum(axis=1) < k
        if few_Q.any():
            scores_QK[few_Q], rows_QK[few_Q] = self._scanned(queries_QD[few_Q], k, mask)
        return scores_QK, rows_QK

    def _scanned(self, queries_QD: Floats, k: int, mask: Mask | None) -> tuple[Floats, Rows]:
        cells = self._index.nlist if self.kind == "ivf" else 0
        return _scan(self._flat, queries_QD, k, self._parameters(_selector(mask), cells, flat=True))

    def _parameters(self, selector: Any, effort: float, *, flat: bool = False) -> Any:
        # A new object a search: threads never share one. faiss's wrapper keeps the selector alive with it.
        if self.kind == "ivf":
            return faiss.SearchParametersIVF(sel=selector, nprobe=min(math.ceil(effort), self._index.nlist))
        if self.kind == "hnsw" and not flat:
            return faiss.SearchParametersHNSW(sel=selector, efSearch=math.ceil(effort))
        return faiss.SearchParameters(sel=selector)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to one file: faiss's own format, then a footer with the kind, the size and the recall.

        The file appears complete or not at all, and one that another process has mapped is replaced, not overwritten.
        """
        about = {name: getattr(self, name) for name in ABOUT - {"rows"}} | {"rows": len(self)}
        text = json.dumps(about, sort_keys=True).encode()

        def write(unfinished: Path) -> None:
            faiss.write_index(self._index, str(unfinished))
            with unfinished.open("ab") as file:
                file.write(text + FOOTER.pack(len(text), MAGIC))

        put(Path(path), write)

    @classmethod
    def load(cls, path: str | os.PathLike[str], matrix: Floats | None = None) -> Self:
        """Open a saved index; its vectors stay on disk, mapped, and are shared by the processes of a machine.

        The file must be trusted (verify its checksum first). `matrix` [N, D] (it may be mapped too) lets IVF answer
        narrow filters without scanning every cell; the other kinds hold the vectors themselves. Raises `BundleError`
        for a file that is missing, truncated, not an index of this kind, or of another size than `matrix`.
        """
        try:
            size = os.path.getsize(path)
            about = _footer(Path(path), size)
            index = _read(str(path), size)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise BundleError(f"{path} is not a readable index: {str(error).splitlines()[0]}") from error
        expected = {"exact": faiss.IndexFlatIP, "hnsw": faiss.IndexHNSWFlat, "ivf": faiss.IndexIVFFlat}
        if type(index) is not expected.get(about["kind"]) or (index.ntotal, index.d) != (about["rows"], about["width"]):
            raise BundleError(f"{path} holds a {type(index).__name__} of {index.ntotal} x {index.d}, not {about}")
        if matrix is not None and matrix.shape != (index.ntotal, index.d):
            raise BundleError(f"{path} is of {index.ntotal} x {index.d}, the item matrix of {matrix.shape}")
        return cls(index, **{name: about[name] for name in ABOUT - {"rows", "width"}}, matrix_ND=matrix)


def perturbed_rows(matrix_ND: Floats, *, seed: int, count: int = 256) -> Floats:
    """Stand-ins for queries: drawn rows plus Gaussian noise of half the columns' spread.

    Real queries lie further from the items than these; tune on real ones where there are some.
    """
    generator = np.random.default_rng(seed)
    drawn_QD = matrix_ND[generator.integers(len(matrix_ND), size=min(count, len(matrix_ND)))]
    noise_QD = generator.standard_normal(drawn_QD.shape, dtype=np.float32)
    queries_QD: Floats = drawn_QD + 0.5 * drawn_QD.std(axis=0) * noise_QD
    return queries_QD


def _scan(index: Any, queries_QD: Floats, k: int, parameters: Any) -> tuple[Floats, Rows]:
    # One place more than asked shows whether equal scores straddle the end: faiss keeps any of them, we the lowest rows.
    wanted = min(k + 1, int(index.ntotal))
    blocks = [queries_QD[start : start + BLOCK] for start in range(0, len(queries_QD), BLOCK)]
    found = []
    for block in blocks:  # with more threads than queries faiss takes another kernel, which rounds otherwise
        with _threads(min(faiss.omp_get_max_threads(), len(block))):
            found.append(index.search(block, wanted, params=parameters))
    scores_QK, rows_QK = (np.concatenate(part) for part in zip(*found, strict=True))
    if wanted > k:
        straddles_Q = (scores_QK[:, k - 1] == scores_QK[:, k]) & (rows_QK[:, k] != UNKNOWN)
        for query in np.flatnonzero(straddles_Q):
            last = scores_QK[query, k]
            below = float(np.nextafter(last, np.float32(-np.inf)))
            with _threads(1):
                _, scores, rows = index.range_search(queries_QD[query : query + 1], below, params=parameters)
            best = np.lexsort((rows, -scores))[:k]
            scores_QK[query, :k], rows_QK[query, :k] = scores[best], rows[best]
    return _ordered(scores_QK[:, :k], rows_QK[:, :k])


def _ordered(scores_QK: Floats, rows_QK: Rows) -> tuple[Floats, Rows]:
    scores_QK[rows_QK == UNKNOWN] = -np.inf  # faiss pads with the least finite number
    if (scores_QK[:, 1:] == scores_QK[:, :-1]).any():
        order_QK = np.lexsort((rows_QK, -scores_QK), axis=-1)
        scores_QK = np.take_along_axis(scores_QK, order_QK, axis=-1)
        rows_QK = np.take_along_axis(rows_QK, order_QK, axis=-1)
    return scores_QK, rows_QK


def _selector(mask: Mask | None) -> Any:
    return None if mask is None else faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))


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


def _stored(flat: Any) -> Floats:
    # A view of faiss's own memory, which may be a read-only map.
    if not flat.ntotal:
        return np.empty((0, flat.d), dtype=np.float32)
    view: Floats = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)
    view.flags.writeable = False
    return view


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _footer(path: Path, size: int) -> dict[str, Any]:
    if size < FOOTER.size:
        raise ValueError("the file is too short")
    with path.open("rb") as file:
        file.seek(size - FOOTER.size)
        length, magic = FOOTER.unpack(file.read())
        if magic != MAGIC or length > size - FOOTER.size:
            raise ValueError("the footer is missing: truncated, or another kind of file")
        file.seek(size - FOOTER.size - length)
        about = json.loads(file.read(length))
    if not isinstance(about, dict) or about.keys() != ABOUT:
        raise ValueError(f"the footer must hold {', '.join(sorted(ABOUT))}")
    return about


def _read(path: str, size: int) -> Any:
    # No vector in the file can be longer than the file: a forged length must not become an allocation.
    with _loading:
        before = faiss.get_deserialization_vector_byte_limit()
        faiss.set_deserialization_vector_byte_limit(size)
        try:
            return faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)
        finally:
            faiss.set_deserialization_vector_byte_limit(before)
