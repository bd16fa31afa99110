"""Writing a bundle: everything is checked and on the disk before the release appears under its name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from embeddings.bundle import require_finite
from embeddings.durable import flush
from embeddings.errors import BundleError
from embeddings.features import FeatureSpec, Floats
from embeddings.golden import GOLDENS, Golden
from embeddings.index import VectorIndex
from embeddings.manifest import FORMAT, GOLDEN, MANIFEST, NEIGHBOURS, PACES, TOGETHER, Manifest, digest
from embeddings.neighbours import Neighbours
from embeddings.ranker import Ranker
from embeddings.replenishment import Paces
from embeddings.schema import ITEMS
from embeddings.two_tower import TwoTower


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
    require_finite("item matrix", matrix)
    require_finite("popularity", np.asarray(popularity))
    for part, module in (("towers", towers), ("ranker", ranker)):
        for key, weight in (module.state_dict() if module else {}).items():
            require_finite(f"{part}.{key}", weight.float().cpu().numpy())
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
            files={path.name: digest(path) for path in sorted(unfinished.iterdir())},
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


def _weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: weight.detach().cpu().contiguous() for key, weight in module.state_dict().items()}


def _versions() -> dict[str, str]:
    import faiss

    return {"torch": str(torch.__version__), "faiss": faiss.__version__, "numpy": np.__version__}
