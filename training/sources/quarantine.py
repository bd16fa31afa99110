"""Quarantine: where rows go that cannot be trusted, with the line they stood in and the reason.

A bad row is neither used nor lost: it is counted, shown, and written to a file of JSON lines in which it can be mended.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from embeddings.errors import DataError

SHOWN = 1000
"""As many rejected rows are kept in memory; all of them are in the file."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """One row that was refused. `line` counts from 1: the line of a text file, the row of a Parquet file."""

    file: str
    line: int
    reason: str
    row: Any  # the row as it was read: its fields by name, or the text of a line that holds no row


class Quarantine:
    """Collects rejected rows and writes them to `path`, one JSON object a line, if a path is given.

    The file appears in one piece when the import ends, however it ends; without a bad row there is none, and one that
    an earlier import left there becomes empty.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.first: list[Rejected] = []
        self.count = 0
        self._file: TextIO | None = None

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.path is None:
            return
        if self._file is None and self.path.exists():
            self._file = self._open()
        if self._file is not None:
            self._file.close()
            os.replace(self._partial(), self.path)

    def add(self, rejected: Rejected) -> None:
        """Count a row, and write it down."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(rejected)
        if self.path is None:
            return
        if self._file is None:
            self._file = self._open()
        # ASCII only: a lone surrogate or a control character in a bad row must not spoil the file.
        self._file.write(json.dumps(asdict(rejected), default=str) + "\n")

    def _partial(self) -> Path:
        assert self.path is not None
        return self.path.with_name(f".{self.path.name}.{os.getpid()}")

    def _open(self) -> TextIO:
        assert self.path is not None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return self._partial().open("w", encoding="ascii")
        except OSError as error:
            raise DataError(f"cannot write the quarantine file '{self.path}': {error.strerror}") from error
