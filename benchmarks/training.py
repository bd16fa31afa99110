"""Speed of training: the time to the validation NDCG@10 that another library reaches, in one run on the same events.

    python -m benchmarks training --format sequences|interactions --data-dir DIR --rival sasrec|als|bpr --python PATH

The rivals are RecTools' SASRec, and ALS and BPR of `implicit`. They need an older NumPy than Bespoke allows, so they run in
an environment of their own, which --python names: `pip install "rectools[torch]==0.17.0" implicit==0.7.2` in a fresh one.
Both train on the events that the recipe's split gives to training, one after the other, each with all threads, and are
asked for the same validation targets from time to time; the clock stands still while they are asked. Ends with one JSON
object: `speedup` is the rival's time to its best figure over ours to the same, None if we never came to it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks import rivals
from benchmarks.accuracy import open_protocol
from benchmarks.results import keep
from embeddings.errors import BespokeError, InputError
from training.cli import output
from training.config import Config, parse_run
from training.dataset import Dataset, Split
from training.loop import Progress, train
from training.recipes import load_recipe


@dataclass(frozen=True, kw_only=True)
class Point:
    """Where a training stood: seconds of training so far, and NDCG@10 on the validation targets."""

    seconds: float
    ndcg: float


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark; an error of ours ends it with its sentence."""
    options = _options(argv)
    config = load_recipe(options.recipe or options.format)
    protocol = open_protocol(options.format, options.data_dir, config)
    data, split, threads = protocol.data, protocol.choose, options.threads
    with tempfile.TemporaryDirectory() as folder:
        write_events(data, split, Path(folder))
        theirs = run_rival(options.rival, options.python, Path(folder), seconds=options.seconds, threads=threads)
    best = max(theirs, key=lambda point: point.ndcg)
    ours = run_ours(data, split, config, threads=threads, until=None if options.to_the_end else best.ndcg)
    output().print(table(options.rival, theirs, ours))
    last = summary(options, theirs, ours)
    if options.save:
        found = last | {"rival_points": [asdict(one) for one in theirs], "our_points": [asdict(one) for one in ours]}
        path = keep(f"training-{last['dataset']}-{options.rival}", found | {"config": config.model_dump(mode="json")})
        output().print(f"saved {path}", highlight=False)
    print(json.dumps(last))


def write_events(data: Dataset, split: Split, folder: Path) -> None:
    """Write what a rival reads: the histories in training, and what each person of the validation targets took next."""
    lines, train_offsets = [], np.concatenate([[0], np.cumsum(split.train)])
    rows = data.rows[split.train]
    for user, name in enumerate(data.users.all):
        own = rows[train_offsets[data.offsets[user]] : train_offsets[data.offsets[user + 1]]]
        if len(own):
            lines.append(" ".join([_word(name), *(str(row) for row in own.tolist())]))
    (folder / "history.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    targets, answers = split.validation, []
    for at, user in enumerate(targets.users.tolist()):
        wanted = targets.rows[targets.bounds[at] : targets.bounds[at + 1]]
        answers.append(" ".join([_word(data.users.all[user]), *(str(row) for row in wanted.tolist())]))
    (folder / "answers.txt").write_text("\n".join(answers) + "\n", encoding="utf-8")


def run_rival(kind: str, python: str, folder: Path, *, seconds: float, threads: int) -> list[Point]:
    """Train a rival in its own environment; raises `BespokeError` with the last line that it wrote if it fails."""
    command = [
        python,
        str(Path(rivals.__file__)),
        kind,
        str(folder),
        "--seconds",
        str(seconds),
        "--threads",
        str(threads),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    points = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not points:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise BespokeError(f"{kind} did not train ({said}); --python names the environment that it is installed in")
    return [Point(seconds=one["seconds"], ndcg=one["ndcg@10"]) for one in points]


class _Reached(Exception):
    pass


def run_ours(data: Dataset, split: Split, config: Config, *, threads: int, until: float | None) -> list[Point]:
    """Train by a recipe, to its end or to a validation NDCG@10; the seconds are those of the steps, as a rival's are."""
    run, points, spent, started = parse_run(device="cpu", threads=threads), [], 0.0, time.perf_counter()

    def follow(at: Progress) -> None:
        nonlocal spent
        if at.finished is not None:
            spent += at.finished.seconds
            points.append(Point(seconds=round(spent, 2), ndcg=round(at.finished.metrics["ndcg@10"], 5)))
            if until is not None and points[-1].ndcg >= until:
                raise _Reached

    try:
        trained = train(data, split, config, run, progress=follow)
        if not points:  # towers in closed form: all of the time is that of finding them, choosing among them included
            points.append(
                Point(seconds=round(time.perf_counter() - started, 2), ndcg=round(trained.validation["ndcg@10"], 5))
            )
    except _Reached:
        pass
    return points


def summary(options: argparse.Namespace, theirs: Sequence[Point], ours: Sequence[Point]) -> dict[str, Any]:
    """The object of the last line."""
    best = max(theirs, key=lambda point: point.ndcg)
    reached = next((point for point in ours if point.ndcg >= best.ndcg), None)
    top = max(ours, key=lambda point: point.ndcg)
    return {
        "dataset": options.data_dir.resolve().name,
        "format": options.format,
        "rival": options.rival,
        "rival_ndcg@10": best.ndcg,
        "rival_seconds": best.seconds,
        "seconds_to_rival_ndcg": reached.seconds if reached else None,
        "speedup": round(best.seconds / reached.seconds, 2) if reached else None,
        "ndcg@10": top.ndcg,
        "seconds": top.seconds,
        "threads": options.threads,
    }


def table(rival: str, theirs: Sequence[Point], ours: Sequence[Point]) -> Table:
    """Both trainings, epoch by epoch."""
    shown = Table("epoch", f"{rival}, s", "NDCG@10", "bespoke, s", "NDCG@10", title="validation", title_justify="left")
    for epoch in range(max(len(theirs), len(ours))):
        cells = [str(epoch + 1)]
        for points in (theirs, ours):
            there = points[epoch] if epoch < len(points) else None
            cells += [f"{there.seconds:.1f}", f"{there.ndcg:.4f}"] if there else ["", ""]
        shown.add_row(*cells)
    return shown


def _word(name: str) -> str:
    if len(name.split()) != 1:
        raise InputError(f"'{name}' is not one word, and the files of the rivals hold words")
    return name


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks training", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--format", choices=("sequences", "interactions"), required=True)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the files")
    parser.add_argument("--rival", choices=("sasrec", "als", "bpr"), required=True)
    parser.add_argument("--python", required=True, help="interpreter of the environment that the rival is installed in")
    parser.add_argument("--seconds", type=float, default=600.0, help="training time of the rival")
    parser.add_argument("--recipe", help="name of a recipe, or a file that ends in .toml (default: that of the format)")
    parser.add_argument("--to-the-end", action="store_true", help="go on where the rival's figure is reached")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results/")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
