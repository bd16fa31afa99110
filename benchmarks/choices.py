"""Choices: which of several headlines a bandit shows to the shoppers of the simulated shop, and what that costs.

Each headline speaks to some tastes and not to others; how likely a person clicks on it is known, so the regret of a choice
is known too: the probability that the best headline for this person has more. An even split is what an ordinary test does.

Shapes: T people one after the other, K headlines, d coordinates of a context.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from embeddings.arrays import Doubles
from training.behaviour import sigmoid
from training.shop import Shop
from training.shoppers import draw_shoppers

Flags = npt.NDArray[np.bool_]

COMMONLY = -2.2
"""Log-odds of a click on a headline that is neither here nor there: one in ten."""

TASTE, APPEAL = 2.5, 0.3
"""Standard deviations, in log-odds, of what a headline says to a taste, and to everybody."""


class Chooser(Protocol):
    """What a bandit has to be able to do."""

    def choose(self, context: Doubles, eligible: Flags, rng: np.random.Generator) -> tuple[int, float]:
        """An arm for a context [d] among the eligible [K], and the probability with which it was drawn."""

    def learn(self, context: Doubles, arm: int, reward: float) -> None:
        """Take in what came of it."""


class Audience(NamedTuple):
    """Contexts [T, d], the first coordinate 1, and the true probability of a click on each headline [T, K]."""

    contexts: Doubles
    clicks: Doubles

    @classmethod
    def draw(cls, *, people: int, headlines: int, seed: int) -> Audience:
        """Shoppers of the shop; a context has their tastes, centred and of the order of 1, as embeddings are."""
        rng = np.random.default_rng([seed, 7])
        shop = Shop(items=200, users=1, seed=seed)
        shoppers = draw_shoppers(seed, tastes=shop.tastes, seed=seed, end=shop.end.timestamp())
        rows = rng.integers(0, len(shoppers), people)
        mix = shoppers.mix[rows].astype(np.float64)
        says = rng.normal(0, TASTE, (headlines, mix.shape[1]))
        clicks = sigmoid(COMMONLY + mix @ says.T + rng.normal(0, APPEAL, headlines))
        centred = (mix - mix.mean(axis=0)) / mix.std(axis=0)
        return cls(np.hstack([np.ones((people, 1)), centred]), clicks)

    @property
    def even_regret(self) -> float:
        """What an even split loses, in clicks."""
        return float((self.clicks.max(axis=1) - self.clicks.mean(axis=1)).sum())


def regret(audience: Audience, chooser: Chooser, *, seed: int) -> float:
    """What a bandit that begins with nothing loses, in clicks, while it learns."""
    rng = np.random.default_rng([seed, 8])
    everything = np.ones(audience.clicks.shape[1], dtype=bool)
    lost = 0.0
    for context, clicks in zip(audience.contexts, audience.clicks, strict=True):
        arm, _ = chooser.choose(context, everything, rng)
        chooser.learn(context, arm, float(rng.random() < clicks[arm]))
        lost += float(clicks.max() - clicks[arm])
    return lost
