"""The console: where a person watches a list follow what they do, and people oversee experiments, rules and segments.

A page, two style sheets and native modules of one noun each, without a build step and without any outside resource: they
hold under the content-security-policy `default-src 'self'`. The page speaks to the public HTTP API only, by relative
addresses, so it also works below a route prefix.
"""

from __future__ import annotations

from importlib.resources import files as resources

ICON = b"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" fill="none" stroke="#12805f" stroke-width="2"
stroke-linecap="round"><path d="M4 19 19 4M15.5 4.6a2.9 2.9 0 1 1 3.9 3.9M4 19c4.5-.5 3.5-6 8-6s4 5 8 4.5"/></svg>
"""
TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}


def files() -> dict[str, tuple[bytes, str]]:
    """Every path of the console with its content and content type, read from the installed package."""
    folder = resources(__name__)
    page = (folder / "index.html").read_bytes()
    assets = {"/console": (page, "text/html; charset=utf-8"), "/console/icon.svg": (ICON, "image/svg+xml")}
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        suffix = entry.name[entry.name.rfind(".") :]
        if suffix in TYPES:
            assets[f"/console/{entry.name}"] = (entry.read_bytes(), TYPES[suffix])
    return assets
