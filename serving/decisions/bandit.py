"""A contextual bandit: which of several variants to show to whom, by what was learned from those who saw them.

Thompson sampling (Chapelle and Li, "An Empirical Evaluation of Thompson Sampling", NIPS 2011) over linear models of the
reward, one a variant, with a normal posterior (Agrawal and Goyal, "Thompson Sampling for Contextual Bandits with Linear
Payoffs", ICML 2013). All that it remembers are sums over what was shown, so it does not matter in which order, in which
process or how late anything is learned.

Shapes: K variants, d coordinates of a context, S draws.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from embeddings.arrays import Doubles, Floats

Flags = npt.NDArray[np.bool_]

DRAWS = 400
"""Of the posterior, for the probability that a variant is the best one: its standard error is 0.025 at most."""

GUESS, GUESSED = 0.2, 2.0
"""The rate of success before anything is known, and how many showings that guess is worth."""


NARROWER = 0.5
"""Of what a context can change, as a variance beside that of the variant itself."""


class Choice(NamedTuple):
    """The variant that was drawn, and the probability with which it was."""

    arm: int
    propensity: float


class Bandit:
    """What is known of K variants. A context has a constant 1 as its first coordinate, the others are of the order of 1.

    Each variant's reward is m + w·z with noise of variance m (1 - m), where m is the common rate of success. A priori the
    first coordinate of w is normal around 0 with a standard deviation of m (1 - m), which is what a step of 1 in the
    logarithm of the odds is worth, and the others with one of `NARROWER` times that variance. So variants are taken to be
    alike until they are seen to differ, whether one in two or one in a hundred is clicked.
    """

    def __init__(
        self,
        arms: int,
        dim: int,
        *,
        exploration: float = 0.05,
        weights: Doubles | None = None,
        outer: Doubles | None = None,
        inner: Doubles | None = None,
    ) -> None:
        """`exploration` is the share of the choices that is left to the `weights` [K] (default: all equal).

        `outer` [K, d, d] and `inner` [K, d] are sums of z zᵀ and of reward · z over what was shown; none by default.
        """
        self.exploration = exploration
        self.weights = np.ones(arms) if weights is None else np.asarray(weights, dtype=np.float64)
        self.outer = np.zeros((arms, dim, dim)) if outer is None else outer
        self.inner = np.zeros((arms, dim)) if inner is None else inner
        if self.weights.shape != (arms,) or self.outer.shape != (arms, dim, dim) or self.inner.shape != (arms, dim):
            raise ValueError(f"weights, outer and inner must have the shapes of {arms} arms and {dim} coordinates")

    def choose(self, context: Floats | Doubles, eligible: Flags, rng: np.random.Generator) -> Choice:
        """Draw a variant for a context [d] among those that are `eligible` [K]; raises `ValueError` if none is."""
        chances = self.chances(context, eligible, rng)
        arm = int(np.searchsorted(np.cumsum(chances), rng.random() * chances.sum(), side="right"))
        arm = min(arm, int(np.flatnonzero(chances)[-1]))
        return Choice(arm, float(chances[arm]))

    def chances(self, context: Floats | Doubles, eligible: Flags, rng: np.random.Generator) -> Doubles:
        """Probabilities [K] with which each variant is drawn; they add up to 1, and are exact given `rng`.

        A score of a variant is a normal number under the posterior, so it is drawn as such, S times for each.
        """
        allowed = np.flatnonzero(eligible & (self.weights > 0))
        if not len(allowed):
            raise ValueError("no variant is eligible")
        chances = np.zeros(len(self.weights))
        floor = self.weights[allowed] / self.weights[allowed].sum()
        if len(allowed) == 1 or self.exploration >= 1:
            chances[allowed] = floor
            return chances
        mean, deviation = self.scores(context)
        drawn = mean[allowed] + deviation[allowed] * rng.standard_normal((DRAWS, len(allowed)))
        best = np.bincount(np.argmax(drawn, axis=1), minlength=len(allowed)) / DRAWS
        chances[allowed] = self.exploration * floor + (1.0 - self.exploration) * best
        return chances

    def scores(self, context: Floats | Doubles) -> tuple[Doubles, Doubles]:
        """Mean and standard deviation [K] of what is known of each variant's reward in a context [d]."""
        z = np.asarray(context, dtype=np.float64)
        rate, weights, covariance = self._posterior
        mean = rate + weights @ z
        deviation = np.sqrt(np.maximum(0.0, np.einsum("i,kij,j->k", z, covariance, z)))
        return mean, deviation

    def learn(self, context: Floats | Doubles, arm: int, reward: float) -> None:
        """Take in that a variant was shown in a context [d], and the reward (0 to 1) that came of it."""
        z = np.asarray(context, dtype=np.float64)
        self.outer[arm] += np.outer(z, z)
        self.inner[arm] += reward * z
        self.__dict__.pop("_posterior", None)

    @property
    def shown(self) -> Doubles:
        """How often each variant was shown [K]."""
        return self.outer[:, 0, 0]

    @property
    def rewards(self) -> Doubles:
        """Sum of the rewards of each variant [K]."""
        return self.inner[:, 0]

    @cached_property
    def _posterior(self) -> tuple[float, Doubles, Doubles]:
        """The common rate; means [K, d] of each variant's deviation from it, and covariances [K, d, d]."""
        rate = float((self.rewards.sum() + GUESS * GUESSED) / (self.shown.sum() + GUESSED))
        noise = max(1e-4, rate * (1.0 - rate))
        # Precisions in units of 1 / noise: the prior's variance is noise², so it is worth 1 / noise showings.
        prior = np.full(self.outer.shape[1], 1.0 / (NARROWER * noise))
        prior[0] = 1.0 / noise
        precision = self.outer + np.diag(prior)
        covariance: Doubles = np.asarray(np.linalg.inv(precision), dtype=np.float64)
        weights: Doubles = np.einsum("kij,kj->ki", covariance, self.inner - rate * self.outer[:, :, 0])
        return rate, weights, noise * covariance
