"""Warm start: rows are carried over by name, other architectures are refused, and time is saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from embeddings.bundle import build_towers
from embeddings.errors import NotFound, TrainingError
from embeddings.features import EventKind, FeatureSpec
from embeddings.ids import bucket
from embeddings.schema import Item
from embeddings.two_tower import TowerConfig, TwoTower
from tests import habits
from tests.conftest import write_world
from tests.histories import cycle, dataset
from tests.test_loop import CPU, recipe
from training.about import effort_to_reach
from training.config import Run
from training.dataset import Dataset, leave_last_out
from training.loop import Epoch, train
from training.publish import publish
from training.runs import Source, open_run, train_run
from training.warm_start import Origin, open_origin, transplant

CONFIG = TowerConfig(dim=8, layers=1, max_history=4)
VIEW = {"view": EventKind()}


def catalogue(*names: str, brand: str = "acme") -> list[Item]:
    return [
        Item(item_id=name, attributes={"brand": brand, "size": float(at), "kind": f"kind-{name}"}, categories=["all"])
        for at, name in enumerate(names)
    ]


def world(items: list[Item], **options: object) -> tuple[Dataset, TwoTower]:
    data = dataset({"ann": [(item.item_id, "view", at) for at, item in enumerate(items)]}, items=items, **options)
    torch.manual_seed(len(items))
    return data, build_towers(CONFIG, data.spec, items=len(data.items))


def origin(data: Dataset, towers: TwoTower) -> Origin:
    return Origin(
        name="old", config=CONFIG, spec=data.spec, ids=data.items, weights=dict(towers.state_dict()), cold=None
    )


def vectors(data: Dataset, towers: TwoTower, spec: FeatureSpec, rows: np.ndarray) -> np.ndarray:
    return towers.items.encode(spec.item_features(data.item_rows(), rows))


def test_items_come_and_go_and_rows_follow_their_names() -> None:
    old_data, old = world(catalogue("a", "b", "c"), event_types={"view": EventKind(), "buy": EventKind()})
    data, towers = world(catalogue("c", "new", "a"), event_types={"view": EventKind(), "add": EventKind()})
    moved = transplant(origin(old_data, old), towers, data)
    assert (moved.kept, moved.new, moved.retired) == (2, 1, 1)
    before, after = old.items.ids.weight, moved.weights["items.ids.weight"]
    for name in ("a", "c"):
        assert torch.equal(after[1 + data.items.row(name)], before[1 + old_data.items.row(name)])
    assert not after[1 + data.items.row("new")].any()
    assert not after[0].any()
    types = moved.weights["users.types.weight"]
    assert torch.equal(types[data.spec.event_row("view")], old.users.types.weight[old_data.spec.event_row("view")])
    fresh = data.spec.event_row("add")
    assert torch.equal(types[fresh], towers.users.types.weight[fresh])
    towers.load_state_dict(moved.weights)


def test_rows_of_members_follow_their_names_too() -> None:
    pair = CONFIG.model_copy(update={"members": 2})
    old_data, _ = world(catalogue("a", "b"), event_types={"view": EventKind(), "buy": EventKind()})
    data, _ = world(catalogue("b", "a"), event_types={"add": EventKind(), "view": EventKind()})
    old, towers = (build_towers(pair, one.spec, items=2) for one in (old_data, data))
    was = Origin(name="old", config=pair, spec=old_data.spec, ids=old_data.items, weights=old.state_dict(), cold=None)
    moved = transplant(was, towers, data).weights
    for member in ("0", "1"):
        name = f"users.members.{member}.types.weight"
        before, after = old.state_dict()[name], moved[name]
        assert torch.equal(after[data.spec.event_row("view")], before[old_data.spec.event_row("view")])
    towers.load_state_dict(moved)


def test_a_new_attribute_begins_where_its_bucket_stood() -> None:
    old_data, old = world(catalogue("a", "b"))
    data, towers = world(catalogue("a", "b", brand="zeta"))
    assert "brand=zeta" in data.spec.tokens
    assert "brand=zeta" not in old_data.spec.tokens
    moved = transplant(origin(old_data, old), towers, data).weights["items.tokens.weight"]
    place = len(old_data.spec.tokens) + bucket("brand=zeta", old_data.spec.unknown_buckets)
    assert torch.equal(moved[data.spec.tokens.index("brand=zeta")], old.items.tokens.weight[place])
    shared = "categories=all"
    rows = data.spec.tokens.index(shared), old_data.spec.tokens.index(shared)
    assert torch.equal(moved[rows[0]], old.items.tokens.weight[rows[1]])


def test_kept_items_lie_where_they_lay_though_all_rows_moved() -> None:
    old_data, old = world(catalogue("a", "b", "c", "d"))
    data, towers = world([*catalogue("x", "y")[::-1], *old_data.item_rows()])
    towers.load_state_dict(transplant(origin(old_data, old), towers, data).weights)
    before = vectors(old_data, old, old_data.spec, np.arange(4))
    after = vectors(data, towers, data.spec, np.arange(6))[[data.items.row(name) for name in old_data.items.all]]
    # A number is standardised anew with every catalogue: differences keep their size, the origin moves.
    np.testing.assert_allclose(after - after[0], before - before[0], atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dim": 16}, "towers.dim was 8, now it is 16"),
        ({"layers": 2}, "towers.layers was 1, now it is 2"),
        ({"metric": "cosine"}, "towers.metric was dot, now it is cosine"),
    ],
)
def test_another_architecture_is_refused(changed: dict[str, object], message: str) -> None:
    data, towers = world(catalogue("a", "b"))
    other = build_towers(CONFIG.model_copy(update=changed), data.spec, items=2)
    with pytest.raises(TrainingError, match=f"cannot start from old: {message}"):
        transplant(origin(data, towers), other, data)
    words, _ = world(catalogue("a", "b"), text_buckets=16)
    with pytest.raises(TrainingError, match=r"features\.text_buckets was 0, now it is 16"):
        transplant(origin(data, towers), towers, words)


def test_dropout_may_change() -> None:
    data, towers = world(catalogue("a", "b"))
    other = build_towers(CONFIG.model_copy(update={"dropout": 0.1, "id_dropout": 0.0}), data.spec, items=2)
    moved = transplant(origin(data, towers), other, data).weights
    assert all(torch.equal(moved[name], weight) for name, weight in towers.state_dict().items())


def test_what_is_nothing_to_start_from_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="neither a finished run nor a release"):
        open_origin(tmp_path)


def test_a_release_and_a_folder_of_releases_are_origins(tmp_path: Path) -> None:
    folder = write_world(tmp_path)
    for path in (folder, tmp_path):
        found = open_origin(path)
        assert found.name == folder.name
        assert "items.ids.weight" in found.weights


def test_a_start_that_nothing_improves_on_is_kept() -> None:
    data = cycle(event_types=VIEW)
    split = leave_last_out(data)
    learned = train(data, split, recipe(epochs=25, patience=25), CPU)
    spoiled = train(
        data, split, recipe(epochs=2, learning_rate=5.0, warmup_steps=0), CPU, start=learned.towers.state_dict()
    )
    assert spoiled.best_epoch == 0
    assert spoiled.start["ndcg@10"] == learned.history[learned.best_epoch - 1].metrics["ndcg@10"]
    for name, weight in learned.towers.state_dict().items():
        assert torch.equal(spoiled.towers.state_dict()[name], weight)


def test_a_checkpoint_of_another_start_is_refused(tmp_path: Path) -> None:
    data = cycle(people=40, event_types=VIEW)
    split = leave_last_out(data)
    start = train(data, split, recipe(epochs=1), CPU).towers.state_dict()
    run = Run(device="cpu", threads=1, checkpoints=tmp_path)
    train(data, split, recipe(epochs=1), run, start=start)
    again = run.model_copy(update={"resume": True})
    assert train(data, split, recipe(epochs=1), again, start=start).start
    with pytest.raises(TrainingError, match="belongs to another training, start was"):
        train(data, split, recipe(epochs=1), again)


def test_effort_counts_the_epochs_and_seconds_to_a_score() -> None:
    history = [Epoch(epoch=n, loss=1.0, metrics={"ndcg@10": n / 10}, seconds=2.0) for n in (1, 2, 3)]
    reached = effort_to_reach(history, 0.2, at_start=0.05)
    assert reached is not None
    assert (reached.epochs, reached.seconds, reached.ndcg) == (2, 4.0, 0.2)
    started = effort_to_reach(history, 0.2, at_start=0.25)
    assert started is not None
    assert (started.epochs, started.seconds) == (0, 0.0)
    assert effort_to_reach(history, 0.5, at_start=None) is None


def test_the_next_night_needs_fewer_epochs(tmp_path: Path) -> None:
    """The known-answer world grows by people and an item; from nothing it takes epochs that the warm start saves."""
    whole = habits.write(tmp_path / "whole")
    events = pq.read_table(whole / "events.parquet")
    early = tmp_path / "early"
    early.mkdir()
    pq.write_table(events.filter(pc.less(events["user_id"], "u100")), early / "events.parquet")
    for path in whole.glob("items*"):
        items = pq.read_table(path)
        pq.write_table(items.filter(pc.not_equal(items["item_id"], items["item_id"][3])), early / path.name)
    options = Run(device="cpu", threads=1)
    config = habits.CONFIG.model_copy(update={"ranker": None})
    first = train_run(tmp_path / "first", Source(path=early), config, options)
    assert first.about.warm_start is None
    cold = train_run(tmp_path / "cold", Source(path=whole), config, options)
    warm = train_run(tmp_path / "warm", Source(path=whole), config, options, origin=open_origin(tmp_path / "first"))
    found = warm.about.warm_start
    assert found is not None
    assert found.retired == 0
    assert found.kept + found.new == len(warm.data.items)
    assert found.cold == warm.about.cold == first.about.cold
    assert cold.about.cold is not None
    history = [entry for entry in _log(tmp_path / "warm") if "epoch" in entry]
    epochs = [Epoch(**entry) for entry in history]
    reached = effort_to_reach(epochs, cold.about.cold.ndcg, at_start=found.at_start)
    assert reached is not None
    assert reached.epochs < cold.about.cold.epochs
    assert found.saved is not None
    assert found.saved > 0
    assert "s saved" in found.words()
    published = publish(open_run(tmp_path / "warm"), tmp_path / "releases", force=True)
    again = open_origin(tmp_path / "releases")
    assert again.name == published.name
    assert again.cold == first.about.cold  # the yardstick goes from release to release


def _log(folder: Path) -> list[dict[str, object]]:
    import json

    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
