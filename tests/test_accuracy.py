"""Accuracy where the answer is not made up: a short training on real ratings, and a newcomer in the simulated shop.

The figures to report come from whole trainings; these are floors that a broken model cannot reach.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from embeddings.features import gap_buckets
from training.baselines import ItemKNN, Popularity
from training.config import Config, Run
from training.contenders import item_matrix, rank_baseline, rank_two_tower
from training.dataset import Targets, leave_last_out, load
from training.loop import rank_all, train
from training.metrics import score
from training.recipes import load_recipe
from training.shop import Shop
from training.sources.reading import read

pytestmark = pytest.mark.slow


def shortened(name: str, *, epochs: int) -> Config:
    config = load_recipe(name)
    return config.model_copy(update={"optimisation": config.optimisation.model_copy(update={"epochs": epochs})})


def means(ranked: np.ndarray, targets: Targets) -> tuple[float, float]:
    found = score(ranked, (targets.bounds, targets.rows), k=[10], metrics=["recall", "ndcg"]).means
    return found["recall@10"], found["ndcg@10"]


def test_two_towers_beat_popularity_and_item_knn_on_real_ratings() -> None:
    folder = Path(os.environ.get("BESPOKE_TEST_DATA", "none")) / "ml-latest-small"
    if not folder.is_dir():
        pytest.skip("BESPOKE_TEST_DATA names no folder with ml-latest-small")
    config, tables = shortened("movielens", epochs=3), read(folder)
    data = load(tables.events, tables.items, event_types=config.event_types, min_count=config.features.min_count)
    split = leave_last_out(data)
    trained = train(data, split, config, Run(device="cpu"))
    matrix = item_matrix(data, trained.towers)
    ours = means(rank_two_tower(data, trained.towers, matrix, split.test, depth=10), split.test)
    for model in (Popularity(), ItemKNN()):
        theirs = means(rank_baseline(model, data, split, split.test, depth=10), split.test)
        assert ours[0] > 1.1 * theirs[0], (model.name, ours, theirs)
        assert ours[1] > 1.1 * theirs[1], (model.name, ours, theirs)


def test_three_views_of_one_taste_bring_a_list_of_that_taste() -> None:
    shop, config = Shop(items=1000, users=800, seed=0), shortened("default", epochs=6)
    tables, features = shop.tables(60), config.features
    data = load(
        tables.events,
        tables.items,
        tables.users,
        event_types=config.event_types,
        min_count=features.min_count,
        text_buckets=features.text_buckets,
        context_buckets=features.context_buckets,
    )
    towers = train(data, leave_last_out(data), config, Run(device="cpu")).towers
    matrix, tastes = item_matrix(data, towers), shop.taste_of(data.items.all)
    now, rng, found = float(data.times.max()), np.random.default_rng(0), []
    for taste in range(shop.tastes):
        viewed = rng.choice(np.flatnonzero(tastes == taste), 3, replace=False)
        times = now + np.array([0.0, 30.0, 60.0])
        context = torch.tensor([data.spec.context_tokens({}, {}, now + 61, now + 60)])
        with torch.inference_mode():
            states = towers.users(
                torch.from_numpy(matrix[viewed])[None],
                torch.full((1, 3), data.spec.event_row("view")),
                torch.from_numpy(gap_buckets(times))[None],
            )
            query = towers.users.query(states[:, -1], context).numpy()
        found.append(int((tastes[rank_all(query, matrix, [viewed], 10)[0]] == taste).sum()))
    assert min(found) >= 7, found
