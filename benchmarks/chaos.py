"""Chaos: kills, full disks, rotten files, moved clocks, herds; counts what was lost or wrong, which must be nothing.

    python -m benchmarks chaos [--short] [--only NAME] [--seed N] [--soak-minutes M]

Every scenario is a function that returns its figures and the sentences about what went wrong. Randomness comes from the
seed. A SIGKILL is not a power failure: what the kernel has taken is written in any case, so the durability that is shown
here is that of processes; that of the disk rests on the database's full synchronous commits. `--short` does less of the
same. The soak runs only when its minutes are given. Exits with 1 when anything was lost or wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import chaos_service, chaos_store
from benchmarks.trial import Trial
from embeddings.errors import unknown_name

SCENARIOS = chaos_store.SCENARIOS | chaos_service.SCENARIOS


def main(argv: Sequence[str]) -> None:
    """Run the scenarios, print a line for each and the JSON of all."""
    options = _options(argv)
    for name in options.only:
        if name not in SCENARIOS:
            raise unknown_name("scenario", name, SCENARIOS, field="only")
    chosen = options.only or [name for name in SCENARIOS if name != "soak" or options.soak_minutes]
    results: dict[str, dict[str, Any]] = {}
    for name in chosen:
        with tempfile.TemporaryDirectory(prefix="bespoke-chaos-") as folder:
            trial = Trial(Path(folder), seed=options.seed, short=options.short, minutes=options.soak_minutes)
            started = time.monotonic()
            SCENARIOS[name](trial)
            results[name] = trial.summary() | {"seconds": round(time.monotonic() - started, 1)}
        shown = ", ".join(f"{key} {value}" for key, value in trial.figures.items())
        print(f"{'ok  ' if not trial.wrong else 'LOST'} {name:10} {shown}", flush=True)
        for sentence in trial.wrong[:5]:
            print(f"       {sentence}", flush=True)
    print(json.dumps({"seed": options.seed, "short": options.short, "scenarios": results}))
    if any(not result["ok"] for result in results.values()):
        sys.exit(1)


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="less of everything: under ten minutes")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help=", ".join(SCENARIOS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--soak-minutes", type=float, default=0.0, help="length of the soak; 60 shows a slow leak")
    return parser.parse_args(argv)
