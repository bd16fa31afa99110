"""The bandit: it finds what is best for whom, its propensities are true, and its sums do not care about the order."""

from __future__ import annotations

import numpy as np
import pytest

from serving.decisions.bandit import DRAWS, GUESS, GUESSED, NARROWER, Bandit

ALL = np.ones(4, dtype=bool)


def test_what_is_best_for_whom_is_found_at_less_than_half_the_regret_of_an_even_split() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(4, 8)) * 2.0
    truth[:, 0] = -1.0
    bandit = Bandit(4, 8)
    regret = even = 0.0
    for _ in range(2500):
        z = np.concatenate([[1.0], rng.normal(size=7) / np.sqrt(7)])
        odds = 1 / (1 + np.exp(-truth @ z))
        arm, _ = bandit.choose(z, ALL, rng)
        bandit.learn(z, arm, float(rng.random() < odds[arm]))
        regret += odds.max() - odds[arm]
        even += odds.max() - odds.mean()
    assert regret < 0.5 * even, regret / even


def taught(**options: float) -> Bandit:
    rng = np.random.default_rng(1)
    bandit = Bandit(4, 3, **options)  # type: ignore[arg-type]
    for n in range(200):
        z = np.array([1.0, *rng.normal(size=2)])
        bandit.learn(z, n % 4, float(rng.random() < (0.1, 0.2, 0.3, 0.1)[n % 4]))
    return bandit


def test_the_propensity_is_how_often_a_variant_is_drawn() -> None:
    bandit, z = taught(), np.array([1.0, 0.5, -0.5])
    told = np.mean([bandit.chances(z, ALL, np.random.default_rng(n)) for n in range(300)], axis=0)
    drawn = [bandit.choose(z, ALL, np.random.default_rng(n)).arm for n in range(3000)]
    assert told.sum() == pytest.approx(1.0)
    assert np.bincount(drawn, minlength=4) / 3000 == pytest.approx(told, abs=0.03)
    mean, deviation = bandit.scores(z)
    best = np.argmax(mean + deviation * np.random.default_rng(5).standard_normal((100_000, 4)), axis=1)
    exact = 0.05 / 4 + 0.95 * np.bincount(best, minlength=4) / 100_000
    assert told == pytest.approx(exact, abs=3 * 0.5 / np.sqrt(DRAWS * 300) + 0.005)
    choice = bandit.choose(z, ALL, np.random.default_rng(7))
    assert choice.propensity == bandit.chances(z, ALL, np.random.default_rng(7))[choice.arm]


def test_everything_is_tried_now_and_then_by_its_weight_and_nothing_that_is_not_allowed() -> None:
    bandit = Bandit(4, 1, exploration=0.2, weights=np.array([1.0, 3.0, 0.0, 1.0]))
    for _ in range(300):
        bandit.learn(np.ones(1), 0, 1.0)
        bandit.learn(np.ones(1), 1, 0.0)
    chances = bandit.chances(np.ones(1), np.array([True, True, True, False]), np.random.default_rng(0))
    assert chances == pytest.approx([0.8 + 0.2 * 0.25, 0.2 * 0.75, 0.0, 0.0])
    assert Bandit(4, 1).choose(np.ones(1), np.arange(4) == 2, np.random.default_rng(0)) == (2, 1.0)
    for nobody in (np.zeros(4, dtype=bool), np.arange(4) == 2):
        with pytest.raises(ValueError, match="no variant is eligible"):
            bandit.choose(np.ones(1), nobody, np.random.default_rng(0))


def test_the_posterior_is_that_of_a_regression_with_a_normal_prior() -> None:
    rng = np.random.default_rng(3)
    z, y = rng.normal(size=(50, 3)), (rng.random(50) < 0.3).astype(float)
    z[:, 0] = 1.0
    bandit = Bandit(1, 3)
    for context, reward in zip(z, y, strict=True):
        bandit.learn(context, 0, reward)
    rate = (y.sum() + GUESS * GUESSED) / (50 + GUESSED)
    noise = rate * (1 - rate)
    prior = np.diag([noise**-2, noise**-2 / NARROWER, noise**-2 / NARROWER])
    covariance = np.linalg.inv(z.T @ z / noise + prior)
    weights = covariance @ (z.T @ (y - rate)) / noise
    at = np.array([1.0, -0.3, 0.8])
    mean, deviation = bandit.scores(at)
    assert mean[0] == pytest.approx(rate + weights @ at)
    assert deviation[0] == pytest.approx(np.sqrt(at @ covariance @ at))


def test_sums_are_all_it_knows() -> None:
    rng = np.random.default_rng(4)
    seen = [(np.array([1.0, rng.normal()]), int(rng.integers(2)), float(rng.integers(2))) for _ in range(40)]
    one, other = Bandit(2, 2), Bandit(2, 2)
    for lesson in seen:
        one.learn(*lesson)
    for lesson in reversed(seen):
        other.learn(*lesson)
    z = np.array([1.0, 0.2])
    assert np.allclose(one.scores(z), other.scores(z))
    again = Bandit(2, 2, outer=one.outer, inner=one.inner)
    assert again.choose(z, np.ones(2, dtype=bool), np.random.default_rng(0)) == one.choose(
        z, np.ones(2, dtype=bool), np.random.default_rng(0)
    )
    with pytest.raises(ValueError, match="shapes"):
        Bandit(3, 2, outer=one.outer)
