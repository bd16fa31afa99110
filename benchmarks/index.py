"""Index: what a search costs and finds, under filters, beside hnswlib and usearch on the same vectors in the same run.

    python -m benchmarks index --items 100000 [--lengths equal|varied] [--only bespoke scan] [--save]

Needs `pip install -e '.[bench]'`. One query at a time, one thread; building uses all cores. Every searcher works as
little as keeps recall@k at .98 on other queries, and is then timed in turns with the others, so that what else the
machine does meets all alike. A cell shows the recall where it is below .98, and nothing where a searcher cannot filter
so narrowly.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import faiss
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.load import percentile_ms
from benchmarks.results import keep
from benchmarks.searchers import Ask, Hnswlib, Release, Scan, Searcher, Usearch
from benchmarks.vectors import LENGTHS, make_mask, make_vectors
from embeddings.arrays import Floats, Mask
from embeddings.effort import found
from embeddings.scan import Matrix

FLOOR = 0.98
FILTERS = ((1.0, False), (0.1, False), (0.01, False), (0.001, False), (0.1, True), (0.01, True))
SYSTEMS = ("bespoke", "scan", "hnswlib", "usearch")
SLOW_S, HOPELESS_S = 0.05, 0.5
"""From the first on, a way to search is judged by four queries and timed by sixteen; from the second on, it gets no more
effort."""


class Way(NamedTuple):
    """A way to search that was chosen, the recall it had when it was, and a search by it."""

    recall: float
    ready: Callable[[], Ask]
    seconds: float


def main(argv: Sequence[str]) -> None:
    """Measure, print, and save if asked."""
    options = _options(argv)
    console = Console()
    faiss.omp_set_num_threads(1)
    rows, queries = make_vectors(
        options.items, options.width, 3 * options.queries, lengths=options.lengths, seed=options.seed
    )
    tuned_on, chosen_on, asked = np.split(queries, 3)
    matrix = Matrix(rows)
    searchers: list[Searcher] = []
    building: dict[str, dict[str, float]] = {}
    for name in options.only:
        with console.status(f"building {name}"):
            started, worked = time.monotonic(), time.process_time()
            searchers.append(build(name, rows, tuned_on, options))
            building[name] = {
                "build_s": time.monotonic() - started,
                "build_cpu_s": time.process_time() - worked,
                "bytes_per_item": searchers[-1].bytes / len(rows),
            }
        console.print(f"{name}: {json.dumps(building[name])}", highlight=False)
    cells = []
    for share, together in FILTERS:
        mask = make_mask(rows, share, together=together, seed=options.seed)
        with console.status(f"searching {share:.1%}"):
            of = measure(searchers, matrix, chosen_on, asked, options.k, mask, rounds=options.rounds)
        cells.append({"share": share, "together": together, "of": of})
        console.print(json.dumps(cells[-1]), highlight=False, soft_wrap=True)
    result = {"building": building, "cells": cells}
    console.print(table(result, options.only))
    if options.save:
        name = f"index-{options.items}" + ("-varied" if options.lengths == "varied" else "")
        print(f"saved {keep(name, {'configuration': vars(options), 'floor': FLOOR} | result).name}")
    print(json.dumps({"items": options.items, "k": options.k, "lengths": options.lengths} | result))


def build(name: str, rows: Floats, tuned_on: Floats, options: argparse.Namespace) -> Searcher:
    """One searcher over all rows."""
    cores = os.cpu_count() or 1
    if name == "bespoke":
        return Release(rows, tuned_on, k=options.k, threads=cores, seed=options.seed)
    if name == "hnswlib":
        return Hnswlib(rows, links=options.links, building=options.building, threads=cores, seed=options.seed)
    return (
        Usearch(rows, links=options.links, building=options.building, threads=cores)
        if name == "usearch"
        else Scan(rows)
    )


def measure(
    searchers: Sequence[Searcher],
    matrix: Matrix,
    chosen_on: Floats,
    asked: Floats,
    k: int,
    mask: Mask | None,
    *,
    rounds: int,
) -> dict[str, dict[str, float | None] | None]:
    """Recall and times of each searcher under one filter; None for one that has no way."""
    k = min(k, matrix.rows if mask is None else int(np.count_nonzero(mask)))
    some = chosen_on[:64]
    kth_some, kth_asked = (matrix.kth_scores(part, k, mask) for part in (some, asked))
    chosen = {one.name: choose(one, matrix, some, kth_some, k, mask) for one in searchers}
    times: dict[str, list[float]] = {name: [] for name in chosen}  # seconds
    recall: dict[str, float] = {}
    gc.disable()
    try:
        for _ in range(rounds):  # in turns: what else the machine does meets all alike
            for name, way in chosen.items():
                if way is not None and not (times[name] and way.seconds > SLOW_S):
                    these = slice(16 if way.seconds > SLOW_S else None)
                    taken, recall[name] = timed(way.ready(), matrix, asked[these], kth_asked[these], k)
                    times[name] += taken
    finally:
        gc.enable()
    return {
        name: {
            "recall": recall[name],
            "p50_ms": percentile_ms(sorted(times[name]), 0.5),
            "p99_ms": percentile_ms(sorted(times[name]), 0.99),
        }
        if times[name]
        else None
        for name in chosen
    }


def choose(searcher: Searcher, matrix: Matrix, queries: Floats, kth: Floats, k: int, mask: Mask | None) -> Way | None:
    """The quickest way that keeps the floor with the least effort; else the one that finds most."""
    sound, poor = [], []
    for efforts in searcher.ways(k, mask):
        for ready in efforts:
            taken, recall = timed(ready(), matrix, queries[:4], kth[:4], k)
            if np.median(taken) < SLOW_S:
                taken, recall = timed(ready(), matrix, queries, kth, k)
            way = Way(recall, ready, float(np.median(taken)))
            if recall >= FLOOR:
                sound.append(way)
                break
            poor.append(way)
            if way.seconds > HOPELESS_S:
                break
    if sound:
        return min(sound, key=lambda way: way.seconds)
    return max(poor, key=lambda way: way.recall, default=None)


def timed(ask: Ask, matrix: Matrix, queries: Floats, kth: Floats, k: int) -> tuple[list[float], float]:
    """Seconds of each query, and the mean recall."""
    taken, recall = [], []
    for at in range(len(queries)):
        query = queries[at : at + 1]
        started = time.perf_counter()
        rows = ask(query)[:k]
        taken.append(time.perf_counter() - started)
        listed = np.full((1, k), -1, dtype=np.int64)
        listed[0, : len(rows)] = rows
        recall.append(float(found(kth[at : at + 1], matrix.scores(query, listed))[0]))
    return taken, float(np.mean(recall))


def table(result: dict[str, Any], names: Sequence[str]) -> Table:
    """One line a filter: p50 / p99 in milliseconds."""
    shown = Table("allowed", *names, title="ms a query, p50 / p99")
    for cell in result["cells"]:
        line = [_cell(cell["of"][name]) for name in names]
        shown.add_row(f"{cell['share']:.1%}" + (" together" if cell["together"] else ""), *line)
    for what, text in (
        ("build_s", "built in, s"),
        ("build_cpu_s", "CPU for that, s"),
        ("bytes_per_item", "bytes an item"),
    ):
        shown.add_row(text, *(f"{result['building'][name][what]:,.0f}" for name in names))
    return shown


def _cell(figures: dict[str, Any] | None) -> str:
    if figures is None:
        return "-"
    below = "" if figures["recall"] >= FLOOR else f" at {figures['recall']:.3f}"
    return f"{figures['p50_ms']:.3f} / {figures['p99_ms']:.2f}{below}"


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks index", description=__doc__)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument(
        "--queries", type=int, default=256, help="queries that are timed; as many to tune, and to choose"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each searcher")
    parser.add_argument(
        "--lengths", choices=LENGTHS, default="equal", help="of the item vectors; graphs prefer equal ones"
    )
    parser.add_argument("--links", type=int, default=16, help="of a node in a graph (M, connectivity)")
    parser.add_argument("--building", type=int, default=200, help="rows in view while a graph is built")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--save", action="store_true", help="keep the result file")
    return parser.parse_args(argv)
