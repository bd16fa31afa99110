"""Durable files: what is on the disk stays on the disk, and a file is there whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's names, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside its place, flush it and rename it: readers find the old file or the new one.

    Whatever `write` or the disk raises goes through; the old file is untouched then, and nothing is left beside it.
    """
    # Not the process id: threads share one, and so do the containers of one volume.
    unfinished = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        write(unfinished)
        flush(unfinished)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    flush(path.parent)
