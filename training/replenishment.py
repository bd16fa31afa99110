"""Replenishment, learned: how fast each item is used up, from who bought it again when, and from who did not yet.

What a table of events shows are intervals that ended with another purchase, and intervals that are still open at its end.
An open one is somebody who will not come back or somebody who has not come back yet, and it is not known which: the fit is
by expectation and maximisation over that (censored log-normal times with a share that never returns). Items are drawn
towards their category, categories towards everything, by as much as their intervals vary.

Shapes: S intervals, G groups (items or categories).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from scipy.special import log_ndtr, ndtr

from embeddings.arrays import Doubles, Ints, Mask
from embeddings.replenishment import BOUGHT, DAY_S, ENOUGH, ONE_PURCHASE_S, PACES, speaker
from training.dataset import Dataset

ROUNDS = 60
FEW = 3
"""An item with fewer intervals, open ones included, is not told from its category."""

PRIOR_SHARE = 4.0
"""Purchases that the parent's probability of another one counts for."""

PRIOR_SPREAD = 8.0
"""Intervals that the parent's deviation counts for."""

NARROWEST = 0.02
"""No deviation is below this, in logarithms of days: half an hour a day."""


@dataclass(frozen=True, kw_only=True)
class Spells:
    """S intervals from one purchase to the next, or to the end of the data where `open`.

    `repeat`: the one before was a repeated purchase itself. `log` is the logarithm of days.
    """

    owner: Ints
    row: Ints
    log: Doubles
    open: Mask
    repeat: Mask

    def __len__(self) -> int:
        return len(self.row)

    @classmethod
    def of(cls, data: Dataset) -> Spells:
        """All of a data set; what is bought again within a day is one purchase."""
        known = BOUGHT in data.spec.event_types
        bought = np.flatnonzero((data.types == data.spec.event_row(BOUGHT)) & known)
        order = bought[np.lexsort((data.times[bought], data.rows[bought], data.owners[bought]))]
        owner, row, when = data.owners[order], data.rows[order], data.times[order]
        begins = _changes(owner, row)
        kept = begins | (np.diff(when, prepend=-np.inf) >= ONE_PURCHASE_S)
        owner, row, when = owner[kept], row[kept], when[kept]
        begins = _changes(owner, row)
        ends = np.append(begins[1:], True)
        horizon = float(data.times.max(initial=0.0))
        until = np.where(ends, horizon, np.append(when[1:], 0.0))
        days = (until - when) / DAY_S
        seen = days > 0  # what was bought last of all has not been waited for
        return cls(
            owner=owner[seen],
            row=row[seen],
            log=np.log(days[seen]),
            open=ends[seen],
            repeat=~begins[seen],
        )


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Paces of G groups as arrays, and how many intervals that ended each has."""

    mean: Doubles
    deviation: Doubles
    first: Doubles
    again: Doubles
    intervals: Ints

    def and_one(self, other: Fit) -> Fit:
        """These groups and, behind them, those of another."""
        return Fit(**{name: np.append(value, vars(other)[name]) for name, value in vars(self).items()})

    def take(self, groups: Ints) -> Fit:
        """The paces of some groups, in the order asked for."""
        return Fit(
            mean=self.mean[groups],
            deviation=self.deviation[groups],
            first=self.first[groups],
            again=self.again[groups],
            intervals=self.intervals[groups],
        )


def learn_paces(data: Dataset) -> pa.Table | None:
    """The table of paces of a data set; None if nobody ever bought anything twice."""
    spells = Spells.of(data)
    closed = ~spells.open
    if not closed.any():
        return None
    nothing = Fit(
        mean=np.array([float(spells.log[closed].mean())]),
        deviation=np.array([max(NARROWEST, float(spells.log[closed].std()))]),
        first=np.array([0.1]),
        again=np.array([0.5]),
        intervals=np.zeros(1, dtype=np.int64),
    )
    everything = fit(spells, np.zeros(len(spells), dtype=np.int64), nothing, pull=1.0)
    categories, member, names = _categories(data, spells)
    by_category = fit(
        _taken(spells, member), categories, everything.take(np.zeros(len(names), dtype=np.int64)), pull=1.0
    )
    rows, item = np.unique(spells.row, return_inverse=True)
    parents = by_category.and_one(everything).take(_parents(data, rows, names, by_category))
    log, of_item = spells.log[closed], item[closed]
    # One item's intervals vary less than a category's, and how much items vary says how far each may be drawn.
    own = _pooled(log, of_item)
    total = _pooled(log - parents.mean[of_item], np.zeros(len(log), dtype=np.int64))
    parents = replace(parents, deviation=np.minimum(parents.deviation, own))
    pull = own**2 / max(total**2 - own**2, (0.1 * own) ** 2)
    by_item = fit(spells, item, parents, pull=pull)
    within = min(1.0, _pooled(log, _pair(spells)[closed]) / own)
    told = np.flatnonzero(np.bincount(item, minlength=len(rows)) >= FEW)
    ids = [data.items.id(row) for row in rows[told].tolist()]
    return pa.concat_tables(
        [
            _table("everything", [""], everything, within),
            _table("category", names, by_category, within),
            _table("item", ids, by_item.take(told), within),
        ]
    ).combine_chunks()


def fit(spells: Spells, group: Ints, prior: Fit, *, pull: float) -> Fit:
    """Fit the groups [S] of intervals, each around its prior, whose mean counts for `pull` intervals."""
    groups = len(prior.mean)
    mean, deviation, first, again = prior.mean, prior.deviation, prior.first, prior.again
    counts = [np.bincount(group[mask], minlength=groups) for mask in (~spells.repeat, spells.repeat)]
    for _ in range(ROUNDS):
        weight, expected, spread = _expected(spells, mean[group], deviation[group], first[group], again[group])
        total = _sums(group, weight, groups)
        mean = (pull * prior.mean + _sums(group, weight * expected, groups)) / (pull + total)
        squares = PRIOR_SPREAD * prior.deviation**2
        squares = squares + _sums(group, weight * (spread + (expected - mean[group]) ** 2), groups)
        deviation = np.maximum(NARROWEST, np.sqrt(squares / (PRIOR_SPREAD + total)))
        shares = [
            (PRIOR_SHARE * before + _sums(group[mask], weight[mask], groups)) / (PRIOR_SHARE + count)
            for before, mask, count in zip(
                (prior.first, prior.again), (~spells.repeat, spells.repeat), counts, strict=True
            )
        ]
        first, again = (np.clip(share, 0.0, 0.999) for share in shares)
    closed = np.bincount(group[~spells.open], minlength=groups)
    return Fit(mean=mean, deviation=deviation, first=first, again=again, intervals=closed)


def _expected(
    spells: Spells, mean: Doubles, deviation: Doubles, first: Doubles, again: Doubles
) -> tuple[Doubles, Doubles, Doubles]:
    """Of each interval: how probably it ends at all, and the mean and variance of its logarithm if it does."""
    z = (spells.log - mean) / deviation
    # The mean of a normal beyond z is that of the inverse Mills ratio; by logarithms, or it is 0 / 0 far out.
    mills = np.exp(-0.5 * z**2 - 0.5 * np.log(2 * np.pi) - log_ndtr(-z))
    share = np.where(spells.repeat, again, first)
    waiting = share * ndtr(-z)
    weight = np.where(spells.open, waiting / (1.0 - share + waiting), 1.0)
    expected = np.where(spells.open, mean + deviation * mills, spells.log)
    spread = np.where(spells.open, deviation**2 * np.maximum(0.0, 1.0 + z * mills - mills**2), 0.0)
    return weight, expected, spread


def _categories(data: Dataset, spells: Spells) -> tuple[Ints, Ints, list[str]]:
    """Category and interval of every interval of every category, and the names of the categories that have enough."""
    of_item = data.item_table["categories"].combine_chunks()
    lists = of_item.take(pa.array(spells.row))
    member = np.repeat(np.arange(len(spells)), lists.value_lengths().fill_null(0).to_numpy())
    encoded = lists.flatten().dictionary_encode()
    codes = encoded.indices.to_numpy().astype(np.int64)
    closed = np.bincount(codes[~spells.open[member]], minlength=len(encoded.dictionary))
    enough = np.flatnonzero(closed >= ENOUGH)
    kept = np.isin(codes, enough)
    return np.searchsorted(enough, codes[kept]), member[kept], [encoded.dictionary[n].as_py() for n in enough.tolist()]


def _parents(data: Dataset, rows: Ints, names: list[str], by_category: Fit) -> Ints:
    """For each item the category that it is drawn towards, because that speaks for it; one past the last for none."""
    intervals = dict(zip(names, by_category.intervals.tolist(), strict=True))
    place: dict[str | None, int] = {name: n for n, name in enumerate(names)} | {None: len(names)}
    lists = data.item_table["categories"].combine_chunks().take(pa.array(rows)).to_pylist()
    return np.array([place[speaker(found or (), intervals)] for found in lists], dtype=np.int64)


def _table(level: str, names: list[str], fitted: Fit, within: float) -> pa.Table:
    return pa.table(
        {
            "level": [level] * len(names),
            "name": names,
            "mean": fitted.mean,
            "within": fitted.deviation * within,
            "between": fitted.deviation * np.sqrt(1.0 - within**2),
            "first": fitted.first,
            "again": fitted.again,
            "intervals": fitted.intervals,
        },
        schema=PACES,
    )


def _taken(spells: Spells, chosen: Ints) -> Spells:
    return Spells(**{name: column[chosen] for name, column in vars(spells).items()})


def _pooled(values: Doubles, group: Ints) -> float:
    """Standard deviation within groups, pooled over those with two values or more; of all values if there are none."""
    _, group, counts = np.unique(group, return_inverse=True, return_counts=True)
    freedom = len(values) - len(counts)
    if freedom <= 0:
        return max(NARROWEST, float(values.std()))
    means = _sums(group, values, len(counts)) / counts
    return max(NARROWEST, float(np.sqrt(((values - means[group]) ** 2).sum() / freedom)))


def _pair(spells: Spells) -> Ints:
    """A number for each person and item."""
    numbers: Ints = spells.owner * (spells.row.max() + 1) + spells.row
    return numbers


def _changes(owner: Ints, row: Ints) -> Mask:
    """Mark the first purchase of each person and item."""
    return np.append(True, (np.diff(owner) != 0) | (np.diff(row) != 0))[: len(owner)]


def _sums(group: Ints, values: Doubles, groups: int) -> Doubles:
    sums: Doubles = np.bincount(group, weights=values, minlength=groups).astype(
        np.float64
    )  # integers if there are none
    return sums
