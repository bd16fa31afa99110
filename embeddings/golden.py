"""Golden queries: a few questions that travel with a release, and the answers that a sound one gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter

from embeddings.arrays import Floats
from embeddings.bundle import Bundle, require_finite
from embeddings.errors import BundleError
from embeddings.ranker import FEATURES

FLOOR = 0.9
"""Share of the expected items that the answers must hold: machines round differently."""


class Golden(BaseModel):
    """A query and its answer: `rows` and `types` of a history at `times`, `context` tokens, and the best `top` rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: tuple[int, ...]
    types: tuple[int, ...]
    times: tuple[float, ...]
    context: tuple[int, ...]
    top: tuple[int, ...]


GOLDENS = TypeAdapter(tuple[Golden, ...])


def check_golden(bundle: Bundle, golden: Sequence[Golden]) -> None:
    """Raise `BundleError` where a release answers its golden queries wrongly, or cannot be asked them."""
    found = expected = 0
    try:
        for one in golden:
            past = np.array(one.rows, dtype=np.int64)
            types = np.array(one.types, dtype=np.int64)
            query = bundle.encode_user(bundle.matrix[past], types, np.array(one.times, dtype=np.float64), one.context)
            require_finite(f"release '{bundle.name}': the vector of a golden query", query)
            top = np.array(one.top, dtype=np.int64)
            if bundle.ranker is not None:
                features = np.zeros((len(top), len(FEATURES)), dtype=np.float32)
                ranked = bundle.ranker_pass.rank(query, bundle.matrix[past], bundle.matrix[top], features)
                require_finite(f"release '{bundle.name}': the ranking of a golden query", ranked)
            found += len(set(_top(bundle, query, len(top))) & set(one.top))
            expected += len(top)
    except BundleError:
        raise
    except Exception as error:  # a row past the end, a type that is none: it is the release that is wrong
        raise BundleError(f"release '{bundle.name}': a golden query cannot be asked: {error}") from error
    if found < FLOOR * expected:
        raise BundleError(
            f"release '{bundle.name}': its golden queries find {found} of {expected} expected items, "
            f"at least {FLOOR:.0%} are needed"
        )


def _top(bundle: Bundle, query: Floats, k: int) -> list[int]:
    if bundle.vector_index is not None:
        return [int(row) for row in bundle.vector_index.search(query[None], k)[1][0]]
    return [int(row) for row in np.argsort(-(bundle.matrix @ query), kind="stable")[:k]]
