"""A bundle: one model release as one immutable folder, opened.

    RELEASES/
      current                the name of the release in service; replaced atomically
      2026-11-23T210500Z/
        manifest.json        written last: format, counts, recipe, offline metrics, SHA-256 of every other file
        features.json        what the featurizer learned
        towers.safetensors   weights of both towers
        ranker.safetensors   weights of the ranking model, if there is one
        items.parquet        the item table, its row order is the order of rows everywhere else
        popularity.npy       event counts of every item: [N, 2], all and recent
        matrix.npy           item vectors [N, D], float32, memory-mapped
        index.faiss          the index over the matrix
        neighbours.npy       rows of the nearest items of every item: [N, M], if they were looked for
        golden.json          a few queries with the answers that a sound release gives, if there are any
        replenishment.parquet  how fast things are used up, if anything was ever bought twice
        together.npy         the rows that go with each item, closest first, -1 at the end: [N, M], if anything does

Retriever, ranker and item table always come from the same bundle. A bundle holds no pickle; a file is trusted only after
its checksum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embeddings.arrays import Floats, Ints
from embeddings.errors import BundleError
from embeddings.features import FeatureSpec, gap_buckets
from embeddings.fused import FusedRanker, FusedUser, FusedUsers, fuse_users
from embeddings.ids import IdMap
from embeddings.index import VectorIndex
from embeddings.manifest import Manifest
from embeddings.neighbours import Neighbours
from embeddings.ranker import Ranker
from embeddings.replenishment import Paces
from embeddings.schema import ITEMS, Item, from_table
from embeddings.successors import Successors
from embeddings.traits import Traits, traits_of
from embeddings.two_tower import ItemTower, TowerConfig, TwoTower, UserEnsemble, UserTower


class ItemTable(Sequence[Item]):
    """The item table of a release: Arrow inside, one `Item` at a time outside."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table.select(ITEMS.names).cast(ITEMS).combine_chunks()
        self.titles: list[str] = self.table["title"].to_pylist()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, row: int) -> Item: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[Item]: ...
    def __getitem__(self, row: int | slice) -> Item | Sequence[Item]:
        if isinstance(row, slice):
            return ItemTable(self.table.take(list(range(len(self))[row])))
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of a table of {len(self)} items")
        return from_table(self.table.slice(row % len(self), 1), Item)[0]  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[Item]:
        for start in range(0, len(self), 10_000):
            yield from from_table(self.table.slice(start, 10_000), Item)


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened release: N items, vectors of D dimensions. `vector_index` is None where it was opened without.

    `paces` is None where nothing was ever bought twice. `together` [N, M] has the rows that go with each item, the closest
    first and -1 at the end; None where nobody counted.
    """

    manifest: Manifest
    spec: FeatureSpec
    towers: TwoTower
    ranker: Ranker | None
    items: ItemTable
    ids: IdMap
    matrix: Floats
    popularity: npt.NDArray[np.float64]
    vector_index: VectorIndex | None
    neighbours: Neighbours | None = None
    paces: Paces | None = None
    together: npt.NDArray[np.int32] | None = None

    @cached_property
    def user_pass(self) -> FusedUser | FusedUsers:
        """The user tower for one person at a time."""
        return fuse_users(self.towers.users)

    @cached_property
    def ranker_pass(self) -> FusedRanker:
        """The ranking model for one list at a time; raises `BundleError` where there is none."""
        return FusedRanker(self._model)

    @cached_property
    def successors(self) -> Successors:
        """What followed each item, by rows of this release; raises `BundleError` where there is no ranking model."""
        return self._model.successors

    @cached_property
    def traits(self) -> Traits:
        """What the ranking model knows of each item's attributes; nothing where there is no ranking model."""
        return Traits.none(len(self.ids), shared=True) if self.ranker is None else self.ranker.traits

    def traits_of(self, items: Sequence[Item]) -> Traits:
        """Those of other items."""
        if self.ranker is None:
            return Traits.none(len(items))
        return traits_of(self.spec.item_features(items), self.ranker.rarity.numpy())

    @property
    def _model(self) -> Ranker:
        if self.ranker is None:
            raise BundleError(f"release '{self.name}' has no ranking model, or was opened without it")
        return self.ranker

    @property
    def index(self) -> VectorIndex:
        """The index; raises `BundleError` where the release was opened without it."""
        if self.vector_index is None:
            raise BundleError(f"release '{self.name}' was opened without its index")
        return self.vector_index

    @property
    def name(self) -> str:
        """The release's name, `model_version` in every answer."""
        return self.manifest.name

    def encode_items(self, items: Sequence[Item]) -> Floats:
        """Vectors [n, D] of items by their content, as retrieval and ranking see an item the model never met.

        An item the model knows keeps its id embedding, so a changed title moves it only as far as the title counts.
        """
        return self.towers.items.encode(self.spec.item_features(items, self.ids.rows(item.item_id for item in items)))

    def encode_user(
        self, vectors: Floats, types: Ints, times: npt.NDArray[np.float64], context: Sequence[int]
    ) -> Floats:
        """Query vector [D] of one person.

        `vectors` [L, D], `types` [L] (rows of the event types) and `times` [L] (seconds) describe the history, oldest
        first, of any length, zero included; `context` are tokens of `FeatureSpec.context_tokens`.
        """
        last = self.towers.users.config.max_history
        gaps = gap_buckets(times)[-last:] if len(times) else times.astype(np.int64)
        return self.user_pass.query(vectors[-last:], types[-last:], gaps, context)


def build_towers(config: TowerConfig, spec: FeatureSpec, *, items: int) -> TwoTower:
    """Make both towers, untrained, in the size that configuration, featurizer and catalogue ask for."""
    users = UserTower if config.members == 1 else UserEnsemble
    return TwoTower(
        ItemTower(config, items=items, tokens=spec.token_count, words=spec.text_buckets, numbers=len(spec.numbers)),
        users(config, event_types=len(spec.event_types), context_buckets=spec.context_buckets),
    )


def require_finite(what: str, array: npt.NDArray[Any]) -> None:
    """Raise `BundleError` that names what holds a number that is not finite."""
    # By chunks: a memory-mapped matrix of millions of rows must not become a second copy.
    flat = array.reshape(len(array), -1) if array.ndim else array.reshape(1, 1)
    for start in range(0, len(flat), 65_536):
        if not np.isfinite(flat[start : start + 65_536]).all():
            raise BundleError(f"{what} holds a number that is not finite")
