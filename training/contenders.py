"""The systems that an evaluation compares, each as lists of rows for the same targets.

Every system learns from the events that the split gives to training, reads the history before each target, and leaves
out all that stands in it. An item that a person likes weighs 1, however often they came back to it.

Shape suffixes: Q targets, K places, N items, U people.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from embeddings.arrays import Floats, Ints, Mask
from embeddings.bundle import Bundle
from embeddings.errors import InputError
from embeddings.features import FeatureSpec
from embeddings.ids import UNKNOWN, IdMap
from embeddings.ranker import Ranker
from embeddings.two_tower import TwoTower
from training.baselines import EASE, ItemKNN, Popularity, RecentPopularity
from training.calibration import CALIBRATION_BINS
from training.dataset import Dataset, Split, Targets
from training.examples import ListMaker, outcomes
from training.metrics import expected_calibration_error
from training.queries import encode_queries, rank_all, seen_items
from training.ranking import in_order, predict

RELEASE: Final = "release"
"""The name under which the release in service competes."""

Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a ranking model said of P candidates, `probabilities` [P, O], and what came of them, `labels` [P, O]."""

    objectives: tuple[str, ...]
    probabilities: npt.NDArray[np.float32]
    labels: Mask

    def error(self) -> float:
        """Expected calibration error, the mean over the objectives."""
        columns = zip(self.probabilities.T, self.labels.T, strict=True)
        return float(np.mean([expected_calibration_error(*column, bins=CALIBRATION_BINS) for column in columns]))


@dataclass(frozen=True, kw_only=True)
class Contest:
    """The lists [Q, K] of every system for the same targets, and the item vectors [N, D] of the towers among them.

    `predictions` are those of the ranking model, if there is one; `notes` say who is missing, and why.
    """

    targets: Targets
    lists: Mapping[str, Ints]
    matrix: Floats
    predictions: Predictions | None
    notes: tuple[str, ...]


def compete(
    data: Dataset,
    split: Split,
    towers: TwoTower,
    ranker: Ranker | None,
    targets: Targets,
    *,
    depth: int,
    release: Bundle | None = None,
    ease_gib: float = 4.0,
    say: Note | None = None,
) -> Contest:
    """Let the baselines, the towers, the ranking model and the `release` in service fill lists of `depth` places."""
    say, predictions = say or (lambda _: None), None
    baselines = (Popularity(), RecentPopularity(), ItemKNN(), EASE(memory_limit_gib=ease_gib))
    lists, notes = rank_baselines(baselines, data, split, targets, depth=depth, say=say)
    if release is not None:
        say(RELEASE)
        lists[RELEASE] = rank_release(release, data, targets, depth=depth)
    say("two_tower")
    matrix = item_matrix(data, towers)
    lists["two_tower"] = rank_two_tower(data, towers, matrix, targets, depth=depth)
    if ranker is not None:
        say("ranker")
        lists["ranker"], predictions = rank_ranker(data, towers, matrix, ranker, targets, lists["two_tower"])
    return Contest(targets=targets, lists=lists, matrix=matrix, predictions=predictions, notes=tuple(notes))


def rank_release(release: Bundle, data: Dataset, targets: Targets, *, depth: int) -> Ints:
    """Lists [Q, depth] as a release would have filled them: its towers, its ranking model, today's catalogue.

    Items that came after the release stand on their content, those it knew keep its id vectors, as in service.
    """
    own = read_by(data, release.spec)
    matrix = vectors_of(own, release.towers, release.ids)
    lists = rank_two_tower(own, release.towers, matrix, targets, depth=depth)
    if release.ranker is None:
        return lists
    rows = release.ids.rows(data.items.all)
    return rank_ranker(own, release.towers, matrix, release.ranker, targets, lists, rows=rows)[0]


def read_by(data: Dataset, spec: FeatureSpec) -> Dataset:
    """The same events, as a model with another featurizer reads them."""
    names = sorted(data.spec.event_types)
    rows = np.array([0, *(spec.event_row(name) for name in names)], dtype=np.int64)
    return replace(data, spec=spec, types=rows[data.types])


def vectors_of(data: Dataset, towers: TwoTower, ids: IdMap) -> Floats:
    """Vectors [N, D] of the catalogue by towers that were trained on the items `ids`; the others by content alone."""
    return towers.items.encode(data.spec.item_features(data.item_rows(), ids.rows(data.items.all)))


def item_matrix(data: Dataset, towers: TwoTower) -> Floats:
    """Vectors [N, D] of the whole catalogue."""
    return towers.items.encode(data.spec.item_features(data.item_rows(), np.arange(len(data.items))))


def rank_two_tower(data: Dataset, towers: TwoTower, matrix: Floats, targets: Targets, *, depth: int) -> Ints:
    """Lists [Q, depth] by exact dot product, without the seen items."""
    return rank_all(encode_queries(data, towers, matrix, targets), matrix, seen_items(data, targets), depth)


def rank_baselines(
    baselines: Iterable[Popularity | ItemKNN | EASE],
    data: Dataset,
    split: Split,
    targets: Targets,
    *,
    depth: int,
    say: Note,
) -> tuple[dict[str, Ints], list[str]]:
    """Lists [Q, depth] of several baselines by name; EASE is left out, with a note, where it takes too much memory."""
    lists, notes = {}, []
    for baseline in baselines:
        say(str(baseline.name))
        try:
            lists[str(baseline.name)] = rank_baseline(baseline, data, split, targets, depth=depth)
        except InputError as error:
            if baseline.name != EASE.name:
                raise
            notes.append(f"without EASE: {error.message}")
    return lists, notes


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
    data: Dataset,
    towers: TwoTower,
    matrix: Floats,
    ranker: Ranker,
    targets: Targets,
    retrieved: Ints,
    *,
    rows: Ints | None = None,
) -> tuple[Ints, Predictions]:
    """Reorder the head of the `retrieved` lists [Q, K] as the service does; a longer list goes on in retrieval order.

    Also returns what the model predicted of all its candidates, with the outcomes. `rows` [N] are those of today's items
    in the catalogue that the model was trained on, if that was another.
    """
    maker = ListMaker(
        data, towers, matrix, ranker.config, ranker.successors, rows=rows, rarity_T=ranker.rarity.cpu().numpy()
    )
    ranked, at = retrieved.copy(), 0
    predicted, labels = [], []
    for lists in maker.chunks(targets):
        own = np.arange(at, at + len(lists))
        head = min(retrieved.shape[1], lists.rows.shape[1])
        probabilities = ranker.probabilities(predict(ranker, lists, matrix))
        ranked[own, :head] = in_order(lists, probabilities)[:, :head]
        real = lists.rows != UNKNOWN
        predicted.append(probabilities.numpy()[real])
        labels.append(outcomes(data, targets.take(own), lists.rows, ranker.config)[real])
        at += len(lists)
    found = Predictions(
        objectives=tuple(ranker.config.objectives),
        probabilities=np.concatenate(predicted),
        labels=np.concatenate(labels),
    )
    return ranked, found


def sparse_ones(rows: Ints, columns: Ints, shape: tuple[int, int]) -> Any:
    """Sparse matrix with a 1 wherever a pair of row and column occurs, however often."""
    matrix = csr_matrix((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix
