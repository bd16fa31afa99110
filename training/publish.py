"""Publishing: a trained run becomes a release, if it is good enough to serve.

Gates first, then the item matrix, the index, the bundle; the bundle is opened again and compared before the pointer
moves. Whatever goes wrong, the release in service stays. `force` overrides the gates that are a judgement, never the one
that a release must consist of finite numbers; the manifest says what was overridden.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from embeddings.arrays import Floats
from embeddings.bundle_reader import open_bundle
from embeddings.bundle_writer import Parts, Provenance, write_bundle
from embeddings.errors import BundleError, DataError, GateError
from embeddings.golden import Golden
from embeddings.index import VectorIndex
from embeddings.neighbours import nearest_items
from embeddings.releases import list_releases, point_to
from training.baselines import ItemKNN, Popularity
from training.contenders import item_matrix, rank_baseline, rank_two_tower
from training.dataset import Targets
from training.evaluate import Evaluation
from training.examples import EventCounts
from training.metrics import Interval, score
from training.queries import encode_queries, rank_all, target_context
from training.replenishment import learn_paces
from training.runs import EVALUATION, TrainedRun
from training.together import companions
from training.warm_start import COLD

RECALL_FLOOR = 0.98
INDEX_K = 100
QUERIES = 512
GOLDEN, GOLDEN_K = 8, 10
JUDGED = ("recall@10", "ndcg@10")

Figures = dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A release that is in service now, or held; the figures of its gates, and why it should not have been made, if so."""

    name: str
    folder: Path
    figures: Figures
    overridden: tuple[str, ...]


def publish(
    run: TrainedRun,
    releases: Path,
    *,
    force: bool = False,
    hold: bool = False,
    say: Callable[[str], None] | None = None,
) -> Published:
    """Turn a run into the current release of the folder `releases`, or with `hold` into one that waits there.

    Raises `GateError` with every reason if a gate does not hold, and `BundleError` if what was written is not what
    was meant; in both cases nothing has changed.
    """
    say = say or (lambda text: None)
    say("encoding items")
    matrix = item_matrix(run.data, run.towers)
    _require_finite(run, matrix)
    say("measuring gates")
    figures = measure(run, matrix)
    say("building the index")
    index = VectorIndex.build(matrix, recall_floor=RECALL_FLOOR, k=INDEX_K, queries=_queries(run, matrix))
    reasons = failed_gates(figures, index_recall=index.recall, has_ranker=run.ranker is not None)
    if reasons and not force:
        raise GateError(reasons)
    say("finding the neighbours of every item")
    neighbours = nearest_items(matrix, seed=run.about.seed)
    say("writing the bundle")
    folder = write_bundle(
        releases,
        _free_name(releases),
        Parts(
            spec=run.data.spec,
            towers=run.towers,
            ranker=run.ranker,
            items=run.data.item_table,
            popularity=EventCounts(run.data).at_the_end(),
            matrix=matrix,
            index=index,
            golden=golden_queries(run, matrix),
            neighbours=neighbours,
            paces=learn_paces(run.data),
            together=companions(run.data),
        ),
        Provenance(
            data_fingerprint=run.about.fingerprint,
            recipe=run.config.model_dump(mode="json") | {"seed": run.about.seed},
            metrics=_finite_only(figures) | _test_figures(run) | _cold_training(run),
            counts={"events": len(run.data), "users": len(run.data.users)},
            overridden=reasons,
        ),
    )
    say("opening it again")
    try:
        _verify(folder, run, matrix)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if not hold:
        point_to(releases, folder.name)
    return Published(name=folder.name, folder=folder, figures=figures, overridden=tuple(reasons))


def golden_queries(run: TrainedRun, matrix: Floats) -> list[Golden]:
    """A few histories and the items that the exact model finds for them; whoever opens the release asks them again."""
    data, asked = run.data, run.split.validation
    chosen = asked.take(np.linspace(0, len(asked) - 1, min(GOLDEN, len(asked))).astype(np.int64))
    best = rank_all(encode_queries(data, run.towers, matrix, chosen), matrix, None, min(GOLDEN_K, len(matrix)))
    tokens = target_context(data, chosen)
    found = []
    for q, (user, end) in enumerate(zip(chosen.users.tolist(), chosen.ends.tolist(), strict=True)):
        past = slice(max(data.offsets[user], end - run.config.towers.max_history), end)
        found.append(
            Golden(
                rows=data.rows[past].tolist(),
                types=data.types[past].tolist(),
                times=data.times[past].tolist(),
                context=tokens[q][tokens[q] > 0].tolist(),
                top=best[q].tolist(),
            )
        )
    return found


def measure(run: TrainedRun, matrix: Floats) -> Figures:
    """Recall@10 and NDCG@10 on the validation targets, by system; empty if there are none.

    `retrieval_held_out` and `ranker_held_out` are those of the people whom the ranking model was not fitted on, each judged
    by what others chose; `ranker_gain` is the NDCG@10 between the two, with its interval.
    """
    asked = run.split.validation
    if not len(asked):
        return {}
    lists = {
        baseline.name: rank_baseline(baseline, run.data, run.split, asked, depth=10)
        for baseline in (Popularity(), ItemKNN())
    }
    lists["two_tower"] = rank_two_tower(run.data, run.towers, matrix, asked, depth=10)
    figures = {name: _means(ranked, asked) for name, ranked in lists.items()}
    report = run.about.report
    if run.ranker is not None and report is not None and report["held_out"]:
        if "gain" not in report:
            raise DataError(f"the ranking model in {run.folder} was judged by an earlier version; train it again")
        figures["retrieval_held_out"], figures["ranker_held_out"] = report["retrieval"], report["ranker"]
        figures["ranker_gain"] = Interval(*report["gain"])._asdict()
    return figures


def failed_gates(figures: Figures, *, index_recall: float, has_ranker: bool) -> list[str]:
    """Every gate that does not hold, as a sentence with the figures; an empty list is a pass."""
    reasons = []
    if "two_tower" not in figures:
        reasons.append("there are no validation targets to judge the towers by")
    pairs = [("two_tower", name) for name in ("popularity", "item_knn") if name in figures]
    for ours, theirs in pairs:
        for metric in JUDGED:
            own, other = figures[ours][metric], figures[theirs][metric]
            if not own > other:
                reasons.append(f"{metric} of {ours} is {own:.4f}, it must beat {theirs} at {other:.4f}")
    if has_ranker and "ranker_held_out" not in figures:
        reasons.append("there is nobody held out to judge the ranking model by")
    elif has_ranker:
        own, other = (figures[name]["ndcg@10"] for name in ("ranker_held_out", "retrieval_held_out"))
        if not figures["ranker_gain"]["high"] >= 0:
            reasons.append(
                f"held-out ndcg@10 of the ranker is {own:.4f}, below the retrieval order at {other:.4f} by more than "
                "chance explains"
            )
    if not index_recall >= RECALL_FLOOR:
        reasons.append(f"recall of the index is {index_recall:.4f}, it must be at least {RECALL_FLOOR}")
    return reasons


def _require_finite(run: TrainedRun, matrix: Floats) -> None:
    bad = [] if np.isfinite(matrix).all() else ["the item matrix"]
    for part, module in (("towers", run.towers), ("ranker", run.ranker)):
        for name, weight in module.state_dict().items() if module is not None else ():
            if not torch.isfinite(weight).all():
                bad.append(f"{part}.{name}")
    if bad:
        raise GateError([f"{', '.join(bad)} must be finite; this cannot be forced"])


def _verify(folder: Path, run: TrainedRun, matrix: Floats) -> None:
    """The release, read back, must encode and find as the run does."""
    bundle = open_bundle(folder)
    if not np.array_equal(bundle.matrix, matrix):
        raise BundleError(f"release '{folder.name}': the item matrix came back changed")
    rows = np.arange(0, len(matrix), max(1, len(matrix) // 64))
    again = bundle.encode_items([bundle.items[row] for row in rows.tolist()])
    if not np.allclose(again, matrix[rows], atol=1e-5):
        raise BundleError(f"release '{folder.name}': items are encoded differently than they were trained")
    queries = _queries(run, matrix)
    recall = bundle.index.measure_recall(matrix[rows] if queries is None else queries, INDEX_K)
    promised = min(RECALL_FLOOR, bundle.index.recall)
    if recall < promised - 0.01:  # a sample of queries
        raise BundleError(
            f"release '{folder.name}': the loaded index recalls {recall:.4f}, {promised:.4f} were measured"
        )


def _queries(run: TrainedRun, matrix: Floats) -> Floats | None:
    """Real queries to tune and measure the index on: some of the validation targets, None if there are none."""
    asked = run.split.validation
    if not len(asked):
        return None
    chosen = np.random.default_rng(run.about.seed).permutation(len(asked))[:QUERIES]
    return encode_queries(run.data, run.towers, matrix, asked.take(np.sort(chosen)))


def _means(ranked: np.ndarray, asked: Targets) -> dict[str, float]:
    return score(ranked, (asked.bounds, asked.rows), k=[10], metrics=["recall", "ndcg"]).means


def _test_figures(run: TrainedRun) -> Figures:
    """What an evaluation found on the test targets, if there was one."""
    path = run.folder / EVALUATION
    if not path.is_file():
        return {}
    evaluation = Evaluation.from_json(path.read_bytes(), where=str(path))
    metrics = [f"{metric}@{cut}" for cut in evaluation.cutoffs for metric in ("recall", "ndcg")]
    return _finite_only({f"{evaluation.targets}.{name}": means for name, means in evaluation.means(metrics).items()})


def _cold_training(run: TrainedRun) -> Figures:
    """What the last training from nothing took: a warm start measures the time it saves by it."""
    cold = run.about.cold
    return {COLD: {"epochs": cold.epochs, "seconds": cold.seconds, "ndcg@10": cold.ndcg}} if cold else {}


def _finite_only(figures: Figures) -> dict[str, dict[str, float]]:
    return {
        name: {key: value for key, value in group.items() if math.isfinite(value)} for name, group in figures.items()
    }


def _free_name(releases: Path) -> str:
    """The present moment as a name; it sorts by time, and two releases of one second get two names."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H%M%SZ")
    taken = set(list_releases(releases))
    return next(name for name in (now, *(f"{now}-{n}" for n in range(2, 1000))) if name not in taken)
