"""Tracking: what TensorBoard reads is what the run says, and MLflow is told the same if somebody wants it to be."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from embeddings.errors import ConfigError
from tests import habits
from training.config import Run
from training.runs import Source, TrainedRun, evaluate_run, train_run
from training.tracking import URI, tracking


@pytest.fixture(autouse=True)
def _no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(URI, raising=False)


def trained(folder: Path) -> TrainedRun:
    config = habits.CONFIG.model_copy(
        update={"ranker": None, "optimisation": habits.CONFIG.optimisation.model_copy(update={"epochs": 2})}
    )
    source = Source(path=habits.write(folder / "data"))
    return train_run(folder / "run", source, config, Run(device="cpu", threads=1))


def test_tensorboard_reads_losses_metrics_and_the_test(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = trained(tmp_path)
    found = evaluate_run(run)
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"step/loss", "epoch/loss", "validation/ndcg@10", "best/ndcg@10", "test/two_tower/recall@10"} <= tags
    losses = events.Scalars("epoch/loss")
    assert [point.step for point in losses] == [1, 2]
    assert events.Scalars("validation/ndcg@10")[run.about.best_epoch - 1].value == pytest.approx(
        run.about.validation["ndcg@10"]
    )
    tested = events.Scalars("test/two_tower/recall@10")[-1].value
    assert tested == pytest.approx(found.systems["two_tower"]["recall@10"].mean)
    assert any("hparams" in name for name in events.Tags()["tensors"] or events.summary_metadata)
    before = set((run.folder / "tensorboard").iterdir())
    train_run(run.folder, run.about.source, run.config, Run(device="cpu", threads=1))
    assert not before & set((run.folder / "tensorboard").iterdir())  # an earlier training's curves are gone


def test_an_mlflow_that_is_missing_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URI, "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with (
        pytest.raises(ConfigError, match=r"MLFLOW_TRACKING_URI is set, but mlflow is not installed"),
        tracking(tmp_path),
    ):
        pytest.fail("nothing may be tracked")


class Recorder:
    """Stands for the module `mlflow`: keeps what it is told."""

    def __init__(self) -> None:
        self.experiments: list[str] = []
        self.started: list[str | None] = []
        self.parameters: dict[str, Any] = {}
        self.metrics: dict[str, float] = {}

    def module(self) -> types.ModuleType:
        made = types.ModuleType("mlflow")
        vars(made).update(
            set_experiment=self.experiments.append,
            start_run=self.start_run,
            log_params=self.parameters.update,
            log_metrics=lambda values, step: self.metrics.update(values),
        )
        return made

    @contextmanager
    def start_run(self, run_id: str | None, run_name: str | None) -> Iterator[types.SimpleNamespace]:
        self.started.append(run_id)
        yield types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id or f"id of {run_name}"))


def test_mlflow_gets_one_run_for_training_and_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Recorder()
    monkeypatch.setenv(URI, "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "mlflow", told.module())
    run = trained(tmp_path)
    found = evaluate_run(run)
    assert told.experiments == ["bespoke", "bespoke"]
    assert told.started == [None, "id of run"]
    assert told.parameters["towers.dim"] == 16
    assert told.metrics["best/ndcg_at_10"] == run.about.validation["ndcg@10"]
    assert told.metrics["test/two_tower/recall_at_10"] == found.systems["two_tower"]["recall@10"].mean
    assert not any("@" in name for name in told.metrics)


@pytest.mark.skipif(not importlib.util.find_spec("mlflow"), reason="needs mlflow")
@pytest.mark.slow
def test_the_real_mlflow_takes_it_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv(URI, f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = trained(tmp_path)
    evaluate_run(run)
    kept = mlflow.search_runs(experiment_names=["bespoke"])
    assert len(kept) == 1
    assert kept["metrics.best/ndcg_at_10"][0] == pytest.approx(run.about.validation["ndcg@10"])
    assert kept["params.towers.dim"][0] == "16"
