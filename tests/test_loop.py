"""The loop: a world with one answer, the same result twice, after a kill too, and every way to stop."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embeddings.errors import TrainingError
from embeddings.features import EventKind
from embeddings.two_tower import TwoTower
from tests.histories import cycle, dataset
from training.config import Config, Run
from training.dataset import Dataset, Split, Targets, leave_last_out
from training.device import pick_device
from training.loop import MAX_SKIPPED, Progress, Trained, encode_queries, rank_all, seen_items, train

VIEW = {"view": EventKind()}
CPU = Run(device="cpu", threads=1)


def recipe(*, loss: dict[str, Any] | None = None, towers: dict[str, Any] | None = None, **optimisation: Any) -> Config:
    small = {"dim": 16, "layers": 1, "max_history": 6, "dropout": 0.1, "id_dropout": 0.1}
    return Config.model_validate(
        {
            "towers": small | (towers or {}),
            "ranker": None,
            "loss": loss or {},
            "optimisation": {"epochs": 3, "batch": 16, "learning_rate": 0.01, "warmup_steps": 5} | optimisation,
            "event_types": VIEW,
        }
    )


def small_world() -> tuple[Dataset, Split]:
    data = cycle(people=60, event_types=VIEW)
    return data, leave_last_out(data)


def weights(towers: TwoTower) -> dict[str, torch.Tensor]:
    return towers.state_dict()


def same(ours: Trained, theirs: Trained) -> bool:
    other = weights(theirs.towers)
    return all(torch.equal(weight, other[name]) for name, weight in weights(ours.towers).items())


def hit_rate(data: Dataset, trained: Trained, targets: Targets) -> float:
    matrix = trained.towers.items.encode(data.spec.item_features(data.item_rows(), np.arange(len(data.items))))
    ranked = rank_all(encode_queries(data, trained.towers, matrix, targets), matrix, seen_items(data, targets), 1)
    return float((ranked[:, 0] == targets.rows).mean())


class Stop(Exception):
    """Stands for the machine that goes away."""


def stop_at(epoch: int, step: int) -> Callable[[Progress], None]:
    def watch(at: Progress) -> None:
        if (at.epoch, at.step) == (epoch, step) and at.finished is None:
            raise Stop

    return watch


@pytest.mark.parametrize(
    "loss",
    [
        {},
        {"hide_seen": False},
        {"full_up_to": 0, "negatives": 32},
        {"full_up_to": 0, "negatives": 16, "in_batch": 16},
    ],
    ids=["full", "full with seen", "sampled", "sampled and in-batch"],
)
def test_a_world_with_one_answer_is_learned(loss: dict[str, Any]) -> None:
    data = cycle(event_types=VIEW)
    split = leave_last_out(data)
    trained = train(data, split, recipe(loss=loss, epochs=25, patience=25), CPU)
    assert hit_rate(data, trained, split.test) > 0.95
    assert trained.history[-1].loss < trained.history[0].loss
    assert trained.history[trained.best_epoch - 1].metrics["ndcg@10"] == max(
        e.metrics["ndcg@10"] for e in trained.history
    )


def test_cosine_towers_learn_it_too() -> None:
    data = cycle(event_types=VIEW)
    split = leave_last_out(data)
    config = recipe(towers={"metric": "cosine"}, loss={"temperature": 0.1}, epochs=25, patience=25)
    assert hit_rate(data, train(data, split, config, CPU), split.test) > 0.95


def test_filtered_histories_learn_it_too() -> None:
    data = cycle(event_types=VIEW)
    split = leave_last_out(data)
    config = recipe(towers={"encoder": "filtered"}, epochs=25, patience=25)
    assert hit_rate(data, train(data, split, config, CPU), split.test) > 0.95


def test_the_same_arguments_give_the_same_weights_and_leave_the_caller_alone() -> None:
    data, split = small_world()
    torch.manual_seed(42)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    first = train(data, split, recipe(), CPU)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    torch.manual_seed(7)
    assert same(first, train(data, split, recipe(), CPU))
    assert not same(first, train(data, split, recipe(), Run(device="cpu", threads=1, seed=1)))


@pytest.mark.parametrize("where", [(1, 1), (1, 3), (2, 1), (3, 4)])
@pytest.mark.parametrize("loss", [{}, {"full_up_to": 0, "negatives": 8, "in_batch": 4}], ids=["full", "sampled"])
def test_stopped_anywhere_and_resumed_is_never_stopped(
    tmp_path: Path, where: tuple[int, int], loss: dict[str, Any]
) -> None:
    data, split = small_world()
    config = recipe(loss=loss)
    run = Run(device="cpu", threads=1, checkpoints=tmp_path, checkpoint_seconds=0.0)
    with pytest.raises(Stop):
        train(data, split, config, run, progress=stop_at(*where))
    reports: list[Progress] = []
    resumed = train(data, split, config, replace_run(run, resume=True), progress=reports.append)
    whole = train(data, split, config, CPU)
    assert all((at.epoch, at.step) > where for at in reports if not at.finished)
    assert same(resumed, whole)
    assert [(e.epoch, e.loss, e.metrics) for e in resumed.history] == [
        (e.epoch, e.loss, e.metrics) for e in whole.history
    ]
    assert resumed.best_epoch == whole.best_epoch


def replace_run(run: Run, **changes: Any) -> Run:
    return Run.model_validate(run.model_dump() | changes)


def test_work_since_the_last_checkpoint_is_done_again(tmp_path: Path) -> None:
    data, split = small_world()
    run = Run(device="cpu", threads=1, checkpoints=tmp_path, checkpoint_seconds=1e6)  # only at the ends of epochs
    with pytest.raises(Stop):
        train(data, split, recipe(), run, progress=stop_at(2, 3))
    steps: list[tuple[int, int]] = []
    again = replace_run(run, resume=True)
    resumed = train(data, split, recipe(), again, progress=lambda at: steps.append((at.epoch, at.step)))
    assert steps[0] == (2, 1)
    assert same(resumed, train(data, split, recipe(), CPU))


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.test_loop import recipe, small_world
from training.config import Run
from training.loop import train

def watch(at):
    if (at.epoch, at.step) == (2, 2):
        os.kill(os.getpid(), signal.SIGKILL)

run = Run(device="cpu", threads=1, checkpoints=Path(sys.argv[1]), checkpoint_seconds=0.0)
train(*small_world(), recipe(), run, progress=watch)
"""


def test_killed_by_the_system_and_resumed_in_another_process(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=root, env=dict(os.environ), check=False)
    assert killed.returncode == -signal.SIGKILL
    data, split = small_world()
    run = Run(device="cpu", threads=1, checkpoints=tmp_path, resume=True)
    assert same(train(data, split, recipe(), run), train(data, split, recipe(), CPU))


def test_resuming_a_finished_training_only_returns_it(tmp_path: Path) -> None:
    data, split = small_world()
    run = Run(device="cpu", threads=1, checkpoints=tmp_path)
    first = train(data, split, recipe(), run)
    steps: list[Progress] = []
    again = train(data, split, recipe(), replace_run(run, resume=True), progress=steps.append)
    assert not steps
    assert same(first, again)


def test_a_checkpoint_of_other_data_or_another_recipe_is_refused(tmp_path: Path) -> None:
    data, split = small_world()
    run = Run(device="cpu", threads=1, checkpoints=tmp_path)
    train(data, split, recipe(), run)
    resumed = replace_run(run, resume=True)
    with pytest.raises(TrainingError, match=r"config.optimisation.epochs was 3, now it is 4"):
        train(data, split, recipe(epochs=4), resumed)
    other = cycle(people=61, event_types=VIEW)
    with pytest.raises(TrainingError, match="belongs to another training, data was"):
        train(other, leave_last_out(other), recipe(), resumed)


def test_patience_ends_a_training_that_gets_no_better() -> None:
    data, split = small_world()
    trained = train(data, split, recipe(epochs=100, patience=3), CPU)
    assert len(trained.history) == trained.best_epoch + 3 < 100
    assert trained.stopped == "no better validation NDCG@10 in 3 epochs"


def test_the_time_limit_stops_and_says_so(tmp_path: Path) -> None:
    data, split = small_world()
    run = Run(device="cpu", threads=1, max_minutes=1e-6, checkpoints=tmp_path)
    steps: list[Progress] = []
    trained = train(data, split, recipe(), run, progress=steps.append)
    assert len(steps) == 1
    assert trained.history == ()
    assert "limit of 1e-06 minutes was reached in epoch 1" in trained.stopped
    resumed = train(data, split, recipe(), Run(device="cpu", threads=1, checkpoints=tmp_path, resume=True))
    assert same(resumed, train(data, split, recipe(), CPU))


def test_without_validation_the_last_epoch_is_kept() -> None:
    data, split = small_world()
    nobody = split.validation.take(np.zeros(0, dtype=np.int64))
    everything = Split(train=np.ones(len(data), dtype=bool), validation=nobody, test=nobody)
    trained = train(data, everything, recipe(), CPU)
    assert trained.best_epoch == 3
    assert trained.stopped == "all 3 epochs are done"
    assert [epoch.metrics for epoch in trained.history] == [{}, {}, {}]


def test_progress_counts_every_step_and_every_epoch() -> None:
    data, split = small_world()
    seen: list[Progress] = []
    trained = train(data, split, recipe(), CPU, progress=seen.append)
    steps = seen[0].steps
    assert [(at.epoch, at.step) for at in seen if not at.finished] == [
        (e, s + 1) for e in (1, 2, 3) for s in range(steps)
    ]
    assert [at.finished for at in seen if at.finished] == list(trained.history)


class Poison:
    """Makes the gradients of some steps non-finite."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, when: Callable[[int], bool]) -> None:
        self.calls, self.when = 0, when
        from training.objective import Objective

        healthy = Objective.loss

        def loss(objective: Objective, batch: Any) -> torch.Tensor:
            self.calls += 1
            value = healthy(objective, batch)
            return value * torch.nan if self.when(self.calls) else value

        monkeypatch.setattr(Objective, "loss", loss)


def test_a_step_that_is_not_finite_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data, split = small_world()
    Poison(monkeypatch, lambda call: call in (2, 3, 6))
    with caplog.at_level(logging.WARNING):
        trained = train(data, split, recipe(), CPU)
    assert trained.skipped == 3
    assert all(torch.isfinite(weight).all() for weight in weights(trained.towers).values())
    assert all(np.isfinite(epoch.loss) for epoch in trained.history)
    assert "prevented an update that is not finite" in caplog.text
    assert "epoch 1, step 2: loss nan" in caplog.text


def test_a_training_that_diverges_ends_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    data, split = small_world()
    poison = Poison(monkeypatch, lambda call: call > 3)
    with pytest.raises(TrainingError, match=f"{MAX_SKIPPED} batches in a row.*lower learning rate"):
        train(data, split, recipe(), CPU)
    assert poison.calls == 3 + MAX_SKIPPED


def test_a_missing_gpu_is_a_sentence() -> None:
    missing = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(TrainingError, match=f"device '{missing}' was asked for"):
        pick_device(missing)
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_nothing_to_predict_is_a_sentence() -> None:
    kinds = {"view": EventKind(), "skip": EventKind(positive=False)}
    data = dataset({"ann": [("a", "skip", 0), ("b", "skip", 1)]}, event_types=kinds)
    with pytest.raises(TrainingError, match="no training event is of a positive type"):
        train(data, leave_last_out(data), recipe(), CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.slow
def test_a_gpu_learns_it_too() -> None:
    data = cycle(event_types=VIEW)
    split = leave_last_out(data)
    trained = train(data, split, recipe(epochs=25, patience=25), Run(device="cuda"))
    assert hit_rate(data, trained, split.test) > 0.95
    assert next(trained.towers.parameters()).device.type == "cpu"
