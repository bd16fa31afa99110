"""Calibration: from logits to probabilities that can be added up, multiplied with a value, and believed.

Platt scaling is fitted on people whom the model was not trained on; how well it does is measured on people whom the scaling
has not seen either.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit

from embeddings.arrays import Mask
from training.metrics import expected_calibration_error, log_loss

CALIBRATION_BINS = 100
"""A candidate in two hundred is the right one: ten bins would put nearly all of them into the first."""


def platt(logits: npt.NDArray[Any], labels: npt.NDArray[Any]) -> tuple[float, float]:
    """Slope and offset that make sigmoid(slope * logit + offset) a probability (Platt, 1999, with his smoothed labels).

    The slope stays positive, so no order changes. Labels that are all alike, or missing, leave the slope at 1.
    """
    x, y = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    positives, negatives = float(y.sum()), float(len(y) - y.sum())
    if not positives or not negatives:
        rate = (positives + 1.0) / (len(y) + 2.0)
        return 1.0, float(math.log(rate / (1.0 - rate)) - (x.mean() if len(x) else 0.0))
    smooth = np.where(y > 0, (positives + 1.0) / (positives + 2.0), 1.0 / (negatives + 2.0))

    def cost(parameters: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        slope = math.exp(parameters[0])
        z = slope * x + parameters[1]
        residual = expit(z) - smooth
        value = float((np.logaddexp(0.0, z) - smooth * z).mean())
        return value, np.array([(residual * x).mean() * slope, residual.mean()])

    start = np.array([0.0, math.log(positives / negatives) - x.mean()])
    found = minimize(cost, start, jac=True, method="L-BFGS-B", bounds=[(-3.0, 3.0), (None, None)])
    return float(math.exp(found.x[0])), float(found.x[1])


class Point(NamedTuple):
    """One point of a calibration curve: what was predicted on average, how often it came true, with a 95% interval."""

    predicted: float
    observed: float
    low: float
    high: float
    candidates: int


def reliability(
    probabilities: npt.NDArray[Any], labels: npt.NDArray[Any], *, points: int = 10, expected: float = 5.0
) -> tuple[Point, ...]:
    """The calibration curve of predictions [P]: bins of rising probability, each with the same sum of probabilities.

    Equal counts would put nearly every bin where nothing ever happens. There are fewer points where one would stand for
    fewer than `expected` outcomes. Intervals are Wilson's (1927).
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    bins = min(points, int(p.sum() / expected))
    if bins < 1:
        return ()
    order = np.argsort(p, kind="stable")
    mass = np.cumsum(p[order])
    which = np.minimum((mass / mass[-1] * bins).astype(np.int64), bins - 1)
    found = []
    for own in np.split(order, np.searchsorted(which, np.arange(1, bins))):
        if len(own):
            rate, n, z2 = float(y[own].mean()), len(own), 1.96**2
            centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
            half = 1.96 * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n)) / (1 + z2 / n)
            found.append(Point(float(p[own].mean()), rate, max(0.0, centre - half), centre + half, n))
    return tuple(found)


def cross_calibration(logits: npt.NDArray[Any], labels: Mask, real: Mask) -> dict[str, float]:
    """Calibration of lists [Q, K], each half of them scaled by what the other half teaches.

    `real` [Q, K] marks the places that hold a candidate. Returns the expected calibration error (`ece`), the log loss, and
    the share of labels that are true (`rate`).
    """
    half = np.arange(len(logits)) % 2 == 0
    predicted, observed = [], []
    for own in (half, ~half):
        mine, other = real & own[:, None], real & ~own[:, None]
        slope, offset = platt(logits[other], labels[other])
        predicted.append(expit(slope * logits[mine].astype(np.float64) + offset))
        observed.append(labels[mine])
    p, y = np.concatenate(predicted), np.concatenate(observed)
    error = expected_calibration_error(p, y, bins=CALIBRATION_BINS)
    return {"ece": error, "log_loss": log_loss(p, y), "rate": float(y.mean()) if len(y) else math.nan}
