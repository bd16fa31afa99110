"""Accuracy where the answer is not made up: a short training on real ratings, and a newcomer in the simulated shop.

The figures to report come from whole trainings; these are floors that a broken model cannot reach.
"""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from embeddings.schema import Event
from serving.replica.engine import Engine
from serving.request.query import Query
from serving.settings import Settings
from training.baselines import ItemKNN, Popularity
from training.config import Config, Run
from training.contenders import item_matrix, rank_baseline, rank_two_tower
from training.dataset import Targets, leave_last_out, load
from training.loop import train
from training.metrics import score
from training.publish import publish
from training.recipes import load_recipe
from training.runs import Source, train_run
from training.shop import Shop
from training.sources.reading import read

pytestmark = pytest.mark.slow


def shortened(name: str, *, epochs: int) -> Config:
    """A recipe with this many epochs, of the towers and of the ranking model."""
    config, fewer = load_recipe(name), {"epochs": epochs}
    return config.model_copy(
        update={
            "optimisation": config.optimisation.model_copy(update=fewer),
            "learning": config.learning.model_copy(update=fewer),
        }
    )


def means(ranked: np.ndarray, targets: Targets) -> tuple[float, float]:
    found = score(ranked, (targets.bounds, targets.rows), k=[10], metrics=["recall", "ndcg"]).means
    return found["recall@10"], found["ndcg@10"]


def test_two_towers_beat_popularity_and_item_knn_on_real_ratings() -> None:
    folder = Path(os.environ.get("BESPOKE_TEST_DATA", "none")) / "ml-latest-small"
    if not folder.is_dir():
        pytest.skip("BESPOKE_TEST_DATA names no folder with ml-latest-small")
    config, tables = shortened("movielens", epochs=1), read(folder)
    data = load(tables.events, tables.items, event_types=config.event_types, min_count=config.features.min_count)
    split = leave_last_out(data)
    trained = train(data, split, config, Run(device="cpu"))
    matrix = item_matrix(data, trained.towers)
    ours = means(rank_two_tower(data, trained.towers, matrix, split.test, depth=10), split.test)
    for model in (Popularity(), ItemKNN()):
        theirs = means(rank_baseline(model, data, split, split.test, depth=10), split.test)
        assert ours[0] > 1.1 * theirs[0], (model.name, ours, theirs)
        assert ours[1] > 1.1 * theirs[1], (model.name, ours, theirs)


def test_three_views_of_one_taste_bring_a_list_of_that_taste(tmp_path: Path) -> None:
    """The whole way: a shop is learned and published, a newcomer's views go through the store, the engine answers."""
    shop, config = Shop(items=1000, users=2000, seed=0), shortened("default", epochs=3)
    run = train_run(tmp_path / "run", Source(path=shop.write(tmp_path / "shop", days=60)), config, Run(device="cpu"))
    publish(run, tmp_path / "releases", force=True)
    ids = np.array(run.data.items.all)
    tastes = dict(zip(ids.tolist(), np.asarray(shop.taste_of(ids.tolist())).tolist(), strict=True))
    engine = Engine(
        Settings(releases=tmp_path / "releases", store=f"sqlite:///{tmp_path / 'store.db'}", deadline_ms=20_000)
    )
    engine.start()
    rng, found = np.random.default_rng(0), []
    for taste in range(shop.tastes):
        newcomer, now = f"newcomer-{taste}", datetime.now(UTC)
        for item_id in rng.choice([name for name in ids if tastes[name] == taste], 3, replace=False):
            engine.store.events.append([Event(user_id=newcomer, item_id=str(item_id), timestamp=now)])
        answer = asyncio.run(engine.recommend(Query(k=10, now=datetime.now(UTC), user_id=newcomer)))
        found.append(sum(tastes[one.item_id] == taste for one in answer.items))
    engine.stop()
    assert min(found) >= 7, found
