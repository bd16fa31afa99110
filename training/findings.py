"""Findings: everything that is worth knowing about a trained run, measured on its test targets in one pass.

Nothing here chooses anything: the run is finished, the people of the examples are drawn by a hash of their names, and
the baseline that the model is measured against is the best one on the test targets, which is to its own advantage only.

Shape suffixes: Q targets, K places, N items, D dimensions.
"""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from embeddings.arrays import Floats, Ints
from embeddings.bundle import Bundle
from embeddings.explore import Method, project
from embeddings.ids import UNKNOWN, bucket
from training.about import LOG
from training.calibration import Point, reliability
from training.cold_start import ColdStart, read_cold_start
from training.contenders import Contest, compete
from training.evaluate import (
    BASELINE_NAMES,
    Evaluation,
    asked_targets,
    checked_cutoffs,
    popularity,
    tabulate,
)
from training.exposure import Exposure, measure_exposure
from training.runs import TrainedRun
from training.segments import Segment, segments

K: Final = 10
JUDGE: Final = f"ndcg@{K}"
MAP_ITEMS: Final = 1500
MAP_GROUPS: Final = 8
EXAMPLES: Final = 6
HISTORY: Final = 8


@dataclass(frozen=True, kw_only=True)
class ItemMap:
    """Items as points [n, 2] of a plane, with their titles and groups; `method` is how they got there."""

    method: Method
    points: Floats
    titles: tuple[str, ...]
    groups: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Example:
    """One person: the latest events (title, what happened), what they went on to, and what each system listed."""

    name: str
    events: int
    history: tuple[tuple[str, str], ...]
    wanted: tuple[str, ...]
    lists: Mapping[str, tuple[tuple[str, bool], ...]]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The findings of one run; `ours` is the system that would serve, `rival` the best baseline on these targets."""

    run: TrainedRun
    evaluation: Evaluation
    ours: str
    rival: str
    release: Bundle | None
    segments: tuple[Segment, ...]
    exposure: Exposure
    calibration: Mapping[str, tuple[Point, ...]]
    learning: tuple[Mapping[str, Any], ...]
    map: ItemMap | None
    examples: tuple[Example, ...]
    cold_start: ColdStart | None

    @property
    def release_is_this_run(self) -> bool:
        """Whether the release in service was made of the same data and the same configuration."""
        if self.release is None:
            return False
        manifest, about = self.release.manifest, self.run.about
        recipe = self.run.config.model_dump(mode="json") | {"seed": about.seed}
        return manifest.data_fingerprint == about.fingerprint and manifest.recipe == recipe


def find(
    run: TrainedRun,
    *,
    release: Bundle | None = None,
    k: tuple[int, ...] = (K,),
    method: Method | None = None,
    say: Callable[[str], None] | None = None,
) -> Findings:
    """Let all systems compete on the test targets and look at the outcome from every side.

    `release` competes too; `method` draws the map of items, t-SNE where scikit-learn is installed if not said. Raises
    `DataError` if there are no test targets.
    """
    say, data, split = say or (lambda _: None), run.data, run.split
    asked, cutoffs = asked_targets(split, "test"), checked_cutoffs((K, *k))
    contest = compete(data, split, run.towers, run.ranker, asked, depth=max(cutoffs), release=release, say=say)
    say("intervals")
    evaluation = tabulate(contest, data, split, cutoffs=cutoffs, targets="test")
    ours = "ranker" if run.ranker is not None else "two_tower"
    baselines = [name for name in BASELINE_NAMES if name in contest.lists]
    rival = max(baselines, key=lambda name: evaluation.systems[name][JUDGE].mean)
    say("segments")
    found = segments(contest, data, split, ours=ours, rival=rival, k=K)
    known = popularity(data, split)
    say("map of items")
    return Findings(
        run=run,
        evaluation=evaluation,
        ours=ours,
        rival=rival,
        release=release,
        segments=found,
        exposure=measure_exposure(contest, known, k=K),
        calibration=_calibration(contest),
        learning=_learning(run),
        map=_map(run, contest.matrix, known, method),
        examples=_examples(run, contest, (rival, *dict.fromkeys(("two_tower", ours)))),
        cold_start=read_cold_start(run.folder),
    )


def _calibration(contest: Contest) -> dict[str, tuple[Point, ...]]:
    found = contest.predictions
    if found is None:
        return {}
    columns = zip(found.objectives, found.probabilities.T, found.labels.T, strict=True)
    return {name: reliability(probabilities, labels) for name, probabilities, labels in columns}


def _learning(run: TrainedRun) -> tuple[Mapping[str, Any], ...]:
    """The epochs of the towers, as the run's log has them."""
    path = run.folder / LOG
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return tuple(entry for entry in map(json.loads, lines) if "epoch" in entry)


def _map(run: TrainedRun, matrix: Floats, known: Ints, method: Method | None) -> ItemMap | None:
    """The best known items; what nobody touches lies where its attributes put it and would only fill the plane."""
    chosen = np.argsort(-known, kind="stable")[:MAP_ITEMS]
    if len(chosen) < 3:
        return None
    method = method or ("tsne" if importlib.util.find_spec("sklearn") else "pca")
    if len(chosen) < 50:
        method = "pca"  # a neighbourhood graph of so few points is noise
    categories = run.data.item_table["categories"].take(chosen).to_pylist()
    first = [names[0] if names else "" for names in categories]
    large = {name for name, _ in Counter(name for name in first if name).most_common(MAP_GROUPS)}
    return ItemMap(
        method=method,
        points=project(matrix[chosen], method=method),
        titles=tuple(_titles(run, chosen)),
        groups=tuple(name if name in large else "other" for name in first),
    )


def _examples(run: TrainedRun, contest: Contest, systems: tuple[str, ...]) -> tuple[Example, ...]:
    """Two people of each third by length of history, drawn by a hash of their names: no result decides who is shown."""
    data, asked = run.data, contest.targets
    names = data.users.ids(asked.users)
    lengths = asked.ends - data.offsets[asked.users]
    drawn = np.array([bucket(name, 1 << 62, salt="examples") for name in names])
    thirds = np.array_split(np.argsort(lengths, kind="stable"), 3)
    chosen = [q for third in thirds for q in third[np.argsort(drawn[third])][: EXAMPLES // 3].tolist()]
    kinds = ["?", *sorted(data.spec.event_types)]
    relevant = asked.relevant()
    found = []
    for q in chosen:
        end = int(asked.ends[q])
        start = max(int(data.offsets[asked.users[q]]), end - HISTORY)
        titles, wanted = _titles(run, data.rows[start:end]), set(relevant[q].tolist())
        lists = {}
        for system in systems:
            rows = [row for row in contest.lists[system][q][:K].tolist() if row != UNKNOWN]
            hits = [row in wanted for row in rows]
            lists[system] = tuple(zip(_titles(run, np.array(rows, dtype=np.int64)), hits, strict=True))
        found.append(
            Example(
                name=names[q],
                events=int(lengths[q]),
                history=tuple(zip(titles, (kinds[kind] for kind in data.types[start:end].tolist()), strict=True))[::-1],
                wanted=tuple(_titles(run, relevant[q])),
                lists=lists,
            )
        )
    return tuple(found)


def _titles(run: TrainedRun, rows: Ints) -> list[str]:
    titles = run.data.item_table["title"].take(rows).to_pylist()
    return [title or name for title, name in zip(titles, run.data.items.ids(rows), strict=True)]
