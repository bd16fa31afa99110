"""The item table as columns, so that a condition over items becomes a mask in microseconds.

Every value is a number or a text, alone or in a list. Booleans are the numbers 0 and 1, dates are seconds since
1970. The values of a column are coded by their sorted vocabulary: equality is one code, order a range of codes.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from itertools import compress
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from embeddings.arrays import Mask
from embeddings.schema import Item

Cell = float | str

DAY_S = 86_400.0
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")

FIELDS: Mapping[str, str] = {
    "item_id": "text",
    "title": "text",
    "categories": "text",
    "price": "number",
    "created_at": "date",
    "available": "boolean",
}
"""The fields of every item that a condition may name, and what they hold; a catalogue's own attributes come on top."""


def moment(text: str) -> tuple[float, float] | None:
    """First and last second (since 1970) that an ISO 8601 text stands for, or None if it is no date.

    A date without a time is the whole day in UTC, so that `le "2026-01-31"` includes that day; a date with a time
    is one instant, in UTC unless it says otherwise.
    """
    if not _DATE.match(text):
        return None
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        return None
    first = _seconds(parsed)
    return first, math.nextafter(first + DAY_S, -math.inf) if len(text) == 10 else first


def _seconds(value: datetime) -> float:
    return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()


def _cell(value: object) -> Cell | None:
    if isinstance(value, str):
        return str(value)
    if isinstance(value, datetime):
        return _seconds(value)
    if isinstance(value, date):
        return _seconds(datetime(value.year, value.month, value.day))
    if not isinstance(value, bool | int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return None if math.isnan(number) else number


def cells(value: object) -> tuple[Cell, ...]:
    """Every number and text in one attribute's value; none if it is missing (None, NaN, an empty list)."""
    if isinstance(value, list | tuple):
        return tuple(cell for cell in map(_cell, value) if cell is not None)
    cell = _cell(value)
    return () if cell is None else (cell,)


def row_of(item: Item) -> dict[str, Any]:
    """One item as the row that conditions see; a title or categories left empty count as missing."""
    return {
        **item.attributes,
        "item_id": item.item_id,
        "title": item.title or None,
        "categories": item.categories,
        "price": item.price,
        "created_at": item.created_at,
        "available": item.available,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """An interval of numbers or of texts (in code point order); a missing bound is no bound."""

    low: Cell | None = None
    high: Cell | None = None
    low_open: bool = False
    high_open: bool = False

    @property
    def kind(self) -> type:
        """`float` or `str`: values of the other kind are never inside."""
        return type(self.high if self.low is None else self.low)

    def holds(self, cell: Cell) -> bool:
        """Whether a value lies inside."""
        if type(cell) is not self.kind:
            return False
        low: Any = self.low
        high: Any = self.high
        value: Any = cell
        above = low is None or (value > low if self.low_open else value >= low)
        return above and (high is None or (value < high if self.high_open else value <= high))


@dataclass(frozen=True, slots=True)
class Selection:
    """A set of values: some points and some intervals."""

    points: frozenset[Cell] = frozenset()
    spans: tuple[Span, ...] = ()

    def holds(self, cell: Cell) -> bool:
        """Whether a value is in the set."""
        return cell in self.points or any(span.holds(cell) for span in self.spans)


@dataclass(frozen=True)
class _Part:
    """The values of one kind in one column.

    `codes` [n] has one code a row (-1: no value here), or, with `owners` [m] (ascending rows), one code an entry.
    """

    kind: type
    vocabulary: npt.NDArray[Any]
    codes: npt.NDArray[np.int32]
    size: int
    owners: npt.NDArray[np.int32] | None = None

    @classmethod
    def of(cls, kind: type, many: bool, rows: list[int], values: list[Any], size: int) -> _Part:
        vocabulary: npt.NDArray[Any]
        if kind is float:
            vocabulary, inverse = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True)
            found = inverse.astype(np.int32)
        else:
            vocabulary = _objects(sorted(set(values)))
            index = {value: code for code, value in enumerate(vocabulary.tolist())}
            found = np.fromiter(map(index.__getitem__, values), dtype=np.int32, count=len(values))
        places = np.asarray(rows, dtype=np.int32)
        if many:
            return cls(kind, vocabulary, found, size, places)
        codes = np.full(size, -1, dtype=np.int32)
        codes[places] = found
        return cls(kind, vocabulary, codes, size)

    def value(self, row: int) -> Cell | tuple[Cell, ...] | None:
        if self.owners is None:
            code = int(self.codes[row])
            return None if code < 0 else self.vocabulary.item(code)
        first, last = np.searchsorted(
            self.owners, np.array([row, row + 1], dtype=np.int32)
        )  # as int64 it would copy owners
        return tuple(self.vocabulary[self.codes[first:last]].tolist()) or None

    def present(self) -> Mask:
        return self._rows(self.codes >= 0)

    def mask(self, selection: Selection) -> Mask:
        points = [point for point in selection.points if type(point) is self.kind]
        found = self._codes_of(points)
        ranges = [self._range(span) for span in selection.spans if span.kind is self.kind]
        if len(found) + len(ranges) == 1:
            low, high = ranges[0] if ranges else (int(found[0]), int(found[0]) + 1)
            return self._rows((self.codes >= low) & (self.codes < high))
        table = np.zeros(len(self.vocabulary) + 1, dtype=np.bool_)  # code -1 reads the last entry: False
        table[found] = True
        for low, high in ranges:
            table[low:high] = True
        return self._rows(table.take(self.codes))

    def younger(self, since: float) -> Mask:
        if self.kind is float:
            return self.mask(Selection(spans=(Span(low=since, low_open=True),)))
        return self._rows(np.append(self._moments > since, False)[self.codes])

    @cached_property
    def _moments(self) -> npt.NDArray[np.float64]:
        dates = (moment(text) for text in self.vocabulary.tolist())
        return np.array([found[0] if found else math.nan for found in dates], dtype=np.float64)

    def _codes_of(self, points: Sequence[Cell]) -> npt.NDArray[np.intp]:
        wanted: npt.NDArray[Any]
        if self.kind is float:
            wanted = np.asarray(points, dtype=np.float64)
            places = np.searchsorted(self.vocabulary, wanted)
        else:  # searchsorted is slower than this on objects
            wanted = _objects(points)
            places = np.array([bisect_left(self.vocabulary, point) for point in points], dtype=np.intp)
        inside = places < len(self.vocabulary)
        places, wanted = places[inside], wanted[inside]
        same: Mask = self.vocabulary[places] == wanted
        return places[same]

    def _range(self, span: Span) -> tuple[int, int]:
        low, high = 0, len(self.vocabulary)
        if span.low is not None:
            low = (bisect_right if span.low_open else bisect_left)(self.vocabulary, span.low)
        if span.high is not None:
            high = (bisect_left if span.high_open else bisect_right)(self.vocabulary, span.high)
        return low, high

    def _rows(self, hit: Mask) -> Mask:
        if self.owners is None:
            return hit
        mask = np.zeros(self.size, dtype=np.bool_)
        mask[np.compress(hit, self.owners)] = True  # three times as fast as owners[hit]
        return mask


def _parts(many: bool, rows: Sequence[int], values: Sequence[object], size: int) -> Iterator[_Part]:
    found = list(map(_cell, values))
    kinds: set[type] = set(map(type, found))
    for kind in sorted(kinds - {type(None)}, key=str):
        keep = [type(cell) is kind for cell in found]
        yield _Part.of(kind, many, list(compress(rows, keep)), list(compress(found, keep)), size)


def _objects(texts: Iterable[Cell]) -> npt.NDArray[np.object_]:
    # NumPy's own text type would drop trailing NULs and copy every text to the longest one's width
    return np.array(list(texts), dtype=np.object_)


@dataclass(frozen=True)
class Column:
    """One attribute of all items; a catalogue may mix kinds in it, each row still has one."""

    parts: tuple[_Part, ...]
    size: int

    @classmethod
    def of(cls, rows: Sequence[int], values: Sequence[object], size: int) -> Column:
        """Build from the rows (ascending) that have a value, and those values."""
        if {list, tuple}.isdisjoint(map(type, values)):
            return cls(tuple(_parts(False, rows, values, size)), size)
        singles: tuple[list[int], list[object]] = ([], [])
        entries: tuple[list[int], list[object]] = ([], [])
        for row, value in zip(rows, values, strict=True):
            if isinstance(value, list | tuple):
                entries[0].extend([row] * len(value))
                entries[1].extend(value)
            else:
                singles[0].append(row)
                singles[1].append(value)
        return cls((*_parts(False, *singles, size), *_parts(True, *entries, size)), size)

    def value(self, row: int) -> Cell | tuple[Cell, ...] | None:
        """Return the value of one row: a number, a text, a tuple of them, or None."""
        values = (part.value(row) for part in self.parts)
        return next((value for value in values if value is not None), None)

    def values(self, rows: npt.NDArray[np.int64]) -> list[Cell | tuple[Cell, ...] | None]:
        """Return the values of many rows, as `value` has them."""
        if len(self.parts) == 1 and self.parts[0].owners is None:
            part = self.parts[0]
            codes = part.codes[rows]
            found = part.vocabulary[np.maximum(codes, 0)].tolist() if len(part.vocabulary) else [None] * len(rows)
            return [value if code >= 0 else None for value, code in zip(found, codes.tolist(), strict=True)]
        return [self.value(row) for row in rows.tolist()]

    @cached_property
    def numbers(self) -> npt.NDArray[np.float64]:
        """[n] the number of each row, NaN where it has none or several."""
        found = np.full(self.size, np.nan)
        for part in self.parts:
            if part.kind is float and part.owners is None:
                here = part.codes >= 0
                found[here] = part.vocabulary[part.codes[here]]
        found.flags.writeable = False
        return found

    @cached_property
    def typical(self) -> float | None:
        """The median of the numbers above 0, None if there are none."""
        above = self.numbers[self.numbers > 0]
        return float(np.median(above)) if len(above) else None

    def present(self) -> Mask:
        """[n] rows that have a value."""
        return self._any(part.present() for part in self.parts)

    def mask(self, selection: Selection) -> Mask:
        """[n] rows of which a value is in the selection."""
        return self._any(part.mask(selection) for part in self.parts)

    def younger(self, since: float) -> Mask:
        """[n] rows with a date after `since` (seconds since 1970)."""
        return self._any(part.younger(since) for part in self.parts)

    def _any(self, masks: Iterable[Mask]) -> Mask:
        found = list(masks)
        if len(found) == 1:
            return found[0]
        return np.logical_or.reduce(found) if found else np.zeros(self.size, dtype=np.bool_)


@dataclass(frozen=True)
class ItemColumns:
    """A segment of the item table, immutable: row i is the i-th item it was built from."""

    size: int
    columns: Mapping[str, Column]

    @classmethod
    def of(cls, items: Sequence[Item]) -> ItemColumns:
        """Build from validated items, in their order; a segment without items is fine."""
        found: dict[str, tuple[list[int], list[object]]] = {name: ([], []) for name in FIELDS}
        for row, item in enumerate(items):
            for name, value in row_of(item).items():
                if value is not None:
                    rows, values = found.get(name) or found.setdefault(name, ([], []))
                    rows.append(row)
                    values.append(value)
        size = len(items)
        columns = {name: Column.of(rows, values, size) for name, (rows, values) in found.items()}
        return cls(size, MappingProxyType(columns))

    def __len__(self) -> int:
        return self.size

    @property
    def names(self) -> frozenset[str]:
        """The fields of every item, and each attribute that occurs in this segment."""
        return frozenset(self.columns)

    def column(self, name: str) -> Column:
        """One column; an attribute that no item here has is a column of missing values."""
        return self.columns.get(name) or Column((), self.size)

    def value(self, row: int, name: str) -> Cell | tuple[Cell, ...] | None:
        """Return what one row has: a number (dates in seconds, booleans as 0 and 1), a text, a tuple, or None."""
        return self.column(name).value(row)
