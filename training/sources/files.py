"""Readers of ordinary files: CSV, JSON lines and Parquet, single or in folders, with the columns named as anybody likes.

A reader says which files of a folder hold events, items and users, and turns one file into parts: Arrow tables whose
columns have our names, with the line of each row. It judges no row; a file that is not what its name says is an error.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embeddings.errors import DataError
from embeddings.schema import SCHEMAS, Event, Item, Row, User
from training.sources.columns import Columns, json_column, renamer, with_extra
from training.sources.delimited import Lines, joined, read_delimited, read_header, short
from training.sources.quarantine import Rejected

Plan = dict[type[Row], list[Path]]

STEMS: dict[type[Row], str] = {Event: "events", Item: "items", User: "users"}
BLOCK_ROWS = 65_536
_SIGNATURES = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"PAR1": "a Parquet file",
    b"SQLite format 3": "an SQLite database",
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some rows of one file: `table` has our column names and plain types, `lines` where each row stands in the file.

    `broken` are lines that hold no row at all, `ignored` columns that mean nothing to us, `done` the share of the file
    that has been read. `records` gives rows as Python values where `table` cannot hold them.
    """

    table: pa.Table
    lines: Lines
    broken: Sequence[Rejected] = ()
    ignored: Sequence[str] = ()
    done: float = 1.0
    originals: Callable[[list[int]], list[dict[str, Any]]] | None = None

    def records(self, places: list[int]) -> list[dict[str, Any]]:
        """Some rows as Python values by column, missing ones left out."""
        if self.originals is not None:
            return self.originals(places)
        rows = self.table.take(pa.array(places, pa.int64())).to_pylist()
        return [{name: value for name, value in row.items() if value is not None} for row in rows]


class Reader(ABC):
    """Reads one format. Every reader is listed in `training.sources.reading.READERS`."""

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()

    def files(self, path: Path) -> Plan:
        """Which files under `path` hold what; empty if there is nothing for this reader.

        `path` is a file of events, or a folder with `events.*` or a folder `events/`, and likewise items and users.
        """
        if path.is_file():
            return {Event: [path]} if path.suffix.lower() in self.suffixes else {}
        plan: Plan = {}
        for kind, stem in STEMS.items():
            found = [path / f"{stem}{suffix}" for suffix in self.suffixes if (path / f"{stem}{suffix}").is_file()]
            found += self.inside(path / stem)
            if found:
                plan[kind] = found
        return plan

    def inside(self, folder: Path) -> list[Path]:
        """Files of this format in a folder and its partitions, in the order of their names; hidden ones are not data."""
        if not folder.is_dir():
            return []
        found = (file for file in folder.rglob("*") if file.suffix.lower() in self.suffixes and file.is_file())
        visible = (file for file in found if not any(part[0] in "._" for part in file.relative_to(folder).parts))
        return sorted(visible)

    @abstractmethod
    def parts(self, file: Path, kind: type[Row], columns: Columns) -> Iterator[Part]:
        """Read one file of rows of `kind`; `columns` maps our names to the file's. Raises `DataError`."""


class Csv(Reader):
    """Comma, semicolon, tab or bar separated text in UTF-8, with a header line; an empty field is a missing one."""

    name = "csv"
    suffixes = (".csv", ".tsv")

    def parts(self, file: Path, kind: type[Row], columns: Columns) -> Iterator[Part]:
        """Read one file."""
        inspect(file, self.name)
        names, delimiter = read_header(file)
        table_of = renamer(file, kind, names, columns)
        whole = kind is not Event  # whether an attribute is a number is told by all of its values
        batches = read_delimited(file, names=names, delimiter=delimiter)
        for batch in [joined(batches, names)] if whole else batches:
            table, ignored = table_of(batch.table)
            yield Part(table=table, lines=batch.lines, broken=batch.broken, ignored=ignored, done=batch.done)


class JsonLines(Reader):
    """One JSON object a line, in UTF-8; blank lines are skipped."""

    name = "jsonl"
    suffixes = (".jsonl", ".ndjson")

    def parts(self, file: Path, kind: type[Row], columns: Columns) -> Iterator[Part]:
        """Read one file."""
        inspect(file, self.name)
        size = file.stat().st_size
        good: list[dict[str, Any]] = []
        lines: list[int] = []
        broken: list[Rejected] = []
        found = False
        with file.open("rb") as handle:
            read = 0
            for number, line in enumerate(handle, start=1):
                read += len(line)
                record = _record(file, number, line)
                if isinstance(record, Rejected):
                    broken.append(record)
                elif record is not None:
                    found = True
                    good.append(record)
                    lines.append(number)
                if len(good) + len(broken) >= BLOCK_ROWS:
                    yield _json_part(file, kind, columns, good, lines, broken, read / size)
                    good, lines, broken = [], [], []
        if broken and not found:
            raise DataError(f"'{file}' is not a file of JSON lines: {broken[0].reason} (line {broken[0].line})")
        yield _json_part(file, kind, columns, good, lines, broken, 1.0)


class Parquet(Reader):
    """Parquet; a folder `name=value` gives the column `name` to the files in it, if it is one of ours."""

    name = "parquet"
    suffixes = (".parquet", ".pq")

    def parts(self, file: Path, kind: type[Row], columns: Columns) -> Iterator[Part]:
        """Read one file."""
        inspect(file, self.name)
        try:
            source = pq.ParquetFile(file)
            names = list(source.schema_arrow.names)
            folders = {key: value for key, value in _hive(file).items() if key in SCHEMAS[kind].names}
            table_of = renamer(file, kind, [*names, *(key for key in folders if key not in names)], columns)
            start, total = 0, max(source.metadata.num_rows, 1)
            for batch in source.iter_batches(batch_size=BLOCK_ROWS):
                table = pa.Table.from_batches([batch])
                for key, value in folders.items():
                    if key not in names:
                        table = table.append_column(key, pa.repeat(pa.scalar(value, pa.string()), len(table)))
                table, ignored = table_of(table)
                lines = np.arange(start + 1, start + 1 + len(table), dtype=np.int64)
                start += len(table)
                yield Part(table=table, lines=lines, ignored=ignored, done=start / total)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"'{file}' is not a Parquet file, or it is cut short or damaged: {short(error)}") from error


def inspect(file: Path, name: str) -> None:
    """Raise `DataError` if a file is missing, empty, or begins like something else than its format `name`."""
    try:
        with file.open("rb") as handle:
            head = handle.read(16)
    except OSError as error:
        raise DataError(f"cannot read '{file}': {error.strerror}") from error
    if not head:
        raise DataError(f"'{file}' is empty")
    for signature, what in _SIGNATURES.items():
        if head.startswith(signature) and not (name == "parquet" and signature == b"PAR1"):
            raise DataError(f"'{file}' is {what}, not {name}")


def _hive(file: Path) -> dict[str, str | None]:
    pairs = (part.partition("=") for part in file.parts[:-1] if "=" in part)
    return {key: None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value) for key, _, value in pairs}


def _record(file: Path, number: int, line: bytes) -> dict[str, Any] | Rejected | None:
    """One line as an object, None if it is blank, or why it is no object."""
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"'{file}' is not UTF-8 text (line {number})") from error
    if not text:
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Rejected(str(file), number, f"is not JSON: {short(error)}", text)
    if not isinstance(record, dict):
        return Rejected(str(file), number, "is not a JSON object", text)
    return record


def _json_part(
    file: Path,
    kind: type[Row],
    columns: Columns,
    rows: list[dict[str, Any]],
    lines: list[int],
    broken: list[Rejected],
    done: float,
) -> Part:
    """Rows of JSON as a part: texts and numbers as Arrow columns, rows with anything else marked as odd."""
    schema = SCHEMAS[kind].names
    back = {theirs: ours for ours, theirs in columns.items() if ours in schema}
    ignored: dict[str, None] = {}
    records = []
    for row in rows:
        record: dict[str, Any] = {}
        extra = {}
        for name, value in row.items():
            ours = back.get(name, name)
            if ours in schema:
                record[ours] = value
            elif kind is Event:
                ignored[name] = None
            elif value is not None:
                extra[name] = value
        if extra:
            record["attributes"] = with_extra(file, extra, record.get("attributes"))
        records.append(record)
    odd = np.zeros(len(records), dtype=bool)
    table = {name: json_column(name, [record.get(name) for record in records], odd) for name in schema}
    table["_odd"] = pa.array(odd)
    return Part(
        table=pa.table(table),
        lines=np.array(lines, dtype=np.int64),
        broken=broken,
        ignored=tuple(ignored),
        done=done,
        originals=lambda places: [records[place] for place in places],
    )
