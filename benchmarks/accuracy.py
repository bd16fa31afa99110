"""Accuracy by file format: any folder of sequences or interactions, with one recipe, over several seeds.

    python -m benchmarks accuracy --format sequences|interactions --data-dir DIR --recipe FILE --seeds N

`sequences` (`sequences.txt`, optional `item_attributes.json`): train on all but the last two items of each person, validate
on the last but one, test on the last, Recall and NDCG at 10. `interactions` (`train.txt`, `test.txt`, plain or gzip):
hold a tenth of everybody's items out to choose by and to fit the ranking model on, train the towers again on all of
`train.txt`, test on `test.txt`, Recall and NDCG at 20. Both rank the whole catalogue and leave seen items out; the test
items are read once, after the last choice. Prints means and standard deviations over seeds beside the baselines, and ends
with one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.results import keep
from embeddings.arrays import Ints
from embeddings.ids import UNKNOWN
from training.baselines import EASE, ItemKNN, Popularity
from training.cli import activity, output
from training.config import Config, Run, parse_run
from training.contenders import item_matrix, rank_baselines, rank_ranker, rank_two_tower
from training.dataset import Dataset, Split, Targets, leave_last_out, leave_share_out
from training.loop import Progress, refit, train
from training.metrics import score
from training.recipes import load_recipe
from training.runs import build_dataset, recount, train_ranker
from training.sources import held_out, read

CUTOFFS = {"sequences": 10, "interactions": 20}
"""Length of the lists by format; each format has a recipe of its name."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Data of one format, cut by its protocol: `choose` has validation targets, `final` the test targets.

    `counts` says what the files held and what became of it.
    """

    data: Dataset
    choose: Split
    final: Split
    counts: dict[str, int]

    @property
    def refits(self) -> bool:
        """Whether the final split trains on more than the one that chooses."""
        return bool(self.final.train.sum() > self.choose.train.sum())


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One seed: metrics by system, and how the training went; `seconds` are those of all its parts."""

    seed: int
    metrics: dict[str, dict[str, float]]
    validation: dict[str, float]
    epochs: int
    best_epoch: int
    seconds: float
    stopped: str


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark; an error of ours ends it with its sentence."""
    options = _options(argv)
    config = load_recipe(options.recipe)
    protocol = open_protocol(options.format, options.data_dir, config, shuffle_ties=options.shuffle_ties)
    k, console, outcomes = CUTOFFS[options.format], output(), []
    console.print(", ".join(f"{name} {count:,}" for name, count in protocol.counts.items()), highlight=False)
    baselines = score_baselines(protocol, k=k, ease_gib=options.ease_gib)
    for outcome in _outcomes(options, protocol, config):
        outcomes.append(outcome)
        _say(outcome, k)
    console.print(table(baselines, outcomes, k=k))
    last = summary(options, outcomes, k=k)
    if options.save:
        found = last | {
            "counts": protocol.counts,
            "baselines": baselines,
            "runs": [dataclasses.asdict(outcome) for outcome in outcomes],
            "config": config.model_dump(mode="json"),
        }
        path = keep(f"accuracy-{last['dataset']}", found, device=options.device)
        console.print(f"saved {path}", highlight=False)
    print(json.dumps(last))


def open_protocol(format: str, folder: Path, config: Config, *, shuffle_ties: bool = False) -> Protocol:  # noqa: A002
    """Read a folder and cut it by the protocol of its format. Raises `DataError` as the readers do."""
    tables = read(folder, format=format)
    data = build_dataset(tables.events, tables.items, tables.users, config=config)
    counts = {"users": len(data.users), "items": len(data.items), "events": len(data)}
    counts |= {"refused": tables.counts.quarantined, "duplicates": tables.counts.duplicates}
    if format == "sequences":
        if shuffle_ties:
            output().print("no ties are shuffled: a file of sequences holds no times, so nothing says what is a tie")
        split = leave_last_out(data)
        counts["too_short_to_test"] = len(data.users) - len(split.test)
        return Protocol(data=data, choose=split, final=split, counts=counts)
    answers, refused = held_out(folder)
    test, lost = _test_targets(data, answers)
    everything = np.ones(len(data), dtype=np.bool_)
    choose = leave_share_out(data, share=config.split.validation_share)
    counts |= {"test_users": len(test), "test_lines_refused": len(refused)} | lost
    nothing = test.take(np.zeros(0, dtype=np.int64))
    return Protocol(
        data=data, choose=choose, final=Split(train=everything, validation=nothing, test=test), counts=counts
    )


def score_baselines(protocol: Protocol, *, k: int, ease_gib: float) -> dict[str, dict[str, float]]:
    """Test metrics of popularity, item-kNN and EASE; EASE is left out where its matrix takes more than it may."""
    baselines, test = (Popularity(), ItemKNN(), EASE(memory_limit_gib=ease_gib)), protocol.final.test
    lists, notes = rank_baselines(baselines, protocol.data, protocol.final, test, depth=k, say=lambda _: None)
    for note in notes:
        output().print(note, highlight=False)
    return {name: _metrics(ranked, test, k) for name, ranked in lists.items()}


def run_seed(protocol: Protocol, config: Config, run: Run, *, k: int) -> Outcome:
    """Train with one seed, choosing on validation; then read the test targets, once."""
    data, test = protocol.data, protocol.final.test
    with activity() as say:

        def follow(at: Progress) -> None:
            say(f"seed {run.seed}, epoch {at.epoch}, loss {at.loss:.3f}", at.share)

        trained = chosen = train(data, protocol.choose, config, run, progress=follow)
        # After a refit nothing is left that the towers have not seen, and a ranking model needs just that.
        started = time.monotonic()
        fitted = train_ranker(data, protocol.choose, chosen.towers, config, seed=run.seed, say=say)
        seconds = chosen.seconds + time.monotonic() - started
        if protocol.refits:
            trained = refit(data, protocol.final, config, run, chosen, progress=follow)
            seconds += trained.seconds
            if fitted is not None:
                recount(data, protocol.final.train, fitted.ranker)
    matrix = item_matrix(data, trained.towers)
    depth = k if fitted is None else max(k, fitted.ranker.config.candidates)
    ranked = rank_two_tower(data, trained.towers, matrix, test, depth=depth)
    metrics = {"two_tower": _metrics(ranked, test, k)}
    if fitted is not None:
        reordered, predictions = rank_ranker(data, trained.towers, matrix, fitted.ranker, test, ranked)
        metrics["ranker"] = _metrics(reordered, test, k) | {"calibration_error": predictions.error()}
    return Outcome(
        seed=run.seed,
        metrics=metrics,
        validation=chosen.validation,
        epochs=len(chosen.history),
        best_epoch=chosen.best_epoch,
        seconds=seconds,
        stopped=chosen.stopped,
    )


def table(baselines: dict[str, dict[str, float]], outcomes: Sequence[Outcome], *, k: int) -> Table:
    """Systems by metric: means over seeds, with standard deviations where there are several."""
    names = (f"recall@{k}", f"ndcg@{k}")
    shown = Table("", *names, title=f"{len(outcomes)} seeds, test targets", title_justify="left")
    for system, metrics in baselines.items():
        shown.add_row(system, *(f"{metrics[name]:.4f}" for name in names))
    for system in outcomes[0].metrics if outcomes else ():
        cells = []
        for name in names:
            values = np.array([outcome.metrics[system][name] for outcome in outcomes])
            spread = f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.4f}{spread}")
        shown.add_row(system, *cells)
    return shown


def summary(options: argparse.Namespace, outcomes: Sequence[Outcome], *, k: int) -> dict[str, Any]:
    """The object of the last line: the towers' means over seeds, the ranker's beside them."""
    found: dict[str, Any] = {
        "dataset": options.data_dir.resolve().name,
        "format": options.format,
        "recipe": Path(options.recipe).stem,
    }
    for prefix, system in (("", "two_tower"), ("ranker_", "ranker")):
        for name in (f"recall@{k}", f"ndcg@{k}"):
            values = [outcome.metrics[system][name] for outcome in outcomes if system in outcome.metrics]
            if values:
                found[f"{prefix}{name}"] = round(float(np.mean(values)), 5)
                found[f"{prefix}{name}_std"] = round(float(np.std(values, ddof=1)), 5) if len(values) > 1 else None
    found["seconds"] = round(float(np.mean([outcome.seconds for outcome in outcomes])), 1)
    found["seeds"] = len(outcomes)
    return found


def _outcomes(options: argparse.Namespace, protocol: Protocol, config: Config) -> Iterator[Outcome]:
    """Seed by seed; with several jobs beside each other, each in a process that reads the data itself."""
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    if options.jobs == 1:
        for seed in seeds:
            yield run_seed(protocol, config, _run(options, seed), k=CUTOFFS[options.format])
        return
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(partial(_run_alone, options), seeds)


def _run_alone(options: argparse.Namespace, seed: int) -> Outcome:
    config = load_recipe(options.recipe)
    protocol = open_protocol(options.format, options.data_dir, config, shuffle_ties=options.shuffle_ties)
    return run_seed(protocol, config, _run(options, seed), k=CUTOFFS[options.format])


def _run(options: argparse.Namespace, seed: int) -> Run:
    threads = options.threads or (max(1, (os.cpu_count() or 1) // options.jobs) if options.jobs > 1 else None)
    return parse_run(device=options.device, seed=seed, threads=threads, max_minutes=options.max_minutes)


def _test_targets(data: Dataset, answers: dict[str, list[str]]) -> tuple[Targets, dict[str, int]]:
    """Targets after the whole history; people and items that training does not know are counted.

    An unknown item stays among those to be found: nobody can find it, and leaving it out would flatter everyone.
    """
    users, bounds, rows = [], [0], []
    unknown_users = unknown_items = 0
    for name in sorted(answers):
        if data.users.row(name) == UNKNOWN:
            unknown_users += 1
            continue
        wanted = data.items.rows(list(dict.fromkeys(answers[name])))
        # Rows beyond the catalogue stand for unknown items: each is one that no list holds.
        missing = np.flatnonzero(wanted == UNKNOWN)
        wanted[missing] = len(data.items) + np.arange(len(missing))
        unknown_items += len(missing)
        users.append(name)
        rows.append(wanted)
        bounds.append(bounds[-1] + len(wanted))
    own = data.users.rows(users)
    ends = data.offsets[own + 1]
    targets = Targets(
        users=own,
        ends=ends,
        events=ends - 1,
        times=data.times[ends - 1],
        bounds=np.array(bounds, dtype=np.int64),
        rows=np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64),
    )
    return targets, {"test_users_unknown": unknown_users, "test_items_unknown": unknown_items}


def _metrics(ranked: Ints, targets: Targets, k: int) -> dict[str, float]:
    return dict(score(ranked, (targets.bounds, targets.rows), k=[k], metrics=["recall", "ndcg"]).means)


def _say(outcome: Outcome, k: int) -> None:
    found = ", ".join(
        f"{name} {metrics[f'recall@{k}']:.4f}/{metrics[f'ndcg@{k}']:.4f}" for name, metrics in outcome.metrics.items()
    )
    output().print(
        f"seed {outcome.seed}: {found}; best epoch {outcome.best_epoch} of {outcome.epochs}, {outcome.seconds:.0f} s; "
        f"{outcome.stopped}",
        highlight=False,
    )


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks accuracy", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--format", choices=list(CUTOFFS), required=True)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the files")
    parser.add_argument("--recipe", help="name of a recipe, or a file that ends in .toml (default: that of the format)")
    parser.add_argument("--seeds", type=int, default=3, help="so many trainings")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="so many trainings at a time, which share the cores")
    parser.add_argument("--shuffle-ties", action="store_true", help="shuffle events of the same time")
    parser.add_argument("--max-minutes", type=float, help="limit of each training; it stops early and says so")
    parser.add_argument("--ease-gib", type=float, default=8.0, help="memory that EASE may take")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results/")
    options = parser.parse_args(argv)
    options.recipe = options.recipe or options.format
    return options


if __name__ == "__main__":
    main()
