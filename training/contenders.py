"""The systems that an evaluation compares, each as lists of rows for the same targets.

Every system learns from the events that the split gives to training, reads the history before each target, and leaves
out all that stands in it. An item that a person likes weighs 1, however often they came back to it.

Shape suffixes: Q targets, K places, N items, U people.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from embeddings.features import Floats, Ints
from embeddings.ids import UNKNOWN
from embeddings.ranker import Ranker
from embeddings.two_tower import TwoTower
from training.baselines import EASE, ItemKNN, Popularity
from training.calibration import CALIBRATION_BINS
from training.dataset import Dataset, Split, Targets
from training.examples import ListMaker, outcomes
from training.metrics import expected_calibration_error
from training.queries import encode_queries, rank_all, seen_items
from training.ranking import predict, rerank


def item_matrix(data: Dataset, towers: TwoTower) -> Floats:
    """Vectors [N, D] of the whole catalogue."""
    return towers.items.encode(data.spec.item_features(data.item_rows(), np.arange(len(data.items))))


def rank_two_tower(data: Dataset, towers: TwoTower, matrix: Floats, targets: Targets, *, depth: int) -> Ints:
    """Lists [Q, depth] by exact dot product, without the seen items."""
    return rank_all(encode_queries(data, towers, matrix, targets), matrix, seen_items(data, targets), depth)


def rank_baseline(
    baseline: Popularity | ItemKNN | EASE, data: Dataset, split: Split, targets: Targets, *, depth: int
) -> Ints:
    """Lists [Q, depth] of a baseline, fitted here; raises `InputError` if its model takes more memory than it may."""
    train, times = training_matrix(data, split)
    starts, shape = data.offsets[targets.users], (len(targets), len(data.items))
    places = np.concatenate([np.zeros(0, dtype=np.int64), *map(np.arange, starts.tolist(), targets.ends.tolist())])
    owners, liked = np.repeat(np.arange(len(targets)), targets.ends - starts), data.positive[places]
    histories = sparse_ones(owners[liked], data.rows[places][liked], shape)
    exclude = sparse_ones(owners, data.rows[places], shape)
    return baseline.fit(train, times).rank(histories, depth, exclude=exclude)


def training_matrix(data: Dataset, split: Split) -> tuple[Any, Any]:
    """Positive training events as a matrix [U, N] of ones, and the time of the last event behind each entry."""
    places = np.flatnonzero(split.train & data.positive)
    train = sparse_ones(data.owners[places], data.rows[places], (len(data.users), len(data.items)))
    keys = data.owners[places] * np.int64(len(data.items)) + data.rows[places]
    cells, at = np.unique(keys, return_inverse=True)  # sorted as the matrix stores its entries
    times = np.full(len(cells), -np.inf)
    np.maximum.at(times, at, data.times[places])
    return train, times


def rank_ranker(
    data: Dataset, towers: TwoTower, matrix: Floats, ranker: Ranker, targets: Targets, retrieved: Ints
) -> tuple[Ints, float]:
    """Reorder the head of the `retrieved` lists [Q, K] as the service does; a longer list goes on in retrieval order.

    Also returns the expected calibration error of the probabilities, the mean over the objectives.
    """
    maker, ranked, at = ListMaker(data, towers, matrix, ranker.config), retrieved.copy(), 0
    predicted, labels = [], []
    for lists in maker.chunks(targets):
        own = np.arange(at, at + len(lists))
        head = min(retrieved.shape[1], lists.rows.shape[1])
        ranked[own, :head] = rerank(ranker, lists, matrix)[:, :head]
        real = lists.rows != UNKNOWN
        predicted.append(ranker.probabilities(predict(ranker, lists, matrix)).numpy()[real])
        labels.append(outcomes(data, targets.take(own), lists.rows, ranker.config)[real])
        at += len(lists)
    found, truth = np.concatenate(predicted), np.concatenate(labels)
    columns = range(found.shape[1])
    errors = [expected_calibration_error(found[:, o], truth[:, o], bins=CALIBRATION_BINS) for o in columns]
    return ranked, float(np.mean(errors))


def sparse_ones(rows: Ints, columns: Ints, shape: tuple[int, int]) -> Any:
    """Sparse matrix with a 1 wherever a pair of row and column occurs, however often."""
    matrix = csr_matrix((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix
