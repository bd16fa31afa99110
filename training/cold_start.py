"""Cold start, measured: what content alone finds among new items, and what the first events of new people are worth.

A tenth of the items and a tenth of the people, drawn by a hash of their names, are taken out of the data altogether; the
towers learn from the rest, and never hear of them. Then the items come as new ones do, by their content, and are ranked
among themselves for the people who went on to them. And the people come, and are asked for their next item after their
first 0, 1, 2, 5 and 10 events.

Shape suffixes: Q targets, K places, N items, M items held out, D dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embeddings.arrays import Floats, Ints, Mask
from embeddings.durable import put
from embeddings.errors import DataError
from embeddings.ids import UNKNOWN, bucket
from embeddings.two_tower import TwoTower
from training.about import COLD_START, Source
from training.baselines import top_rows
from training.config import Config, Run
from training.contenders import read_by, training_matrix, vectors_of
from training.dataset import Dataset, Targets, first_touches, single_targets
from training.examples import CHUNK, EventCounts
from training.loop import Progress, train
from training.metrics import Interval, Scores, Values, score
from training.queries import encode_queries, rank_all, seen_items
from training.runs import build_dataset, make_split
from training.sources import read

ONE_IN: Final = 10
STEPS: Final = (0, 1, 2, 5, 10)
K: Final = 10

Say = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """What was measured; every figure has its interval.

    `items` is recall@10 among `held_items` items for `item_targets` people, by system: content, popularity (which may
    count the events that the new items had by then), random (what chance gives). `people` is recall@10 of the next item
    over the whole catalogue for `held_people` new people, by system and number of events seen.
    """

    held_items: int
    item_targets: int
    items: Mapping[str, Interval]
    item_gap: Interval
    held_people: int
    people: Mapping[str, Mapping[int, Interval]]

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "k": K,
            "held_items": self.held_items,
            "item_targets": self.item_targets,
            "items": {name: list(found) for name, found in self.items.items()},
            "content - popularity": list(self.item_gap),
            "held_people": self.held_people,
            "people": {
                name: {str(step): list(found) for step, found in steps.items()} for name, steps in self.people.items()
            },
        }

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str) -> ColdStart:
        """The inverse of `to_json`; raises `DataError` that names `where` if the text is something else."""
        try:
            raw = json.loads(text)
            return cls(
                held_items=int(raw["held_items"]),
                item_targets=int(raw["item_targets"]),
                items={name: Interval(*found) for name, found in raw["items"].items()},
                item_gap=Interval(*raw["content - popularity"]),
                held_people=int(raw["held_people"]),
                people={
                    name: {int(step): Interval(*found) for step, found in steps.items()}
                    for name, steps in raw["people"].items()
                },
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{where} is not a measurement of the cold start: {error!r}") from None


def measure_cold_start(
    source: Source, config: Config, *, seed: int = 0, threads: int | None = None, say: Say | None = None
) -> ColdStart:
    """Train towers without a tenth of the items and of the people, and measure how these fare.

    Raises `DataError` if nothing is left to measure.
    """
    say = say or (lambda text, share: None)
    tables = read(source.path, format=source.format)
    if not tables.items.num_rows:
        raise DataError(f"{source.path} has no table of items: without content nothing is known of a new item")
    whole = build_dataset(tables.events, tables.items, tables.users, config=config)
    new_items, new_people = drawn(whole.items.all, "cold items"), drawn(whole.users.all, "cold people")
    kept = pc.and_(_outside(tables.events["item_id"], new_items), _outside(tables.events["user_id"], new_people))
    warm_items = tables.items.filter(_outside(tables.items["item_id"], new_items))
    warm = build_dataset(tables.events.filter(kept), warm_items, tables.users, config=config)

    def follow(at: Progress) -> None:
        say(f"towers without new items and people, epoch {at.epoch} of at most {at.epochs}", at.share)

    split = make_split(warm, config)
    towers = train(warm, split, config, Run(seed=seed, threads=threads), progress=follow).towers
    say("new items and new people", 1.0)
    world = read_by(whole, warm.spec)
    judge = _Judge(world, towers, vectors_of(world, towers, warm.items))
    fresh = np.array([name in new_items for name in world.items.all])
    strangers = np.array([name in new_people for name in world.users.all])
    liked = np.zeros(len(world.items))
    liked[world.items.rows(warm.items.all)] = np.asarray(training_matrix(warm, split)[0].sum(axis=0)).ravel()

    wanted = item_targets(world, fresh, ~strangers)
    asked = _same_people([next_targets(world, fresh, strangers, step) for step in STEPS])
    if not len(wanted) or not len(asked[0]):
        raise DataError(f"{source.path} is too small: nobody is left to judge new items or new people by")
    found = judge.new_items(wanted, np.flatnonzero(fresh))
    known = np.flatnonzero(~fresh)
    people = [judge.new_people(targets, known, liked) for targets in asked]
    return ColdStart(
        held_items=int(fresh.sum()),
        item_targets=len(wanted),
        items=found.intervals(),
        item_gap=Scores({"gap": found.per_query["content"] - found.per_query["popularity"]}).intervals()["gap"],
        held_people=len(asked[0]),
        people={
            name: {step: scores.intervals()[name] for step, scores in zip(STEPS, people, strict=True)}
            for name in ("two_tower", "popularity")
        },
    )


def keep_cold_start(folder: Path, found: ColdStart) -> None:
    """Keep a measurement in a run's folder, where the report finds it."""
    text = json.dumps(found.to_json(), indent=1) + "\n"
    put(folder / COLD_START, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def read_cold_start(folder: Path) -> ColdStart | None:
    """The measurement that a run's folder keeps, None if there is none."""
    path = folder / COLD_START
    return ColdStart.from_json(path.read_bytes(), where=str(path)) if path.is_file() else None


def drawn(names: Sequence[str], salt: str) -> frozenset[str]:
    """A tenth of the names, the same ones in every run."""
    return frozenset(name for name in names if bucket(name, ONE_IN, salt=salt) == 0)


def item_targets(data: Dataset, fresh: Mask, people: Mask) -> Targets:
    """The last new item that each of the `people` [U] newly and positively touched, after at least one other event."""
    places = np.flatnonzero(_worth_finding(data) & fresh[data.rows] & people[data.owners])
    places = places[places > data.offsets[data.owners[places]]]
    _, last = np.unique(data.owners[places][::-1], return_index=True)
    return single_targets(data, places[::-1][last], places[::-1][last])


def next_targets(data: Dataset, fresh: Mask, people: Mask, step: int) -> Targets:
    """What each of the `people` [U] newly and positively touched first after `step` events, new items aside."""
    after = np.arange(len(data)) - data.offsets[data.owners] >= step
    places = np.flatnonzero(_worth_finding(data) & ~fresh[data.rows] & people[data.owners] & after)
    users, first = np.unique(data.owners[places], return_index=True)
    return single_targets(data, places[first], data.offsets[users] + step)


class _Judge:
    """Ranks some of the items for targets, and scores the lists."""

    def __init__(self, data: Dataset, towers: TwoTower, matrix: Floats) -> None:
        self.data, self.towers, self.matrix = data, towers, matrix

    def new_items(self, targets: Targets, rows: Ints) -> Scores:
        """Recall [Q] of content, popularity and chance among the new items `rows` [M]."""
        counts, popular = EventCounts(self.data), np.full((len(targets), K), UNKNOWN, dtype=np.int64)
        seen = self._seen(targets, rows)
        for start in range(0, len(targets), CHUNK):
            own = slice(start, start + CHUNK)
            scores_QM = counts.before(rows[None], targets.times[own, None]).astype(np.float32)
            popular[own, : min(K, len(rows))] = rows_of(rows, top_rows(_evident(scores_QM, seen[own]), K))
        left_Q = len(rows) - np.array([len(np.unique(known)) for known in seen])
        return Scores(
            {
                "content": _recall(self._by_content(targets, rows), targets),
                "popularity": _recall(popular, targets),
                "random": np.minimum(K, left_Q) / left_Q,
            }
        )

    def new_people(self, targets: Targets, rows: Ints, liked: npt.NDArray[np.float64]) -> Scores:
        """Recall [Q] of the towers and of popularity over the known items `rows` [M]; `liked` [N] counts training."""
        weights = liked[rows, None].astype(np.float32)
        ones = np.ones((len(targets), 1), dtype=np.float32)
        popular = rows_of(rows, rank_all(ones, weights, self._seen(targets, rows), K))
        return Scores(
            {
                "two_tower": _recall(self._by_content(targets, rows), targets),
                "popularity": _recall(popular, targets),
            }
        )

    def _by_content(self, targets: Targets, rows: Ints) -> Ints:
        queries = encode_queries(self.data, self.towers, self.matrix, targets)
        return rows_of(rows, rank_all(queries, self.matrix[rows], self._seen(targets, rows), K))

    def _seen(self, targets: Targets, rows: Ints) -> list[Ints]:
        """Places in `rows` of what each target's history holds of them."""
        place = np.full(len(self.data.items), UNKNOWN, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        places = [place[known] for known in seen_items(self.data, targets)]
        return [known[known != UNKNOWN] for known in places]


def rows_of(rows: Ints, ranked: Ints) -> Ints:
    """Lists of places in `rows` as lists of rows; `UNKNOWN` stays."""
    found: Ints = np.append(rows, UNKNOWN)[ranked]
    return found


def _evident(scores_QM: Floats, seen: list[Ints]) -> Floats:
    scores_QM[scores_QM == 0] = -np.inf  # what nobody touched is not popular, and the order of rows must not decide
    for scores_M, known in zip(scores_QM, seen, strict=True):
        scores_M[known] = -np.inf
    return scores_QM


def _worth_finding(data: Dataset) -> Mask:
    return data.positive & first_touches(data)


def _same_people(asked: list[Targets]) -> list[Targets]:
    """Those of every step's targets whose people are in all of them: a curve over the same people."""
    everywhere = set.intersection(*(set(targets.users.tolist()) for targets in asked))
    return [targets.take(np.flatnonzero(np.isin(targets.users, list(everywhere)))) for targets in asked]


def _recall(ranked: Ints, targets: Targets) -> Values:
    return score(ranked, (targets.bounds, targets.rows), k=[K], metrics=["recall"]).per_query[f"recall@{K}"]


def _outside(column: pa.ChunkedArray, names: frozenset[str]) -> pa.ChunkedArray:
    return pc.invert(pc.is_in(column, pa.array(sorted(names), pa.string())))
