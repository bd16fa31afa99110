"""What a run folder holds, by name, and what a finished run says of itself.

RUN/
config.json              the configuration, whole
checkpoint.safetensors   where the training of the towers stands, for --resume
log.jsonl                one line an epoch
tensorboard/             the same as TensorBoard reads it, and losses between the epochs
quarantine.jsonl         rows of the data that were refused, if there were any
features.json            what the featurizer learned
items.json               ids of the items, in the order of the id table
towers.safetensors       the towers of the best epoch
ranker.safetensors       the ranking model, if the configuration asks for one
evaluation.json          the table, once it was computed
cold_start.json          how new items and new people fare, once it was measured
run.json                 data, seed, what came of it; written last: a folder without it is unfinished
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from embeddings.ranker import RankerConfig
from training.loop import Epoch

CONFIG, LOG, DONE = "config.json", "log.jsonl", "run.json"
FEATURES, ITEMS = "features.json", "items.json"
TOWERS, RANKER, EVALUATION = "towers.safetensors", "ranker.safetensors", "evaluation.json"
QUARANTINE, TENSORBOARD, COLD_START = "quarantine.jsonl", "tensorboard", "cold_start.json"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Part):
    """Where the data of a run lie, and how they are to be read."""

    path: Path
    format: str = "auto"


class Effort(_Part):
    """What it took a training to its best epoch: epochs, seconds of their steps, and the validation NDCG@10 there."""

    epochs: int
    seconds: float
    ndcg: float


class WarmStart(_Part):
    """How a training went on from another model.

    `kept` items came with their id vector, `new` ones without, `retired` ones are gone. `at_start` is the validation
    NDCG@10 before the first step. `cold` is what the last training from nothing took, on the data of its day, and
    `reached` what this one took to come as far; None if it never did, or nobody knows.
    """

    origin: str
    kept: int
    new: int
    retired: int
    at_start: float | None
    cold: Effort | None
    reached: Effort | None

    @property
    def saved(self) -> float | None:
        """Seconds of training saved to the cold training's NDCG@10."""
        return self.cold.seconds - self.reached.seconds if self.cold and self.reached else None

    def words(self) -> str:
        """The same in sentences."""
        begin = "" if self.at_start is None else f"; validation NDCG@10 {self.at_start:.4f} before the first step"
        kept = (
            f"Started from {self.origin}: {self.kept:,} items kept, {self.new:,} new, {self.retired:,} retired{begin}."
        )
        if self.cold is None:
            return kept
        if self.reached is None:
            return (
                f"{kept} It did not come as far as the training from nothing ({self.cold.ndcg:.4f}, on its day's data)."
            )
        return (
            f"{kept} It came as far as the training from nothing ({self.cold.ndcg:.4f}) after {self.reached.epochs} epochs "
            f"and {self.reached.seconds:.0f} s instead of {self.cold.epochs} epochs and {self.cold.seconds:.0f} s: "
            f"{self.saved:.0f} s saved."
        )


class About(_Part):
    """What a finished run says of itself; `cold` is what the last training from nothing took, this one or an earlier."""

    finished_at: datetime
    source: Source
    fingerprint: str
    seed: int
    device: str
    seconds: float
    epochs: int
    best_epoch: int
    stopped: str
    skipped: int
    validation: dict[str, float]
    ranker: RankerConfig | None
    report: dict[str, Any] | None
    cold: Effort | None = None
    warm_start: WarmStart | None = None


def effort(history: Sequence[Epoch], best_epoch: int) -> Effort | None:
    """What a training took to its best epoch; None if there was nothing to judge it by."""
    if not best_epoch or "ndcg@10" not in history[best_epoch - 1].metrics:
        return None
    return _effort(history, best_epoch)


def effort_to_reach(history: Sequence[Epoch], ndcg: float, *, at_start: float | None) -> Effort | None:
    """What a training took until its validation NDCG@10 was at least this; None if it never was."""
    if at_start is not None and at_start >= ndcg:
        return Effort(epochs=0, seconds=0.0, ndcg=at_start)
    far = [entry.epoch for entry in history if entry.metrics.get("ndcg@10", -1.0) >= ndcg]
    return _effort(history, far[0]) if far else None


def _effort(history: Sequence[Epoch], epochs: int) -> Effort:
    seconds = sum(entry.seconds for entry in history[:epochs])
    return Effort(epochs=epochs, seconds=seconds, ndcg=history[epochs - 1].metrics["ndcg@10"])
