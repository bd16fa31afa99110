"""The loop: from events and a configuration to two trained towers.

An epoch goes through every training event once; then the towers rank the whole catalogue for the validation targets, and
the best epoch is kept. A training can be killed at any step and resumed with the same result.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embeddings.bundle import build_towers
from embeddings.errors import TrainingError
from embeddings.features import FeatureSpec
from embeddings.two_tower import TwoTower
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.config import Config, Run, SpectrumConfig
from training.dataset import Dataset, Split
from training.device import pick_device, seeded
from training.group import Group, seed_apart
from training.objective import Objective
from training.optimizer import Optimizer
from training.queries import encode_queries, rank_all, seen_items, validate
from training.spectrum import begin
from training.windows import Batch, Windows

__all__ = ["Epoch", "Progress", "Trained", "encode_queries", "rank_all", "refit", "seen_items", "train"]

MAX_SKIPPED = 5
"""So many batches in a row without a finite gradient end the training: it has diverged."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch came to: mean training loss, metrics on the validation targets, seconds of its steps."""

    epoch: int
    loss: float
    metrics: dict[str, float]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a training stands: reported after every step, and once more with `finished` after every epoch."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    finished: Epoch | None = None

    @property
    def share(self) -> float:
        """How much of all epochs is done: 0 to 1."""
        return (self.epoch - 1 + self.step / max(1, self.steps)) / self.epochs


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Towers of the best epoch (on the CPU, in evaluation mode), and how they came about.

    `stopped` says in words why the training ended; `skipped` counts the batches whose update would not have been finite.
    `start` are the validation metrics of the weights that a warm start or a spectrum began with; where no epoch is better
    they are kept, and the best epoch is 0. `spectrum` are the settings that validation chose for it.
    """

    towers: TwoTower
    spec: FeatureSpec
    history: tuple[Epoch, ...]
    best_epoch: int
    seconds: float
    stopped: str
    skipped: int
    start: dict[str, float]
    spectrum: SpectrumConfig | None = None

    @property
    def validation(self) -> dict[str, float]:
        """Validation metrics of the weights that were kept."""
        return self.history[self.best_epoch - 1].metrics if self.best_epoch else self.start


@dataclass(kw_only=True)
class _State:
    # Everything of a running training that is not a tensor: JSON in the checkpoint.
    epoch: int = 1
    step: int = 0
    updates: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    best: float | None = None
    best_epoch: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    start: dict[str, float] = field(default_factory=dict)


def train(
    data: Dataset,
    split: Split,
    config: Config,
    run: Run,
    *,
    start: Mapping[str, Tensor] | None = None,
    group: Group | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Trained:
    """Train both towers on the events that `split.train` marks, and keep the epoch with the best validation NDCG@10.

    The same arguments give the same weights, bit for bit, on one machine's CPU with one number of threads; the caller's
    random state is left alone. Without validation targets the last epoch is kept. `start` are the weights to begin with,
    random ones or those of a spectrum if left out; `group` are the workers that share every batch, this process alone if
    left out. Raises `TrainingError` for a device that is not there, a checkpoint of another training, a loss that stays
    non-finite, and for a `start` where the configuration asks for a spectrum.
    """
    device, chosen = pick_device(run.device), None
    if config.spectrum is not None and start is not None:
        raise TrainingError("a spectrum is found from nothing, whatever was trained before: train without a warm start")
    with seeded(run, device):
        begun = time.monotonic()
        if config.spectrum is not None:
            beginning = begin(data, split, config, seed=run.seed)
            start, chosen = beginning.weights, beginning.settings
        before = time.monotonic() - begun
        training = _Training(data, split, config, run, device, start, group or Group(), progress or (lambda _: None))
        trained = training.finish()
        return replace(trained, seconds=before + trained.seconds, spectrum=chosen)


def refit(
    data: Dataset,
    split: Split,
    config: Config,
    run: Run,
    chosen: Trained,
    *,
    progress: Callable[[Progress], None] | None = None,
) -> Trained:
    """Train again for the number of epochs that `chosen` was best at, on a split that holds out no validation targets.

    Where the most recent events were held out to choose by, this gives the towers that have seen them.
    """
    if len(split.validation):
        raise TrainingError("a split that still holds out validation targets is one to choose by, not to refit on")
    least = 0 if config.spectrum else 1
    changes: dict[str, Any] = {
        "optimisation": config.optimisation.model_copy(update={"epochs": max(least, chosen.best_epoch)})
    }
    if config.spectrum:
        changes["spectrum"] = chosen.spectrum
    return train(data, split, config.model_copy(update=changes), run, progress=progress)


class _Training:
    def __init__(
        self,
        data: Dataset,
        split: Split,
        config: Config,
        run: Run,
        device: torch.device,
        start: Mapping[str, Tensor] | None,
        group: Group,
        progress: Callable[[Progress], None],
    ) -> None:
        self.data, self.split, self.config, self.run = data, split, config, run
        self.settings, self.device, self.group, self.progress = config.optimisation, device, group, progress
        self.windows = Windows(
            data,
            split,
            max_history=config.towers.max_history,
            batch=config.optimisation.batch,
            hide_seen=config.loss.hide_seen,
            single=config.towers.encoder == "filtered",
        )
        if not self.windows.scored.any():
            raise TrainingError("no training event is of a positive type: there is nothing to learn from")
        self.catalogue = data.spec.item_features(data.item_rows(), np.arange(len(data.items)))
        self.towers = build_towers(config.towers, data.spec, items=len(data.items)).to(device)
        if start is not None:
            self.towers.load_state_dict(start)
        self.objective = Objective(
            self.towers,
            self.catalogue,
            config.loss,
            gather=group.gather,
            compile=run.compile and device.type == "cuda",
        )
        self.optimizer = Optimizer(self.towers, self.settings, by_rows=not self.objective.full)
        self.state, self.best = _State(), _copy(self.towers)
        self.identity = {
            "config": config.model_dump(mode="json"),
            "data": data.fingerprint(),
            "split": hashlib.sha256(np.packbits(split.train).tobytes() + split.validation.events.tobytes()).hexdigest(),
            "seed": run.seed,
            "device": device.type,
        }
        if start is not None:
            self.identity["start"] = _digest(start)
        if run.resume and run.checkpoints is not None:
            self._restore(load_checkpoint(run.checkpoints, identity=self.identity))
        seed_apart(group, run.seed)
        if start is not None and not self.state.start:
            self._judge_start()
        self.started = time.monotonic() - self.state.seconds
        self.saved = time.monotonic()

    def finish(self) -> Trained:
        state, stopped = self.state, self._patience_is_over()
        while not stopped and state.epoch <= self.settings.epochs:
            stopped = self._run_epoch() or self._close_epoch()
        if state.best is None:  # nothing to choose by: the last weights are the ones
            self.best = _copy(self.towers)
        self.towers.load_state_dict(self.best)
        return Trained(
            towers=self.towers.cpu().eval(),
            spec=self.data.spec,
            history=tuple(Epoch(**entry) for entry in state.history),
            best_epoch=len(state.history) if state.best is None else state.best_epoch,
            seconds=time.monotonic() - self.started,
            stopped=stopped or f"all {self.settings.epochs} epochs are done",
            skipped=state.skipped,
            start=state.start,
        )

    def _judge_start(self) -> None:
        """The weights of a warm start are the first that the best is chosen from."""
        self.state.start = self._validate()
        self.state.best = self.state.start.get("ndcg@10")

    def _run_epoch(self) -> str:
        """Take the steps that are left of the epoch; returns the reason if the training must stop within it."""
        state, limit = self.state, self.run.max_minutes
        batches = self.windows.epoch(self.run.seed, state.epoch)
        begun = time.monotonic() - state.epoch_seconds
        self.towers.train()
        while state.step < len(batches):
            loss = self._step(self.windows.collate(self.group.share(batches[state.step])))
            state.step += 1
            state.epoch_seconds = time.monotonic() - begun
            self._save(after=self.run.checkpoint_seconds)
            self._report(len(batches), loss)
            if limit is not None and self.group.any(time.monotonic() - self.started >= 60 * limit):
                self._save(after=0.0)
                return f"the limit of {limit:g} minutes was reached in epoch {state.epoch}"
        return ""

    def _step(self, batch: Batch) -> float:
        """Take one step and return the loss; an update that is not finite is not made."""
        state = self.state
        self.optimizer.zero_grad()
        loss = self.objective.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        value, count = self.group.average(self.towers, float(loss.detach()), len(batch))
        norm = self.optimizer.clip()
        if not (math.isfinite(value) and math.isfinite(norm)):
            self._skip(f"epoch {state.epoch}, step {state.step + 1}: loss {value}, gradient norm {norm}")
            return value
        self.optimizer.step(state.updates)
        state.updates += 1
        state.skipped_in_a_row = 0
        state.loss_sum += value * count
        state.loss_count += count
        return value

    def _skip(self, what: str) -> None:
        state = self.state
        state.skipped += 1
        state.skipped_in_a_row += 1
        log.warning("prevented an update that is not finite, skipped the batch (%s)", what)
        if state.skipped_in_a_row >= MAX_SKIPPED:
            raise TrainingError(
                f"training has diverged: {MAX_SKIPPED} batches in a row would have made the weights non-finite ({what}). "
                "None of these updates was made; try a lower learning rate or a higher temperature"
            )

    def _close_epoch(self) -> str:
        """Validate, keep the towers if they are the best so far; returns the reason if the training must stop here."""
        state, steps = self.state, self.state.step
        loss = state.loss_sum / state.loss_count if state.loss_count else math.nan
        done = Epoch(epoch=state.epoch, loss=loss, metrics=self._validate(), seconds=state.epoch_seconds)
        state.history.append(vars(done))
        found = done.metrics.get("ndcg@10")
        if found is not None and (state.best is None or found > state.best):
            state.best, state.best_epoch, self.best = found, state.epoch, _copy(self.towers)
        state.step, state.loss_sum, state.loss_count, state.epoch_seconds = 0, 0.0, 0, 0.0
        state.epoch += 1
        self._save(after=0.0)
        self._report(steps, loss, done)
        return self._patience_is_over()

    def _patience_is_over(self) -> str:
        waited = len(self.state.history) - self.state.best_epoch
        if self.state.best is None or waited < self.settings.patience:
            return ""
        return f"no better validation NDCG@10 in {waited} epochs"

    def _validate(self) -> dict[str, float]:
        if not len(self.split.validation):
            return {}
        return self.group.agree(validate(self.data, self.towers, self.catalogue, self.split.validation))

    def _report(self, steps: int, loss: float, finished: Epoch | None = None) -> None:
        at = (finished.epoch, steps) if finished else (self.state.epoch, self.state.step)
        epochs = self.settings.epochs
        self.progress(Progress(epoch=at[0], epochs=epochs, step=at[1], steps=steps, loss=loss, finished=finished))

    def _save(self, *, after: float) -> None:
        now = time.monotonic()
        if self.run.checkpoints is None or self.group.rank or now - self.saved < after:
            return
        self.state.seconds, self.saved = now - self.started, now
        tensors = {f"optimizer.{name}": value for name, value in self.optimizer.tensors().items()}
        tensors |= {f"towers.{name}": weight for name, weight in self.towers.state_dict().items()}
        tensors |= {f"best.{name}": weight for name, weight in self.best.items()}
        tensors["random.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        found = Checkpoint(identity=self.identity, tensors=tensors, state=vars(self.state))
        save_checkpoint(self.run.checkpoints, found)

    def _restore(self, found: Checkpoint | None) -> None:
        if found is None:
            return
        self.state = _State(**found.state)
        self.towers.load_state_dict(found.part("towers."))
        self.best = {name: weight.to(self.device) for name, weight in found.part("best.").items()}
        self.optimizer.restore(found.part("optimizer."))
        torch.set_rng_state(found.tensors["random.cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(found.tensors["random.cuda"], self.device)


def _copy(towers: TwoTower) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in towers.state_dict().items()}


def _digest(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
