"""Training on a cluster: the loop of `loop.py` on several workers under Ray Train, which restarts them when one dies.

The head reads and checks the data once and hands them to the workers through Ray Data, so that no worker needs the files.
Each works on its part of every batch; gradients are averaged, negatives gathered. The checkpoint lies in the run folder,
which all machines of the cluster must see under the same path. A training that is resumed goes on from it, with as many
workers as there are then, or with none: the checkpoint is the one that a training without a cluster writes.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from torch import Tensor

from embeddings.errors import ConfigError, TrainingError
from training.about import LOG, Source
from training.config import Config, Run
from training.dataset import Dataset, Split
from training.device import pick_device
from training.group import Workers
from training.loop import Progress, Trained, train
from training.runs import build_dataset, make_split
from training.sources import read

MAX_FAILURES = 3
"""So often workers may die before the training gives up."""

ADDRESS = "RAY_ADDRESS"
"""Names a cluster that runs already; without it one is started on this machine, and stopped afterwards."""


def cluster_trainer(source: Source, workers: int) -> Callable[..., Trained]:
    """A function to train with, in place of `training.loop.train`, on `workers` workers that share each batch."""
    if workers < 1:
        raise ConfigError(f"workers is {workers}, must be at least 1", field="workers")

    def trainer(
        data: Dataset,
        split: Split,
        config: Config,
        run: Run,
        *,
        start: Mapping[str, Tensor] | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Trained:
        if run.checkpoints is None:
            raise ConfigError("a training on a cluster needs a folder for its checkpoint", field="checkpoints")
        folder = run.checkpoints.resolve()
        device = "cpu" if run.device == "auto" else run.device  # the workers' machines are not this one
        run = run.model_copy(update={"checkpoints": folder, "device": device})
        logged = _epochs_logged(folder)
        with _cluster(workers):
            _fit(source, config, run, start, workers)
        # The last checkpoint is that of a finished training: to resume it is to return it.
        trained = train(data, split, config, run.model_copy(update={"resume": True}), start=start)
        for epoch in trained.history[logged:]:
            at = {"epoch": epoch.epoch, "epochs": config.optimisation.epochs, "step": 0, "steps": 0}
            (progress or (lambda _: None))(Progress(**at, loss=epoch.loss, finished=epoch))
        return trained

    return trainer


def _fit(source: Source, config: Config, run: Run, start: Mapping[str, Tensor] | None, workers: int) -> None:
    found = read(source.path, format=source.format)
    tables = {"events": found.events, "items": found.items, "users": found.users}
    options = ray.data.DataContext.get_current().execution_options
    options.preserve_order = True  # events of one second keep the order they came in
    asked = {
        "config": config.model_dump(mode="json"),
        "run": run.model_dump(mode="json"),
        "start": dict(start) if start is not None else None,
        "schemas": {name: table.schema for name, table in tables.items()},
    }
    storage = Path(tempfile.mkdtemp(prefix="bespoke-train-"))

    def trainer() -> TorchTrainer:
        return TorchTrainer(
            _work,
            train_loop_config=asked,
            datasets={name: ray.data.from_arrow(table) for name, table in tables.items()},
            dataset_config=ray.train.DataConfig(datasets_to_split=[]),  # histories are whole, batches are shared
            scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=run.device.startswith("cuda")),
            torch_config=TorchConfig(backend="nccl" if run.device.startswith("cuda") else "gloo"),
            run_config=ray.train.RunConfig(
                storage_path=str(storage), failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES)
            ),
        )

    try:
        _insist(trainer)
    except ray.train.TrainingFailedError as error:
        raise TrainingError(f"the training on the cluster failed: {_cause(error)}") from error
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def _insist(trainer: Callable[[], TorchTrainer]) -> None:
    """Fit, and start over where a worker died while Ray was talking to it: there Ray itself does not."""
    for _ in range(MAX_FAILURES):
        with suppress(ray.train.ControllerError):
            trainer().fit()
            return
    trainer().fit()


def _work(asked: dict[str, Any]) -> None:
    """What each worker does: take the data, and train as everywhere, from the checkpoint if there is one."""
    config, run = Config.model_validate(asked["config"]), Run.model_validate(asked["run"])
    tables = {name: _table(name, schema) for name, schema in asked["schemas"].items()}
    data = build_dataset(tables["events"], tables["items"], tables["users"], config=config)
    resumed = run.model_copy(update={"resume": True})
    train(data, make_split(data, config), config, resumed, start=asked["start"], group=Workers(pick_device(run.device)))


def _table(name: str, schema: pa.Schema) -> pa.Table:
    batches = ray.train.get_dataset_shard(name).iter_batches(batch_format="pyarrow", batch_size=None)
    parts = [batch for batch in batches if batch.num_rows]
    return pa.concat_tables(parts).cast(schema) if parts else schema.empty_table()


@contextmanager
def _cluster(workers: int) -> Iterator[None]:
    """Connect to the cluster that the environment names, or start one for as long as this takes."""
    if ray.is_initialized():
        yield
        return
    if os.environ.get(ADDRESS):
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
        try:
            yield
        finally:
            ray.shutdown()
        return
    folder = Path(tempfile.mkdtemp(prefix="bespoke-ray-"))
    try:
        ray.init(
            address="local",
            num_cpus=workers + 1,  # one for the reading
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            object_store_memory=256 << 20,
            # Ray hands the line that starts a worker to a shell, unquoted, and a path may hold a space.
            runtime_env={"py_executable": shlex.quote(sys.executable)},
            _temp_dir=str(folder),
        )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _epochs_logged(folder: Path) -> int:
    path = folder / LOG
    return sum('"epoch"' in line for line in path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0


def _cause(error: BaseException) -> str:
    """The innermost sentence of an error that travelled through Ray."""
    text = str(error).strip()
    return text.splitlines()[-1] if text else type(error).__name__
