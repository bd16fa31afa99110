"""Columns of any name and type as ours: renaming, plain types, and everything unknown as an attribute.

Only names and types change here; whether a value is any good is for `validation` to say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embeddings.errors import DataError
from embeddings.schema import SCHEMAS, Event, Row
from training.sources.validation import IDS, REQUIRED, plain

Columns = Mapping[str, str]
"""Our name -> the name in the file."""


def renamer(
    file: Path, kind: type[Row], names: Sequence[str], columns: Columns
) -> Callable[[pa.Table], tuple[pa.Table, tuple[str, ...]]]:
    """A function that gives the tables of one file our column names and plain types, and names what it leaves aside.

    What is no column of ours becomes an attribute of an item or a user, and is left aside in events. Raises `DataError` if
    a column that every row needs is not there.
    """
    ours = {name: columns.get(name, name) for name in SCHEMAS[kind].names}
    ours = {name: theirs if theirs in names else name for name, theirs in ours.items()}
    missing = [name for name in REQUIRED[kind] if ours[name] not in names]
    if missing:
        raise DataError(
            f"'{file}' has no column '{ours[missing[0]]}'; it has: {', '.join(names[:40]) or 'none'}. "
            f"Say which one holds '{missing[0]}' with a column mapping",
            field=missing[0],
        )
    extra = [name for name in names if name not in ours.values()]
    attributes = {} if kind is Event else _attribute_names(file, extra)

    def apply(table: pa.Table) -> tuple[pa.Table, tuple[str, ...]]:
        found = {name: plain(table[theirs]) for name, theirs in ours.items() if theirs in names}
        if attributes:
            found["attributes"] = _attributes(
                found.get("attributes"), {name: plain(table[theirs]) for name, theirs in attributes.items()}, len(table)
            )
        return pa.table(found), () if attributes else tuple(extra)

    return apply


def _attribute_names(file: Path, extra: Iterable[str]) -> dict[str, str]:
    """Attribute name -> column; characters that a name cannot have become `_`."""
    named: dict[str, str] = {}
    for column in extra:
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", column) or "_"
        name = name if re.match(r"[A-Za-z_]", name) else f"_{name}"
        if name in named:
            raise DataError(f"'{file}': columns '{named[name]}' and '{column}' both become the attribute '{name}'")
        named[name] = column
    return named


def _attributes(given: Any, extra: Mapping[str, Any], size: int) -> Any:
    """JSON text of the attributes of each row: the columns of the file, and above them what an attribute column says."""
    lists = {name: typed(column).to_pylist() for name, column in extra.items()}
    rows = []
    for place, values in enumerate(zip(*lists.values(), strict=True)):
        entries = {name: value for name, value in zip(lists, values, strict=True) if value is not None}
        base = given[place].as_py() if given is not None else None
        rows.append(_merged(entries, base))
    return pa.array(rows, pa.string()) if rows else pa.array([], pa.string())


def _merged(entries: dict[str, Any], base: Any) -> str:
    if isinstance(base, str) and base:
        try:
            base = json.loads(base)
        except (ValueError, RecursionError):
            return str(base)  # left as it is: the row will be refused with the reason
        if not isinstance(base, dict):
            return json.dumps(base)
    return json.dumps({**entries, **dict(base or {})}, default=_text_of)


def _text_of(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def typed(column: Any) -> Any:
    """A text column as numbers or booleans if every value in it is one; `007` is text."""
    if column.type != pa.string() or column.null_count == len(column):
        return column
    if pc.all(pc.match_substring_regex(column, r"^-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?$")).as_py():
        return column.cast(pa.float64())
    lower = pc.utf8_lower(column)
    if pc.all(pc.is_in(lower, pa.array(["true", "false", None]))).as_py():
        return pc.equal(lower, "true")
    return column


def with_extra(file: Path, extra: dict[str, Any], given: Any) -> Any:
    """Attributes of one row of JSON: its unknown fields, and above them what its own attributes say."""
    named = {name: extra[column] for name, column in _attribute_names(file, extra).items()}
    if given is None or given == "":
        return named
    if isinstance(given, dict):
        return {**named, **given}
    return _merged(named, given) if isinstance(given, str) else given


def json_column(name: str, values: list[Any], odd: npt.NDArray[np.bool_]) -> Any:
    """Values of JSON as an Arrow column of the commonest type; a row with another one is marked as odd."""
    if name in ("attributes", "context"):
        values = [json.dumps(value) if isinstance(value, dict) else value for value in values]
    if name in IDS:
        values = [str(value) if type(value) is int else value for value in values]
    kinds = [type(value) for value in values if value is not None]
    common = max(set(kinds), key=kinds.count) if kinds else str
    if common is int and float in kinds:
        common = float
        values = [float(value) if type(value) is int and abs(value) < 2**53 else value for value in values]
    if common not in (str, int, float, bool, list):
        common = str
    fits = [value if type(value) is common else None for value in values]
    target = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), list: pa.list_(pa.string())}[
        common
    ]
    try:
        column = pa.array(fits, target)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError):
        fits = [value if _holds(value, target) else None for value in fits]
        column = pa.array(fits, target)
    odd |= np.array([value is not None and fit is None for value, fit in zip(values, fits, strict=True)], dtype=bool)
    return column


def _holds(value: Any, target: Any) -> bool:
    try:
        pa.array([value], target)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError):
        return False
    return True
