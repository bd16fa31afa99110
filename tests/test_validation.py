"""The columns judge as the schema judges each row: the fast path against the slow, obvious one."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embeddings.errors import InputError
from embeddings.schema import SCHEMAS, Event, Item, User, to_table
from training.shop import Shop
from training.sources import READERS
from training.sources.validation import parse_record, validate

Rows = list[dict[str, Any]]

words = st.text(st.characters(codec="utf-8"), max_size=6)
ids = st.one_of(
    words,
    st.sampled_from(["u", "é" * 128, "x" * 129, "a\x00b", "a\x1fb"]),
    st.none(),
    st.integers(-5, 2**63 - 1),
)
moments = st.one_of(
    st.integers(-(10**14), 10**14),
    st.integers(0, 2_000_000_000),
    st.integers(19_999_999_990, 20_000_000_010),
    st.floats(),
    st.floats(0, 2e9),
    st.datetimes(min_value=datetime(1960, 1, 1), max_value=datetime(2040, 1, 1)).map(str),
    st.datetimes(min_value=datetime(1960, 1, 1), max_value=datetime(2040, 1, 1)).map(lambda d: d.isoformat() + "Z"),
    st.integers(0, 10**13).map(str),
    st.from_regex(
        r"\A(19|20)[0-9]{2}-[01][0-9]-[0-3][0-9][T ][0-2][0-9]:[0-6][0-9](:[0-6][0-9](\.[0-9]{1,7})?)?"
        r"(Z|[+-][0-9]{2}:?[0-9]{2})?\Z"
    ),
    st.sampled_from(
        ["2020-02-30T00:00:00", "2020-01-01T24:00:00", "0000-01-01T00:00:00", "20240101", "007", "2024-01-01"]
    ),
    st.sampled_from(
        ["2020-01-01T00:00:00+23:59", "2020-01-01T00:00:00-24:00", "2020-01-01T00:00:00+99:99", "now", " 1"]
    ),
    words,
    st.none(),
    st.booleans(),
)
numbers = st.one_of(
    st.floats(),
    st.integers(-(2**53) - 2, 2**53 + 2),
    st.integers(2**53, 2**63 - 1),
    st.from_regex(r"\A-?[0-9]{1,17}(\.[0-9]{0,17})?(e[0-9])?\Z"),
    st.sampled_from(["nan", "inf", " 1", "1 ", "1_000", "+1", ".5", "5.", "0x1", "-0", "１", "1e400"]),
    words,
    st.none(),
    st.booleans(),
)
positions = st.one_of(
    st.integers(-3, 100_003),
    st.integers(0, 200_000).map(str),
    st.sampled_from(["007", "1.0", "-0", " 1", "１", "100001"]),
    st.floats(0, 10),
    st.booleans(),
    st.none(),
)
entries = st.one_of(words, st.floats(), st.booleans(), st.lists(words, max_size=2))
objects = st.one_of(
    st.none(),
    st.dictionaries(st.sampled_from(["a", "b c", "title", "x.y"]), entries, max_size=2).map(json.dumps),
    st.sampled_from(["", "{}", "{", "[]", "null", "1", '{"a": null}', '{"a": NaN}', '{"a": 1, "a": 2}', '{"a": {}}']),
)
labels = st.one_of(words, st.sampled_from(["x" * 256, "x" * 257, "é" * 256, "\x00"]), st.none())
categories = st.one_of(
    st.none(),
    st.lists(st.one_of(words, st.sampled_from(["", "a\x1fb", "b", "a", "x" * 257])), max_size=3),
    st.just(["a"] * 65),
    st.sampled_from(["", "|", "a|b", " a | b", "a||b", "a\x1fb", "\x1c a"]),
)
spellings = ["true", "TRUE", "no", "y", "on", "T", "0", "2", "ja", " true", "ＴＲＵＥ", "K", "İ"]
flags = st.one_of(st.booleans(), st.none(), st.integers(-1, 2), st.floats(0, 1), st.sampled_from(spellings))

event_columns = {
    "user_id": ids,
    "item_id": ids,
    "event_type": st.one_of(labels, st.sampled_from(["view", "a b", "x" * 65, "v\n"])),
    "timestamp": moments,
    "value": numbers,
    "session_id": ids,
    "channel": labels,
    "context": objects,
    "recommendation_id": ids,
    "position": positions,
    "event_id": ids,
}
item_columns = {
    "item_id": ids,
    "title": labels,
    "description": labels,
    "categories": categories,
    "attributes": objects,
    "price": numbers,
    "created_at": moments,
    "available": flags,
}


def one_by_one(kind: type[Any], records: Rows) -> tuple[list[Any], dict[int, str]]:
    rows, bad = [], {}
    for place, record in enumerate(records):
        try:
            rows.append(parse_record(kind, record))
        except InputError as error:
            bad[place] = error.message
    return rows, bad


def columns_of_one_type(records: Rows) -> pa.Table | None:
    """The records as a typed table, as a Parquet file would have them; None where their types do not agree."""
    try:
        return pa.table({name: [record.get(name) for record in records] for name in records[0]})
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError):
        return None


def rows_of_parts(reader_name: str, folder: Path, kind: type[Any], records: Rows) -> None:
    reader = next(reader for reader in READERS if reader.name == reader_name)()
    path = folder / f"rows{reader.suffixes[0]}"
    path.unlink(missing_ok=True)
    if reader_name == "jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        table = columns_of_one_type(records)
        if table is None:
            return
        pq.write_table(table, path)
    for part in reader.parts(path, kind, {}):
        given = part.records(list(range(len(part.table))))
        rows, bad = one_by_one(kind, given)
        validated = validate(kind, part.table, part.records)
        assert dict(validated.bad) == bad
        assert validated.table.equals(to_table(rows, kind))


@pytest.mark.parametrize("kind", [Event, Item], ids=["events", "items"])
@pytest.mark.parametrize("reader", ["jsonl", "parquet"])
@pytest.mark.parametrize("alike", [False, True], ids=["mixed types", "one type"])
def test_columns_are_judged_as_rows_are(
    kind: type[Any], reader: str, alike: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    columns = event_columns if kind is Event else item_columns
    fine = {"user_id": "u", "item_id": "i", "timestamp": 1} if kind is Event else {"item_id": "i"}
    fine = fine if not alike else {name: str(value) for name, value in fine.items()}

    # Most fields are fine in most rows, or every row would fail for its id alone.
    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        tried = data.draw(st.lists(st.sampled_from(sorted(columns)), min_size=1, max_size=3, unique=True))
        values = {name: data.draw(st.lists(columns[name], min_size=1, max_size=6)) for name in tried}
        if alike:
            values = {
                name: [v for v in some if type(v) in (type(some[0]), type(None))] for name, some in values.items()
            }
        size = max(len(some) for some in values.values())
        records = [
            fine | {name: some[place] for name, some in values.items() if place < len(some)} for place in range(size)
        ]
        records = [{name: record.get(name) for name in dict.fromkeys([*fine, *values])} for record in records]
        rows_of_parts(reader, folder, kind, records)

    check()


NASTY_TEXTS = [
    "", "a", " a ", "x" * 64, "x" * 65, "x" * 128, "x" * 129, "é" * 128, "é" * 129, "x" * 256, "x" * 257, "x" * 10_001,
    "a\x00b", "a\nb", "a b", "1a", "a.b-c", "null", "NaN", "true", "TRUE", "yes", "no", "y", "on", "T", "0", "1", "2", "ja",
]  # fmt: skip
NASTY_NUMBERS = [
    "-1", "-0", "-0.5", "+1", "007", "1.5", "5.", ".5", "1e5", "1e400", "inf", "nan", "1_000", " 1", "１", "0x1", "100000",
    "100001", "123456789012345", "9999999999999999", "1.1234567890123456", "0.1", "3.3333333333333335",
]  # fmt: skip
NASTY_MOMENTS = [
    "2024-05-01T10:00:00Z", "2024-05-01 10:00:00", "2024-05-01T10:00:00.5+02:00", "2024-05-01T10:00:00.1234567Z",
    "2024-05-01", "2024-05-01T10:00", "2024-05-01T10", "20240501", "2024-02-30T10:00:00", "2024-05-01T24:00:00",
    "2024-05-01T10:00:60", "1969-12-31T23:59:59Z", "1970-01-01T00:30:00+01:00", "1970-01-01T00:00:00",
    "9999-01-01T00:00:00Z",
    "0000-01-01T00:00:00", "2024-05-01T10:00:00+23:59", "2024-05-01T10:00:00+24:00", "2024-05-01T10:00:00+9999", "now",
    "1714557600", "1714557600000", "15000000000", "20000000000", "20000000001", "1714557600.5", "999999999999999",
]  # fmt: skip
NASTY_LISTS: list[list[Any]] = [
    [], [""], ["a"], ["a", "b"], ["a\x1fb"], ["a\x1fb", "c"], ["a", "b\x1fc"], ["a", None], ["x" * 257],
    ["a"] * 64, ["a"] * 65,
]  # fmt: skip
NASTY_OBJECTS = [
    "{}", "{", "[]", "null", "1", "text", '{"a": 1}', '{"a": null}', '{"a": NaN}', '{"a": {}}', '{"b c": 1}',
    '{"title": 1}',
    '{"a": ["b", 1]}', '{"a": ["b"]}', '{"a": true}', '{"a": 1e999}', '{"a": "\\ud800"}', '{"a": 1' + "0" * 400 + "}",
    '{"a": "' + "x" * 257 + '"}', json.dumps({f"n{number}": 1 for number in range(65)}), '{"a": 1, "a": 2}',
]  # fmt: skip
NASTY_WHOLE = [
    0, 1, -1, 2, 100_000, 100_001, 2**31, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, 1_714_557_600, 1_714_557_600_000,
    15_000_000_000, 20_000_000_000, 20_000_000_001, 10**13, None,
]  # fmt: skip
NASTY_FLOATS = [
    0.0, -0.0, 1.0, 1.5, -0.5, math.nan, math.inf, -math.inf, 1e300, 2.0**53, 100_001.0, 1_714_557_600.0, 1_714_557_600.5,
    1_714_557_600_000.0, 15_000_000_000.0, 20_000_000_001.0, 253_402_300_800.0, None,
]  # fmt: skip
NASTY: dict[str, list[Any]] = {
    "text": [
        *NASTY_TEXTS,
        *NASTY_NUMBERS,
        *NASTY_MOMENTS,
        *NASTY_OBJECTS,
        *["a|b", " a | b", "a||b", "|", "a\x1fb", None],
    ],
    "whole": NASTY_WHOLE,
    "number": NASTY_FLOATS,
    "flag": [True, False, None],
    "list": [*NASTY_LISTS, *NASTY_LISTS[::-1], None],
    "moment": [*(datetime(year, 1, 1, tzinfo=UTC) for year in (1960, 1970, 2020, 2100)), None],
}


@pytest.mark.parametrize("types", sorted(NASTY))
@pytest.mark.parametrize("kind", [Event, Item, User], ids=["events", "items", "users"])
def test_every_nasty_value_in_every_column(kind: type[Any], types: str) -> None:
    """Each column in turn holds all the values of a type, the others are fine: no value may get past the schema."""
    values = NASTY[types]
    for name in SCHEMAS[kind].names:
        records = [{"user_id": "u", "item_id": "i", "timestamp": 1} for _ in values]
        records = [{key: value for key, value in record.items() if key in SCHEMAS[kind].names} for record in records]
        records = [record | {name: value} for record, value in zip(records, values, strict=True)]
        table = pa.table({key: [record[key] for record in records] for key in records[0]})
        rows, bad = one_by_one(kind, records)
        validated = validate(kind, table, lambda places, rows=records: [rows[place] for place in places])  # type: ignore[misc]
        assert dict(validated.bad) == bad, name
        assert validated.table.equals(to_table(rows, kind)), name


def test_most_rows_need_no_second_look() -> None:
    """The point of judging columns: on ordinary data no row is parsed by itself."""
    shop = Shop(items=300, users=50)
    for kind, table in ((Event, shop.events()), (Item, shop.items()), (User, shop.users())):
        validated = validate(kind, table, lambda places: pytest.fail(f"{len(places)} rows were parsed one by one"))
        assert validated.table.equals(table)
    text = {"user_id": ["1"] * 3, "item_id": ["2"] * 3, "value": ["4.5", "3", None]}
    text["timestamp"] = ["1112486027", "2005-04-02T23:53:47Z", "2005-04-02 23:53:47.5"]
    validate(Event, pa.table(text), lambda places: pytest.fail("parsed one by one"))
    for kind, required in ((Event, {"user_id", "item_id", "timestamp"}), (Item, {"item_id"}), (User, {"user_id"})):
        schema = SCHEMAS[kind]
        values = {"user_id": ["u"], "item_id": ["i"], "timestamp": [datetime(2024, 5, 1, tzinfo=UTC)]}
        bare = {
            field.name: pa.array(values[field.name] if field.name in required else [None], field.type)
            for field in schema
        }
        validate(kind, pa.table(bare), lambda places: pytest.fail("a missing value was taken for a doubtful one"))
