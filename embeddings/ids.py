"""External ids (strings) and rows (integers), one frozen map between them, and stable hashes.

An id is what the application calls an item; a row is where its vector lies. `IdMap` is the only bridge.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from embeddings.errors import InputError

Rows = npt.NDArray[np.int64]

UNKNOWN = -1
"""The row of an id that is not in the map; also what FAISS fills short results with."""


class IdMap:
    """A frozen, ordered bijection between ids and rows 0..n-1."""

    __slots__ = ("_ids", "_row")

    def __init__(self, ids: Iterable[str]) -> None:
        self._ids = tuple(ids)
        self._row = {name: row for row, name in enumerate(self._ids)}
        if len(self._row) != len(self._ids):
            twice = Counter(self._ids).most_common(1)[0][0]
            raise InputError(f"id '{twice}' occurs more than once")

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, name: object) -> bool:
        return name in self._row

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IdMap) and self._ids == other._ids

    def __hash__(self) -> int:
        return hash(self._ids)

    @property
    def all(self) -> tuple[str, ...]:
        """Every id, in row order."""
        return self._ids

    def row(self, name: str) -> int:
        """Row of one id, or `UNKNOWN`."""
        return self._row.get(name, UNKNOWN)

    def rows(self, names: Iterable[str]) -> Rows:
        """Rows of many ids, `UNKNOWN` where an id is not in the map."""
        get = self._row.get
        return np.fromiter((get(name, UNKNOWN) for name in names), dtype=np.int64)

    def id(self, row: int) -> str:
        """Id of one row; raises IndexError for `UNKNOWN` and for a row past the end."""
        if row < 0:
            raise IndexError(f"row {row} has no id")
        return self._ids[row]

    def ids(self, rows: Sequence[int] | Rows) -> list[str]:
        """Ids of many rows."""
        return [self.id(row) for row in np.asarray(rows, dtype=np.int64).tolist()]


def stable_hash(text: str, *, salt: str = "") -> int:
    """64-bit hash of a text: the same in every process, on every machine, in every version of Python."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, key=salt.encode()[:64])
    return int.from_bytes(digest.digest(), "little")


def bucket(text: str, buckets: int, *, salt: str = "") -> int:
    """Stable bucket 0..buckets-1 of a text: feature hashing, experiment arms, canary shares."""
    return stable_hash(text, salt=salt) % buckets
