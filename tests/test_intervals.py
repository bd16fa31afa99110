"""Intervals that hold whenever one looks: against known answers, independent references, and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from serving.analysis.intervals import Mean, adjusted, difference, lift, mean, multiplier, ratio, sample_ratio

ALPHA, PLANNED = 0.05, 2000


def test_the_price_of_looking_whenever_one_likes() -> None:
    width = {n: multiplier(n, alpha=ALPHA, planned=10_000) for n in (100, 1_000, 10_000, 100_000, 1_000_000)}
    assert min(width, key=width.__getitem__) == 10_000
    assert width[10_000] == pytest.approx(3.03, abs=0.01)
    assert all(one > stats.norm.ppf(0.975) for one in width.values())


@given(st.integers(2, 10**9), st.floats(1e-6, 0.5), st.integers(100, 10**9))
def test_a_multiplier_is_finite_and_wider_for_more_certainty(people: int, alpha: float, planned: int) -> None:
    width = multiplier(people, alpha=alpha, planned=planned)
    assert math.isfinite(width)
    assert width > stats.norm.ppf(1 - alpha / 2)


def test_looking_every_day_alarms_seldom_where_a_fixed_interval_alarms_often() -> None:
    rng = np.random.default_rng(3)
    always = fixed = 0
    for _ in range(400):
        a, b = rng.exponential(size=(2, 2000))
        looks = range(100, 2001, 100)
        pairs = [(mean(a[:n]), mean(b[:n])) for n in looks]
        always += any(
            one.low > 0 or one.high < 0 for one in (difference(*pair, alpha=ALPHA, planned=PLANNED) for pair in pairs)
        )
        fixed += any(abs(x.value - y.value) > 1.96 * math.sqrt(x.variance + y.variance) for x, y in pairs)
    assert always / 400 <= ALPHA
    assert fixed / 400 > 3 * ALPHA


def test_a_lift_is_the_difference_over_the_first_arm() -> None:
    found = lift(Mean(1.1, 1e-4, 5000), Mean(1.0, 1e-4, 5000), alpha=ALPHA, planned=10_000)
    assert found is not None
    assert found.estimate == pytest.approx(0.1)
    half = multiplier(10_000, alpha=ALPHA, planned=10_000) * math.sqrt(1e-4 * (1 + 1.1**2))
    assert (found.low, found.high) == (pytest.approx(0.1 - half), pytest.approx(0.1 + half))
    assert lift(Mean(1.0, 1.0, 50), Mean(0.1, 1.0, 50), alpha=ALPHA, planned=100) is None


def test_a_ratio_has_the_spread_that_resampling_finds() -> None:
    rng = np.random.default_rng(0)
    orders = rng.poisson(2.0, 3000).astype(float)
    revenue = orders * rng.gamma(2.0, 10.0, 3000)
    values = ratio(revenue, orders)
    assert values.mean() == pytest.approx(revenue.sum() / orders.sum())
    drawn = [rng.integers(0, 3000, 3000) for _ in range(500)]
    resampled = np.std([revenue[rows].sum() / orders[rows].sum() for rows in drawn])
    assert math.sqrt(mean(values).variance) == pytest.approx(resampled, rel=0.15)


def test_what_was_known_before_takes_variance_out_and_leaves_the_difference() -> None:
    rng = np.random.default_rng(1)
    before = rng.gamma(2.0, size=(2, 4000))
    values = 2.0 * before + rng.normal(size=(2, 4000)) + np.array([[0.0], [0.3]])
    (a, b), explained = adjusted(list(values), list(before))
    correlation = np.corrcoef(np.concatenate(before), np.concatenate(values - values.mean(axis=1, keepdims=True)))[0, 1]
    assert explained == pytest.approx(correlation**2, abs=0.01)
    assert mean(a).variance == pytest.approx(mean(values[0]).variance * (1 - explained), rel=0.05)
    assert b.mean() - a.mean() == pytest.approx(0.3, abs=0.1)
    same, nothing = adjusted(list(values), [np.zeros(4000), np.zeros(4000)])
    assert nothing == 0.0
    np.testing.assert_array_equal(same, values)


def test_unequal_arms_are_seen_and_equal_ones_seldom_alarm() -> None:
    assert sample_ratio([5000, 5000], [0.5, 0.5]) == 1.0
    assert sample_ratio([5000, 5600], [0.5, 0.5]) < 1e-4
    assert sample_ratio([900, 2100], [0.3, 0.7]) == 1.0
    assert sample_ratio([0, 0], [0.5, 0.5]) == 1.0
    rng = np.random.default_rng(2)
    alarms = 0
    for _ in range(300):
        ones = np.cumsum(rng.random(4000) < 0.5)
        alarms += any(
            sample_ratio([int(ones[n - 1]), n - int(ones[n - 1])], [1, 1]) < 0.05 for n in range(100, 4001, 100)
        )
    assert alarms / 300 <= 0.05


def test_the_factor_of_the_sample_ratio_is_that_of_the_dirichlet_multinomial() -> None:
    counts, shares = [40, 75, 90], [0.3, 0.3, 0.4]
    alternative = stats.dirichlet_multinomial.logpmf(counts, [100 * share for share in shares], sum(counts))
    factor = alternative - stats.multinomial.logpmf(counts, sum(counts), shares)
    assert sample_ratio(counts, shares) == pytest.approx(min(1.0, math.exp(-factor)), rel=1e-6)
    far = [10, 75, 120]
    alternative = stats.dirichlet_multinomial.logpmf(far, [100 * share for share in shares], sum(far))
    factor = alternative - stats.multinomial.logpmf(far, sum(far), shares)
    assert sample_ratio(far, shares) == pytest.approx(math.exp(-factor), rel=1e-6)
