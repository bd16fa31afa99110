"""Tracking: losses, metrics and hyper-parameters of a training, for TensorBoard and, where its URI is set, for MLflow.

TensorBoard's files lie in the run folder (`tensorboard --logdir RUN`). MLflow gets the same under the run whose id the
folder keeps, so that the test metrics of a later evaluation join those of the training.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from embeddings.errors import ConfigError
from training.about import TENSORBOARD
from training.config import Config
from training.evaluate import Evaluation
from training.loop import Progress

EVERY = 20
"""Losses of so many steps make one point: a curve, not a cloud."""

MLFLOW, URI = "mlflow.json", "MLFLOW_TRACKING_URI"
MLFLOW_PARAMETERS = 100
"""More parameters at once are refused by MLflow's server."""


class Sink(Protocol):
    """Where numbers go."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Take values of one step, by name."""

    def outcome(self, parameters: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Take the hyper-parameters, and what came of them."""


class Tracker:
    """Tells every sink what a training or an evaluation has to tell."""

    def __init__(self, sinks: list[Sink]) -> None:
        self.sinks = sinks

    def follow(self, at: Progress) -> None:
        """Take one report of the loop."""
        if at.finished is not None:
            values = {f"validation/{name}": value for name, value in at.finished.metrics.items()}
            values |= {"epoch/loss": at.finished.loss, "epoch/seconds": at.finished.seconds}
            self._scalars(values, at.finished.epoch)
        elif at.step % EVERY == 0 or at.step == at.steps:
            self._scalars({"step/loss": at.loss}, (at.epoch - 1) * at.steps + at.step)

    def outcome(self, config: Config, validation: Mapping[str, float]) -> None:
        """Take the configuration as hyper-parameters, with the validation metrics that it came to."""
        parameters = _flat(config.model_dump(mode="json"))
        for sink in self.sinks:
            sink.outcome(parameters, {f"best/{name}": value for name, value in validation.items()})

    def evaluation(self, found: Evaluation) -> None:
        """Take the means of an evaluation, by system."""
        values = {
            f"{found.targets}/{name}/{metric}": interval.mean
            for name, metrics in found.systems.items()
            for metric, interval in metrics.items()
        }
        self._scalars(values, 0)

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        for sink in self.sinks:
            sink.scalars(finite, step)


@contextmanager
def tracking(folder: Path) -> Iterator[Tracker]:
    """Track what happens inside, in the run folder; raises `ConfigError` if MLflow is wanted and not installed."""
    with ExitStack() as opened:
        sinks: list[Sink] = []
        if os.environ.get(URI):
            sinks.append(opened.enter_context(_mlflow(folder)))
        if importlib.util.find_spec("tensorboard"):
            sinks.append(opened.enter_context(_tensorboard(folder / TENSORBOARD)))
        yield Tracker(sinks)


class _TensorBoard:
    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def outcome(self, parameters: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        self.writer.add_hparams(dict(parameters), dict(metrics), run_name=".")


@contextmanager
def _tensorboard(folder: Path) -> Iterator[Sink]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))
    try:
        yield _TensorBoard(writer)
    finally:
        writer.close()


class _MLflow:
    def __init__(self, mlflow: Any) -> None:
        self.mlflow = mlflow

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.mlflow.log_metrics({_plain(name): value for name, value in values.items()}, step=step)

    def outcome(self, parameters: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        named = list(parameters.items())
        for start in range(0, len(named), MLFLOW_PARAMETERS):
            self.mlflow.log_params(dict(named[start : start + MLFLOW_PARAMETERS]))
        self.scalars(metrics, 0)


@contextmanager
def _mlflow(folder: Path) -> Iterator[Sink]:
    try:
        import mlflow
    except ImportError:
        raise ConfigError(
            f"{URI} is set, but mlflow is not installed: 'pip install mlflow', or unset the variable", field=URI
        ) from None
    if not {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"} & set(os.environ):
        mlflow.set_experiment("bespoke")
    path = folder / MLFLOW
    known = json.loads(path.read_bytes())["run_id"] if path.is_file() else None
    with mlflow.start_run(run_id=known, run_name=None if known else folder.name) as run:
        path.write_text(json.dumps({"run_id": run.info.run_id}) + "\n", encoding="utf-8")
        yield _MLflow(mlflow)


def _plain(name: str) -> str:
    """MLflow allows no @ in the name of a metric."""
    return name.replace("@", "_at_")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration as `towers.dim` and the like; what is not a number, a truth value or text becomes text."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return flat
