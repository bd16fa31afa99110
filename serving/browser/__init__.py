"""The browser piece: one script that a shop's pages load, without dependencies and without a build step.

It speaks to the public HTTP API by the address that it was loaded from, so it also works below a route prefix.
"""

from __future__ import annotations

from importlib.resources import files as resources

PATH = "/bespoke.js"


def script() -> bytes:
    """The script, read from the installed package."""
    return (resources(__name__) / "bespoke.js").read_bytes()
