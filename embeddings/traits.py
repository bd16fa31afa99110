"""Traits: what items have in common by their attributes, which the ranking model asks beside the towers.

A tower's vector mixes everything about an item; that a candidate is of the brand somebody keeps coming back to is a fact of
its own. The traits of an item are its attribute tokens, each weighed by how rare it is in the catalogue (inverse document
frequency, Spärck Jones, 1972) and all together of length one, so that likeness is a cosine.

Shape suffixes: N items, W traits of an item, T tokens, L events of a history, K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from embeddings.arrays import Floats, Ints
from embeddings.features import ItemFeatures
from embeddings.heaviest import heaviest
from embeddings.ids import UNKNOWN
from embeddings.successors import DECAY, LATEST

KEPT: Final = 8
"""Of an item with more tokens the rarest ones count."""


@dataclass(frozen=True, kw_only=True)
class Traits:
    """Tokens [N, W] of items, -1 where a place is free, and their weights [N, W]."""

    tokens: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float16]

    @classmethod
    def none(cls, items: int, *, shared: bool = False) -> Traits:
        """Those of items about which nothing is known; `shared` ones take no memory and cannot be filled in."""
        shape, tokens, weights = (items, KEPT), np.int32(UNKNOWN), np.float16(0.0)
        if shared:
            return cls(tokens=np.broadcast_to(tokens, shape), weights=np.broadcast_to(weights, shape))
        return cls(tokens=np.full(shape, tokens), weights=np.full(shape, weights))

    def take(self, rows: Ints) -> Traits:
        """Those of some items."""
        return Traits(tokens=self.tokens[rows], weights=self.weights[rows])


def rarity(items: ItemFeatures, tokens: int) -> Floats:
    """How rare each of T tokens is among N items: log(N / (1 + n)), never below 0. [T]."""
    counts = np.bincount(items.tokens, minlength=tokens)
    return np.log(max(1, len(items)) / (1.0 + counts)).clip(min=0.0).astype(np.float32)


def traits_of(items: ItemFeatures, rarity_T: Floats) -> Traits:
    """The traits of items, by how rare their tokens are."""
    owners = np.repeat(np.arange(len(items)), np.diff(items.token_offsets))
    telling = rarity_T[items.tokens] > 0
    owners, tokens = owners[telling], items.tokens[telling]
    tokens_NW, weights_NW = heaviest(owners, tokens, rarity_T[tokens], rows=len(items), width=KEPT)
    length_N = np.maximum(np.linalg.norm(weights_NW, axis=1), np.finfo(np.float32).tiny)
    return Traits(tokens=tokens_NW, weights=(weights_NW / length_N[:, None]).astype(np.float16))


def alike(history: Traits, candidates: Traits) -> Floats:
    """How like the latest events each of K candidates is, and the last one alone: cosines [K, 2].

    The history [L], oldest first, counts by its latest events, each less than the next; an event without traits is like
    nothing.
    """
    tokens_LW, weights_LW = history.tokens[-LATEST:], history.weights[-LATEST:].astype(np.float32)
    found_K2 = np.zeros((len(candidates.tokens), 2), dtype=np.float32)
    has = tokens_LW >= 0
    if not has.any():
        return found_K2
    known, place = np.unique(tokens_LW[has], return_inverse=True)
    share_L = DECAY ** np.arange(len(tokens_LW) - 1, -1, -1, dtype=np.float32)
    share_L /= share_L.sum()
    last_L = np.zeros_like(share_L)
    last_L[-1] = 1.0
    at_KW = np.searchsorted(known, candidates.tokens).clip(max=len(known) - 1)
    weights_KW = candidates.weights.astype(np.float32)
    weights_KW[known[at_KW] != candidates.tokens] = 0.0
    for column, by_event_L in enumerate((share_L, last_L)):
        weights = (by_event_L[:, None] * weights_LW)[has]
        profile = np.bincount(place, weights, minlength=len(known)).astype(np.float32)
        found_K2[:, column] = np.einsum("kw,kw->k", profile[at_KW], weights_KW)
    return found_K2
