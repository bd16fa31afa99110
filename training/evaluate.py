"""Evaluation: one table in which the towers and the ranking model stand beside what they have to beat.

Every system learns from the same training events, sees the same history of each target, and leaves out the same seen
items; every figure averages over the same targets and carries its confidence interval. Differences are paired.

Shape suffixes: Q targets, K places, N items, U people.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow.compute as pc
from rich.table import Table

from embeddings.arrays import Ints
from embeddings.bundle import Bundle
from embeddings.errors import DataError, InputError
from embeddings.ranker import Ranker
from embeddings.two_tower import TwoTower
from training.contenders import RELEASE, Contest, Note, compete, sparse_ones, training_matrix
from training.dataset import Dataset, Split, Targets
from training.metrics import (
    Interval,
    Scores,
    category_diversity,
    coverage,
    novelty,
    score,
    vector_diversity,
)

BASELINE_NAMES: Final = ("popularity", "recent_popularity", "item_knn", "ease")
ORDER: Final = (*BASELINE_NAMES, RELEASE, "two_tower", "ranker")
RANKING: Final = ("recall", "ndcg", "mrr", "map")
LIST: Final = ("coverage", "novelty", "diversity")
LEVEL: Final = 0.95


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures by system and metric ("ndcg@10"); an interval whose ends are NaN is a single figure.

    `differences` has the paired interval of a metric by "ranker - two_tower"; one that excludes 0 is a difference.
    `notes` say what is missing from the table, and why.
    """

    targets: str
    queries: int
    items: int
    cutoffs: tuple[int, ...]
    systems: Mapping[str, Mapping[str, Interval]]
    differences: Mapping[str, Mapping[str, Interval]]
    notes: tuple[str, ...] = ()

    def means(self, metrics: Iterable[str]) -> dict[str, dict[str, float]]:
        """Means of some metrics by system, those that the system has."""
        wanted = list(metrics)
        return {
            name: {metric: found[metric].mean for metric in wanted if metric in found}
            for name, found in self.systems.items()
        }

    def to_rich_table(self, *, k: int | None = None) -> Table:
        """The table at one cut-off, the first one if not said: intervals for recall and NDCG, means for the rest."""
        cut = k or self.cutoffs[0]
        if cut not in self.cutoffs:
            raise InputError(f"k is {cut}, evaluated were {', '.join(map(str, self.cutoffs))}", field="k")
        title = f"{self.queries:,} {self.targets} targets, {self.items:,} items, {LEVEL:.0%} intervals"
        table = Table(title=title, title_justify="left", caption="\n".join(self.notes) or None, caption_justify="left")
        table.add_column("")
        for metric in (*RANKING, *LIST):
            table.add_column(f"{metric}@{cut}", justify="right", no_wrap=True)
        table.add_column("calibration", justify="right", no_wrap=True)
        for name, found in self.systems.items():
            cells = [_cell(found.get(f"{metric}@{cut}"), ends=metric in RANKING[:2]) for metric in (*RANKING, *LIST)]
            table.add_row(name, *cells, _cell(found.get("calibration")))
        return table

    def to_json(self) -> dict[str, Any]:
        """A JSON object; NaN becomes null."""

        def plain(groups: Mapping[str, Mapping[str, Interval]]) -> dict[str, Any]:
            return {
                name: {metric: [_null(value) for value in interval] for metric, interval in group.items()}
                for name, group in groups.items()
            }

        return {
            "targets": self.targets,
            "queries": self.queries,
            "items": self.items,
            "cutoffs": list(self.cutoffs),
            "level": LEVEL,
            "systems": plain(self.systems),
            "differences": plain(self.differences),
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str) -> Evaluation:
        """The inverse of `to_json`; raises `DataError` that names `where` if the text is something else."""
        try:
            raw = json.loads(text)

            def intervals(groups: dict[str, dict[str, list[float | None]]]) -> dict[str, dict[str, Interval]]:
                return {
                    name: {
                        metric: Interval(*(math.nan if value is None else float(value) for value in ends))
                        for metric, ends in group.items()
                    }
                    for name, group in groups.items()
                }

            return cls(
                targets=str(raw["targets"]),
                queries=int(raw["queries"]),
                items=int(raw["items"]),
                cutoffs=tuple(int(cut) for cut in raw["cutoffs"]),
                systems=intervals(raw["systems"]),
                differences=intervals(raw["differences"]),
                notes=tuple(raw["notes"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{where} is not an evaluation: {error!r}") from None


def evaluate(
    data: Dataset,
    split: Split,
    towers: TwoTower,
    ranker: Ranker | None = None,
    *,
    k: Iterable[int] = (10,),
    targets: Literal["test", "validation"] = "test",
    release: Bundle | None = None,
    ease_gib: float = 4.0,
    say: Note | None = None,
) -> Evaluation:
    """Rank the whole catalogue for every target with every system, and score the lists.

    Read the test targets once, when every choice has been made. EASE is left out, with a note, where its matrix takes
    more than `ease_gib`. `say` is told what is being computed. Raises `DataError` if there are no such targets.
    """
    asked, cutoffs = asked_targets(split, targets), checked_cutoffs(k)
    contest = compete(
        data, split, towers, ranker, asked, depth=max(cutoffs), release=release, ease_gib=ease_gib, say=say
    )
    if say is not None:
        say("intervals")
    return tabulate(contest, data, split, cutoffs=cutoffs, targets=targets)


def asked_targets(split: Split, targets: Literal["test", "validation"]) -> Targets:
    """The targets of that name; raises `DataError` if there are none."""
    asked: Targets = getattr(split, targets)
    if not len(asked):
        raise DataError(f"there are no {targets} targets: nobody has enough events to hold some out")
    return asked


def checked_cutoffs(k: Iterable[int]) -> tuple[int, ...]:
    """Each cut-off once, in the order given; raises `InputError` for none and for one below 1."""
    cutoffs = tuple(dict.fromkeys(k))
    if not cutoffs or min(cutoffs) < 1:
        raise InputError("k must name at least one cut-off, each at least 1", field="k")
    return cutoffs


def tabulate(contest: Contest, data: Dataset, split: Split, *, cutoffs: tuple[int, ...], targets: str) -> Evaluation:
    """Score the lists of a contest: every figure with its interval, and the paired differences that matter."""
    known = popularity(data, split)
    categories = item_categories(data)
    asked, scores, systems = contest.targets, {}, {}
    for name in (name for name in ORDER if name in contest.lists):
        ranked = contest.lists[name]
        per_query = dict(score(ranked, (asked.bounds, asked.rows), k=cutoffs, metrics=RANKING).per_query)
        single = {}
        for cut in cutoffs:
            per_query[f"novelty@{cut}"] = novelty(ranked, known, users=len(data.users), k=cut)
            per_query[f"diversity@{cut}"] = (
                vector_diversity(ranked, contest.matrix, k=cut)
                if categories is None
                else category_diversity(ranked, categories[0], k=cut)
            )
            single[f"coverage@{cut}"] = Interval(coverage(ranked, items=len(data.items), k=cut), math.nan, math.nan)
        scores[name] = Scores(per_query)
        systems[name] = scores[name].intervals(level=LEVEL) | single
    if contest.predictions is not None:
        systems["ranker"]["calibration"] = Interval(contest.predictions.error(), math.nan, math.nan)
    ours = [name for name in ("two_tower", "ranker") if name in scores]
    pairs = [(ours[0], name) for name in BASELINE_NAMES]
    pairs += [(ours[-1], name) for name in (*BASELINE_NAMES, RELEASE, ours[0])]
    differences = {
        f"{own} - {other}": scores[own].differences(scores[other], level=LEVEL)
        for own, other in dict.fromkeys(pairs)
        if other in scores and own != other
    }
    return Evaluation(
        targets=targets,
        queries=len(asked),
        items=len(data.items),
        cutoffs=cutoffs,
        systems=systems,
        differences=differences,
        notes=contest.notes,
    )


def popularity(data: Dataset, split: Split) -> Ints:
    """Number of people [N] who touched each item positively in training."""
    train, _ = training_matrix(data, split)
    return np.bincount(train.indices, minlength=len(data.items))


def item_categories(data: Dataset) -> tuple[Any, list[str]] | None:
    """Categories of the items as a sparse matrix [N, C], with their names; None if the catalogue has none."""
    column = data.item_table["categories"].combine_chunks()
    names = pc.list_flatten(column).dictionary_encode()
    if not len(names):
        return None
    parents = pc.list_parent_indices(column).to_numpy()
    table = sparse_ones(parents, names.indices.to_numpy(), (len(data.items), len(names.dictionary)))
    return table, names.dictionary.to_pylist()


def _cell(interval: Interval | None, *, ends: bool = False) -> str:
    if interval is None or math.isnan(interval.mean):
        return "-"
    return f"{interval.mean:.4f} [{interval.low:.3f}, {interval.high:.3f}]" if ends else f"{interval.mean:.4f}"


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value
