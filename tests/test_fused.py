"""The written-out forward passes are the models."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import pytest
import torch

from embeddings.features import GAP_BUCKETS
from embeddings.fused import FusedRanker, fuse_users
from embeddings.ranker import FEATURES, Ranker, RankerConfig
from embeddings.two_tower import TowerConfig, UserEnsemble, UserTower

M = TypeVar("M", bound=torch.nn.Module)


def shaken(module: M, seed: int = 0) -> M:
    """The module with every weight moved, so that nothing that starts at zero or one hides a mistake."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight += 0.2 * torch.randn_like(weight)
        for weight in module.buffers():
            if weight.dtype.is_floating_point:
                weight += 0.2 * torch.rand_like(weight)
    return module.eval()


@pytest.mark.parametrize("length", [0, 1, 7, 20])
@pytest.mark.parametrize(
    "config",
    [
        TowerConfig(dim=16, layers=2, heads=1, max_history=20),
        TowerConfig(dim=16, layers=3, heads=4, max_history=20, feed_forward=2),
        TowerConfig(dim=16, layers=1, heads=2, max_history=20, metric="cosine"),
        TowerConfig(dim=16, layers=0, max_history=20),
        TowerConfig(dim=16, encoder="filtered", heads=2, max_history=20),
        TowerConfig(dim=16, encoder="pooled", max_history=20, metric="cosine"),
        TowerConfig(dim=16, encoder="pooled", max_history=20, length_power=1.4),
        TowerConfig(dim=32, encoder="filtered", members=2, heads=2, max_history=20),
    ],
    ids=["plain", "heads", "cosine", "no block", "filtered", "pooled", "by length", "two members"],
)
@pytest.mark.parametrize("buckets", [0, 32])
def test_the_user_tower(config: TowerConfig, length: int, buckets: int) -> None:
    kind = UserTower if config.members == 1 else UserEnsemble
    tower = shaken(kind(config, event_types=3, context_buckets=buckets))
    rng = np.random.default_rng(length)
    vectors = rng.standard_normal((length, config.dim)).astype(np.float32)
    types, gaps = rng.integers(0, 4, length), rng.integers(0, GAP_BUCKETS, length)
    context = [1, 5, 9] if buckets else []
    with torch.inference_mode():
        states = tower(*(torch.from_numpy(array)[None] for array in (vectors, types, gaps)))
        expected = tower.query(states[:, -1], torch.tensor([context]) if context else None)[0].numpy()
    found = fuse_users(tower).query(vectors, types, gaps, context)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [0, 1, 30])
@pytest.mark.parametrize("objectives", [("click",), ("view", "cart", "purchase")])
def test_the_ranking_model(length: int, objectives: tuple[str, ...]) -> None:
    ranker = shaken(Ranker(RankerConfig(objectives=objectives, hidden=(24, 12)), dim=16))
    rng = np.random.default_rng(length)
    user, history, items = (rng.standard_normal(shape).astype(np.float32) for shape in ((16,), (length, 16), (40, 16)))
    features = rng.standard_normal((40, len(FEATURES))).astype(np.float32)
    expected = ranker.rank(user, history, items, features)
    np.testing.assert_allclose(FusedRanker(ranker).rank(user, history, items, features), expected, rtol=1e-4, atol=1e-5)


def test_nothing_to_rank() -> None:
    ranker = FusedRanker(shaken(Ranker(RankerConfig(), dim=8)))
    nothing = np.zeros((0, 8), dtype=np.float32)
    features = np.zeros((0, len(FEATURES)), dtype=np.float32)
    assert ranker.rank(np.zeros(8, dtype=np.float32), nothing, nothing, features).shape == (0, 1)
