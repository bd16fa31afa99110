"""`python -m benchmarks NAME [options]`: each prints a table and, as its last line, one JSON object."""

from __future__ import annotations

import importlib
import sys

from embeddings.errors import BespokeError, unknown_name

BENCHMARKS = {
    "accuracy": "accuracy by file format: folders of sequences or interactions, over several seeds",
    "experiments": "is the truth within the intervals, do equal arms alarm, what does the bandit lose",
    "freshness": "from a change to the first answers that know it: events, items, policy, releases",
    "capacity": "what items, people, lists and events cost, for `bespoke capacity`",
    "chaos": "what is lost and what is wrong when processes die, disks fill, files rot and clocks jump",
    "coldstart": "what content finds among new items, and what the first events of new people are worth",
    "index": "what a search costs and finds under filters, beside hnswlib and usearch",
    "movielens": "accuracy on MovieLens, from nothing",
    "training": "time to the accuracy of RecTools' SASRec, and of ALS and BPR of implicit",
    "serving": "latency and throughput of the service beside an empty endpoint, fused and chained",
}


def main() -> None:
    """Run the named benchmark with the rest of the command line."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print("python -m benchmarks NAME [options]     (NAME --help lists the options)\n")
        for name, text in BENCHMARKS.items():
            print(f"  {name:12}{text}")
        return
    name, *rest = sys.argv[1:]
    try:
        if name not in BENCHMARKS:
            raise unknown_name("benchmark", name, BENCHMARKS)
        importlib.import_module(f"benchmarks.{name}").main(rest)
    except BespokeError as error:
        sys.exit(f"error: {error.message}")


if __name__ == "__main__":
    main()
