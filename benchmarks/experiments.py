"""Experiments where the truth is known: is it within the intervals, do equal arms alarm, what does the bandit cost.

    python -m benchmarks experiments [--tests 200] [--people 4000] [--seed 0] [--save]

Tests run in a simulated shop (`population.py`) and are looked at every day. `coverage` is the share of the tests whose true
difference in revenue is within the 95% interval at the end; `aa_alarm_rate` the share of the tests of equal arms in which a
difference, or unequal arms, were alarmed of on any day. Beside them what the usual fixed interval does in the same tests.
`bandit_regret_ratio` is what the bandit's choices lose against the best variant for each person, as a share of what an even
split loses. Ends with one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.choices import Audience, regret
from benchmarks.population import DAYS, METRICS, Population, Test
from benchmarks.results import keep
from embeddings.errors import InputError
from serving.analysis.intervals import mean
from serving.analysis.people import People, measured
from serving.analysis.results import ENOUGH, Compared, balance, compared
from serving.decisions.bandit import Bandit
from serving.policy.experiments import Experiment, parse_experiment
from serving.policy.kinds import References
from training.cli import activity, output

ALPHA = 0.05
FIXED = 1.96
PRIMARY = "revenue"
HEADLINES = 5
WORLD = {"people": 4096, "visits": 24, "items": 1000}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark; an error of ours ends it with its sentence."""
    options = _options(argv)
    if options.tests < 1 or options.people < 2 * ENOUGH:
        raise InputError(f"tests must be at least 1, people at least {2 * ENOUGH}", field="tests")
    started, started_cpu = time.monotonic(), time.process_time()
    with activity() as say:
        say("simulating the shop", 0.0)
        world = Population.draw(seed=options.seed, **WORLD)
        truth = tests(world, options, say, equal=False)
        equal = tests(world, options, say, equal=True)
        lost = bandit(options, say)
    output().print(_table(world, truth, equal))
    output().print(
        f"bandit: {lost['bandit']:.0f} clicks lost of {lost['people']:.0f} people, an even split {lost['even']:.0f}",
        highlight=False,
    )
    found = {
        "coverage": truth["coverage"][PRIMARY],
        "aa_alarm_rate": equal["alarm"],
        "bandit_regret_ratio": lost["bandit"] / lost["even"],
    }
    seconds, busy = time.monotonic() - started, time.process_time() - started_cpu
    output().print(f"{seconds:.0f} s, {busy:.0f} s of CPU", highlight=False)
    if options.save:
        config = {**vars(options), "days": DAYS, "world": WORLD, "headlines": HEADLINES}
        del config["save"]
        path = keep(
            "experiments",
            {
                "config": config,
                "seconds": round(seconds, 1),
                "cpu_seconds": round(busy, 1),
                "effects": truth,
                "equal": equal,
                "regret": lost,
                **found,
            },
        )
        output().print(f"saved {path}", highlight=False, markup=False)
    print(json.dumps(found))


def experiment(number: int, people: int) -> Experiment:
    """A test by its number: each draws its people anew."""
    arms = [{"id": "plain"}, {"id": "better"}]
    raw = {"id": f"test-{number}", "state": "running", "arms": arms, "placements": ["home"], "people": people}
    return parse_experiment(raw, references=References())


def tests(world: Population, options: argparse.Namespace, say: Any, *, equal: bool) -> dict[str, Any]:
    """Run tests of arms that differ (by a share of the whole effect, each by another), or of equal ones."""
    rng = np.random.default_rng([options.seed, 3, equal])
    hits: Counter[str] = Counter()
    by_metric: dict[str, Counter[str]] = defaultdict(Counter)
    explained: dict[str, list[float]] = defaultdict(list)
    first_days: list[int] = []
    for number in range(options.tests):
        say("equal arms" if equal else "arms that differ", number / options.tests)
        strength = 0.0 if equal else float(rng.uniform(0.1, 1.0))
        seed = options.seed * 1_000_000 + number + equal * 500_000
        one = experiment(seed, options.people)
        seen = _looked_at(Test(world, one, people=options.people, strength=strength, seed=seed), one)
        for metric, outcome in seen["metrics"].items():
            by_metric[metric].update(name for name in ("end", "always", "fixed", "found") if outcome[name])
            explained[metric].append(outcome["explained"])
        hits.update(name for name in ("alarm", "fixed_alarm", "unequal") if seen[name])
        if seen["day"] is not None:
            first_days.append(seen["day"])
    share = {
        name: {metric: counts[name] / options.tests for metric, counts in by_metric.items()}
        for name in ("end", "always", "fixed", "found")
    }
    return {
        "coverage": share["end"],
        "coverage_on_every_day": share["always"],
        "fixed_coverage": share["fixed"],
        "found": share["found"],
        "median_day": float(np.median(first_days)) if first_days else None,
        "explained": {metric: float(np.mean(values)) for metric, values in explained.items()},
        **{name: hits[name] / options.tests for name in ("alarm", "fixed_alarm", "unequal")},
    }


def bandit(options: argparse.Namespace, say: Any) -> dict[str, float]:
    """What the bandit and an even split lose, summed over several audiences."""
    lost = {"bandit": 0.0, "even": 0.0, "people": float(options.audiences * options.choices)}
    for number in range(options.audiences):
        say("headlines", number / options.audiences)
        audience = Audience.draw(people=options.choices, headlines=HEADLINES, seed=options.seed + number)
        chooser = Bandit(HEADLINES, audience.contexts.shape[1])
        lost["bandit"] += regret(audience, chooser, seed=options.seed + number)
        lost["even"] += audience.even_regret
    return lost


def _looked_at(test: Test, one: Experiment) -> dict[str, Any]:
    """One test from day to day: whether the truth was in the intervals, and what would have been alarmed of."""
    seen: dict[str, Any] = {"alarm": False, "fixed_alarm": False, "unequal": False, "day": None}
    metrics: dict[str, dict[str, Any]] = {name: {"always": True, "found": False} for name in METRICS}
    for day, people in test.looks():
        counts = np.bincount(people.arm, minlength=2).tolist()
        if min(counts) < ENOUGH:
            continue
        truth = test.truth(day)
        seen["unequal"] |= bool(balance(one, counts)["alarm"])
        for name in METRICS:
            found = compared(people, name, 2, alpha=ALPHA, planned=one.people)[1]  # type: ignore[arg-type]
            assert found.difference is not None
            low, high = found.difference.low, found.difference.high
            metrics[name]["end"] = low <= truth[name] <= high
            metrics[name]["always"] &= low <= truth[name] <= high
            metrics[name]["found"] |= found.verdict is not None
            metrics[name]["explained"] = found.explained
            estimate, error = _plain(people, name)
            metrics[name]["fixed"] = abs(estimate - truth[name]) <= FIXED * error
            if name == PRIMARY:
                seen["fixed_alarm"] |= abs(estimate) > FIXED * error
                seen["day"] = _first(seen["day"], day, found)
    seen["alarm"] = bool(metrics[PRIMARY]["found"] or seen["unequal"])
    return {**seen, "metrics": metrics}


def _first(before: int | None, day: float, found: Compared) -> int | None:
    return int(day) if before is None and found.verdict is not None else before


def _plain(people: People, name: str) -> tuple[float, float]:
    """The difference of the plain means, and its standard error: what is computed where nobody looks twice."""
    values = measured(people, name).values  # type: ignore[arg-type]
    plain, better = (mean(values[people.arm == arm]) for arm in (0, 1))
    return better.value - plain.value, math.sqrt(plain.variance + better.variance)


def _table(world: Population, truth: dict[str, Any], equal: dict[str, Any]) -> Table:
    table = Table("", *METRICS)
    plain, better = world.true_means(DAYS / 2)
    table.add_row("the whole effect", *(f"{lift:+.1%}" for lift in (better / plain - 1).tolist()))
    for title, figures in (
        ("truth within, at the end", truth["coverage"]),
        ("truth within, on every day", truth["coverage_on_every_day"]),
        ("truth within a fixed interval, at the end", truth["fixed_coverage"]),
        ("difference found", truth["found"]),
        ("variance explained before", truth["explained"]),
        ("equal arms: difference found on any day", equal["found"]),
    ):
        table.add_row(title, *(f"{figures[name]:.1%}" for name in METRICS))
    table.add_row("equal arms: any alarm", "", "", f"{equal['alarm']:.1%}")
    table.add_row("equal arms: alarm of a fixed interval", "", "", f"{equal['fixed_alarm']:.1%}")
    table.add_row("equal arms: unequal numbers", "", "", f"{equal['unequal']:.1%}")
    return table


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks experiments", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--tests", type=int, default=200, help="of either kind")
    parser.add_argument("--people", type=int, default=4000, help="in each test")
    parser.add_argument("--audiences", type=int, default=10, help="for the bandit")
    parser.add_argument("--choices", type=int, default=5000, help="of the bandit in each of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results/")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
