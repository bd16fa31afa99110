"""Off-policy estimates: what lists would have brought that were never shown, from a log that left something to chance.

A reward belongs to an item on a place (Li, Abbasi-Yadkori, Kveton, Muthukrishnan, Vinay, Wen: Offline evaluation of ranking
policies with click models, KDD 2018), so a list is worth the sum over its places, and one place at a time is weighed by

    w = 1 / propensity where the other policy would have put the same item on the same place, else 0

    ips    mean of w r: right on average, and wild where propensities are small
    snips  the same over the mean of w: a little biased, much calmer (Swaminathan and Joachims, NIPS 2015)
    dr     what a model of rewards expects, corrected by w (r - expected): right on average if either is (Dudík, Langford,
           Li: Doubly robust policy evaluation and learning, ICML 2011)

Intervals are those of a fixed look, over people, whose answers depend on each other.

Shapes: n answers, L places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from embeddings.arrays import Doubles
from embeddings.errors import InputError
from serving.analysis.intervals import Interval, mean, ratio

CERTAIN = 1.0 - 1e-9
DEVIATIONS = 1.96
PRIOR = 5.0
"""How many showings the model's guess about an item, that it is like any other, is worth."""

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Log:
    """What was shown: `items` [n, L] as numbers, -1 where a list is shorter, the propensity and the reward of each [n, L].

    `person` [n] tells whose an answer is, as numbers from 0 on.
    """

    items: Codes
    propensities: Doubles
    rewards: Doubles
    person: Codes

    @property
    def places(self) -> npt.NDArray[np.bool_]:
        """Where there is anything, [n, L]."""
        return self.items >= 0


class Estimate(NamedTuple):
    """Estimates of the reward of an answer, and how far to trust them.

    `effective` is the number of answers that tell as much as the weighed ones do; `supported` the share of the other
    policy's places that the log could have shown at all: where it is far below 1, nothing is known about the rest.
    """

    ips: Interval
    snips: Interval
    dr: Interval
    effective: float
    supported: float


def estimate(log: Log, target: Codes) -> Estimate:
    """What lists `target` [n, L], -1 where they end, would have brought.

    Raises `InputError` if nothing was left to chance.
    """
    weights, wanted = _weights(log, target), target >= 0
    ips, snips, dr = (_summed(one, log.person) for one in _worth(log, target, weights))
    squares = float((weights**2).sum())
    effective = float(weights.sum()) ** 2 / squares / max(1, log.items.shape[1]) if squares else 0.0
    supported = min(1.0, float(weights.sum()) / max(1, int(wanted.sum())))
    return Estimate(ips, snips, dr, effective, supported)


def difference(log: Log, target: Codes, baseline: Codes) -> Interval:
    """How much more `target` brings than `baseline`, both [n, L], doubly robust, answer by answer."""
    one, other = (_worth(log, lists, _weights(log, lists))[2] for lists in (target, baseline))
    return _summed(one - other, log.person)


def expected(log: Log, count: int) -> tuple[Codes, Doubles]:
    """Fold [n] of each answer, and what a model of the other fold expects of `count` items on places, [2, count, L].

    A reward is that of the place times how much better or worse than others the item does; two folds by person, so that
    nobody's reward is predicted from itself.
    """
    fold = log.person % 2
    length = log.items.shape[1]
    found = np.zeros((2, count, length))
    for half in (0, 1):
        learned = fold != half
        rewards = np.where(log.places, log.rewards, 0.0)[learned]
        there = log.places[learned]
        place = rewards.sum(axis=0) / np.maximum(1, there.sum(axis=0))
        items = log.items[learned][there]
        usual = np.bincount(items, weights=np.broadcast_to(place, there.shape)[there], minlength=count)
        got = np.bincount(items, weights=rewards[there], minlength=count)
        typical = max(float(place.mean()), 1e-12)
        found[half] = ((got + PRIOR * typical) / (usual + PRIOR * typical))[:, None] * place
    return fold, found


def _weights(log: Log, target: Codes) -> Doubles:
    if log.items.shape != target.shape:
        raise ValueError(f"lists [n, L] of both policies must match: {log.items.shape} and {target.shape}")
    if not (log.propensities[log.places] < CERTAIN).any():
        raise InputError(
            "nothing in this log was left to chance: every propensity is 1, so it says nothing about other lists; give "
            "the placement an 'exploration' such as 0.1 and wait for new answers",
            field="exploration",
        )
    return np.where(log.places & (log.items == target), 1.0 / log.propensities, 0.0)


def _worth(log: Log, target: Codes, weights: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """Doubles [n] of the answers whose means are the three estimates, and whose spread is theirs."""
    rewards = np.where(log.places, log.rewards, 0.0)
    weighed = weights * rewards
    # Each place by itself: a list is as good as the sum of them.
    wanted = target >= 0
    share: Doubles = wanted.mean(axis=0)
    normed = np.zeros_like(weighed)
    for place in range(weights.shape[1]):
        if weights[:, place].any():
            normed[:, place] = share[place] * ratio(weighed[:, place], weights[:, place])
    fold, model = expected(log, int(max(log.items.max(initial=-1), target.max(initial=-1))) + 1)
    rows, places = fold[:, None], np.arange(weights.shape[1])[None, :]
    theirs = np.where(wanted, model[rows, np.maximum(target, 0), places], 0.0)
    ours = np.where(log.places, model[rows, np.maximum(log.items, 0), places], 0.0)
    robust = theirs + weights * (rewards - ours)
    return weighed.sum(axis=1), normed.sum(axis=1), robust.sum(axis=1)


def _summed(worth: Doubles, person: Codes) -> Interval:
    """The mean over answers with an interval over people."""
    sums = np.bincount(person, weights=worth).astype(np.float64)
    answers = np.bincount(person).astype(np.float64)
    there = answers > 0
    found = mean(ratio(sums[there], answers[there])) if int(there.sum()) > 1 else None
    if found is None:
        return Interval(float(worth.mean()), -np.inf, np.inf)
    half = DEVIATIONS * float(np.sqrt(found.variance))
    return Interval(found.value, found.value - half, found.value + half)
