"""Intervals that hold whenever one looks, and the test whether arms have the people they should have.

A fixed interval is right once, at a moment that was set before. One who looks every day and stops at the first difference
needs a sequence of intervals that holds the truth at all times at once: asymptotic confidence sequences (Waudby-Smith,
Arbour, Sinha, Kennedy, Ramdas: Time-uniform central limit theory and asymptotic confidence sequences, arXiv 2103.06476).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from embeddings.arrays import Doubles

PRIOR = 100.0
"""How many people the prior of `sample_ratio` is worth: so many that a few are no surprise, so few that many are one."""


class Interval(NamedTuple):
    """An estimate, and the bounds that hold the truth."""

    estimate: float
    low: float
    high: float


class Mean(NamedTuple):
    """The mean of an arm, its squared standard error, and how many people it was taken over."""

    value: float
    variance: float
    people: int


def multiplier(people: int, *, alpha: float, planned: int) -> float:
    """How many standard errors a bound lies away after so many people; smallest, in proportion, at those `planned`.

    The boundary of a Gaussian mixture, its spread chosen for the planned number. There it is 3.0 for alpha = 0.05, where a
    fixed interval would have 1.96: that is the price of looking whenever one likes.
    """
    spread = people * (-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))) / planned
    return math.sqrt(2 * (spread + 1) / spread * math.log(math.sqrt(spread + 1) / alpha))


def difference(arm: Mean, control: Mean, *, alpha: float, planned: int) -> Interval:
    """The mean of an arm less that of control."""
    error = math.sqrt(arm.variance + control.variance)
    half = error * multiplier(arm.people + control.people, alpha=alpha, planned=planned)
    estimate = arm.value - control.value
    return Interval(estimate, estimate - half, estimate + half)


def lift(arm: Mean, control: Mean, *, alpha: float, planned: int) -> Interval | None:
    """The same as a share of control's mean, by the delta method; None where that mean is not surely above 0."""
    width = multiplier(arm.people + control.people, alpha=alpha, planned=planned)
    if control.value <= width * math.sqrt(control.variance):
        return None
    ratio = arm.value / control.value
    half = width * math.sqrt(arm.variance + ratio**2 * control.variance) / control.value
    return Interval(ratio - 1, ratio - 1 - half, ratio - 1 + half)


def mean(values: Doubles) -> Mean:
    """The plain mean of values [n], n at least 2."""
    return Mean(float(values.mean()), float(values.var(ddof=1)) / len(values), len(values))


def ratio(numerators: Doubles, denominators: Doubles) -> Doubles:
    """Values [n] whose mean is sum(numerators) / sum(denominators) and whose spread is that of the ratio (delta method).

    The denominators must not all be 0.
    """
    whole = float(numerators.sum()) / float(denominators.sum())
    values: Doubles = whole + (numerators - whole * denominators) / float(denominators.mean())
    return values


def adjusted(values: Sequence[Doubles], before: Sequence[Doubles]) -> tuple[list[Doubles], float]:
    """Values of all arms, each [n], less what `before` [n] tells of them, and the share of variance that takes away.

    CUPED (Deng, Xu, Kohavi, Walker: Improving the sensitivity of online controlled experiments by utilizing pre-experiment
    data, WSDM 2013). One slope for all arms, found within them, so that the difference of the arms does not leak into it.
    """
    centre = float(np.concatenate(before).mean())
    pairs = [(x - x.mean(), y - y.mean()) for x, y in zip(before, values, strict=True)]
    spread = sum(float(x @ x) for x, _ in pairs)
    total = sum(float(y @ y) for _, y in pairs)
    if spread <= 0 or total <= 0:
        return list(values), 0.0
    together = sum(float(x @ y) for x, y in pairs)
    slope = together / spread
    found = [y - slope * (x - centre) for x, y in zip(before, values, strict=True)]
    return found, together**2 / (spread * total)


def sample_ratio(counts: Sequence[int], shares: Sequence[float]) -> float:
    """The p-value of counts that should be in these shares (each above 0); one may look at it again and again.

    The Bayes factor of a Dirichlet prior around the shares (Lindon, Malek: Anytime-valid inference for multinomial count
    data, NeurIPS 2022); its inverse is below alpha, ever, with probability alpha at most.
    """
    whole = math.fsum(shares)
    expected = [share / whole for share in shares]
    prior = [PRIOR * share for share in expected]
    total = sum(counts)
    log_factor = math.lgamma(PRIOR) - math.lgamma(PRIOR + total)
    for count, share, weight in zip(counts, expected, prior, strict=True):
        log_factor += math.lgamma(weight + count) - math.lgamma(weight) - count * math.log(share)
    return min(1.0, math.exp(-min(log_factor, 700.0)))
