"""`python -m benchmarks NAME [options]`: each prints a table and, as its last line, one JSON object."""

from __future__ import annotations

import importlib
import sys

from embeddings.errors import BespokeError, unknown_name

BENCHMARKS = {
    "movielens": "accuracy on MovieLens, from nothing",
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
