"""Metrics of ranked lists and of predicted probabilities, as functions of numpy arrays, and `Scores` with intervals.

A ranking is a matrix of item rows, best first, with -1 where a list is short. A query without relevant items has no
recall: its value is NaN, and means and intervals leave it out. Averages over queries are taken by `Scores` alone, so
that every figure in a report can carry its interval.

Shape suffixes: Q queries, K places of a list, N items, P probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from embeddings.errors import InputError, unknown_name
from embeddings.ids import UNKNOWN, Rows

Values = npt.NDArray[np.float64]
Hits = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]
Relevance: TypeAlias = "Relevant | list[Any] | tuple[npt.ArrayLike, npt.ArrayLike]"
"""Sets of relevant rows: `Relevant`, a list of arrays (one a query), or a tuple (offsets, rows)."""


@dataclass(frozen=True)
class Relevant:
    """The relevant rows of each query, as a set: query i owns `rows[offsets[i] : offsets[i + 1]]`, sorted, no row twice."""

    offsets: Counts
    rows: Rows

    @staticmethod
    def of(relevant: Relevance) -> Relevant:
        """Take a list of arrays, or a tuple (offsets, rows); raises `InputError` for negative rows or bad offsets."""
        if isinstance(relevant, Relevant):
            return relevant
        if isinstance(relevant, tuple):
            offsets, rows = (np.asarray(part, dtype=np.int64) for part in relevant)
        else:
            parts = [np.asarray(part, dtype=np.int64).ravel() for part in relevant]
            offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)])
            rows = np.concatenate([np.empty(0, np.int64), *parts])
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(rows) or (np.diff(offsets) < 0).any():
            raise InputError(f"offsets must rise from 0 to the number of rows, {len(rows)}", field="relevant")
        if len(rows) and rows.min() < 0:
            raise InputError(f"relevant rows must not be negative, but one is {rows.min()}", field="relevant")
        queries = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        order = np.lexsort((rows, queries))
        queries, rows = queries[order], rows[order]
        first = np.ones(len(rows), dtype=np.bool_)
        first[1:] = (queries[1:] != queries[:-1]) | (rows[1:] != rows[:-1])
        counts = np.bincount(queries[first], minlength=len(offsets) - 1)
        return Relevant(np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]), rows[first])

    @property
    def counts(self) -> Counts:
        """Number of relevant rows of each query, [Q]."""
        return np.diff(self.offsets)


def hits(ranked: Rows, relevant: Relevance, *, k: int) -> Hits:
    """Say for each of the first k places whether its row is relevant, [Q, min(k, K)]; padding never is.

    Raises `InputError` if the shapes disagree or a row stands twice in one list (it would be counted twice).
    """
    top_QK = _top(ranked, k)
    truth = Relevant.of(relevant)
    if len(truth.counts) != len(top_QK):
        raise InputError(f"{len(top_QK)} rankings, but {len(truth.counts)} sets of relevant rows", field="relevant")
    # One sorted array of (query, row) pairs answers every lookup at once.
    stride = 1 + max(top_QK.max(initial=0), truth.rows.max(initial=0))
    pairs = np.repeat(np.arange(len(top_QK)), truth.counts) * stride + truth.rows
    wanted_QK = np.arange(len(top_QK))[:, None] * stride + top_QK
    if not len(pairs):
        return np.zeros(top_QK.shape, dtype=np.bool_)
    place_QK = np.minimum(np.searchsorted(pairs, wanted_QK), len(pairs) - 1)
    found_QK: Hits = (pairs[place_QK] == wanted_QK) & (top_QK != UNKNOWN)
    return found_QK


def _recall(hits_QK: Hits, counts_Q: Counts, k: int) -> Values:
    """Share of the relevant rows among the first k, [Q]; the denominator is their number, also where that exceeds k."""
    return np.asarray(hits_QK.sum(axis=1) / counts_Q)


def _ndcg(hits_QK: Hits, counts_Q: Counts, k: int) -> Values:
    """Binary NDCG@k, [Q], gains discounted by log2(place + 1) (Järvelin and Kekäläinen 2002).

    The ideal list has k places: its gain is that of min(k, number of relevant rows) places.
    """
    gains = 1 / np.log2(np.arange(k) + 2)
    ideal = np.concatenate([[0.0], np.cumsum(gains)])
    return np.asarray((hits_QK @ gains[: hits_QK.shape[1]]) / ideal[np.minimum(counts_Q, k)])


def _mrr(hits_QK: Hits, counts_Q: Counts, k: int) -> Values:
    """Reciprocal of the first relevant place among the first k, 0 if there is none, [Q]."""
    reciprocal_QK: Values = hits_QK / (np.arange(hits_QK.shape[1]) + 1)
    best_Q: Values = reciprocal_QK.max(axis=1, initial=0.0)
    return best_Q


def _map(hits_QK: Hits, counts_Q: Counts, k: int) -> Values:
    """Precision at each relevant place among the first k, summed, divided by the number of relevant rows, [Q] (MAP@k)."""
    precision_QK = np.cumsum(hits_QK, axis=1) / (np.arange(hits_QK.shape[1]) + 1)
    return np.asarray((precision_QK * hits_QK).sum(axis=1) / counts_Q)


def _hit_rate(hits_QK: Hits, counts_Q: Counts, k: int) -> Values:
    """1 where at least one of the first k rows is relevant, else 0, [Q]."""
    return np.asarray(hits_QK.any(axis=1), dtype=np.float64)


RANKING_METRICS: Final[Mapping[str, Callable[[Hits, Counts, int], Values]]] = {
    "recall": _recall,
    "ndcg": _ndcg,
    "mrr": _mrr,
    "map": _map,
    "hit_rate": _hit_rate,
}


def score(
    ranked: Rows, relevant: Relevance, *, k: Iterable[int], metrics: Iterable[str] = tuple(RANKING_METRICS)
) -> Scores:
    """Compute the named ranking metrics at each cut-off; names come out as in "recall@10"."""
    chosen, truth = list(metrics), Relevant.of(relevant)
    for name in chosen:
        if name not in RANKING_METRICS:
            raise unknown_name("metric", name, RANKING_METRICS, field="metrics")
    per_query = {}
    for cut in k:
        hits_QK = hits(ranked, truth, k=cut)
        with np.errstate(invalid="ignore", divide="ignore"):  # queries without relevant rows: NaN just below
            for name in chosen:
                values_Q = RANKING_METRICS[name](hits_QK, truth.counts, cut)
                per_query[f"{name}@{cut}"] = np.where(truth.counts > 0, values_Q, np.nan)
    return Scores(per_query)


class Interval(NamedTuple):
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Scores:
    """Values of each query by metric name, [Q] each; NaN marks a query for which the metric is undefined."""

    per_query: Mapping[str, Values]

    def __post_init__(self) -> None:
        if len({values.shape for values in self.per_query.values()}) > 1:
            raise InputError("every metric needs one value a query")

    @property
    def means(self) -> dict[str, float]:
        """Mean of each metric over the queries for which it is defined; NaN if there are none."""
        return {name: _mean(values) for name, values in self.per_query.items()}

    def intervals(self, *, level: float = 0.95, samples: int = 1000, seed: int = 0) -> dict[str, Interval]:
        """Percentile bootstrap over queries (Efron 1979): the same seed gives the same intervals."""
        if not 0 < level < 1 or samples < 1:
            raise InputError("level must lie in (0, 1), samples must be at least 1")
        if not self.per_query:
            return {}
        values_QM = np.stack(list(self.per_query.values()), axis=1)
        bounds = _bootstrap(values_QM, level, samples, np.random.default_rng(seed))
        return {
            name: Interval(mean, float(low), float(high))
            for (name, mean), low, high in zip(self.means.items(), *bounds, strict=True)
        }

    def differences(
        self, other: Scores, *, level: float = 0.95, samples: int = 1000, seed: int = 0
    ) -> dict[str, Interval]:
        """Paired interval of `self - other` for each metric that both have: an interval that excludes 0 is a difference.

        Raises `InputError` if the two did not score the same number of queries.
        """
        shared = [name for name in self.per_query if name in other.per_query]
        for name in shared:
            ours, theirs = len(self.per_query[name]), len(other.per_query[name])
            if ours != theirs:
                raise InputError(f"cannot pair {ours} queries with {theirs}", field=name)
        paired = Scores({name: self.per_query[name] - other.per_query[name] for name in shared})
        return paired.intervals(level=level, samples=samples, seed=seed)


def _mean(values_Q: Values) -> float:
    defined = values_Q[~np.isnan(values_Q)]
    return float(defined.mean()) if len(defined) else float("nan")


def _bootstrap(values_QM: Values, level: float, samples: int, generator: np.random.Generator) -> tuple[Values, Values]:
    # How often each query is drawn, instead of the drawn queries: one product gives the sums of all metrics.
    queries, metrics = values_QM.shape
    defined_QM = ~np.isnan(values_QM)
    both = np.concatenate([np.where(defined_QM, values_QM, 0.0), defined_QM], axis=1)
    means = np.full((samples, metrics), np.nan)
    for sample in range(samples if queries else 0):
        drawn_Q = np.bincount(generator.integers(queries, size=queries), minlength=queries)
        sums = drawn_Q @ both
        np.divide(sums[:metrics], sums[metrics:], out=means[sample], where=sums[metrics:] > 0)
    tail = (1 - level) / 2
    low, high = np.full(metrics, np.nan), np.full(metrics, np.nan)
    for metric in range(metrics):
        drawn = means[~np.isnan(means[:, metric]), metric]
        if len(drawn):
            low[metric], high[metric] = np.quantile(drawn, [tail, 1 - tail])
    return low, high


def coverage(ranked: Rows, *, items: int, k: int) -> float:
    """Share of the catalogue of `items` rows that stands in at least one of the lists."""
    return float(np.count_nonzero(_exposure(ranked, items, k)) / items)


def gini(ranked: Rows, *, items: int, k: int) -> float:
    """Gini coefficient of exposure over the catalogue: 0 if all rows are shown equally, towards 1 if one takes all."""
    exposure_N = np.sort(_exposure(ranked, items, k))
    total = exposure_N.sum()
    if not total:
        return float("nan")
    place_N = np.arange(1, items + 1)
    return float(((2 * place_N - items - 1) * exposure_N).sum() / (items * total))


def novelty(ranked: Rows, popularity: npt.ArrayLike, *, users: int, k: int) -> Values:
    """Mean self-information of the listed rows in bits, [Q]: -log2 of the share of users who know the item.

    `popularity` [N] is the number of users of each item in training; an item nobody knows counts as known to one. As
    mean inverse user frequency in Castells, Hurley and Vargas 2022, "Novelty and Diversity in Recommender Systems".
    """
    known_N = np.maximum(np.asarray(popularity, dtype=np.float64), 1.0)
    if users < known_N.max(initial=1.0):
        raise InputError(f"{users} users, but an item has {known_N.max():g}", field="users")
    return _mean_listed(np.log2(users / known_N), _top(ranked, k))


def vector_diversity(ranked: Rows, vectors: npt.ArrayLike, *, k: int) -> Values:
    """Mean cosine distance of the pairs in a list, [Q], by item vectors [N, D]; NaN for lists of fewer than two rows.

    Intra-list diversity of Ziegler et al. 2005. A zero vector is at distance 1 from every other.
    """
    top_QK, matrix_ND = _top(ranked, k), np.asarray(vectors, dtype=np.float64)
    _in_catalogue(top_QK, len(matrix_ND))
    length_N = np.linalg.norm(matrix_ND, axis=1, keepdims=True)
    unit_ND = np.divide(matrix_ND, length_N, out=np.zeros_like(matrix_ND), where=length_N > 0)
    diversity_Q = np.full(len(top_QK), np.nan)
    for query, row_K in enumerate(top_QK):
        unit_KD = unit_ND[row_K[row_K != UNKNOWN]]
        pairs = len(unit_KD) * (len(unit_KD) - 1)
        if pairs:  # the squared length of the sum holds every pair twice, and each row with itself once
            diversity_Q[query] = 1 - (np.square(unit_KD.sum(axis=0)).sum() - np.square(unit_KD).sum()) / pairs
    return diversity_Q


def category_diversity(ranked: Rows, categories: Any, *, k: int) -> Values:
    """Mean Jaccard distance of the pairs in a list, [Q], by a sparse matrix [N, C] of item categories (non-zero: has it).

    NaN for lists of fewer than two rows; two items without any category are alike, at distance 0.
    """
    top_QK, table = _top(ranked, k), categories.tocsr().astype(np.bool_).astype(np.float64)
    _in_catalogue(top_QK, table.shape[0])
    diversity_Q = np.full(len(top_QK), np.nan)
    for query, row_K in enumerate(top_QK):
        chosen = table[row_K[row_K != UNKNOWN]]
        if chosen.shape[0] > 1:
            common = (chosen @ chosen.T).toarray()
            size = np.diag(common)
            either = size[:, None] + size[None, :] - common
            alike = np.divide(common, either, out=np.ones_like(common), where=either > 0)
            diversity_Q[query] = 1 - alike[np.triu_indices(len(size), 1)].mean()
    return diversity_Q


def _top(ranked: Rows, k: int) -> Rows:
    top = np.asarray(ranked)
    if top.ndim != 2 or not np.issubdtype(top.dtype, np.integer):
        raise InputError(f"a ranking is [queries, places] of rows, not {top.dtype} {top.shape}", field="ranked")
    if k < 1:
        raise InputError(f"k is {k}, must be at least 1", field="k")
    top_QK: Rows = top[:, :k].astype(np.int64)
    if top_QK.min(initial=UNKNOWN) < UNKNOWN:
        raise InputError(f"a ranking holds row {top_QK.min()}; rows start at 0, -1 pads", field="ranked")
    sorted_QK = np.sort(top_QK, axis=1)
    twice = np.argwhere((sorted_QK[:, 1:] == sorted_QK[:, :-1]) & (sorted_QK[:, 1:] != UNKNOWN))
    if len(twice):
        query, place = twice[0]
        raise InputError(f"row {sorted_QK[query, place]} stands twice in ranking {query}", field="ranked")
    return top_QK


def _in_catalogue(top_QK: Rows, items: int) -> None:
    if top_QK.max(initial=UNKNOWN) >= items:
        raise InputError(f"a ranking holds row {top_QK.max()} of a catalogue of {items}", field="ranked")


def _exposure(ranked: Rows, items: int, k: int) -> Counts:
    top_QK = _top(ranked, k)
    if items < 1:
        raise InputError(f"items is {items}, must be at least 1", field="items")
    _in_catalogue(top_QK, items)
    return np.bincount(top_QK[top_QK != UNKNOWN], minlength=items).astype(np.int64)


def _mean_listed(values_N: Values, top_QK: Rows) -> Values:
    _in_catalogue(top_QK, len(values_N))
    listed_QK = top_QK != UNKNOWN
    padded = np.append(values_N, 0.0)  # the last place is where -1 points
    count_Q = listed_QK.sum(axis=1)
    mean_Q = np.full(len(top_QK), np.nan)
    np.divide((padded[top_QK] * listed_QK).sum(axis=1), count_Q, out=mean_Q, where=count_Q > 0)
    return mean_Q


def log_loss(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Mean negative log-likelihood in nats of labels 0 and 1; probabilities are kept 1e-15 away from 0 and 1."""
    probability_P, label_P = _predictions(probabilities, labels)
    likely_P = np.clip(np.where(label_P, probability_P, 1 - probability_P), 1e-15, 1.0)
    return _mean(-np.log(likely_P))


def expected_calibration_error(probabilities: npt.ArrayLike, labels: npt.ArrayLike, *, bins: int = 10) -> float:
    """Mean gap between predicted and observed frequency over bins of equal width, weighted by size (Naeini et al. 2015)."""
    probability_P, label_P = _predictions(probabilities, labels)
    if bins < 1:
        raise InputError(f"bins is {bins}, must be at least 1", field="bins")
    if not len(label_P):
        return float("nan")
    bin_P = np.minimum((probability_P * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(bin_P, weights=probability_P - label_P, minlength=bins)
    return float(np.abs(gaps).sum() / len(label_P))


def _predictions(values: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Values, Hits]:
    value_P, label_P = np.asarray(values, dtype=np.float64), np.asarray(labels)
    if value_P.ndim != 1 or value_P.shape != label_P.shape:
        raise InputError(f"{value_P.shape} predictions, {label_P.shape} labels: must be of one length", field="labels")
    if not np.isin(label_P, (0, 1)).all():
        raise InputError("labels must be 0 or 1", field="labels")
    if not ((value_P >= 0) & (value_P <= 1)).all():
        raise InputError("predictions must lie between 0 and 1", field="probabilities")
    return value_P, label_P.astype(np.bool_)
