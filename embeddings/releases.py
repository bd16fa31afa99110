"""The folder of releases: which there are, and the pointer that says which one is current."""

from __future__ import annotations

import contextlib
from pathlib import Path

from embeddings.durable import put
from embeddings.errors import BundleError
from embeddings.manifest import MANIFEST, read_manifest

CURRENT = "current"


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
