"""The front door: one command line. (Provisional; its author overwrites it.)"""


def main() -> None:
    """Run the command line."""
    raise SystemExit("not yet")
