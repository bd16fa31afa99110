"""Training of the ranking model: from ranking lists to a ranker that is calibrated and never worse than retrieval.

The lists come from events that the retriever was not trained on, those of the validation targets. A fifth of the
people is held out: they decide when to stop and how to calibrate. A ranker starts as the retrieval order itself; where no
epoch improves on it, that is what it stays.

Shape suffixes: B lists of a batch, K candidates, L events of a history, D dimensions, O objectives, Q targets.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional as F

from embeddings.features import Floats, Ints
from embeddings.ids import UNKNOWN, bucket
from embeddings.ranker import Ranker, RankerConfig
from training.dataset import Dataset, Mask, Targets
from training.examples import ListMaker, Lists, outcomes
from training.metrics import Scores, expected_calibration_error, log_loss, score

log = logging.getLogger(__name__)

HELD_OUT_OF = 5
"""One person in five is held out."""

CALIBRATION_BINS = 100
"""A candidate in two hundred is the right one: ten bins would put nearly all of them into the first."""


class Learning(BaseModel):
    """How the ranking model is trained; what it is stands in `RankerConfig`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float = Field(default=1e-3, gt=0.0)
    weight_decay: float = Field(default=0.1, ge=0.0)
    batch: int = Field(default=32, ge=1, description="lists a step")
    epochs: int = Field(default=30, ge=1)
    patience: int = Field(default=6, ge=1, description="epochs without a better held-out NDCG@10 before it stops")
    pointwise: float = Field(default=0.3, ge=0.0, description="weight of the cross-entropy of single candidates")
    max_lists: int = Field(default=20_000, ge=1)


@dataclass(frozen=True, kw_only=True)
class Report:
    """How a ranking model came about; figures are those of held-out people.

    `retrieval` and `ranker` are their recall@10 and ndcg@10, `found` is the share of lists that hold an item to be
    found. `calibration` has, for each objective, the expected calibration error (measured on people whom the
    calibration itself had not seen), log loss, and base rate.
    """

    lists: int
    held_out: int
    found: float
    best_epoch: int
    retrieval: dict[str, float]
    ranker: dict[str, float]
    calibration: dict[str, dict[str, float]] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A ranking model, in evaluation mode on the CPU, and its report."""

    ranker: Ranker
    report: Report


def fit_ranker(
    maker: ListMaker,
    targets: Targets,
    *,
    learning: Learning | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Fitted:
    """Train a ranking model on the lists of `targets`, which the retriever must not have been trained on.

    Objectives that never occur are left out, with a word in the log: nothing can be learned about them. `progress` gets
    the epochs done and their number. The same arguments give the same model on one machine's CPU, and the caller's
    random state is left alone.
    """
    learning = learning or Learning()
    targets = _at_most(maker.data, targets, learning.max_lists)
    held = held_out(maker.data, targets)
    fitting, judging = targets.take(np.flatnonzero(~held)), targets.take(np.flatnonzero(held))
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return _Fit(maker, fitting, judging, learning, seed).run(progress or (lambda done, of: None))


def held_out(data: Dataset, targets: Targets) -> Mask:
    """The targets [Q] that judge and do not teach: a fixed fifth of the people, the same in every run."""
    names = data.users.ids(targets.users)
    return np.array([bucket(name, HELD_OUT_OF, salt="ranker") == 0 for name in names], dtype=np.bool_)


def rerank(ranker: Ranker, lists: Lists, matrix: Floats, *, batch: int = 256) -> Ints:
    """Candidates [Q, K] in the ranker's order: by the mean probability of its objectives, ties in retrieval order."""
    ranked = np.full_like(lists.rows, UNKNOWN)
    logits = predict(ranker, lists, matrix, batch=batch)
    merit = ranker.probabilities(logits).mean(-1).numpy()
    merit[lists.rows == UNKNOWN] = -np.inf
    order = np.argsort(-merit, axis=1, kind="stable")
    ranked[...] = np.take_along_axis(lists.rows, order, axis=1)
    return ranked


@torch.inference_mode()
def predict(ranker: Ranker, lists: Lists, matrix: Floats, *, batch: int = 256) -> Tensor:
    """Uncalibrated logits [Q, K, O] of every candidate, on the CPU."""
    was_training = ranker.training
    ranker.eval()
    parts = [ranker(*_inputs(lists, at, matrix)) for at in _batches(np.arange(len(lists)), batch)]
    ranker.train(was_training)
    width = lists.rows.shape[1]
    return torch.cat(parts) if parts else torch.zeros(0, width, len(ranker.config.objectives))


class _Fit:
    """One training: `run` drives it."""

    def __init__(
        self, maker: ListMaker, fitting: Targets, judging: Targets, learning: Learning, seed: int
    ) -> None:
        self.matrix, self.learning, self.rng = maker.matrix, learning, np.random.default_rng(seed)
        self.lists, self.judged, self.judging = maker.make(fitting), maker.make(judging), judging
        labels = outcomes(maker.data, fitting, self.lists.rows, maker.config)
        self.config, kept = _learnable(maker.config, labels)
        self.labels = labels[..., kept]
        self.answers = outcomes(maker.data, judging, self.judged.rows, self.config)
        self.ranker = Ranker(self.config, dim=self.matrix.shape[1])

    def run(self, progress: Callable[[int, int], None]) -> Fitted:
        learning, judged = self.learning, bool(len(self.judged))
        retrieval = self._judge(self.judged.rows)
        untrained = self._start()
        best, best_epoch, epochs = retrieval["ndcg@10"], 0, learning.epochs if judged and self.labels.any() else 0
        optimizer = torch.optim.AdamW(_groups(self.ranker, learning.weight_decay), lr=learning.learning_rate)
        for epoch in range(1, epochs + 1):
            self._epoch(optimizer)
            now = self._judge(rerank(self.ranker, self.judged, self.matrix))["ndcg@10"]
            progress(epoch, epochs)
            if now > best:
                best, best_epoch, untrained = now, epoch, copy.deepcopy(self.ranker.state_dict())
            if epoch - best_epoch >= learning.patience:
                break
        self.ranker.load_state_dict(untrained)
        return self._finish(best_epoch, retrieval)
