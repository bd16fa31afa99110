"""Baselines: simple recommenders that a trained model has to beat, all with one contract.

Each learns from one sparse matrix of users and items and ranks items for histories of the same width, so that a new
person needs no refit. A baseline recommends only what it has evidence for: places it cannot fill hold -1.

Shape suffixes: U users, Q queries, N items, K places, C a chunk of queries or items.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Final, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from embeddings.arrays import Floats
from embeddings.errors import InputError
from embeddings.ids import UNKNOWN, Rows

Keys = npt.NDArray[np.uint64]
Sparse: TypeAlias = Any
"""A scipy CSR matrix or array of weights, not negative (scipy carries no types)."""

CHUNK_CELLS: Final = 1 << 22
"""Dense cells worked on at once: about 100 MB with scores, keys and their partition."""

SWEEP: Final = 512
"""Items that one step of EASE's inversion treats together."""

DAY_S: Final = 86_400.0


class _Scoring(ABC):
    # What the baselines share: checks, chunks, exclusion and the choice of the best. A subclass learns and scores.

    name: ClassVar[str]
    _known: npt.NDArray[np.bool_] | None = None

    def fit(self, train: Sparse, times: npt.ArrayLike | None = None) -> Self:
        """Learn from weights [U, N]; `times` are seconds, one for each stored weight, in the order of `train.data`.

        Raises `InputError` for weights that are negative or not finite, and for times that do not match.
        """
        matrix = _weights(train, "train")
        moments = None if times is None else np.asarray(times, dtype=np.float64)
        if moments is not None and (moments.shape != matrix.data.shape or not np.isfinite(moments).all()):
            raise InputError(f"times are {moments.shape}, must be {matrix.data.shape} finite seconds", field="times")
        self._learn(matrix, moments)
        self._known = np.bincount(matrix.indices[matrix.data > 0], minlength=matrix.shape[1]) > 0
        return self

    def rank(self, histories: Sparse, k: int, *, exclude: Sparse | None = None) -> Rows:
        """Return the k best rows [Q, K] for histories [Q, N], without the non-zero entries of `exclude` [Q, N].

        Equal scores stand in row order; -1 fills the places for which there is no evidence. Raises `InputError` before
        `fit`, for k below 1 and for matrices of another shape.
        """
        if self._known is None:
            raise InputError(f"{self.name} must be fitted before it ranks")
        if k < 1:
            raise InputError(f"k is {k}, must be at least 1", field="k")
        weights = _weights(histories, "histories", width=len(self._known))
        if exclude is not None and exclude.shape != weights.shape:
            raise InputError(f"exclude is {exclude.shape}, histories are {weights.shape}", field="exclude")
        skipped = None if exclude is None else csr_matrix(exclude)
        ranked = np.full((weights.shape[0], k), UNKNOWN, dtype=np.int64)
        step = max(1, CHUNK_CELLS // max(1, weights.shape[1]))
        for start in range(0, weights.shape[0], step):
            scores_CN = self._score(weights[start : start + step])
            scores_CN[:, ~self._known] = -np.inf  # an item nobody met has no evidence
            if skipped is not None:
                scores_CN[skipped[start : start + step].nonzero()] = -np.inf
            best_CK = top_rows(scores_CN, k)
            ranked[start : start + step, : best_CK.shape[1]] = best_CK
        return ranked

    @abstractmethod
    def _learn(self, train: Sparse, times: npt.NDArray[np.float64] | None) -> None:
        """Learn from checked weights [U, N]."""

    @abstractmethod
    def _score(self, histories: Sparse) -> Floats:
        """Score a chunk of histories: a fresh array [C, N], -inf where there is no evidence."""


class Popularity(_Scoring):
    """The items with the largest sum of weights, the same for everyone."""

    name = "popularity"

    def _learn(self, train: Sparse, times: npt.NDArray[np.float64] | None) -> None:
        self._score_N = np.bincount(train.indices, weights=train.data, minlength=train.shape[1]).astype(np.float32)

    def _score(self, histories: Sparse) -> Floats:
        return np.tile(self._score_N, (histories.shape[0], 1))


class RecentPopularity(Popularity):
    """Popularity in which a weight halves with every `half_life_s` seconds of age, counted from the last event."""

    name = "recent_popularity"

    def __init__(self, *, half_life_s: float = 30 * DAY_S) -> None:
        if not half_life_s > 0:
            raise InputError(f"half_life_s is {half_life_s}, must be more than 0 seconds", field="half_life_s")
        self.half_life_s = half_life_s

    def _learn(self, train: Sparse, times: npt.NDArray[np.float64] | None) -> None:
        if times is None:
            raise InputError("recent popularity needs the times of the weights", field="times")
        faded = train.copy()
        age_S = times.max(initial=-np.inf) - times
        faded.data = train.data * np.exp2(-age_S / self.half_life_s)
        super()._learn(faded, None)


class ItemKNN(_Scoring):
    """Items whose users overlap with those of the history: cosine with shrinkage, the `neighbours` nearest of each item.

    Similarity is sum(x_i x_j) / (|x_i| |x_j| + shrinkage) over users; a score is the sum over the history of weight times
    similarity (Deshpande and Karypis 2004). `shrinkage` keeps pairs seen by one or two users from looking perfect.
    """

    name = "item_knn"

    def __init__(self, *, neighbours: int = 200, shrinkage: float = 10.0) -> None:
        if neighbours < 1 or not shrinkage >= 0:
            raise InputError("neighbours must be at least 1, shrinkage must not be negative")
        self.neighbours, self.shrinkage = neighbours, shrinkage

    def _learn(self, train: Sparse, times: npt.NDArray[np.float64] | None) -> None:
        items_NU = train.T.tocsr()
        length_N = np.sqrt(np.asarray(items_NU.multiply(items_NU).sum(axis=1)).ravel())
        counts, columns, values = [], [], []
        for start, stop in _spans(_product_sizes(items_NU, train)):
            product = items_NU[start:stop] @ train
            for offset in range(stop - start):
                item = start + offset
                own = slice(product.indptr[offset], product.indptr[offset + 1])
                near, other = product.data[own], product.indices[own]
                similar = near / (length_N[item] * length_N[other] + self.shrinkage)
                usable = (other != item) & (near > 0)
                best, rows = _nearest(similar[usable].astype(np.float32), other[usable], self.neighbours)
                counts.append(len(rows))
                columns.append(rows)
                values.append(best)
        offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        parts = (np.concatenate([*values, np.empty(0, np.float32)]), np.concatenate([*columns, np.empty(0, np.int64)]))
        # Row i holds the neighbours of i; a history of i lifts those items.
        self._similar_NN = csr_matrix((*parts, offsets), shape=(train.shape[1],) * 2, dtype=np.float32)

    def _score(self, histories: Sparse) -> Floats:
        scores_CN: Floats = (histories @ self._similar_NN).toarray()
        scores_CN[scores_CN <= 0] = -np.inf
        return scores_CN


class EASE(_Scoring):
    """A linear autoencoder without self-loops, in closed form (Steck 2019, "Embarrassingly Shallow Autoencoders").

    B = I - P diag(P)^-1 with P = (X'X + l2 I)^-1: one dense matrix of N x N float32, inverted in place.
    """

    name = "ease"

    def __init__(self, *, l2: float = 200.0, memory_limit_gib: float = 8.0) -> None:
        if not l2 > 0:
            raise InputError(f"l2 is {l2}, must be more than 0", field="l2")
        self.l2, self.memory_limit_gib = l2, memory_limit_gib

    def _learn(self, train: Sparse, times: npt.NDArray[np.float64] | None) -> None:
        items = train.shape[1]
        needed = 4 * (items**2 + 4 * items * SWEEP + 4 * CHUNK_CELLS) / 2**30
        if needed > self.memory_limit_gib:
            raise InputError(
                f"EASE needs {needed:.1f} GiB for {items} items, the limit is {self.memory_limit_gib:g} GiB",
                field="memory_limit_gib",
            )
        gram_NN = _gram(train)
        gram_NN[np.diag_indices(items)] += self.l2
        inverse_NN = _inverse(gram_NN)
        inverse_NN /= -inverse_NN.diagonal().copy()
        inverse_NN[np.diag_indices(items)] = 0.0
        self._weights_NN = inverse_NN

    def _score(self, histories: Sparse) -> Floats:
        scores_CN: Floats = np.asarray(histories @ self._weights_NN, dtype=np.float32)
        scores_CN[scores_CN == 0] = -np.inf  # nothing in the history bears on the item; a negative score does
        return scores_CN


def top_rows(scores_CN: Floats, k: int) -> Rows:
    """Rows of the k largest scores, [C, min(k, N)]: equal scores in row order, -1 in place of -inf."""
    rows, items = scores_CN.shape
    k = min(k, items)
    if not k:
        return np.empty((rows, 0), dtype=np.int64)
    keys_CN = _keys(scores_CN, np.arange(items))
    if k < items:
        keys_CN = np.partition(keys_CN, items - k, axis=1)[:, items - k :]
    best_CK = _columns(np.sort(keys_CN, axis=1)[:, ::-1])
    best_CK[np.isneginf(np.take_along_axis(scores_CN, best_CK, axis=1))] = UNKNOWN
    return best_CK


def _nearest(values: Floats, columns: Rows, count: int) -> tuple[Floats, Rows]:
    if len(values) > count:
        kept = np.partition(_keys(values, columns), len(values) - count)[len(values) - count :]
        chosen = np.isin(columns, _columns(kept))
        values, columns = values[chosen], columns[chosen]
    return values, columns


def _keys(values: Floats, columns: Rows) -> Keys:
    # One number that sorts by value, then by lower column: all different, so that partition has only one answer.
    bits = (values + np.float32(0.0)).view(np.uint32)  # adding 0 makes -0.0 and 0.0 the same bits
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)
    return (ordered << np.uint64(32)) | (np.uint64(2**32 - 1) - columns.astype(np.uint64))


def _columns(keys: Keys) -> Rows:
    return (np.uint64(2**32 - 1) - (keys & np.uint64(2**32 - 1))).astype(np.int64)


def _product_sizes(left: Sparse, right: Sparse) -> npt.NDArray[np.int64]:
    # At most so many entries has each row of the product: as many as are multiplied, no more than it is wide.
    lengths = np.diff(right.indptr)
    multiplied = np.concatenate([[0], np.cumsum(lengths[left.indices], dtype=np.int64)])[left.indptr]
    sizes: npt.NDArray[np.int64] = np.minimum(np.diff(multiplied), right.shape[1])
    return sizes


def _spans(sizes: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    start, total = 0, 0
    for place, size in enumerate(sizes.tolist()):
        if total + size > CHUNK_CELLS and place > start:
            yield start, place
            start, total = place, 0
        total += size
    if start < len(sizes):
        yield start, len(sizes)


def _gram(train: Sparse) -> Floats:
    items_NU, items = train.T.tocsr(), train.shape[1]
    gram_NN = np.empty((items, items), dtype=np.float32)
    step = max(1, CHUNK_CELLS // max(1, items))
    for start in range(0, items, step):
        gram_NN[start : start + step] = (items_NU[start : start + step] @ train).toarray()
    return gram_NN


def _inverse(gram_NN: Floats) -> Floats:
    # Blocks are swept in place (Gauss-Jordan on a positive definite matrix needs no pivots), on the upper triangle alone;
    # the lower is copied from it in the end. LAPACK's spotrf and spotri would do the same in one call, but OpenBLAS
    # crashed the process in them at 41,000 items.
    items = len(gram_NN)
    spans = [slice(start, min(items, start + SWEEP)) for start in range(0, items, SWEEP)]
    for own in spans:
        pivot = _pivot(np.triu(gram_NN[own, own]) + np.triu(gram_NN[own, own], 1).T)
        above, right = gram_NN[: own.start, own], gram_NN[own, own.stop :]
        column_NB = np.concatenate([above, np.zeros_like(pivot), right.T])
        solved_NB = column_NB @ pivot
        for span in spans:
            gram_NN[span, span.start :] -= solved_NB[span] @ column_NB[span.start :].T
        above[...], gram_NN[own, own], right[...] = solved_NB[: own.start], -pivot, solved_NB[own.stop :].T
    for span in spans:
        block = gram_NN[span, span]
        block[...] = np.triu(block) + np.triu(block, 1).T
        gram_NN[span.stop :, span] = gram_NN[span, span.stop :].T
    return np.negative(gram_NN, out=gram_NN)


def _pivot(block: Floats) -> Floats:
    try:
        np.linalg.cholesky(block.astype(np.float64))
    except np.linalg.LinAlgError:
        raise InputError("the matrix of items is too close to singular in float32: raise l2", field="l2") from None
    return np.linalg.inv(block.astype(np.float64)).astype(np.float32)


def _weights(matrix: Sparse, name: str, *, width: int | None = None) -> Sparse:
    weights = csr_matrix(matrix, dtype=np.float32)
    if width is not None and weights.shape[1] != width:
        raise InputError(f"{name} are {weights.shape[1]} items wide, training was {width}", field=name)
    if not np.isfinite(weights.data).all() or (weights.data < 0).any():
        raise InputError(f"{name} must hold finite weights that are not negative", field=name)
    return weights
