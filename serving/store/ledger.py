"""Ledgers: what an export has written, and how far it knows who must not be in it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from embeddings.durable import put
from embeddings.errors import Conflict, DataError

LEDGER = "_exported.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Band:
    """Rows up to the number `last` (and above the band before): those earlier than `before` have been written."""

    last: int
    before: int


@dataclass(frozen=True, slots=True)
class Ledger:
    """Bands, the files that hold them, and the mark of the erasures and refusals that have been followed in them."""

    bands: list[Band]
    files: set[str]
    mark: str | None = None


def read_ledger(folder: Path, identity: int) -> Ledger:
    """Read the ledger of a folder, an empty one where there is none.

    Raises `DataError` for one that cannot be read and `Conflict` for that of another store.
    """
    path = folder / LEDGER
    if not path.exists():
        return Ledger([], set())
    try:
        raw = json.loads(path.read_bytes())
        if raw["format"] != FORMAT:
            raise DataError(f"{path}: format {raw['format']!r}, this version reads {FORMAT}")
        store = raw["store"]
        ledger = Ledger([Band(*band) for band in raw["bands"]], set(raw["files"]), raw.get("mark"))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a ledger of exports: {error}") from error
    if store != identity:
        raise Conflict(f"{folder.parent} holds the export of another store; choose an empty directory")
    return ledger


def write_ledger(folder: Path, identity: int, bands: Iterable[Band], files: Iterable[str], mark: str) -> None:
    """Write the ledger of a folder."""
    content = {
        "format": FORMAT,
        "store": identity,
        "bands": [[band.last, band.before] for band in bands],
        "files": sorted(files),
        "mark": mark,
    }
    put(folder / LEDGER, lambda temporary: temporary.write_text(json.dumps(content, indent=1), encoding="utf-8"))
