"""Writing a bundle: everything is checked and on the disk before the release appears under its name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from embeddings.arrays import Floats
from embeddings.bundle import require_finite
from embeddings.durable import flush
from embeddings.errors import BundleError
from embeddings.features import FeatureSpec
from embeddings.golden import GOLDENS, Golden
from embeddings.index import VectorIndex
from embeddings.manifest import FORMAT, GOLDEN, MANIFEST, NEIGHBOURS, PACES, TOGETHER, Manifest, digest
from embeddings.neighbours import Neighbours
from embeddings.ranker import Ranker
from embeddings.replenishment import Paces
from embeddings.schema import ITEMS
from embeddings.two_tower import TwoTower


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a release is made of: N items with their counts `popularity` [N, 2] and their vectors `matrix` [N, D]."""

    spec: FeatureSpec
    towers: TwoTower
    ranker: Ranker | None
    items: pa.Table
    popularity: npt.NDArray[np.float64]
    matrix: Floats
    index: VectorIndex
    golden: Sequence[Golden] = ()
    neighbours: Neighbours | None = None
    paces: pa.Table | None = None
    together: npt.NDArray[np.int32] | None = None


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a release comes from, as its manifest tells."""

    data_fingerprint: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    overridden: Sequence[str] = ()


def write_bundle(releases: Path, name: str, parts: Parts, provenance: Provenance) -> Path:
    """Write a release folder; it appears under its name only when it is complete. Returns the folder.

    Raises `BundleError` if a release of that name exists or a number in it is not finite.
    """
    folder = releases / name
    if folder.exists():
        raise BundleError(f"release '{name}' exists already in {releases}; releases are immutable")
    _require_finite(parts)
    releases.mkdir(parents=True, exist_ok=True)
    unfinished = releases / f".unfinished-{name}-{os.getpid()}"
    unfinished.mkdir()
    try:
        _write_parts(unfinished, parts)
        manifest = _manifest(unfinished, name, parts, provenance)
        (unfinished / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        for path in unfinished.iterdir():
            flush(path)
        unfinished.rename(folder)
        flush(releases)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return folder


def _require_finite(parts: Parts) -> None:
    require_finite("item matrix", parts.matrix)
    require_finite("popularity", np.asarray(parts.popularity))
    for part, module in (("towers", parts.towers), ("ranker", parts.ranker)):
        for key, weight in (module.state_dict() if module else {}).items():
            require_finite(f"{part}.{key}", weight.float().cpu().numpy())


def _write_parts(folder: Path, parts: Parts) -> None:
    (folder / "features.json").write_text(parts.spec.model_dump_json(indent=1), encoding="utf-8")
    save_file(_weights(parts.towers), folder / "towers.safetensors")
    if parts.ranker is not None:
        save_file(_weights(parts.ranker), folder / "ranker.safetensors")
    pq.write_table(parts.items.select(ITEMS.names).cast(ITEMS), folder / "items.parquet")
    np.save(folder / "popularity.npy", np.asarray(parts.popularity, dtype=np.float64), allow_pickle=False)
    np.save(folder / "matrix.npy", np.ascontiguousarray(parts.matrix, dtype=np.float32), allow_pickle=False)
    parts.index.save(folder / "index.faiss")
    if parts.neighbours is not None:
        np.save(folder / NEIGHBOURS, parts.neighbours, allow_pickle=False)
    if parts.golden:
        (folder / GOLDEN).write_bytes(GOLDENS.dump_json(tuple(parts.golden)))
    if parts.paces is not None:
        pq.write_table(Paces(parts.paces).table, folder / PACES)
    if parts.together is not None:
        np.save(folder / TOGETHER, np.asarray(parts.together, dtype=np.int32), allow_pickle=False)


def _manifest(folder: Path, name: str, parts: Parts, provenance: Provenance) -> Manifest:
    """The manifest of what lies in a folder now."""
    return Manifest(
        format=FORMAT,
        name=name,
        created_at=datetime.now(UTC),
        towers=parts.towers.items.config,
        ranker=parts.ranker.config if parts.ranker else None,
        counts=dict(provenance.counts) | {"items": len(parts.matrix)},
        data_fingerprint=provenance.data_fingerprint,
        recipe=dict(provenance.recipe),
        metrics={key: dict(value) for key, value in provenance.metrics.items()},
        index={"kind": parts.index.kind, "recall": parts.index.recall},
        overridden=tuple(provenance.overridden),
        versions=_versions(),
        files={path.name: digest(path) for path in sorted(folder.iterdir())},
    )


def _weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: weight.detach().cpu().contiguous() for key, weight in module.state_dict().items()}


def _versions() -> dict[str, str]:
    import faiss

    return {"torch": str(torch.__version__), "faiss": faiss.__version__, "numpy": np.__version__}
