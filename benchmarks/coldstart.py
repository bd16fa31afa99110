"""Cold start: recall among items that training never heard of, and for new people by number of events seen.

    python -m benchmarks coldstart --data-dir DIR [--recipe default] [--seed 0] [--save] [--plot FILE]

Prints two tables and ends with one JSON object. `--save` keeps the result under `benchmarks/results/`, with hardware,
month and the whole configuration; `--plot` writes the figure of the new people as one HTML file.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.table import Table

from benchmarks.results import keep
from training.about import Source
from training.cli import activity, output
from training.cold_start import STEPS, ColdStart, K, measure_cold_start
from training.config import Config
from training.metrics import Interval
from training.recipes import load_recipe


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark; an error of ours ends it with its sentence."""
    options = _options(argv)
    config, started = load_recipe(options.recipe), time.monotonic()
    with activity() as say:
        source = Source(path=options.data_dir)
        found = measure_cold_start(source, config, seed=options.seed, threads=options.threads, say=say)
    seconds = time.monotonic() - started
    for table in tables(found):
        output().print(table)
    mean, low, high = found.item_gap
    output().print(
        f"content - popularity: recall@{K} {mean:+.4f} [{low:+.4f}, {high:+.4f}]", highlight=False, markup=False
    )
    output().print(f"{seconds:.0f} s", highlight=False)
    if options.plot is not None:
        plot(found, options.plot)
        output().print(f"figure in {options.plot}", highlight=False, markup=False)
    if options.save:
        path = save(found, config, data=options.data_dir.resolve().name, seed=options.seed, seconds=seconds)
        output().print(f"saved {path}", highlight=False, markup=False)
    print(json.dumps(found.to_json()))


def tables(found: ColdStart) -> tuple[Table, Table]:
    """New items by system; new people by system and number of events."""
    items = Table("", f"recall@{K}", title=f"{found.held_items:,} new items, {found.item_targets:,} targets")
    for name, interval in found.items.items():
        items.add_row(name, _cell(interval))
    people = Table("", *(f"{step} events" for step in STEPS), title=f"recall@{K}, {found.held_people:,} new people")
    for name, steps in found.people.items():
        people.add_row(name, *(_cell(interval) for interval in steps.values()))
    for table in (items, people):
        table.title_justify = "left"
    return items, people


def plot(found: ColdStart, path: Path) -> None:
    """Write the figure of the new people as one self-contained HTML file."""
    import plotly.graph_objects as go

    from training.figures import new_people

    go.Figure(new_people(found)).write_html(path, include_plotlyjs=True)


def save(found: ColdStart, config: Config, *, data: str, seed: int, seconds: float) -> Path:
    """Keep the tables with the whole configuration; returns the path of the file."""
    result = {
        "torch": str(torch.__version__),
        "config": config.model_dump(mode="json"),
        "data": data,
        "seed": seed,
        "seconds": round(seconds, 1),
        "found": found.to_json(),
    }
    return keep(f"coldstart-{data}", result)


def _cell(interval: Interval) -> str:
    return f"{interval.mean:.4f} [{interval.low:.3f}, {interval.high:.3f}]"


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks coldstart", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="file of events, or folder with events and items")
    parser.add_argument("--recipe", default="default", help="name of a recipe, or a file that ends in .toml")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--plot", type=Path, default=None, help="file for the figure (HTML)")
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results/")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
