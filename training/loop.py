"""The loop: from events and a configuration to two trained towers.

One step encodes the catalogue with the item tower, reads a batch of windows with the user tower as those item vectors,
and scores every position against the catalogue. After an epoch the towers rank the whole catalogue for the validation
targets; the best epoch is kept. A training can be stopped at any step and resumed with the same result.

Shape suffixes: B windows, L events, T = L + 1 places, P positions, C context tokens, D dimensions, N items.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embeddings.bundle import build_towers
from embeddings.errors import TrainingError
from embeddings.features import FeatureSpec, ItemFeatures
from embeddings.two_tower import ItemTensors, TwoTower
from training.checkpoint import Checkpoint, load_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from training.config import Config, Run
from training.dataset import Dataset, Split
from training.losses import draw_candidates, full_softmax, sampled_softmax
from training.metrics import score
from training.queries import encode_queries, rank_all, seen_items
from training.windows import Batch, Windows

__all__ = ["Epoch", "Progress", "Trained", "encode_queries", "pick_device", "rank_all", "seen_items", "train"]

MAX_SKIPPED = 5
"""So many batches in a row without a finite loss end the training: it has diverged."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch came to: mean training loss, metrics on the validation targets, seconds it took."""

    epoch: int
    loss: float
    metrics: dict[str, float]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a training stands, for a progress bar: after every step, and with `finished` after every epoch."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    finished: Epoch | None = None


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Towers of the best epoch, on the CPU and in evaluation mode, and how they came about."""

    towers: TwoTower
    spec: FeatureSpec
    history: list[Epoch]
    best_epoch: int
    seconds: float
    stopped: str
    skipped: int = 0


@dataclass(kw_only=True)
class _State:
    """Everything of the loop that is not a tensor; it is JSON in the checkpoint."""

    epoch: int = 1
    step: int = 0
    steps_taken: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    best_epoch: int = 0
    best: float = -math.inf
    skipped: int = 0
    skipped_in_a_row: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


def train(
    data: Dataset, split: Split, config: Config, run: Run, *, progress: Callable[[Progress], None] | None = None
) -> Trained:
    """Train both towers on the events that `split.train` marks, and keep the epoch best on `split.validation`.

    Two trainings with the same arguments give the same weights, bit for bit, on one machine's CPU; the caller's random
    state is left alone. Raises `TrainingError` for a device that is not there, for a checkpoint of another training,
    and when the loss stays non-finite.
    """
    device = pick_device(run.device)
    with _surroundings(run, device):
        return _Loop(data, split, config, run, device, progress or (lambda _: None)).run_all()


def pick_device(name: str) -> torch.device:
    """Device by name: `auto` takes a GPU if there is one; raises `TrainingError` if the named one is missing."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise TrainingError(f"device '{name}' was asked for, but this machine offers {count or 'no'} CUDA GPUs")
    return device


@contextlib.contextmanager
def _surroundings(run: Run, device: torch.device) -> Iterator[None]:
    threads = torch.get_num_threads()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            torch.set_num_threads(run.threads or threads)
            torch.manual_seed(run.seed)
            yield
        finally:
            torch.set_num_threads(threads)


class _Loop:
    """One training. The constructor makes or restores the state, `run_all` drives it."""

    def __init__(
        self,
        data: Dataset,
        split: Split,
        config: Config,
        run: Run,
        device: torch.device,
        progress: Callable[[Progress], None],
    ) -> None:
        self.data, self.split, self.config, self.run = data, split, config, run
        self.device, self.progress, self.state = device, progress, _State()
        self.windows = Windows(
            data,
            split,
            max_history=config.towers.max_history,
            batch=config.optimisation.batch,
            hide_seen=config.loss.hide_seen,
        )
        if not self.windows.scored.any():
            raise TrainingError("no training event is of a positive type: there is nothing to learn from")
        self.catalogue: ItemFeatures = data.spec.item_features(data.item_rows(), np.arange(len(data.items)))
        self.full = len(data.items) <= config.loss.full_up_to
        self.item_tensors = ItemTensors(self.catalogue, device)
        self.towers = build_towers(config.towers, data.spec, items=len(data.items)).to(device)
        self.optimizer = _optimizer(self.towers, config)
        self.best = {name: weight.detach().clone() for name, weight in self.towers.state_dict().items()}
        self.identity = {
            "config": config.model_dump(mode="json"),
            "data": data.fingerprint(),
            "training_events": int(split.train.sum()),
            "seed": run.seed,
            "device": device.type,
        }
        if run.resume and run.checkpoints is not None:
            self._restore(load_checkpoint(run.checkpoints, identity=self.identity))
        compiled = run.compile and device.type == "cuda"
        self.read = torch.compile(self.towers.users, dynamic=True) if compiled else self.towers.users
        self.resumed_at, self.started, self.saved = self.state.seconds, time.monotonic(), time.monotonic()

    def run_all(self) -> Trained:
        state, config = self.state, self.config.optimisation
        stopped = ""
        while not stopped and state.epoch <= config.epochs:
            stopped = self._run_epoch()
            if not stopped:
                self._finish_epoch()
                since_best = state.epoch - 1 - state.best_epoch
                if state.best_epoch and since_best >= config.patience:
                    stopped = f"no better validation NDCG@10 for {since_best} epochs"
        if not state.best_epoch:  # nothing to choose by: the last weights are the ones
            self._remember()
        self.towers.load_state_dict(self.best)
        return Trained(
            towers=self.towers.cpu().eval(),
            spec=self.data.spec,
            history=[Epoch(**entry) for entry in state.history],
            best_epoch=state.best_epoch or state.epoch - 1,
            seconds=self._clock(),
            stopped=stopped or f"all {config.epochs} epochs done",
            skipped=state.skipped,
        )

    def _run_epoch(self) -> str:
        """Run what is left of the epoch; returns the reason if the training must stop within it."""
        state = self.state
        batches = self.windows.epoch(self.run.seed, state.epoch)
        begun = time.monotonic() - state.epoch_seconds
        self.towers.train()
        while state.step < len(batches):
            loss = self._step(self.windows.collate(batches[state.step]))
            state.step += 1
            state.epoch_seconds = time.monotonic() - begun
            self._save(every=self.run.checkpoint_seconds)
            self.progress(self._progress(len(batches), loss))
            if self.run.max_minutes is not None and self._clock() >= 60 * self.run.max_minutes:
                self._save(every=0.0)
                return f"the limit of {self.run.max_minutes:g} minutes was reached in epoch {state.epoch}"
        return ""

    def _step(self, batch: Batch) -> float:
        """Take one optimisation step and return the loss; a step that would not be finite is not taken."""
        state, settings = self.state, self.config.optimisation
        rate = settings.learning_rate * min(1.0, (state.steps_taken + 1) / max(1, settings.warmup_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self._loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.towers.parameters(), settings.clip)
        value = float(loss.detach())
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            self._skip(value, float(norm))
            return value
        self.optimizer.step()
        state.steps_taken += 1
        state.skipped_in_a_row = 0
        state.loss_sum += value * len(batch)
        state.loss_count += len(batch)
        return value

    def _loss(self, batch: Batch) -> Tensor:
        """Mean loss of a batch, by the full or the sampled softmax."""
        put, settings = self._put, self.config.loss
        targets_P = put(batch.targets)
        if self.full:
            items_ND = self.towers.items(self.item_tensors)
            queries_PD = self._queries(batch, items_ND[put(batch.rows)])
            return full_softmax(
                queries_PD,
                items_ND,
                targets_P,
                hidden_at=put(batch.hidden_at),
                hidden_rows=put(batch.hidden_rows),
                temperature=settings.temperature,
                chunk_mb=settings.chunk_mb,
            )
        rows_M, expected_M = draw_candidates(
            targets_P, items=len(self.data.items), negatives=settings.negatives, in_batch=settings.in_batch
        )
        used = np.unique(np.concatenate([batch.rows.reshape(-1), batch.targets, rows_M.cpu().numpy()]))
        vectors_UD = self.towers.items(ItemTensors(self.catalogue.take(used), self.device))
        at = torch.from_numpy(np.searchsorted(used, batch.rows)).to(self.device)
        where = torch.from_numpy(used).to(self.device)
        return sampled_softmax(
            self._queries(batch, vectors_UD[at]),
            vectors_UD[torch.searchsorted(where, targets_P)],
            vectors_UD[torch.searchsorted(where, rows_M)],
            targets_P=targets_P,
            candidates_M=rows_M,
            expected_M=expected_M,
            temperature=settings.temperature,
        )

    def _queries(self, batch: Batch, vectors_BLD: Tensor) -> Tensor:
        put = self._put
        states_BTD = self.read(vectors_BLD, put(batch.types), put(batch.gaps))
        return self.towers.users.query(states_BTD[put(batch.windows), put(batch.places)], put(batch.tokens))

    def _put(self, array: Any) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def _skip(self, loss: float, norm: float) -> None:
        state = self.state
        state.skipped += 1
        state.skipped_in_a_row += 1
        what = f"epoch {state.epoch}, step {state.step}: loss {loss}, gradient norm {norm}"
        log.warning("prevented a non-finite update and skipped the batch (%s)", what)
        if state.skipped_in_a_row >= MAX_SKIPPED:
            raise TrainingError(
                f"{MAX_SKIPPED} batches in a row had no finite loss ({what}); no such update was taken. "
                "Lower the learning rate or raise the temperature"
            )

    def _finish_epoch(self) -> None:
        state = self.state
        metrics = self._validate()
        done = Epoch(
            epoch=state.epoch,
            loss=state.loss_sum / max(1, state.loss_count),
            metrics=metrics,
            seconds=state.epoch_seconds,
        )
        state.history.append(vars(done))
        if metrics and metrics["ndcg@10"] > state.best:
            state.best, state.best_epoch = metrics["ndcg@10"], state.epoch
            self._remember()
        steps = state.step
        report = Progress(
            epoch=state.epoch, epochs=self.config.optimisation.epochs, step=steps, steps=steps, loss=done.loss, finished=done
        )
        state.epoch, state.step, state.loss_sum, state.loss_count, state.epoch_seconds = state.epoch + 1, 0, 0.0, 0, 0.0
        self._save(every=0.0)
        self.progress(report)

    def _validate(self) -> dict[str, float]:
        targets = self.split.validation
        if not len(targets):
            return {}
        matrix = self.towers.items.encode(self.catalogue)
        queries = encode_queries(self.data, self.towers, matrix, targets)
        ranked = rank_all(queries, matrix, seen_items(self.data, targets), 10, device=self.device)
        return score(ranked, (targets.bounds, targets.rows), k=[10], metrics=["recall", "ndcg"]).means

    def _remember(self) -> None:
        self.best = {name: weight.detach().clone() for name, weight in self.towers.state_dict().items()}

    def _clock(self) -> float:
        return self.resumed_at + time.monotonic() - self.started

    def _progress(self, steps: int, loss: float) -> Progress:
        state = self.state
        return Progress(
            epoch=state.epoch, epochs=self.config.optimisation.epochs, step=state.step, steps=steps, loss=loss
        )

    def _save(self, *, every: float) -> None:
        if self.run.checkpoints is None or time.monotonic() - self.saved < every:
            return
        self.state.seconds = self._clock()
        tensors = optimizer_tensors(self.optimizer)
        tensors |= {f"towers.{name}": weight for name, weight in self.towers.state_dict().items()}
        tensors |= {f"best.{name}": weight for name, weight in self.best.items()}
        tensors["random.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        state = {**vars(self.state), "best": self.state.best if self.state.best_epoch else None}
        save_checkpoint(self.run.checkpoints, Checkpoint(identity=self.identity, tensors=tensors, state=state))
        self.saved = time.monotonic()

    def _restore(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None:
            return
        self.state = _State(**{**checkpoint.state, "best": checkpoint.state["best"] or -math.inf})

        def part(prefix: str) -> dict[str, Tensor]:
            chosen = {name: value for name, value in checkpoint.tensors.items() if name.startswith(prefix)}
            return {name.removeprefix(prefix): value.to(self.device) for name, value in chosen.items()}

        self.towers.load_state_dict(part("towers."))
        self.best = part("best.")
        restore_optimizer(self.optimizer, checkpoint.tensors)
        torch.set_rng_state(checkpoint.tensors["random.cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(checkpoint.tensors["random.cuda"], self.device)


def _optimizer(towers: TwoTower, config: Config) -> torch.optim.Optimizer:
    settings = config.optimisation
    decayed = [weight for weight in towers.parameters() if weight.ndim >= 2]
    spared = [weight for weight in towers.parameters() if weight.ndim < 2]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas)
