"""Ranking lists: the candidates that retrieval returns for a target, and what was known about them at that moment.

The ranking model learns from these and is judged on them. Every statistic is that of the request's time: an item's
popularity counts the events before it, never those after. What a candidate led to, its labels, is looked up separately.

Shape suffixes: Q targets, K candidates, L events of a history, D dimensions, F features, O objectives, N items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embeddings.arrays import Floats, Ints, Mask
from embeddings.ids import UNKNOWN
from embeddings.ranker import FEATURES, RankerConfig, candidate_features
from embeddings.successors import LATEST, Successors
from embeddings.traits import alike, rarity, traits_of
from embeddings.two_tower import TwoTower
from training.dataset import Dataset, Targets, Times
from training.queries import encode_queries, rank_all, seen_items

DAY_S = 86_400.0
RECENT_DAYS = 30.0
"""What "recently popular" means, to the ranking model and in a release alike."""

CHUNK = 1024
"""Targets whose lists are held at once when they are only ranked."""


class EventCounts:
    """How many positive events each item had before any moment: one binary search a question."""

    def __init__(self, data: Dataset, *, recent_days: float = RECENT_DAYS) -> None:
        places = np.flatnonzero(data.positive)
        order = places[np.argsort(data.times[places], kind="stable")]
        self._recent_s = recent_days * DAY_S
        self._times: Times = data.times[order]
        # One sorted array of (item, place in time) answers for every item; the stride leaves room for "after the last".
        self._stride = np.int64(len(order) + 1)
        self._keys = np.sort(data.rows[order] * self._stride + np.arange(len(order)))
        self._starts = np.searchsorted(self._keys, np.arange(len(data.items)) * self._stride)

    def before(self, rows: Ints, moments: Times) -> Ints:
        """Events of items `rows` strictly before `moments` (seconds); the two broadcast."""
        place = np.searchsorted(self._times, moments, side="left")
        counts: Ints = np.searchsorted(self._keys, rows * self._stride + place) - self._starts[rows]
        return counts

    def at(self, rows: Ints, moments: Times) -> tuple[Ints, Ints]:
        """Counts of all events before `moments`, and of the recent ones among them."""
        total = self.before(rows, moments)
        return total, total - self.before(rows, moments - self._recent_s)

    def at_the_end(self) -> npt.NDArray[np.float64]:
        """Counts [N, 2], all and recent, of every item when the last event has happened: what a release carries."""
        last = self._times[-1] if len(self._times) else 0.0
        rows = np.arange(len(self._starts))
        return np.stack(self.at(rows, np.full(len(rows), np.nextafter(last, np.inf))), axis=1).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Lists:
    """Q lists of up to K candidates in retrieval order.

    `rows` [Q, K] and `history` [Q, L] end in `UNKNOWN` where they are short; `features` [Q, K, F] are zero there.
    """

    queries: Floats
    rows: Ints
    features: Floats
    history: Ints

    def __len__(self) -> int:
        return len(self.rows)


class ListMaker:
    """Makes the lists of any targets of one data set, as one retriever sees it."""

    def __init__(
        self,
        data: Dataset,
        towers: TwoTower,
        matrix: Floats,
        config: RankerConfig,
        successors: Successors,
        *,
        rows: Ints | None = None,
        rarity_T: Floats | None = None,
    ) -> None:
        """`rows` [N] are the items' in the table of successors, if that was counted over another catalogue.

        `rarity_T` are the rarities of tokens in that catalogue; left out, they are those of this one.
        """
        items = data.item_rows()
        features = data.spec.item_features(items)
        self.rarity = rarity(features, data.spec.token_count) if rarity_T is None else rarity_T
        self.traits = traits_of(features, self.rarity)
        self.successors, self.rows = successors, np.arange(len(items)) if rows is None else rows
        self.data, self.towers, self.matrix, self.config = data, towers, matrix, config
        self.counts = EventCounts(data)
        self.prices = np.array([np.nan if item.price is None else item.price for item in items], dtype=np.float64)
        self.created = np.array([item.created_at.timestamp() if item.created_at else np.nan for item in items])

    def make(self, targets: Targets) -> Lists:
        """Candidates by exact dot product without the seen items, best first, with their features."""
        data, seen = self.data, seen_items(self.data, targets)
        queries = encode_queries(data, self.towers, self.matrix, targets)
        rows = rank_all(queries, self.matrix, seen, self.config.candidates)
        total, recent = self.counts.at(np.maximum(rows, 0), targets.times[:, None])
        features = np.zeros((*rows.shape, len(FEATURES)), dtype=np.float32)
        for q, known in enumerate(seen):
            kept = rows[q] != UNKNOWN
            found = rows[q][kept]
            features[q, kept] = candidate_features(
                self.matrix[found] @ queries[q],
                popularity=total[q, kept].astype(np.float64),
                recent_popularity=recent[q, kept].astype(np.float64),
                age_days=(targets.times[q] - self.created[found]) / DAY_S,
                prices=self.prices[found],
                history_prices=self.prices[known],
                repeats=np.zeros(len(found), dtype=np.int64),  # what was touched before is not on the list
                known=np.ones(len(found), dtype=np.bool_),
                follows=self.successors.follow(self.rows[known], self.rows[found]),
                alike=alike(self.traits.take(known[-LATEST:]), self.traits.take(found)),
            )
        return Lists(queries=queries, rows=rows, features=features, history=_latest(seen, self.config.history))

    def chunks(self, targets: Targets) -> Iterator[Lists]:
        """The same lists, some targets at a time: memory does not grow with the number of targets."""
        for start in range(0, len(targets), CHUNK):
            yield self.make(targets.take(np.arange(start, min(start + CHUNK, len(targets)))))


def outcomes(data: Dataset, targets: Targets, rows: Ints, config: RankerConfig, *, within_days: float = 7.0) -> Mask:
    """Labels [Q, K, O]: the candidate was to be found, and the person did this with it.

    An item is found by its first event; a purchase days later is an outcome of the same find. Events count that follow
    the first one within `within_days`. Of a target that is no event of the data nothing is known but that it was taken:
    it counts for every objective.
    """
    wanted = np.array([data.spec.event_row(name) for name in config.objectives])
    labels = np.zeros((*rows.shape, len(wanted)), dtype=np.bool_)
    for q, relevant in enumerate(targets.relevant()):
        own = slice(targets.ends[q], data.offsets[targets.users[q] + 1])
        touched, times = data.rows[own], data.times[own]
        for row in np.unique(relevant).tolist():
            places = np.flatnonzero(touched == row)
            if not len(places):
                labels[q, rows[q] == row] = True
                continue
            near = places[times[places] <= times[places[0]] + within_days * DAY_S]
            labels[q, rows[q] == row] = np.isin(wanted, data.types[own][near])
    return labels


def _latest(histories: list[Ints], length: int) -> Ints:
    width = max(1, min(length, max((len(rows) for rows in histories), default=1)))
    padded = np.full((len(histories), width), UNKNOWN, dtype=np.int64)
    for q, rows in enumerate(histories):
        latest = rows[-width:]
        padded[q, : len(latest)] = latest
    return padded
