"""Opening a bundle: a file is trusted only after its checksum, a model only after its golden queries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from embeddings.arrays import Floats
from embeddings.bundle import Bundle, ItemTable, build_towers, require_finite
from embeddings.errors import BundleError
from embeddings.features import FeatureSpec
from embeddings.golden import GOLDENS, check_golden
from embeddings.ids import IdMap
from embeddings.index import VectorIndex
from embeddings.manifest import (
    FILES,
    GOLDEN,
    NEIGHBOURS,
    PACES,
    PARTS,
    TOGETHER,
    Part,
    read_manifest,
    verify_files,
)
from embeddings.ranker import Ranker
from embeddings.replenishment import Paces

SAMPLE = 16
"""Items that are encoded anew, to see that what the featurizer learned is sound too."""


def open_bundle(folder: Path, *, parts: frozenset[Part] = PARTS) -> Bundle:
    """Verify a release folder and open it, all of it or without some parts.

    Raises `BundleError` that names the file and what is wrong with it, or says that the golden queries are answered
    wrongly.
    """
    manifest = read_manifest(folder)
    left_out = {FILES[part] for part in PARTS - parts}
    verify_files(folder, manifest, left_out)
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
        require_finite(f"{folder.name}/matrix.npy", matrix)
        require_finite(f"{folder.name}/popularity.npy", popularity)
        towers = build_towers(manifest.towers, spec, items=n)
        _load(towers, folder / "towers.safetensors")
        ranker = None
        if manifest.ranker and "ranker" in parts:
            ranker = Ranker(manifest.ranker, dim=dim, items=n, tokens=spec.token_count)
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
    require_finite(f"release '{bundle.name}': vectors of items encoded anew", bundle.encode_items(items[:SAMPLE]))
    check_golden(bundle, golden)
    return bundle


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
        require_finite(f"{path.parent.name}/{path.name}: {key}", weight.float().numpy())
    module.load_state_dict(weights)
