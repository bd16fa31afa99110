"""Arrays: what they are called by the type of their elements, in all packages, and vectors of length 1."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

SHORTEST = 1e-9
"""A shorter vector has no direction; its length is taken to be this."""


def unit(vectors: Floats) -> Floats:
    """Vectors [..., D] divided by their lengths: dot products of them are cosines."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    found: Floats = vectors / np.maximum(lengths, np.float32(SHORTEST))
    return found
