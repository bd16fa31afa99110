"""Publishing: a run becomes a release only if its gates hold, and a refusal changes nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embeddings.bundle_reader import open_bundle
from embeddings.errors import BundleError, DataError, GateError, NotFound, TrainingError
from embeddings.index import VectorIndex
from embeddings.releases import current_release, list_releases
from embeddings.two_tower import TwoTower
from tests import habits
from training.config import Run
from training.contenders import item_matrix
from training.dataset import leave_last_out
from training.publish import failed_gates, golden_queries, publish
from training.queries import encode_queries
from training.runs import (
    CHECKPOINT,
    DONE,
    EVALUATION,
    LOG,
    RANKER,
    TOWERS,
    Source,
    TrainedRun,
    evaluate_run,
    open_run,
    train_run,
)

CPU = Run(device="cpu", threads=1)
GOOD = {
    "popularity": {"recall@10": 0.1, "ndcg@10": 0.05},
    "item_knn": {"recall@10": 0.2, "ndcg@10": 0.1},
    "two_tower": {"recall@10": 0.3, "ndcg@10": 0.2},
    "retrieval_held_out": {"recall@10": 0.3, "ndcg@10": 0.2},
    "ranker_held_out": {"recall@10": 0.3, "ndcg@10": 0.2},
    "ranker_gain": {"mean": 0.0, "low": 0.0, "high": 0.0},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainedRun]:
    """One training for all tests of this file; whoever changes something changes a copy."""
    folder = tmp_path_factory.mktemp("publish")
    data = habits.write(folder / "data")
    said: list[tuple[str, float]] = []
    yield train_run(folder / "run", Source(path=data), habits.CONFIG, CPU, say=lambda *what: said.append(what))
    assert all(0.0 <= share <= 1.0 for _, share in said)
    assert any("validation NDCG@10" in text for text, _ in said)
    assert any(text.startswith("ranker, epoch") for text, _ in said)


def test_a_good_run_is_published_as_it_is(world: TrainedRun, tmp_path: Path) -> None:
    said: list[str] = []
    published = publish(world, tmp_path, say=said.append)
    assert current_release(tmp_path) == published.name
    assert published.overridden == ()
    assert said[0] == "encoding items"
    bundle = open_bundle(published.folder)
    np.testing.assert_array_equal(bundle.matrix, item_matrix(world.data, world.towers))
    assert bundle.ids == world.data.items
    assert bundle.manifest.recipe["towers"]["dim"] == 16
    assert bundle.manifest.recipe["seed"] == 0
    assert bundle.manifest.metrics["two_tower"] == published.figures["two_tower"]
    assert world.about.report is not None
    assert bundle.manifest.metrics["ranker_held_out"] == world.about.report["ranker"]
    assert bundle.manifest.counts == {"events": len(world.data), "items": 120, "users": habits.PEOPLE}
    assert bundle.manifest.data_fingerprint == world.data.fingerprint()
    np.testing.assert_array_equal(bundle.popularity[:, 0], np.bincount(world.data.rows, minlength=120))
    assert (bundle.popularity[:, 1] <= bundle.popularity[:, 0]).all()


def test_the_release_answers_as_the_run_does(world: TrainedRun, tmp_path: Path) -> None:
    bundle = open_bundle(publish(world, tmp_path).folder)
    data, targets = world.data, leave_last_out(world.data).test
    queries = encode_queries(data, world.towers, np.array(bundle.matrix), targets)
    for q in range(5):
        past = slice(data.offsets[targets.users[q]], targets.ends[q])
        last = data.times[past][-1]
        tokens = data.context_tokens(int(targets.events[q]), now=targets.times[q], last=last)
        served = bundle.encode_user(bundle.matrix[data.rows[past]], data.types[past], data.times[past], tokens)
        np.testing.assert_allclose(served, queries[q], atol=1e-5)


def test_a_release_brings_the_questions_it_must_answer(world: TrainedRun, tmp_path: Path) -> None:
    folder = publish(world, tmp_path).folder
    asked = golden_queries(world, item_matrix(world.data, world.towers))
    assert json.loads((folder / "golden.json").read_bytes()) == [one.model_dump(mode="json") for one in asked]
    assert len(asked) == 8
    assert all(one.rows and len(one.top) == 10 for one in asked)
    # Whole and signed, but with weights of another model: the answers betray it.
    other = publish(dataclasses.replace(scrambled(world), ranker=None), tmp_path, force=True).folder
    shutil.copy(folder / "golden.json", other / "golden.json")
    manifest = json.loads((other / "manifest.json").read_bytes())
    manifest["files"]["golden.json"] = hashlib.sha256((other / "golden.json").read_bytes()).hexdigest()
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="golden queries find"):
        open_bundle(other)


def test_a_release_can_be_held_back(world: TrainedRun, tmp_path: Path) -> None:
    first = publish(world, tmp_path)
    second = publish(world, tmp_path, hold=True)
    assert current_release(tmp_path) == first.name
    assert list_releases(tmp_path) == sorted([first.name, second.name])


def test_two_releases_of_one_second_have_two_names(world: TrainedRun, tmp_path: Path) -> None:
    names = [publish(world, tmp_path).name for _ in range(2)]
    assert list_releases(tmp_path) == sorted(names)
    assert current_release(tmp_path) == names[1]


def scrambled(run: TrainedRun) -> TrainedRun:
    """The same run with towers that know nothing."""
    towers = TwoTower(*(type(part)(**_shape(part)) for part in (run.towers.items, run.towers.users))).eval()
    return dataclasses.replace(run, towers=towers, ranker=None)


def _shape(part: Any) -> dict[str, Any]:
    if hasattr(part, "ids"):
        return {"config": part.config, "items": 120, "tokens": part.tokens.num_embeddings, "words": 32, "numbers": 1}
    return {"config": part.config, "event_types": part.types.num_embeddings - 1, "context_buckets": 16}


def test_a_bad_run_is_refused_with_every_reason(
    world: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = publish(world, tmp_path)
    bad = scrambled(world)
    monkeypatch.setattr("training.publish.rank_baseline", lambda *a, depth, **k: _perfect(bad, depth))
    with pytest.raises(GateError) as error:
        publish(bad, tmp_path)
    assert len(error.value.reasons) == 4
    assert all("two_tower" in reason and "1.0000" in reason for reason in error.value.reasons)
    assert current_release(tmp_path) == published.name
    assert list_releases(tmp_path) == [published.name]


# In this world counting finds nothing at all, so even towers that know nothing would pass: the gates get baselines that
# find everything.
def _perfect(run: TrainedRun, depth: int) -> np.ndarray:
    asked = run.split.validation
    rest = np.stack([np.setdiff1d(np.arange(depth), row)[: depth - 1] for row in asked.rows])
    return np.concatenate([asked.rows[:, None], rest], axis=1)


def test_force_overrides_and_says_what(world: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = scrambled(world)
    monkeypatch.setattr("training.publish.rank_baseline", lambda *a, depth, **k: _perfect(bad, depth))
    published = publish(bad, tmp_path, force=True)
    assert len(published.overridden) == 4
    assert open_bundle(published.folder).manifest.overridden == published.overridden
    assert current_release(tmp_path) == published.name


@pytest.mark.parametrize("part", ["towers", "ranker"])
def test_numbers_that_are_not_finite_cannot_be_forced(world: TrainedRun, tmp_path: Path, part: str) -> None:
    module = getattr(world, part)
    name, weight = next(iter(module.named_parameters()))
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.view(-1)[0] = math.nan
        with pytest.raises(GateError, match=rf"{part}\.{name}.*cannot be forced"):
            publish(world, tmp_path, force=True)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    assert list_releases(tmp_path) == []


def test_a_release_that_comes_back_changed_is_withdrawn(
    world: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publish(world, tmp_path).name
    monkeypatch.setattr(VectorIndex, "measure_recall", lambda *a, **k: 0.5)
    with pytest.raises(BundleError, match=r"recalls 0\.5000"):
        publish(world, tmp_path)
    assert list_releases(tmp_path) == [first]
    assert current_release(tmp_path) == first


def test_every_gate_by_itself() -> None:
    assert failed_gates(GOOD, index_recall=0.98, has_ranker=True) == []
    assert failed_gates(GOOD, index_recall=0.9799, has_ranker=True) == [
        "recall of the index is 0.9799, it must be at least 0.98"
    ]
    for other in ("popularity", "item_knn"):
        for metric in ("recall@10", "ndcg@10"):
            equal = GOOD | {other: GOOD[other] | {metric: GOOD["two_tower"][metric]}}
            (reason,) = failed_gates(equal, index_recall=1.0, has_ranker=True)
            assert reason.startswith(f"{metric} of two_tower is")
            assert other in reason
    worse = GOOD | {"ranker_held_out": {"recall@10": 0.9, "ndcg@10": 0.19}}
    by_chance, surely = ({"mean": -0.01, "low": -0.03, "high": high} for high in (0.01, -0.001))
    assert failed_gates(worse | {"ranker_gain": by_chance}, index_recall=1.0, has_ranker=True) == []
    (reason,) = failed_gates(worse | {"ranker_gain": surely}, index_recall=1.0, has_ranker=True)
    assert reason.startswith("held-out ndcg@10 of the ranker is 0.1900, below the retrieval order at 0.2000 by more")
    unknown = GOOD | {"two_tower": {"recall@10": math.nan, "ndcg@10": math.nan}}
    assert len(failed_gates(unknown, index_recall=math.nan, has_ranker=True)) == 5
    assert len(failed_gates({}, index_recall=1.0, has_ranker=True)) == 2


def test_a_run_opened_again_is_the_same_run(world: TrainedRun) -> None:
    again = open_run(world.folder)
    assert again.about == world.about
    assert again.config == world.config
    for ours, theirs in ((world.towers, again.towers), (world.ranker, again.ranker)):
        assert ours is not None
        assert theirs is not None
        other = theirs.state_dict()
        assert all(torch.equal(weight, other[name]) for name, weight in ours.state_dict().items())
    lines = [json.loads(line) for line in (world.folder / LOG).read_text().splitlines()]
    assert [line["epoch"] for line in lines[:-1]] == list(range(1, world.about.epochs + 1))
    assert lines[-1]["ranker"]["lists"] > 0


def test_resuming_a_finished_run_gives_the_same_model(world: TrainedRun, tmp_path: Path) -> None:
    folder = shutil.copytree(world.folder, tmp_path / "run")
    resumed = train_run(
        folder, world.about.source, world.config, CPU.model_copy(update={"resume": True, "checkpoints": folder})
    )
    assert (folder / TOWERS).read_bytes() == (world.folder / TOWERS).read_bytes()
    assert (folder / RANKER).read_bytes() == (world.folder / RANKER).read_bytes()
    assert resumed.about.best_epoch == world.about.best_epoch
    other = CPU.model_copy(update={"seed": 5, "resume": True, "checkpoints": folder})
    with pytest.raises(TrainingError, match="another training"):
        train_run(folder, world.about.source, world.config, other)
    assert open_run(folder).about == resumed.about  # a refusal destroys nothing


def test_an_evaluation_is_kept_and_goes_into_the_release(world: TrainedRun, tmp_path: Path) -> None:
    found = evaluate_run(world, k=(5,))
    try:
        assert json.loads((world.folder / EVALUATION).read_text()) == found.to_json()
        metrics = open_bundle(publish(world, tmp_path).folder).manifest.metrics
        assert metrics["test.two_tower"]["ndcg@5"] == found.systems["two_tower"]["ndcg@5"].mean
    finally:
        (world.folder / EVALUATION).unlink()


def test_what_is_no_finished_run_is_said_to_be_none(world: TrainedRun, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="holds no training run"):
        open_run(tmp_path)
    (tmp_path / CHECKPOINT).touch()
    with pytest.raises(NotFound, match="--resume"):
        open_run(tmp_path)
    for name, content, words in (
        (TOWERS, b"nothing", "weights of this run"),
        (DONE, b"{}", "not of a run"),
        ("config.json", b"\x89PNG", "not of a run"),
    ):
        folder = shutil.copytree(world.folder, tmp_path / name)
        (folder / name).write_bytes(content)
        with pytest.raises(DataError, match=words):
            open_run(folder)


def test_other_data_are_refused(world: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(world.folder, tmp_path / "run")
    monkeypatch.setattr(habits, "PEOPLE", habits.PEOPLE - 1)
    about = world.about.model_copy(update={"source": Source(path=habits.write(tmp_path / "data"))})
    (folder / DONE).write_text(about.model_dump_json())
    with pytest.raises(DataError, match=r"not those that .* was trained on"):
        open_run(folder)
