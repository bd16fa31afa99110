"""The spectrum: towers in closed form, from the singular vectors of who touched what.

Of interactions without order or time there is not much that a gradient finds and linear algebra does not. The matrix R of
people and items is scaled by both their counts, R~ = D_u^-1/2 R D_i^-1/2; its leading right singular vectors V are an ideal
low-pass filter over the graph of items (GF-CF, Shen et al., 2021, "How Powerful is Graph Convolution for Recommendation?").
The vector of an item is its row of V, lifted by its count to the power of an exponent; a person is the sum of the items
they touched, each divided by a power of its length (`TowerConfig.length_power`), so that what everybody has counts little.

Shapes: E events, U people, N items, T tokens, D dimensions, K vectors (at most D).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from embeddings.arrays import Floats, Mask
from embeddings.bundle import build_towers
from embeddings.errors import TrainingError
from embeddings.two_tower import TwoTower
from training.config import Config, SpectrumConfig
from training.dataset import Dataset, Split
from training.queries import validate

Sparse: TypeAlias = Any
"""A scipy CSR matrix (scipy carries no types)."""

OVERSAMPLED: Final = 64
"""So many more directions are followed than are kept: the last ones kept are then found as well as the first."""

ITERATIONS: Final = 4
"""Power iterations. The spectrum of interactions falls slowly, so without any the last directions would be noise."""

PATIENCE: Final = 2
"""So many halvings without a better list end the search for the rank."""

UNSEEN: Final = 1e-3
"""Length of the answer to an empty history, as a share of an average one: the first event outweighs it."""

ONE: Final = float(np.log(np.e - 1.0))
"""What softplus makes 1 of."""


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """Weights of towers in closed form, and the settings that validation chose: one rank and one exponent."""

    weights: dict[str, Tensor]
    settings: SpectrumConfig


def begin(data: Dataset, split: Split, config: Config, *, seed: int) -> Beginning:
    """Towers from the spectrum of the training events, with the rank and exponent of the best validation NDCG@10.

    The rank is halved until that has not helped twice, at the exponent in the middle; then the exponents compete. All
    vectors of a small catalogue together say nothing any more: they only return what went in. Without validation targets
    the largest rank and the exponent in the middle are taken. Raises `TrainingError` as `Spectrum` does.
    """
    settings = config.spectrum or SpectrumConfig()
    towers = build_towers(config.towers, data.spec, items=len(data.items)).eval()
    spectrum = Spectrum(data, split.train, dim=min(config.towers.dim, settings.rank or config.towers.dim), seed=seed)
    largest, middle = spectrum.vectors.shape[1], sorted(settings.exponents)[len(settings.exponents) // 2]
    targets = split.validation
    if len(targets) > settings.sampled:
        drawn = np.random.default_rng(seed).choice(len(targets), settings.sampled, replace=False)
        targets = targets.take(np.sort(drawn))
    catalogue = data.spec.item_features(data.item_rows(), np.arange(len(data.items)))

    @cache
    def ndcg(rank: int, exponent: float) -> float:
        towers.load_state_dict(spectrum.weights(towers, rank=rank, exponent=exponent))
        return validate(data, towers, catalogue, targets)["ndcg@10"]

    rank, exponent = largest, middle
    if len(targets):
        tried = largest
        while settings.rank is None and tried > max(1, rank // 2**PATIENCE):
            tried //= 2
            rank = tried if ndcg(tried, middle) > ndcg(rank, middle) else rank
        if len(settings.exponents) > 1:
            exponent = max(settings.exponents, key=lambda one: ndcg(rank, one))
    return Beginning(
        weights=spectrum.weights(towers, rank=rank, exponent=exponent),
        settings=settings.model_copy(update={"rank": rank, "exponents": (exponent,)}),
    )


class Spectrum:
    """The spectrum of the training events of a data set, found once; `weights` makes towers of it."""

    def __init__(self, data: Dataset, train: Mask, *, dim: int, seed: int) -> None:
        """Find `dim` vectors in the positive events that `train` [E] marks.

        Raises `TrainingError` if fewer than two people or items have one.
        """
        matrix = touched_matrix(data, train)
        self.counts = np.asarray(matrix.sum(0), dtype=np.float32).ravel()
        if min((self.counts > 0).sum(), (np.diff(matrix.indptr) > 0).sum()) < 2:
            raise TrainingError("fewer than two people or items have a positive event: there is no spectrum to find")
        self.vectors = leading_vectors(scaled(matrix), dim, seed=seed)
        self.data = data

    def weights(self, towers: TwoTower, *, rank: int, exponent: float) -> dict[str, Tensor]:
        """Weights for `towers` of the first `rank` vectors, with items lifted by their counts to the power of `exponent`.

        A token of the catalogue stands at the mean of its items, and the id holds what is missing, so that an item nobody
        has touched yet is found near those like it.
        """
        items = self.data.spec.item_features(self.data.item_rows(), np.arange(len(self.data.items)))
        vectors_ND = np.zeros((len(self.counts), towers.items.config.dim), dtype=np.float32)
        vectors_ND[:, :rank] = self.vectors[:, :rank] * self.counts[:, None] ** exponent
        lengths = np.diff(items.token_offsets)
        shares = np.repeat(1.0 / np.maximum(lengths, 1), lengths).astype(np.float32)
        shape = len(lengths), len(towers.items.tokens.weight)
        bags: Sparse = csr_matrix((shares, items.tokens, items.token_offsets), shape=shape)
        known = self.counts > 0
        tokens_TD = bags[known].T @ vectors_ND[known]
        tokens_TD /= np.maximum(np.asarray(bags[known].sum(0)).reshape(-1, 1), 1e-9)
        ids_ND = np.where(known[:, None], vectors_ND - bags @ tokens_TD, 0.0)
        found = {name: torch.zeros_like(weight) for name, weight in towers.state_dict().items()}
        found |= {
            "items.ids.weight": torch.from_numpy(np.concatenate([np.zeros_like(ids_ND[:1]), ids_ND])),
            "items.tokens.weight": torch.from_numpy(tokens_TD),
            "users.start": torch.from_numpy(self._stranger(vectors_ND, towers.items.config.length_power)),
            "users.weigh.bias": torch.full((1,), ONE),
        }
        return {name: weight.to(towers.items.tokens.weight.dtype) for name, weight in found.items()}

    def _stranger(self, vectors_ND: Floats, power: float) -> Floats:
        """The answer to an empty history: what people are on average, small."""
        lengths = np.maximum(np.linalg.norm(vectors_ND, axis=1), 1e-12)
        mean: Floats = (self.counts * lengths**-power) @ vectors_ND / self.counts.sum()
        return (UNSEEN * mean).astype(np.float32)


def touched_matrix(data: Dataset, known: Mask) -> Sparse:
    """Ones [U, N] where somebody touched an item in the positive events [E] that are marked as known."""
    touched = known & data.positive
    shape = len(data.users), len(data.items)
    cells = (data.owners[touched], data.rows[touched])
    matrix = csr_matrix((np.ones(int(touched.sum()), dtype=np.float32), cells), shape=shape)
    matrix.data[:] = 1.0  # coming back to an item does not make it another one
    return matrix


def scaled(matrix: Sparse) -> Sparse:
    """D_u^-1/2 R D_i^-1/2 of a matrix R of ones [U, N]."""
    people, items = (np.asarray(matrix.sum(axis), dtype=np.float32).ravel() for axis in (1, 0))
    return matrix.multiply(_root(people)[:, None]).multiply(_root(items)).tocsr()


def leading_vectors(matrix: Sparse, count: int, *, seed: int) -> Floats:
    """Right singular vectors [N, K] of the largest singular values of a sparse matrix [U, N], largest first.

    K is `count`, or the smaller side of the matrix if that is less. Randomised subspace iteration (Halko et al., 2011,
    "Finding Structure with Randomness"): a product with the matrix and an orthonormal basis, again and again.
    """
    kept = min(count, *matrix.shape)
    width = min(kept + OVERSAMPLED, *matrix.shape)
    turned = matrix.T.tocsr()
    basis: Floats = np.random.default_rng(seed).standard_normal((matrix.shape[1], width), dtype=np.float32)
    for _ in range(ITERATIONS):
        basis, _ = np.linalg.qr(turned @ (matrix @ basis))
    image = (matrix @ basis).astype(np.float32)
    _, mixed = np.linalg.eigh((image.T @ image).astype(np.float64))  # smallest first
    found: Floats = basis @ mixed[:, ::-1][:, :kept].astype(np.float32)
    return found


def _root(counts: Floats) -> Floats:
    return np.where(counts > 0, 1.0 / np.sqrt(np.maximum(counts, 1.0)), 0.0).astype(np.float32)
