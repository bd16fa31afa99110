"""Training of the ranking model: from ranking lists to a ranker that is calibrated and begins as the retrieval order.

The lists come from the validation targets, which the retriever was not trained on. A fifth of the people is held out:
they decide when to stop and how to calibrate. A ranker starts as the retrieval order itself; where no epoch improves on
it, that is what it stays.

Who chose an epoch cannot say how good it is. So each half of the people held out chooses an epoch too, and calibrates it,
and is judged by what the other half chose: those are the figures of the report. The model itself is chosen by all of them.

Measured on MovieLens latest-small (one seed): holding out a further 5% of everybody's events, for five times as many
lists, costs the retriever more (test NDCG@10 .0748 to .0702) than it brings the ranker (.0754 to .0706).

Shape suffixes: B lists of a batch, K candidates, L events of a history, D dimensions, O objectives, Q targets.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embeddings.arrays import Floats, Ints, Mask
from embeddings.ids import UNKNOWN, bucket
from embeddings.ranker import Ranker, RankerConfig
from training.calibration import cross_calibration, platt
from training.config import Learning
from training.dataset import Dataset, Targets
from training.examples import ListMaker, Lists, outcomes
from training.metrics import Interval, Scores, Values, score

log = logging.getLogger(__name__)

HELD_OUT_OF = 5
"""One person in five is held out."""

JUDGE = "ndcg@10"
EVERYBODY = slice(None)


@dataclass(frozen=True, kw_only=True)
class Report:
    """How a ranking model came about; figures are those of held-out people.

    `retrieval` and `ranker` are their recall@10 and ndcg@10, `gain` is what the ranker adds to the ndcg@10, with its
    interval; each half of them is judged by what the other half chose. `found` is the share of lists that hold an item to
    be found. `best_epoch` is the one that all of them chose. `calibration` has, for each objective, the expected
    calibration error (measured on people whom the calibration itself had not seen), log loss, and base rate. `left_out`
    are objectives that never occurred.
    """

    lists: int
    held_out: int
    found: float
    best_epoch: int
    retrieval: dict[str, float]
    ranker: dict[str, float]
    gain: Interval
    calibration: dict[str, dict[str, float]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
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

    Objectives that never occur are left out: nothing can be learned about them. `progress` gets the epochs done and
    their number. The same arguments give the same model on one machine's CPU, and the caller's
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


def _half(data: Dataset, targets: Targets) -> Mask:
    """Half of the targets [Q], by their people."""
    return np.array([bucket(name, 2, salt="half") == 0 for name in data.users.ids(targets.users)], dtype=np.bool_)


def rerank(ranker: Ranker, lists: Lists, matrix: Floats, *, batch: int = 256) -> Ints:
    """Candidates [Q, K] in the ranker's order, best first."""
    return in_order(lists, ranker.probabilities(predict(ranker, lists, matrix, batch=batch)))


def in_order(lists: Lists, probabilities_QKO: Tensor) -> Ints:
    """Candidates [Q, K] by the mean probability of the objectives, ties in retrieval order."""
    merit = probabilities_QKO.mean(-1).numpy()
    merit[lists.rows == UNKNOWN] = -np.inf
    order = np.argsort(-merit, axis=1, kind="stable")
    ranked: Ints = np.take_along_axis(lists.rows, order, axis=1)
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


@dataclass
class _Choice:
    """The epoch that is best for some of the people held out, `whom` [C] among them, and its weights."""

    whom: Ints
    weights: dict[str, Tensor]
    ndcg: float
    epoch: int = 0

    def see(self, epoch: int, ndcg_Q: Values, weights: dict[str, Tensor]) -> None:
        """Take the weights of this epoch if it is better than those before."""
        ndcg = _mean(ndcg_Q[self.whom])
        if ndcg > self.ndcg:
            self.weights, self.ndcg, self.epoch = weights, ndcg, epoch


class _Fit:
    """One training: `run` drives it."""

    def __init__(self, maker: ListMaker, fitting: Targets, judging: Targets, learning: Learning, seed: int) -> None:
        self.matrix, self.learning, self.rng = maker.matrix, learning, np.random.default_rng(seed)
        self.lists, self.judged, self.judging = maker.make(fitting), maker.make(judging), judging
        labels = outcomes(maker.data, fitting, self.lists.rows, maker.config)
        config, kept = _learnable(maker.config, labels)
        self.left_out = tuple(name for name in maker.config.objectives if name not in config.objectives)
        self.labels = labels[..., kept]
        self.half = _half(maker.data, judging)
        self.answers = outcomes(maker.data, judging, self.judged.rows, config)
        self.ranker = Ranker(config, dim=self.matrix.shape[1])
        self.ranker.set_successors(maker.successors)
        self.ranker.set_traits(maker.traits, maker.rarity)
        _standardise(self.ranker, self.lists)
        self._calibrate(self.lists, self.labels)
        with torch.no_grad():  # start where single candidates have the right average; no order changes by it
            self.ranker.heads.bias.copy_(self.ranker.offset)

    def run(self, progress: Callable[[int, int], None]) -> Fitted:
        learning, retrieval = self.learning, self._judge(self.judged.rows)
        first, everybody = self._weights(), np.arange(len(self.judged))
        choices = [
            _Choice(whom, first, _mean(retrieval[JUDGE][whom]))
            for whom in (everybody, np.flatnonzero(self.half), np.flatnonzero(~self.half))
        ]
        final = choices[0]
        epochs = learning.epochs if len(self.judged) and self.labels.any() else 0
        optimizer = torch.optim.AdamW(_groups(self.ranker, learning.weight_decay), lr=learning.learning_rate)
        for epoch in range(1, epochs + 1):
            self._train_epoch(optimizer)
            now, weights = self._judge(rerank(self.ranker, self.judged, self.matrix))[JUDGE], self._weights()
            progress(epoch, epochs)
            for choice in choices:
                choice.see(epoch, now, weights)
            if epoch - final.epoch >= learning.patience:
                break
        crossed = {name: values.copy() for name, values in retrieval.items()}
        for choice in choices[1:]:
            others, found = np.setdiff1d(everybody, choice.whom), self._finish(choice, first, retrieval)
            for name, values in crossed.items():
                values[others] = found[name][others]
        self._finish(final, first, retrieval)
        return self._report(final.epoch, Scores(retrieval), Scores(crossed))

    def _weights(self) -> dict[str, Tensor]:
        """A copy of what is learned by steps; tables that were counted are large and stay as they are."""
        return {name: weight.detach().clone() for name, weight in self.ranker.named_parameters()}

    def _train_epoch(self, optimizer: torch.optim.Optimizer) -> None:
        self.ranker.train()
        self.ranker.standard.eval()  # its means are those of all lists, known from the start
        for at in _batches(self.rng.permutation(len(self.lists)), self.learning.batch):
            optimizer.zero_grad(set_to_none=True)
            logits = self.ranker(*_inputs(self.lists, at, self.matrix))
            real = torch.from_numpy(self.lists.rows[at] != UNKNOWN)
            loss = listwise_loss(logits, torch.from_numpy(self.labels[at]), real, pointwise=self.learning.pointwise)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = torch.nn.utils.clip_grad_norm_(self.ranker.parameters(), 1.0)
            if torch.isfinite(loss) and torch.isfinite(norm):
                optimizer.step()
            else:
                log.warning("prevented a non-finite update of the ranking model and skipped the batch")

    def _judge(self, ranked: Ints) -> dict[str, Values]:
        """Metrics of each of the people held out, [Q] each."""
        truth = (self.judging.bounds, self.judging.rows)
        return dict(score(ranked, truth, k=[10], metrics=["recall", "ndcg"]).per_query)

    def _finish(
        self, choice: _Choice, first: dict[str, Tensor], retrieval: Mapping[str, Values]
    ) -> Mapping[str, Values]:
        """Take what was chosen, calibrate it, and judge what would be served; all by the people who chose it."""
        found = self._served(choice)
        if _mean(found[JUDGE][choice.whom]) < _mean(retrieval[JUDGE][choice.whom]):
            # Calibration weighs several objectives anew.
            choice.weights, choice.epoch = first, 0
            found = self._served(choice)
        return found

    def _served(self, choice: _Choice) -> dict[str, Values]:
        self.ranker.load_state_dict(choice.weights, strict=False)
        self.ranker.eval()
        # People held out calibrate; without any, those it was fitted on are better than nothing.
        if len(choice.whom):
            self._calibrate(self.judged, self.answers, choice.whom)
        else:
            self._calibrate(self.lists, self.labels)
        return self._judge(rerank(self.ranker, self.judged, self.matrix))

    def _report(self, best_epoch: int, retrieval: Scores, found: Scores) -> Fitted:
        note = "" if best_epoch else self._why_untrained()
        report = Report(
            lists=len(self.lists),
            held_out=len(self.judged),
            found=float(self.answers.any((1, 2)).mean()) if len(self.judged) else math.nan,
            best_epoch=best_epoch,
            retrieval=retrieval.means,
            ranker=found.means,
            gain=found.differences(retrieval)[JUDGE],
            calibration=self._measured_calibration(),
            left_out=self.left_out,
            note=note,
        )
        return Fitted(ranker=self.ranker.requires_grad_(False), report=report)

    def _why_untrained(self) -> str:
        if not len(self.judged):
            return "nobody is held out to judge it by"
        if self.labels.any():
            return "no epoch was better on held-out people"
        return f"none of its objectives ({', '.join(self.ranker.config.objectives)}) ever followed a list"

    def _measured_calibration(self) -> dict[str, dict[str, float]]:
        real, logits = self.judged.rows != UNKNOWN, predict(self.ranker, self.judged, self.matrix).numpy()
        return {
            name: cross_calibration(logits[..., at], self.answers[..., at], real)
            for at, name in enumerate(self.ranker.config.objectives if len(self.judged) > 1 else ())
        }

    def _calibrate(self, lists: Lists, labels: Mask, whom: Ints | slice = EVERYBODY) -> None:
        real, logits = (lists.rows != UNKNOWN)[whom], predict(self.ranker, lists, self.matrix).numpy()[whom]
        labels = labels[whom]
        for at in range(len(self.ranker.config.objectives)):
            slope, offset = platt(logits[..., at][real], labels[..., at][real])
            self.ranker.slope[at], self.ranker.offset[at] = slope, offset


def listwise_loss(logits_BKO: Tensor, labels_BKO: Tensor, real_BK: Tensor, *, pointwise: float) -> Tensor:
    """Softmax cross-entropy over each list, plus `pointwise` times the binary cross-entropy summed over the list.

    The first orders the candidates, the second keeps the logits probabilities. Objectives and lists count equally; a list
    without a label has nothing to order, but says how likely that is.
    """
    positive_BKO = labels_BKO.float()
    share_BKO = positive_BKO / positive_BKO.sum(1, keepdim=True).clamp(min=1.0)
    spread_BKO = logits_BKO.masked_fill(~real_BK[..., None], -1e4).log_softmax(1)
    single_BKO = F.binary_cross_entropy_with_logits(logits_BKO, positive_BKO, reduction="none") * real_BK[..., None]
    lists_with = labels_BKO.any(1).sum().clamp(min=1)
    return -(spread_BKO * share_BKO).sum() / lists_with + pointwise * single_BKO.sum(1).mean()


def _learnable(config: RankerConfig, labels: Mask) -> tuple[RankerConfig, Mask]:
    """Leave out objectives that never occur; where none occurs all stay, at a probability near zero."""
    seen = np.asarray(labels.any((0, 1)))
    missing = [name for name, occurs in zip(config.objectives, seen, strict=True) if not occurs]
    if not missing or len(missing) == len(config.objectives):
        return config, np.ones(len(config.objectives), dtype=np.bool_)
    kept = tuple(name for name, occurs in zip(config.objectives, seen, strict=True) if occurs)
    return config.model_copy(update={"objectives": kept}), seen


def _standardise(ranker: Ranker, lists: Lists) -> None:
    """Learn the means of the dense features; one that never varies teaches nothing, so its weights are set to zero."""
    real = lists.features[lists.rows != UNKNOWN].astype(np.float64)
    if not len(real):
        return
    spread = real.std(0)
    constant = spread < 1e-6
    mean, variance = ranker.standard.running_mean, ranker.standard.running_var
    assert mean is not None
    assert variance is not None
    mean.copy_(torch.from_numpy(real.mean(0)))
    variance.copy_(torch.from_numpy(np.where(constant, 1.0, spread**2)))
    first = next((layer for layer in ranker.body if isinstance(layer, nn.Linear)), ranker.heads)
    with torch.no_grad():
        first.weight[:, -len(constant) :][:, torch.from_numpy(constant)] = 0.0


def _inputs(lists: Lists, at: Ints, matrix: Floats) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Arguments of `Ranker.forward` for some of the lists."""
    history, rows = lists.history[at], lists.rows[at]
    parts = (
        lists.queries[at],
        matrix[np.maximum(history, 0)],
        history != UNKNOWN,
        matrix[np.maximum(rows, 0)],
        lists.features[at],
    )
    user, read, mask, items, features = (torch.from_numpy(np.ascontiguousarray(part)) for part in parts)
    return user, read, mask, items, features


def _mean(values: Values) -> float:
    return Scores({JUDGE: values}).means[JUDGE]


def _batches(order: Ints, size: int) -> list[Ints]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def _groups(ranker: Ranker, decay: float) -> list[dict[str, Any]]:
    decayed = [weight for weight in ranker.parameters() if weight.ndim >= 2]
    spared = [weight for weight in ranker.parameters() if weight.ndim < 2]
    return [{"params": decayed, "weight_decay": decay}, {"params": spared, "weight_decay": 0.0}]


def _at_most(data: Dataset, targets: Targets, count: int) -> Targets:
    """All targets, or `count` of them, chosen by the names of the people: the same ones in every run."""
    if len(targets) <= count:
        return targets
    drawn = [bucket(name, 1 << 62, salt="lists") for name in data.users.ids(targets.users)]
    return targets.take(np.sort(np.argsort(np.array(drawn), kind="stable")[:count]))
