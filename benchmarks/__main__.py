"""`python -m benchmarks NAME [options]`: each prints a table and, as its last line, one JSON object."""

from __future__ import annotations

import importlib
import sys

NAMES = ("movielens", "serving")


def main() -> int:
    """Run one benchmark."""
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        print(f"usage: python -m benchmarks NAME [options]; names: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    importlib.import_module(f"benchmarks.{sys.argv[1]}").main(sys.argv[2:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
