"""Delimited text as Arrow columns of text, with the line in which each row stands.

Arrow's reader is fast, but it counts records and drops what does not fit. Here every row keeps its line, across blank lines
and line breaks within quotes, and a line that holds no row comes back as rejected.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from embeddings.errors import DataError
from training.sources.quarantine import Rejected

Lines = npt.NDArray[np.int64]
BLOCK_BYTES = 16 << 20


class Batch(NamedTuple):
    """Rows of text, where each stands, lines without a row, and the share of the file that has been read."""

    table: pa.Table
    lines: Lines
    broken: list[Rejected]
    done: float


def read_delimited(
    file: Path,
    *,
    names: Sequence[str],
    delimiter: str,
    quoted: bool = True,
    header: bool = True,
    data: bytes | None = None,
) -> Iterator[Batch]:
    """Read delimited UTF-8 text; rows with nothing in them are skipped, empty fields are null.

    `names` are the names of the columns (in place of those of the header), `data` the content if it is not to be read from
    the file. Raises `DataError` for text that is not UTF-8, and for a quote that is opened and never closed: all that
    follows would be swallowed by one field.
    """
    if data is None:
        _check_text(file, quoted=quoted)
    count = _Count(str(file), width=len(names), first=2 if header else 1)
    size = max(len(data) if data is not None else file.stat().st_size, 1)
    # The columns are named by their places: Arrow needs the names before it has read the header.
    places = [str(place) for place in range(len(names))]
    with pa.PythonFile(file.open("rb"), mode="r") if data is None else pa.BufferReader(data) as handle:
        if header:
            handle.seek(_after_first_line(file))
        try:
            for batch in pacsv.open_csv(handle, **_options(places, delimiter, quoted, count)):
                table = pa.Table.from_batches([batch]).rename_columns(list(names))
                lines, broken = count.step(table)
                given = np.flatnonzero(~_blank(table))
                yield Batch(table.take(pa.array(given)), lines[given], broken, min(handle.tell() / size, 1.0))
            if rest := count.rest():
                yield Batch(empty(names), np.zeros(0, dtype=np.int64), rest, 1.0)
        except pa.ArrowInvalid as error:
            if "UTF8" in str(error):
                raise DataError(f"'{file}' is not UTF-8 text") from error
            if "Empty CSV" not in str(error):  # a header without rows is a file without rows
                raise DataError(f"'{file}' cannot be read as delimited text: {short(error)}") from error


def read_header(file: Path) -> tuple[list[str], str]:
    """Column names, and the delimiter: of comma, semicolon, tab and bar, the one that is most frequent in the header.

    Raises `DataError` if a name occurs twice, or if the line is not UTF-8 text.
    """
    with file.open("rb") as handle:
        line = handle.readline(1 << 20)
    try:
        first = line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"'{file}' is not UTF-8 text") from error
    delimiter = max(",;\t|", key=first.count)
    names = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"'{file}' has the column '{twice[0]}' more than once")
    return names, delimiter


def joined(batches: Iterable[Batch], names: Sequence[str]) -> Batch:
    """All batches as one, for what has to be seen as a whole."""
    parts = [Batch(empty(names), np.zeros(0, dtype=np.int64), [], 1.0), *batches]
    return Batch(
        pa.concat_tables([part.table for part in parts]),
        np.concatenate([part.lines for part in parts]),
        [rejected for part in parts for rejected in part.broken],
        1.0,
    )


def empty(names: Sequence[str]) -> pa.Table:
    """A table of text columns without rows."""
    return pa.table({name: pa.array([], pa.string()) for name in names})


def short(error: BaseException) -> str:
    """The first line of an error, at most 200 characters of it."""
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


class _Count:
    """Turns Arrow's record numbers into lines: a line break within quotes moves all that follows by one."""

    def __init__(self, file: str, *, width: int, first: int) -> None:
        self.file, self.width, self.next, self.skipped = file, width, first, first - 1
        self.wrong: list[Any] = []  # refused records that no batch has passed yet

    def refuse(self, row: Any) -> str:
        self.wrong.append((row.number + self.skipped, row.text, row.actual_columns))
        return "skip"

    def step(self, table: pa.Table) -> tuple[Lines, list[Rejected]]:
        """Lines of the rows of the next batch, and the refused lines among them."""
        numbers = np.array([number for number, _, _ in self.wrong], dtype=np.int64)
        # Record numbers run on over refused ones; `offset` is what line breaks within quotes have added so far.
        records = np.setdiff1d(np.arange(self.next, self.next + len(table) + len(numbers)), numbers)[: len(table)]
        last = int(records[-1]) if len(records) else self.next - 1
        passed = [row for row in self.wrong if row[0] <= last]
        self.wrong = self.wrong[len(passed) :]
        breaks = np.zeros(last - self.next + 1, dtype=np.int64)
        breaks[records - self.next] = _line_breaks(table)
        for number, text, _ in passed:
            breaks[number - self.next] = text.count("\n")
        lines = np.arange(self.next, last + 1) + np.cumsum(breaks) - breaks + self._offset
        broken = [self._rejected(int(lines[number - self.next]), text, found) for number, text, found in passed]
        of_rows: Lines = lines[records - self.next]
        self._offset += int(breaks.sum())
        self.next = last + 1
        return of_rows, broken

    def rest(self) -> list[Rejected]:
        """Refused lines behind the last row."""
        rejected = []
        for number, text, found in self.wrong:
            rejected.append(self._rejected(number + self._offset, text, found))
            self._offset += text.count("\n")
        return rejected

    _offset = 0

    def _rejected(self, line: int, text: str, found: int) -> Rejected:
        return Rejected(self.file, line, f"has {found} fields instead of {self.width}", text)


def _options(places: Sequence[str], delimiter: str, quoted: bool, count: _Count) -> dict[str, Any]:
    return {
        # One thread: only then does Arrow number the records that it refuses.
        "read_options": pacsv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES, column_names=places),
        "parse_options": pacsv.ParseOptions(
            delimiter=delimiter,
            quote_char='"' if quoted else False,
            newlines_in_values=quoted,
            ignore_empty_lines=False,
            invalid_row_handler=count.refuse,
        ),
        "convert_options": pacsv.ConvertOptions(
            column_types=dict.fromkeys(places, pa.string()),
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
            null_values=[""],
        ),
    }


def _after_first_line(file: Path) -> int:
    with file.open("rb") as handle:
        return len(handle.readline())


def _check_text(file: Path, *, quoted: bool) -> None:
    # Arrow checks the rows that it keeps; one that it hands over as refused may hold anything.
    decoder, quotes = codecs.getincrementaldecoder("utf-8")(), 0
    try:
        with file.open("rb") as handle:
            while block := handle.read(BLOCK_BYTES):
                decoder.decode(block)
                quotes += block.count(b'"')
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise DataError(f"'{file}' is not UTF-8 text") from error
    if quoted and quotes % 2:
        raise DataError(f"'{file}' opens a quote that it never closes")


def _line_breaks(table: pa.Table) -> Lines:
    breaks = np.zeros(len(table), dtype=np.int64)
    for column in table.columns:
        breaks += pc.fill_null(pc.count_substring(column, "\n"), 0).to_numpy()
    return breaks


def _blank(table: pa.Table) -> npt.NDArray[np.bool_]:
    missing = np.ones(len(table), dtype=bool)
    for column in table.columns:
        missing &= column.is_null().to_numpy()
    return missing
