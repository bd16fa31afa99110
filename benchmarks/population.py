"""A population: shoppers of the simulated shop, and what each visit would bring under either of two ways to fill a list.

Both outcomes of a visit are simulated once, so the true effect is the plain mean of their difference, and a test that
draws people and visits from here draws from a world whose answer is known exactly. One way is what people come across in
the shop; the other has the same items in the order of what the person really likes. An arm of strength q uses the other way
in a share q of the visits: its true effect is q times the whole one, and with q = 0 it is an A/A test.

Shapes: P people, V visits of each in the pool, N people of a test, A arms.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from embeddings.arrays import Doubles
from serving.analysis.people import People
from serving.policy.experiments import Experiment
from serving.request.assignment import arm_of
from training.assortment import DAY
from training.behaviour import PURCHASE, VIEW, Sessions
from training.shop import Shop
from training.shoppers import draw_shoppers

METRICS = ("clicks", "orders", "revenue")
DAYS = 28
"""How long a test runs, and how far back behaviour before it counts."""

Flags = npt.NDArray[np.bool_]


class Visits(NamedTuple):
    """Some visits of the people of a test: whose, on which day of the test, and what they brought [.., metrics]."""

    who: npt.NDArray[np.int64]
    day: Doubles
    brought: Doubles


@dataclass(frozen=True)
class Population:
    """`brought` [2, P, V, metrics] of the plain and the better list; `rate` [P] visits a day."""

    brought: npt.NDArray[np.float32]
    rate: Doubles

    @classmethod
    def draw(cls, *, people: int, visits: int, items: int, seed: int) -> Population:
        """Simulate every visit in both ways."""
        shop = Shop(items=items, users=people, seed=seed)
        rng = np.random.default_rng([seed, 1])
        end = shop.end.timestamp()
        everybody = draw_shoppers(0, tastes=shop.tastes, seed=seed, end=end).take(np.arange(people))
        whose = np.repeat(np.arange(people), visits)
        chosen = everybody.take(whose)
        sessions = Sessions(
            people=chosen,
            when=rng.uniform(end - 60 * DAY, end, len(whose)),
            channel=chosen.channel,
            device=chosen.device,
            country=chosen.country,
        )
        plain = shop.behaviour.browse(rng, sessions)
        better = np.take_along_axis(plain, np.argsort(-shop.behaviour.affinity(sessions, plain), axis=1), axis=1)
        found = np.zeros((2, len(whose), len(METRICS)), dtype=np.float32)
        for way, lists in enumerate((plain, better)):
            acts = shop.behaviour.react(rng, sessions, lists)
            bought = acts.type == PURCHASE
            price = np.where(bought, shop.assortment.price[acts.item], 0.0)
            for column, worth in enumerate((acts.type == VIEW, bought, price)):
                found[way, :, column] = np.bincount(acts.session, weights=worth, minlength=len(whose))
        return cls(found.reshape(2, people, visits, len(METRICS)), everybody.sessions_per_day)

    def true_means(self, days: float) -> Doubles:
        """What a person brings in so many days, on average, in either way: [2, metrics]."""
        means: Doubles = (self.brought.mean(axis=2, dtype=np.float64) * self.rate[:, None] * days).mean(axis=1)
        return means


class Test:
    """One test: people who arrive over its days, drawn into arms as the service draws them."""

    __test__ = False

    def __init__(self, world: Population, experiment: Experiment, *, people: int, strength: float, seed: int) -> None:
        """`strength`: the share of the visits in which the second arm has the better list."""
        self.world, self.people, self.strength = world, people, strength
        self.rng = np.random.default_rng([seed, 2])
        self.row = self.rng.integers(0, len(world.rate), people)
        self.arrival = self.rng.uniform(0, DAYS, people)
        names = [arm.id for arm in experiment.arms]
        self.arm = np.array([names.index(arm_of(experiment, f"{seed}-{n}") or "") for n in range(people)])
        self.after = self._visits(self.arrival, np.full(people, float(DAYS)), self.arm == 1)
        before = self._visits(self.arrival - DAYS, self.arrival, np.zeros(people, dtype=bool))
        self.before = self._sums(before, np.ones(len(before.who), dtype=bool))

    def _visits(self, start: Doubles, end: Doubles, treated: Flags) -> Visits:
        counts = self.rng.poisson(self.world.rate[self.row] * (end - start))
        who = np.repeat(np.arange(self.people), counts)
        day = self.rng.uniform(start[who], end[who])
        way = (treated[who] & (self.rng.random(len(who)) < self.strength)).astype(np.int64)
        nth = self.rng.integers(0, self.world.brought.shape[2], len(who))
        return Visits(who, day, self.world.brought[way, self.row[who], nth].astype(np.float64))

    def _sums(self, visits: Visits, chosen: Flags) -> Doubles:
        """What each person brought, [N, metrics]."""
        who, brought = visits.who[chosen], visits.brought[chosen]
        return np.stack([np.bincount(who, weights=column, minlength=self.people) for column in brought.T], axis=1)

    def looks(self) -> Iterator[tuple[float, People]]:
        """The people of the test as they stand after each of its days."""
        for day in range(1, DAYS + 1):
            here = self.arrival < day
            sums = self._sums(self.after, self.after.day < day)
            none = np.zeros(int(here.sum()))
            yield (
                day,
                People(
                    arm=self.arm[here],
                    days=day - self.arrival[here],
                    active_7=none,
                    active_28=none,
                    active_before=none,
                    **{name: sums[here, column] for column, name in enumerate(METRICS)},
                    **{f"{name}_before": self.before[here, column] for column, name in enumerate(METRICS)},
                ),
            )

    def truth(self, day: float) -> dict[str, float]:
        """The difference that there is at a day: who arrived evenly until then has been there for half of it."""
        plain, better = self.world.true_means(day / 2)
        return dict(zip(METRICS, (self.strength * (better - plain)).tolist(), strict=True))
