"""The index file: what faiss writes, and behind it a line about it and a footer that ends the file.

    cells (faiss's own format; nothing for an exact index)   about (JSON)   length of about, mark

The vectors themselves are not in it: they are in the item matrix, which `seal` ties the file to.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from embeddings.arrays import Floats
from embeddings.cells import Cells
from embeddings.durable import put
from embeddings.effort import Effort
from embeddings.errors import BundleError
from embeddings.scan import Matrix

FOOTER: Final = struct.Struct("<I8s")
MARK: Final = b"BESPIDX2"
EARLIER: Final = b"BESPIDX1"
SEALED_ROWS: Final = 1024


class About(BaseModel):
    """What a file says about itself."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: Literal["exact", "ivf"]
    rows: int = Field(ge=0)
    width: int = Field(ge=1)
    tuned_k: int = Field(ge=1)
    seal: int
    effort: Effort | None


def seal(matrix_ND: Floats) -> int:
    """A checksum of evenly spaced rows: another matrix of the same shape has another one."""
    rows = np.unique(np.linspace(0, max(0, len(matrix_ND) - 1), SEALED_ROWS).astype(np.int64))
    return zlib.crc32(np.ascontiguousarray(matrix_ND[rows[: len(matrix_ND)]]).tobytes())


def write(path: Path, cells: Cells | None, about: About) -> None:
    """The file appears complete or not at all, and one that another process has mapped is replaced, not overwritten."""
    text = about.model_dump_json().encode()

    def fill(unfinished: Path) -> None:
        unfinished.touch()
        if cells is not None:
            cells.write(str(unfinished))
        with unfinished.open("ab") as file:
            file.write(text + FOOTER.pack(len(text), MARK))

    put(path, fill)


def read(path: Path, matrix: Matrix) -> tuple[Cells | None, About]:
    """Map a file and check that it fits a matrix. Raises `BundleError` that says what is wrong with it."""
    try:
        size = path.stat().st_size
        about, length = _about(path, size)
        cells = Cells.read(str(path), size) if about.kind == "ivf" else None
        if (cells is None) != (about.effort is None) or (cells is None and length != size):
            raise ValueError(f"what it says of an index of kind '{about.kind}' and what it holds differ")
    except (OSError, RuntimeError, ValueError) as error:
        raise BundleError(f"{path} is not a readable index: {str(error).splitlines()[0]}") from error
    if cells is not None and (cells.rows, cells.width) != (about.rows, about.width):
        raise BundleError(f"{path} holds {cells.rows} x {cells.width} codes, it says {about.rows} x {about.width}")
    if (about.rows, about.width) != matrix.vectors.shape:
        raise BundleError(f"{path} is of {about.rows} x {about.width}, the item matrix of {matrix.vectors.shape}")
    if about.seal != seal(matrix.vectors):
        raise BundleError(f"{path} was made of another item matrix than the one beside it")
    return cells, about


def _about(path: Path, size: int) -> tuple[About, int]:
    if size < FOOTER.size:
        raise ValueError("the file is too short")
    with path.open("rb") as file:
        file.seek(size - FOOTER.size)
        length, mark = FOOTER.unpack(file.read())
        if mark == EARLIER:
            raise ValueError("an earlier version wrote it; publish the model again")
        if mark != MARK or length > size - FOOTER.size:
            raise ValueError("the footer is missing: truncated, or another kind of file")
        file.seek(size - FOOTER.size - length)
        return About.model_validate_json(file.read(length)), length + FOOTER.size
