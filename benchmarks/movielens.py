"""Accuracy on MovieLens, from nothing: read, train, rank, evaluate on the test targets.

    python -m benchmarks movielens --data-dir DIR [--recipe movielens] [--seed 0] [--save]

Prints the table and ends with one JSON object: recall@10 and ndcg@10 of every system, over the full catalogue with seen
items left out. `--save` keeps the table under `benchmarks/results/`, with hardware, month and the whole configuration.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.results import keep
from training.cli import activity, output
from training.config import Config, parse_run
from training.evaluate import Evaluation
from training.recipes import load_recipe
from training.runs import Source, TrainedRun, evaluate_run, train_run

SYSTEMS = ("popularity", "item_knn", "ease", "two_tower", "ranker")
METRICS = ("recall@10", "ndcg@10")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark; an error of ours ends it with its sentence."""
    options = _options(argv)
    config, started = load_recipe(options.recipe), time.monotonic()
    with tempfile.TemporaryDirectory() as folder, activity() as say:
        run_options = parse_run(device=options.device, seed=options.seed, threads=options.threads)
        run = train_run(Path(folder), Source(path=options.data_dir), config, run_options, say=say)
        evaluation = evaluate_run(run, k=(10, 20), say=lambda text: say(text, 1.0))
    seconds = time.monotonic() - started
    report(evaluation, output(), seconds=seconds)
    if options.save:
        output().print(f"saved {save(run, evaluation, config, seconds=seconds)}", highlight=False)
    print(json.dumps(summary(evaluation)))


def summary(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """The object of the last line."""
    means = evaluation.means(METRICS)
    return {name: means[name] for name in SYSTEMS if name in means}


def report(evaluation: Evaluation, console: Console, *, seconds: float) -> None:
    """Print the table, and the differences that matter with their paired intervals."""
    console.print(evaluation.to_rich_table(k=10))
    for pair, metrics in evaluation.differences.items():
        mean, low, high = metrics["ndcg@10"]
        console.print(f"{pair}: ndcg@10 {mean:+.4f} [{low:+.4f}, {high:+.4f}]", highlight=False, markup=False)
    console.print(f"{seconds:.0f} s", highlight=False)


def save(run: TrainedRun, evaluation: Evaluation, config: Config, *, seconds: float) -> Path:
    """Keep the table with the whole configuration; returns the path of the file."""
    found = {
        "torch": str(torch.__version__),
        "config": config.model_dump(mode="json"),
        "run": run.about.model_dump(mode="json", exclude={"source"}),
        "seconds": round(seconds, 1),
        "evaluation": evaluation.to_json(),
    }
    return keep("movielens", found, device=run.about.device)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks movielens", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of a MovieLens data set")
    parser.add_argument("--recipe", default="movielens", help="name of a recipe, or a file that ends in .toml")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results/")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
