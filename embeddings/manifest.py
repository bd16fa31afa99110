"""The manifest: what a release says about itself, and the names of the files that it answers for."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from embeddings.errors import BundleError, NotFound
from embeddings.ranker import RankerConfig
from embeddings.two_tower import TowerConfig

FORMAT = 1
MANIFEST = "manifest.json"
GOLDEN = "golden.json"
NEIGHBOURS = "neighbours.npy"
PACES = "replenishment.parquet"
TOGETHER = "together.npy"
OPTIONAL = frozenset({GOLDEN, NEIGHBOURS, PACES, TOGETHER})
"""Files that a release may do without."""

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


def verify_files(folder: Path, manifest: Manifest, left_out: Collection[str]) -> None:
    """Raise `BundleError` unless a release has the files that it needs, as they were written.

    Of the files in `left_out` the content is not looked at.
    """
    needed = {"features.json", "towers.safetensors", "items.parquet", "popularity.npy", "matrix.npy", "index.faiss"}
    needed |= {"ranker.safetensors"} if manifest.ranker else set()
    needed |= OPTIONAL & set(manifest.files)
    if set(manifest.files) != needed:
        raise BundleError(f"release '{folder.name}' lists {sorted(manifest.files)}, it needs {sorted(needed)}")
    for name, written in manifest.files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise BundleError(f"release '{folder.name}': {name} is missing or is not a plain file")
        if name not in left_out and digest(path) != written:
            raise BundleError(f"release '{folder.name}': {name} does not have the checksum of its manifest")


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
