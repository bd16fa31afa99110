"""Validation of columns: the outcome of `embeddings.schema.parse` on every row, at the speed of Arrow.

Each column is checked by a vectorised rule that accepts only what the schema accepts, with the same value. The few rows
that a rule does not vouch for (an unusual spelling as well as nonsense) are parsed one by one, and the schema has the last
word: it gives either the row or the reason. So a rule may be narrow, but must never be wide.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from embeddings.arrays import Mask
from embeddings.errors import InputError
from embeddings.schema import (
    FUTURE_TOLERANCE_S,
    JSON_COLUMNS,
    MAX_LABEL,
    MAX_TEXT,
    SCHEMAS,
    TIME,
    Event,
    Item,
    Row,
    User,
    parse,
    to_table,
)

Checked = tuple[Any, Mask]
"""A column of the schema's type, and where it can be vouched for (a missing value can be)."""

IDS = frozenset({"user_id", "item_id", "session_id", "recommendation_id", "event_id"})
REQUIRED: dict[type[Row], tuple[str, ...]] = {
    Event: ("user_id", "item_id", "timestamp"),
    Item: ("item_id",),
    User: ("user_id",),
}
_DEFAULTS: dict[type[Row], dict[str, Any]] = {
    Event: {"event_type": "view", "context": "{}"},
    Item: {"title": "", "description": "", "categories": [], "attributes": "{}", "available": True},
    User: {"attributes": "{}", "consent": "{}"},
}
_NAME = r"^[A-Za-z_][A-Za-z0-9_.-]{0,63}$"
_DECIMAL = r"^-?[0-9]{1,15}(\.[0-9]{1,15})?$"
_WHOLE = r"^[0-9]{1,12}$"
_ISO = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})?$"
_TEXTS = (pa.string(), pa.large_string(), pa.string_view())
MS_WATERSHED = 20_000_000_000
"""Larger epoch numbers are milliseconds: the rule of the schema's parser (pydantic), which holds until the year 2603."""


@dataclass(frozen=True, kw_only=True)
class Validated:
    """Rows that hold, as a table of the schema in the order of the file, and those that do not: place -> reason."""

    table: pa.Table
    bad: Mapping[int, str]


def canonical(record: Mapping[str, Any]) -> dict[str, Any]:
    """One row as the schema wants it; the row-wise meaning of everything that files may write differently.

    An empty field is a missing one, a whole number may be an id, attributes and context may be JSON text, and categories
    may be text with `|` between them. Raises `InputError` for JSON text that is no object.
    """
    row = {}
    for name, value in record.items():
        if value is None or (isinstance(value, str) and not value):
            continue
        if name in IDS and type(value) is int:
            value = str(value)
        elif name in JSON_COLUMNS:
            value = _object(name, value)
        elif name == "categories" and isinstance(value, str):
            value = [part.strip() for part in value.split("|") if part.strip()]
        row[name] = value
    return row


def parse_record(kind: type[Row], record: Mapping[str, Any]) -> Any:
    """Parse one row as it stands in a file; raises `InputError` with the reason if it does not hold."""
    try:
        return parse(kind, canonical(record))
    except (OverflowError, RecursionError) as error:  # a number of a thousand digits, a list in a list in a list …
        raise InputError(f"a value cannot be represented: {error}") from None


def validate(kind: type[Row], table: pa.Table, records: Callable[[list[int]], list[dict[str, Any]]]) -> Validated:
    """Check all rows of `table`, whose columns are named as in the schema of `kind`.

    `records` returns rows by their places, as Python values: what is parsed where no rule vouches. Rows marked in a column
    `_odd` have values that `table` could not hold, so only `records` counts for them.
    """
    schema = SCHEMAS[kind]
    good = np.ones(len(table), dtype=bool)
    if "_odd" in table.column_names:
        good &= ~table["_odd"].to_numpy()
    columns = {}
    for field in schema:
        name = field.name
        if name not in table.column_names:
            columns[name] = _constant(_DEFAULTS[kind].get(name), len(table), field.type)
            good &= name not in REQUIRED[kind]
            continue
        column, sure = _check(kind, name, whole(table[name]))
        if name in REQUIRED[kind]:
            sure = sure & ~_nulls(column)
        columns[name] = _filled(column, _DEFAULTS[kind].get(name), field.type)
        good &= sure
    doubtful = np.flatnonzero(~good).tolist()
    fast = pa.table(columns, schema=schema)
    return _merge(kind, fast, doubtful, records(doubtful) if doubtful else [])


def _merge(kind: type[Row], fast: pa.Table, doubtful: list[int], records: Iterable[Mapping[str, Any]]) -> Validated:
    """Parse the doubtful rows and put those that hold back where they stood."""
    if not doubtful:
        return Validated(table=fast, bad={})
    bad: dict[int, str] = {}
    rows, places = [], []
    for place, record in zip(doubtful, records, strict=True):
        try:
            rows.append(parse_record(kind, record))
            places.append(place)
        except InputError as error:
            bad[place] = error.message
    sure = np.ones(len(fast), dtype=bool)
    sure[doubtful] = False
    kept = np.concatenate([np.flatnonzero(sure), np.array(places, dtype=np.int64)])
    joined = pa.concat_tables([fast.filter(pa.array(sure)), to_table(rows, kind)])
    return Validated(table=joined.take(pa.array(np.argsort(kept, kind="stable"))), bad=bad)


def whole(column: Any) -> Any:
    """One array instead of several chunks."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return (
        column.chunk(0)
        if column.num_chunks == 1
        else pa.concat_arrays(column.chunks)
        if column.num_chunks
        else (pa.array([], column.type))
    )


def plain(column: Any) -> Any:
    """One array of a plain type: dictionaries decoded, wide and narrow types made the schema's, times in UTC."""
    array = whole(column)
    kind = array.type
    if pa.types.is_dictionary(kind):
        return plain(array.dictionary_decode())
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        # A moment without a zone is UTC, as everywhere here; what is finer than a microsecond is cut.
        return array.cast(pa.timestamp("us", kind.tz if pa.types.is_timestamp(kind) else None), safe=False).cast(TIME)
    if kind in _TEXTS[1:]:
        return array.cast(pa.string())
    if pa.types.is_integer(kind):
        return array.cast(pa.int64(), safe=False) if kind != pa.uint64() else _unsigned(array)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return array.cast(pa.float64(), safe=False)
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and kind.value_type in _TEXTS:
        return array.cast(pa.list_(pa.string()))
    return array


def _unsigned(array: Any) -> Any:
    # Hashes make 64-bit ids without a sign; they are text here anyway.
    return array.cast(pa.string()) if pc.max(array).as_py() not in range(2**63) else array.cast(pa.int64())


def _check(kind: type[Row], name: str, column: Any) -> Checked:
    if name in IDS:
        return _text(column.cast(pa.string()) if pa.types.is_integer(column.type) else column, 128)
    if name == "event_type":
        column, sure = _text(column, 64)
        return column, sure & (_matches(column, _NAME) | _nulls(column))
    if name in ("title", "channel", "description"):
        return _text(column, MAX_TEXT if name == "description" else MAX_LABEL)
    if name in ("timestamp", "created_at"):
        return _moment(column)
    if name in ("value", "price"):
        column, sure = _number(column)
        low = 0.0 if name == "price" else -np.inf
        return column, sure & (_nulls(column) | (column.fill_null(0.0).to_numpy() >= low))
    if name == "position":
        return _position(column)
    if name == "available":
        return _flag(column)
    return _by_value(kind, name, column)


def _text(column: Any, longest: int) -> Checked:
    if column.type != pa.string():
        return _none(column, pa.string())
    column = pc.if_else(pc.equal(column, ""), None, column)
    fits = pc.and_(pc.less_equal(pc.utf8_length(column), longest), pc.invert(pc.match_substring(column, "\x00")))
    return column, _true(fits) | _nulls(column)


def _moment(column: Any) -> Checked:
    if column.type == TIME:
        micros, given = column.cast(pa.int64()), ~_nulls(column)
    elif pa.types.is_integer(column.type):
        micros, given = _epoch(column)
    elif pa.types.is_floating(column.type):
        safe = pc.less(pc.abs(column), 2.0**53)
        whole = pc.and_(pc.equal(pc.floor(column), column), safe)
        micros, given = _epoch(pc.if_else(whole, column, None).cast(pa.int64()))
    elif column.type == pa.string():
        digits = _matches(column, _WHOLE)
        micros, given = _epoch(pc.if_else(pa.array(digits), column, None).cast(pa.int64()))
        if not digits.all():
            iso = _iso(column)
            micros, given = pc.coalesce(micros, iso), given | ~_nulls(iso)
    else:
        return _none(column, TIME)
    latest = int((time.time() + FUTURE_TOLERANCE_S - 60) * 1e6)
    inside = _true(pc.and_(pc.greater_equal(micros, 0), pc.less(micros, latest)))
    missing = _nulls(column) | (_true(pc.equal(column, "")) if column.type == pa.string() else False)
    usable = pc.if_else(pa.array(inside & given), micros, None)
    return usable.cast(TIME), (inside & given) | missing


def _epoch(seconds: Any) -> tuple[Any, Mask]:
    """Whole epoch seconds or milliseconds as microseconds; what lies far outside stays null."""
    sane = pc.and_(pc.greater_equal(seconds, 0), pc.less(seconds, 10**13))
    seconds = pc.if_else(sane, seconds, None)
    factor = pc.if_else(pc.greater(seconds, MS_WATERSHED), 1000, 1_000_000)
    return pc.multiply(seconds, factor), ~_nulls(seconds)


def _iso(column: Any) -> Any:
    written = pc.if_else(pa.array(_matches(column, _ISO)), column, None)
    if written.null_count == len(written):
        return pa.nulls(len(written), pa.int64())
    parsed = pd.to_datetime(pd.Series(written.to_pandas()), format="ISO8601", utc=True, errors="coerce")
    return pa.Array.from_pandas(parsed.astype("datetime64[us, UTC]")).cast(pa.int64())


def _number(column: Any) -> Checked:
    if pa.types.is_integer(column.type):
        return column.cast(pa.float64(), safe=False), _true(pc.less(pc.abs(column), 2**53)) | _nulls(column)
    if pa.types.is_floating(column.type):
        sure = _true(pc.is_finite(column)) | _nulls(column)
        return pc.if_else(pa.array(sure), column, None), sure
    if column.type == pa.string():
        written = _matches(column, _DECIMAL)
        missing = _nulls(column) | _true(pc.equal(column, ""))
        return pc.if_else(pa.array(written), column, None).cast(pa.float64()), written | missing
    return _none(column, pa.float64())


def _position(column: Any) -> Checked:
    if column.type == pa.string():
        whole = _matches(column, r"^[0-9]{1,6}$")
        sure = whole | _nulls(column) | _true(pc.equal(column, ""))
        column = pc.if_else(pa.array(whole), column, None).cast(pa.int64())
    elif pa.types.is_integer(column.type):
        sure = np.ones(len(column), dtype=bool)
    else:
        return _none(column, pa.int32())
    inside = _true(pc.and_(pc.greater_equal(column, 0), pc.less_equal(column, 100_000)))
    return pc.if_else(pa.array(inside), column, None).cast(pa.int32()), sure & (inside | _nulls(column))


def _flag(column: Any) -> Checked:
    if pa.types.is_boolean(column.type):
        return column, np.ones(len(column), dtype=bool)
    if column.type == pa.string():
        lower = pc.utf8_lower(column)
        yes, no = (
            _true(pc.is_in(lower, pa.array(["true", "1", "yes"]))),
            _true(pc.is_in(lower, pa.array(["false", "0", "no"]))),
        )
        missing = _nulls(column) | _true(pc.equal(column, ""))
        return pa.array(yes, mask=~(yes | no)), yes | no | missing
    return _none(column, pa.bool_())


def _by_value(kind: type[Row], name: str, column: Any) -> Checked:
    """Attributes, consent, context and categories: each different value is parsed once by the schema itself."""
    target = SCHEMAS[kind].field(name).type
    if column.type != pa.string() and not column.type == target == pa.list_(pa.string()):
        return _none(column, target)
    texts = column if column.type == pa.string() else pc.binary_join(column, "\x1f")
    known = texts.dictionary_encode()
    firsts = np.unique(known.indices.drop_null().to_numpy(), return_index=True)[1]
    places = np.flatnonzero(~_nulls(known.indices))[firsts]
    values = [_field(kind, name, value) for value in column.take(pa.array(places)).to_pylist()]
    table = pa.array(values, target)
    taken = table.take(known.indices)
    if column.type != pa.string():
        # Different lists may be joined to one text; those, and lists with a null, are left to the row by row parser.
        sizes = pc.list_value_length(column)
        split = pc.add(pc.count_substring(texts, "\x1f"), pc.cast(pc.greater(sizes, 0), pa.int32()))
        alike = _true(pc.and_(pc.equal(split, sizes), pc.equal(sizes, pc.list_value_length(taken))))
        return taken, alike | _nulls(column)
    return taken, ~_nulls(taken) | _nulls(column) | _true(pc.equal(column, ""))


def _field(kind: type[Row], name: str, value: Any) -> Any:
    """One field of a row that is otherwise fine, as it stands in a table; None if the schema refuses it."""
    rest = dict.fromkeys(REQUIRED[kind], "0")
    try:
        parsed = getattr(parse_record(kind, {**rest, name: value}), name)
    except InputError:
        return None
    return json.dumps(parsed, sort_keys=True) if name in JSON_COLUMNS else parsed


def _object(name: str, value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise InputError(f"{name}: is not JSON", field=name) from None
    if isinstance(value, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
        value = dict(value)  # an Arrow map
    if not isinstance(value, dict):
        raise InputError(f"{name}: must be a JSON object", field=name)
    return {key: entry for key, entry in value.items() if entry is not None}


def _matches(column: Any, pattern: str) -> Mask:
    return _true(pc.match_substring_regex(column, pattern))


def _true(mask: Any) -> Mask:
    values: Mask = np.asarray(pc.fill_null(mask, False).to_numpy(zero_copy_only=False), dtype=bool)
    return values


def _nulls(column: Any) -> Mask:
    values: Mask = np.asarray(column.is_null().to_numpy(zero_copy_only=False), dtype=bool)
    return values


def _none(column: Any, target: Any) -> Checked:
    """Vouch for nothing but the missing: a column of a type that no rule is for."""
    return pa.nulls(len(column), target), _nulls(column)


def _constant(value: Any, size: int, target: Any) -> Any:
    return pa.nulls(size, target) if value is None or not size else pa.repeat(pa.scalar(value, target), size)


def _filled(column: Any, value: Any, target: Any) -> Any:
    if value is None or not column.null_count:
        return column.cast(target)
    return pc.coalesce(column.cast(target), pa.scalar(value, target))
