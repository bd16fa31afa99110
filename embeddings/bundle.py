"""A bundle: one model release as one immutable folder, and the pointer that says which release is current.

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

import contextlib
import hashlib
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file

from embeddings.durable import flush, put
from embeddings.errors import BundleError, NotFound
from embeddings.features import FeatureSpec, Floats, Ints, gap_buckets
from embeddings.fused import FusedRanker, FusedUser, FusedUsers, fuse_users
from embeddings.ids import IdMap
from embeddings.index import VectorIndex
from embeddings.neighbours import Neighbours
from embeddings.ranker import FEATURES, Ranker, RankerConfig
from embeddings.replenishment import Paces
from embeddings.schema import ITEMS, Item, from_table
from embeddings.two_tower import ItemTower, TowerConfig, TwoTower, UserEnsemble, UserTower

FORMAT = 1
CURRENT = "current"
MANIFEST = "manifest.json"
GOLDEN = "golden.json"
NEIGHBOURS = "neighbours.npy"
PACES = "replenishment.parquet"
TOGETHER = "together.npy"
OPTIONAL = frozenset({GOLDEN, NEIGHBOURS, PACES, TOGETHER})
"""Files that a release may do without."""

SAMPLE = 16
GOLDEN_FLOOR = 0.9
"""Share of the expected items that the answers to the golden queries must hold: machines round differently."""

Part = Literal["index", "ranker"]
PARTS: frozenset[Part] = frozenset(get_args(Part))
"""What a process may do without: only retrieval needs the index, only ranking the ranking model."""

FILES: Mapping[Part, str] = {"index": "index.faiss", "ranker": "ranker.safetensors"}


class Manifest(BaseModel):
    """What a release says about itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    name: str
    created_at: datetime
    towers: TowerConfig
    ranker: RankerConfig | None
    counts: dict[str, int]
    data_fingerprint: str
    recipe: dict[str, Any]
    metrics: dict[str, dict[str, float]]
    index: dict[str, Any]
    overridden: tuple[str, ...] = ()
    versions: dict[str, str]
    files: dict[str, str]


class Golden(BaseModel):
    """A query and its answer: `rows` and `types` of a history at `times`, `context` tokens, and the best `top` rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: tuple[int, ...]
    types: tuple[int, ...]
    times: tuple[float, ...]
    context: tuple[int, ...]
    top: tuple[int, ...]


GOLDENS = TypeAdapter(tuple[Golden, ...])


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
        if self.ranker is None:
            raise BundleError(f"release '{self.name}' has no ranking model, or was opened without it")
        return FusedRanker(self.ranker)

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


def write_bundle(
    releases: Path,
    *,
    name: str,
    spec: FeatureSpec,
    towers: TwoTower,
    ranker: Ranker | None,
    items: pa.Table,
    popularity: npt.NDArray[np.float64],
    matrix: Floats,
    index: VectorIndex,
    data_fingerprint: str,
    recipe: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, float]],
    counts: Mapping[str, int],
    overridden: Sequence[str] = (),
    golden: Sequence[Golden] = (),
    neighbours: Neighbours | None = None,
    paces: pa.Table | None = None,
    together: npt.NDArray[np.int32] | None = None,
) -> Path:
    """Write a release folder; it appears under its name only when it is complete. Returns the folder.

    Raises `BundleError` if a release of that name exists or a number in it is not finite.
    """
    folder = releases / name
    if folder.exists():
        raise BundleError(f"release '{name}' exists already in {releases}; releases are immutable")
    _require_finite("item matrix", matrix)
    _require_finite("popularity", np.asarray(popularity))
    for part, module in (("towers", towers), ("ranker", ranker)):
        for key, weight in (module.state_dict() if module else {}).items():
            _require_finite(f"{part}.{key}", weight.float().cpu().numpy())
    releases.mkdir(parents=True, exist_ok=True)
    unfinished = releases / f".unfinished-{name}-{os.getpid()}"
    unfinished.mkdir()
    try:
        (unfinished / "features.json").write_text(spec.model_dump_json(indent=1), encoding="utf-8")
        save_file(_weights(towers), unfinished / "towers.safetensors")
        if ranker is not None:
            save_file(_weights(ranker), unfinished / "ranker.safetensors")
        pq.write_table(items.select(ITEMS.names).cast(ITEMS), unfinished / "items.parquet")
        np.save(unfinished / "popularity.npy", np.asarray(popularity, dtype=np.float64), allow_pickle=False)
        np.save(unfinished / "matrix.npy", np.ascontiguousarray(matrix, dtype=np.float32), allow_pickle=False)
        index.save(unfinished / "index.faiss")
        if neighbours is not None:
            np.save(unfinished / NEIGHBOURS, neighbours, allow_pickle=False)
        if golden:
            (unfinished / GOLDEN).write_bytes(GOLDENS.dump_json(tuple(golden)))
        if paces is not None:
            pq.write_table(Paces(paces).table, unfinished / PACES)
        if together is not None:
            np.save(unfinished / TOGETHER, np.asarray(together, dtype=np.int32), allow_pickle=False)
        manifest = Manifest(
            format=FORMAT,
            name=name,
            created_at=datetime.now(UTC),
            towers=towers.items.config,
            ranker=ranker.config if ranker else None,
            counts=dict(counts) | {"items": len(matrix)},
            data_fingerprint=data_fingerprint,
            recipe=dict(recipe),
            metrics={key: dict(value) for key, value in metrics.items()},
            index={"kind": index.kind, "recall": index.recall},
            overridden=tuple(overridden),
            versions=_versions(),
            files={path.name: _sha256(path) for path in sorted(unfinished.iterdir())},
        )
        (unfinished / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        for path in unfinished.iterdir():
            flush(path)
        unfinished.rename(folder)
        flush(releases)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return folder


def open_bundle(folder: Path, *, parts: frozenset[Part] = PARTS) -> Bundle:
    """Verify a release folder and open it, all of it or without some parts.

    Raises `BundleError` that names the file and what is wrong with it, or says that the golden queries are answered
    wrongly.
    """
    manifest = read_manifest(folder)
    left_out = {FILES[part] for part in PARTS - parts}
    _verify_files(folder, manifest, left_out)
    try:
        spec = FeatureSpec.model_validate_json((folder / "features.json").read_bytes())
        items = ItemTable(pq.read_table(folder / "items.parquet"))
        # Not np.load, which takes pickles and archives for arrays too.
        matrix: Floats = np.lib.format.open_memmap(folder / "matrix.npy", mode="r")
        popularity = np.lib.format.open_memmap(folder / "popularity.npy", mode="r")
        n, dim = len(items), manifest.towers.dim
        if matrix.shape != (n, dim) or popularity.shape != (n, 2) or manifest.counts.get("items") != n:
            raise BundleError(f"{folder.name}: {n} items, but a matrix of {matrix.shape} and counts {popularity.shape}")
        if matrix.dtype != np.float32 or popularity.dtype != np.float64:
            raise BundleError(f"{folder.name}: the matrix holds {matrix.dtype}, the counts {popularity.dtype}")
        _require_finite(f"{folder.name}/matrix.npy", matrix)
        _require_finite(f"{folder.name}/popularity.npy", popularity)
        towers = build_towers(manifest.towers, spec, items=n)
        _load(towers, folder / "towers.safetensors")
        ranker = Ranker(manifest.ranker, dim=dim) if manifest.ranker and "ranker" in parts else None
        if ranker is not None:
            _load(ranker, folder / "ranker.safetensors")
        index = VectorIndex.load(folder / "index.faiss", matrix) if "index" in parts else None
        neighbours = (
            _rows_of(folder, NEIGHBOURS, n, mapped=True) if NEIGHBOURS in manifest.files and "index" in parts else None
        )
        golden = GOLDENS.validate_json((folder / GOLDEN).read_bytes()) if GOLDEN in manifest.files else ()
        paces = Paces(pq.read_table(folder / PACES)) if PACES in manifest.files else None
        together = _rows_of(folder, TOGETHER, n, mapped=False) if TOGETHER in manifest.files else None
        ids = IdMap(items.table["item_id"].to_pylist())
    except BundleError:
        raise
    except Exception as error:  # whatever a parser makes of a wrong file, the user learns which release and why
        raise BundleError(f"release '{folder.name}' cannot be opened: {error}") from error
    bundle = Bundle(
        manifest=manifest,
        spec=spec,
        towers=towers.eval().requires_grad_(False),
        ranker=ranker.eval().requires_grad_(False) if ranker else None,
        items=items,
        ids=ids,
        matrix=matrix,
        popularity=np.array(popularity),
        vector_index=index,
        neighbours=neighbours,
        paces=paces,
        together=together,
    )
    # Finite weights and a whole file are not enough: what the featurizer learned enters here.
    _require_finite(f"release '{bundle.name}': vectors of items encoded anew", bundle.encode_items(items[:SAMPLE]))
    _check_golden(bundle, golden)
    return bundle


def read_manifest(folder: Path) -> Manifest:
    """Read what a release says about itself, without opening it."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise NotFound(f"no release folder {folder}", field="release")
    if not path.is_file():
        raise BundleError(f"{folder} has no {MANIFEST}: not a release, or an unfinished one")
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        raise BundleError(f"{path}: not a manifest of ours: {detail['loc']} {detail['msg']}") from None
    if manifest.format != FORMAT:
        raise BundleError(f"{path}: format {manifest.format}, this version reads {FORMAT}")
    if manifest.name != folder.name:
        raise BundleError(f"{path}: says it is '{manifest.name}', but lies in '{folder.name}'")
    return manifest


def current_release(releases: Path) -> str | None:
    """Name of the release in service, None before the first one."""
    with contextlib.suppress(FileNotFoundError):
        name = (releases / CURRENT).read_bytes().decode("utf-8", "replace").strip()
        if not name.isprintable() or not name or name != Path(name).name or name.startswith("."):
            raise BundleError(f"{releases / CURRENT}: '{name[:80]}' is not the name of a release")
        return name
    return None


def point_to(releases: Path, name: str) -> None:
    """Make a release the current one: one atomic rename. Raises if it is not a release."""
    read_manifest(releases / name)
    put(releases / CURRENT, lambda pointer: pointer.write_text(name + "\n", encoding="utf-8"))


def list_releases(releases: Path) -> list[str]:
    """Names of the finished releases, oldest first."""
    if not releases.is_dir():
        return []
    return sorted(path.parent.name for path in releases.glob(f"[!.]*/{MANIFEST}"))


def _check_golden(bundle: Bundle, golden: Sequence[Golden]) -> None:
    found = expected = 0
    try:
        for one in golden:
            past = np.array(one.rows, dtype=np.int64)
            types = np.array(one.types, dtype=np.int64)
            query = bundle.encode_user(bundle.matrix[past], types, np.array(one.times, dtype=np.float64), one.context)
            _require_finite(f"release '{bundle.name}': the vector of a golden query", query)
            top = np.array(one.top, dtype=np.int64)
            if bundle.ranker is not None:
                features = np.zeros((len(top), len(FEATURES)), dtype=np.float32)
                ranked = bundle.ranker_pass.rank(query, bundle.matrix[past], bundle.matrix[top], features)
                _require_finite(f"release '{bundle.name}': the ranking of a golden query", ranked)
            found += len(set(_top(bundle, query, len(top))) & set(one.top))
            expected += len(top)
    except BundleError:
        raise
    except Exception as error:  # a row past the end, a type that is none: it is the release that is wrong
        raise BundleError(f"release '{bundle.name}': a golden query cannot be asked: {error}") from error
    if found < GOLDEN_FLOOR * expected:
        raise BundleError(
            f"release '{bundle.name}': its golden queries find {found} of {expected} expected items, "
            f"at least {GOLDEN_FLOOR:.0%} are needed"
        )


def _top(bundle: Bundle, query: Floats, k: int) -> list[int]:
    if bundle.vector_index is not None:
        return [int(row) for row in bundle.vector_index.search(query[None], k)[1][0]]
    return [int(row) for row in np.argsort(-(bundle.matrix @ query), kind="stable")[:k]]


def _verify_files(folder: Path, manifest: Manifest, left_out: Collection[str]) -> None:
    needed = {"features.json", "towers.safetensors", "items.parquet", "popularity.npy", "matrix.npy", "index.faiss"}
    needed |= {"ranker.safetensors"} if manifest.ranker else set()
    needed |= OPTIONAL & set(manifest.files)
    if set(manifest.files) != needed:
        raise BundleError(f"release '{folder.name}' lists {sorted(manifest.files)}, it needs {sorted(needed)}")
    for name, digest in manifest.files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise BundleError(f"release '{folder.name}': {name} is missing or is not a plain file")
        if name not in left_out and _sha256(path) != digest:
            raise BundleError(f"release '{folder.name}': {name} does not have the checksum of its manifest")


def _rows_of(folder: Path, name: str, items: int, *, mapped: bool) -> npt.NDArray[np.int32]:
    """A table of rows beside the items, [N, M], -1 where a place is free."""
    rows: npt.NDArray[np.int32] = np.lib.format.open_memmap(folder / name, mode="r")
    if rows.dtype != np.int32 or rows.ndim != 2 or len(rows) != items:
        raise BundleError(f"{folder.name}: {items} items, but {name} holds {rows.dtype} of {rows.shape}")
    if rows.size and not -1 <= int(rows.min()) <= int(rows.max()) < items:
        raise BundleError(f"{folder.name}: {name} names rows that are none")
    return rows if mapped else np.array(rows)


def _load(module: torch.nn.Module, path: Path) -> None:
    weights = load_file(path)
    for key, weight in weights.items():
        _require_finite(f"{path.parent.name}/{path.name}: {key}", weight.float().numpy())
    module.load_state_dict(weights)


def _weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: weight.detach().cpu().contiguous() for key, weight in module.state_dict().items()}


def _require_finite(what: str, array: npt.NDArray[Any]) -> None:
    # By chunks: a memory-mapped matrix of millions of rows must not become a second copy.
    flat = array.reshape(len(array), -1) if array.ndim else array.reshape(1, 1)
    for start in range(0, len(flat), 65_536):
        if not np.isfinite(flat[start : start + 65_536]).all():
            raise BundleError(f"{what} holds a number that is not finite")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    import faiss

    return {"torch": str(torch.__version__), "faiss": faiss.__version__, "numpy": np.__version__}
