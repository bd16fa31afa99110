"""The benchmark of experiments: its worlds have the truth they say they have, and it ends with what it promises."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from benchmarks import experiments
from benchmarks.choices import Audience, regret
from benchmarks.population import DAYS, METRICS, Population, Test
from serving.decisions.bandit import Bandit


@pytest.fixture(scope="module")
def world() -> Population:
    return Population.draw(people=512, visits=8, items=400, seed=1)


def test_the_better_list_is_better_and_the_truth_is_what_a_large_test_finds(world: Population) -> None:
    plain, better = world.true_means(DAYS / 2)
    assert (better > 1.05 * plain).all()
    one = Test(world, experiments.experiment(1, 20_000), people=20_000, strength=0.5, seed=1)
    looks = list(one.looks())
    for day, people in (looks[9], looks[-1]):
        truth = one.truth(day)
        for name in METRICS:
            values = getattr(people, name)
            first, second = values[people.arm == 0], values[people.arm == 1]
            error = math.sqrt(first.var() / len(first) + second.var() / len(second))
            assert abs(second.mean() - first.mean() - truth[name]) < 4 * error, (name, day)
            assert abs(first.mean() - world.true_means(day / 2)[0, METRICS.index(name)]) < 4 * error
    people = looks[-1][1]
    assert abs(people.arm.mean() - 0.5) < 0.02
    assert np.corrcoef(people.clicks, people.clicks_before)[0, 1] > 0.3


def test_equal_arms_have_no_difference_in_truth(world: Population) -> None:
    equal = Test(world, experiments.experiment(2, 300), people=300, strength=0.0, seed=2)
    assert equal.truth(DAYS) == dict.fromkeys(METRICS, 0.0)


class Knowing:
    """Who knows the answers beforehand, in their order."""

    def __init__(self, clicks: np.ndarray) -> None:
        self.best = iter(clicks.argmax(axis=1).tolist())

    def choose(self, context: object, eligible: object, rng: object) -> tuple[int, float]:
        return next(self.best), 1.0

    def learn(self, context: object, arm: int, reward: float) -> None:
        assert reward in (0.0, 1.0)


class Even:
    """Who chooses blindly."""

    def choose(self, context: object, eligible: np.ndarray, rng: np.random.Generator) -> tuple[int, float]:
        return int(rng.integers(len(eligible))), 1 / len(eligible)

    def learn(self, context: object, arm: int, reward: float) -> None:
        pass


def test_regret_is_nothing_for_who_knows_and_what_is_said_for_an_even_split() -> None:
    audience = Audience.draw(people=3000, headlines=4, seed=0)
    assert regret(audience, Knowing(audience.clicks), seed=0) == 0.0
    assert regret(audience, Even(), seed=0) == pytest.approx(audience.even_regret, rel=0.05)
    short = Audience(audience.contexts[:1500], audience.clicks[:1500])
    learned = regret(short, Bandit(4, audience.contexts.shape[1]), seed=0)
    assert 0 < learned < 0.6 * short.even_regret


def test_the_command_ends_with_one_object(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(experiments, "WORLD", {"people": 256, "visits": 4, "items": 300})
    experiments.main(["--tests", "2", "--people", "400", "--audiences", "1", "--choices", "200"])
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert set(found) == {"coverage", "aa_alarm_rate", "bandit_regret_ratio"}
    assert found["coverage"] in (0.0, 0.5, 1.0)
    assert 0 < found["bandit_regret_ratio"] < 2
