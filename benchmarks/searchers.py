"""Searchers: the index of a release, a plain scan, hnswlib and usearch, each asked for the best rows under a filter.

The graphs' Python interfaces leave two ways to filter: hnswlib asks a function for every row it meets, and either can be
asked for so many rows that enough are left. Both ways of hnswlib are tried and the quicker one counts.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from embeddings.arrays import Floats, Mask
from embeddings.ids import Rows
from embeddings.index import VectorIndex
from embeddings.scan import faiss

WIDTHS = (0, 150, 200, 300, 400, 600, 800, 1200, 1600, 2400, 3200, 4800)
"""How many rows a graph keeps in view (`ef`, `expansion`), from too few to more than anybody would; never fewer than k."""

Ask = Callable[[Floats], Rows]
"""Rows of one query [1, D], best first, perhaps fewer than asked for."""


class Searcher(Protocol):
    """Something to be measured. `bytes` must be in memory for a search."""

    name: str
    bytes: int

    def ways(self, k: int, mask: Mask | None) -> Iterator[Sequence[Callable[[], Ask]]]:
        """Ways to search, each as a row of efforts that grow: the first one that finds enough is measured."""
        ...


class Release:
    """The index as a release holds it, loaded from its file."""

    name = "bespoke"

    def __init__(self, rows: Floats, tuned_on: Floats, *, k: int, threads: int, seed: int) -> None:
        built = VectorIndex.build(rows, k=k, queries=tuned_on, threads=threads, seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "index.faiss"
            built.save(path)
            self.bytes = path.stat().st_size + rows.nbytes
            self.index = VectorIndex.load(path, rows)

    def ways(self, k: int, mask: Mask | None) -> Iterator[Sequence[Callable[[], Ask]]]:
        """One, whose effort the index knows."""
        yield [lambda: lambda query: self.index.search(query, k, allowed=mask)[1][0]]


class Scan:
    """Every row, by faiss; a bitmap says which are allowed."""

    name = "scan"

    def __init__(self, rows: Floats) -> None:
        self.index = faiss.IndexFlatIP(rows.shape[1])
        self.index.add(rows)
        self.bytes = rows.nbytes

    def ways(self, k: int, mask: Mask | None) -> Iterator[Sequence[Callable[[], Ask]]]:
        """One."""

        def ask(query: Floats) -> Rows:
            bits = None if mask is None else faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
            found: Rows = self.index.search(query, k, params=faiss.SearchParameters(sel=bits))[1][0]
            return found[found >= 0]

        yield [lambda: ask]


class Hnswlib:
    """A graph, by hnswlib."""

    name = "hnswlib"

    def __init__(self, rows: Floats, *, links: int, building: int, threads: int, seed: int) -> None:
        hnswlib: Any = importlib.import_module("hnswlib")
        self.index = hnswlib.Index(space="ip", dim=rows.shape[1])
        self.index.init_index(len(rows), M=links, ef_construction=building, random_seed=seed)
        self.index.add_items(rows, num_threads=threads)
        self.index.set_num_threads(1)
        self.rows = len(rows)
        self.bytes = int(self.index.index_file_size())

    def ways(self, k: int, mask: Mask | None) -> Iterator[Sequence[Callable[[], Ask]]]:
        """Asking for more and dropping some, and asking a function."""
        fetched = more(k, mask)
        if fetched <= self.rows // 4:
            yield [self._set(width, fetched, mask, None) for width in WIDTHS]
        if mask is not None:
            yield [self._set(width, k, None, mask) for width in WIDTHS]

    def _set(self, width: int, fetched: int, dropped: Mask | None, asked: Mask | None) -> Callable[[], Ask]:
        def ready() -> Ask:
            self.index.set_ef(max(width, fetched))
            test = None if asked is None else asked.tolist().__getitem__

            def ask(query: Floats) -> Rows:
                rows: Rows = self.index.knn_query(query, fetched, num_threads=1, filter=test)[0][0].astype(np.int64)
                return rows if dropped is None else rows[dropped[rows]]

            return ask

        return ready


class Usearch:
    """A graph, by usearch, which keeps vectors as it was given them."""

    name = "usearch"

    def __init__(self, rows: Floats, *, links: int, building: int, threads: int) -> None:
        usearch: Any = importlib.import_module("usearch.index")
        self.index = usearch.Index(
            ndim=rows.shape[1], metric="ip", dtype="f32", connectivity=links, expansion_add=building
        )
        self.index.add(np.arange(len(rows)), rows, threads=threads)
        self.rows = len(rows)
        self.bytes: int = self.index.serialized_length

    def ways(self, k: int, mask: Mask | None) -> Iterator[Sequence[Callable[[], Ask]]]:
        """Asking for more and dropping some."""
        fetched = more(k, mask)
        if fetched <= self.rows // 4:
            yield [self._set(width, fetched, mask) for width in WIDTHS]

    def _set(self, width: int, fetched: int, mask: Mask | None) -> Callable[[], Ask]:
        def ready() -> Ask:
            self.index.expansion_search = max(width, fetched)

            def ask(query: Floats) -> Rows:
                rows: Rows = np.asarray(self.index.search(query[0], fetched, threads=1).keys).astype(np.int64)
                return rows if mask is None else rows[mask[rows]]

            return ask

        return ready


def more(k: int, mask: Mask | None) -> int:
    """How many rows to ask for so that k allowed ones are nearly always among them."""
    if mask is None:
        return k
    wanted = k * len(mask) / max(1, int(np.count_nonzero(mask)))
    return int(np.ceil(wanted + 3 * wanted / np.sqrt(k)))
