"""Contexts: who somebody is and where they are, in a few numbers, which is what a bandit learns about.

    1 · PEOPLE coordinates of the person · FACTS of the request

The person is the query vector of the retriever along the main axes of the catalogue, each in units of its own spread: what
people differ in most. Facts are hashed, so an application may send what it likes. Somebody of whom nothing is known, or
who is not to be recognised, has zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from embeddings.arrays import Floats
from embeddings.bundle import Bundle
from embeddings.ids import stable_hash
from serving.request.work import Work

PEOPLE = 8
FACTS = 7
DIM = 1 + PEOPLE + FACTS
SAMPLE = 20_000
"""Items that say what the axes are; of a larger catalogue every so many."""

FARTHEST = 3.0
DIGITS = 4
"""What a context is rounded to, so that the log needs little room and what is learned is what was decided by."""

Axes = npt.NDArray[np.float32]


def axes_of(bundle: Bundle) -> Axes:
    """The main axes of a catalogue [D, PEOPLE], each divided by the spread of the items along it; zeros beyond D."""
    matrix = bundle.matrix[:: max(1, len(bundle.matrix) // SAMPLE)].astype(np.float64)
    spread, axes = np.linalg.eigh(matrix.T @ matrix / max(1, len(matrix)))
    spread, axes = spread[::-1][:PEOPLE], axes[:, ::-1][:, :PEOPLE]
    # An axis has no direction of its own: the largest part of each is made positive, so that all processes agree.
    axes = axes * np.sign(axes[np.argmax(np.abs(axes), axis=0), np.arange(axes.shape[1])])
    kept = spread > 1e-6 * max(1e-12, float(spread[0]))
    found = np.zeros((matrix.shape[1], PEOPLE), dtype=np.float32)
    found[:, : axes.shape[1]] = np.where(kept, axes / np.sqrt(np.where(kept, spread, 1.0)), 0.0)
    return found


def context_of(work: Work, axes: Axes) -> Floats:
    """The context [DIM] of a request."""
    context = np.zeros(DIM, dtype=np.float32)
    context[0] = 1.0
    if work.history:
        context[1 : 1 + PEOPLE] = _person(work.user_vector, axes)
    context[1 + PEOPLE :] = _facts(work.query.context)
    return np.round(context, DIGITS)


def common(context: Floats) -> Floats:
    """A context [..., DIM] without the person: all that is the same from one release to another."""
    without = np.array(context)
    without[..., 1 : 1 + PEOPLE] = 0.0
    return without


def _person(vector: Floats, axes: Axes) -> Floats:
    coordinates: Floats = np.clip(vector @ axes, -FARTHEST, FARTHEST) / np.sqrt(PEOPLE)
    return coordinates


def _facts(facts: Mapping[str, Any]) -> Floats:
    hashed = np.zeros(FACTS, dtype=np.float32)
    named = [f"{name}={value}" for name, value in facts.items() if isinstance(value, str | bool)]
    for one in named:
        number = stable_hash(one, salt="context")
        hashed[number % FACTS] += 1.0 if number >> 32 & 1 else -1.0
    hashed /= np.sqrt(max(1, len(named)), dtype=np.float32)
    return hashed
