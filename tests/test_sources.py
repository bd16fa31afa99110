"""Readers: every format means the same, every row is judged as the schema judges it, and nothing bad is lost."""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from embeddings.errors import DataError, InputError
from embeddings.schema import EVENTS, ITEMS, USERS, Event, Item, User, from_table, to_table
from training.shop import Shop
from training.sources import READERS, Counts, Data, read
from training.sources.files import Reader
from training.sources.movielens import LAYOUTS, MovieLens
from training.sources.people import Interactions, Sequences

Rows = list[dict[str, Any]]

RATINGS: Rows = [
    {"user_id": "1", "item_id": "10", "event_type": "rating", "value": 4.5, "timestamp": 1_000_000_000},
    {"user_id": "1", "item_id": "11", "event_type": "rating", "value": 3.0, "timestamp": 1_000_000_060},
    {"user_id": "2", "item_id": "10", "event_type": "rating", "value": 1.0, "timestamp": 1_000_000_120},
]
FILMS: Rows = [
    {"item_id": "10", "title": "First", "categories": ["Drama", "War"], "attributes": {"year": 1994}},
    {"item_id": "11", "title": "Second", "categories": [], "attributes": {"year": 2001}},
]


def flat(rows: Rows) -> Rows:
    return [{name: _flat(value) for name, value in row.items()} for row in rows]


def _flat(value: Any) -> Any:
    if isinstance(value, dict):
        return json.dumps(value)
    return "|".join(value) if isinstance(value, list) else value


def write_csv(path: Path, rows: Rows) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, names)
        writer.writeheader()
        writer.writerows(flat(rows))


def write_jsonl(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_parquet(path: Path, rows: Rows) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [_as_text(name, row.get(name)) for row in rows] for name in names}
    pq.write_table(pa.table(columns), path)


def _as_text(name: str, value: Any) -> Any:
    return json.dumps(value) if name in ("attributes", "context") and value is not None else value


def write_movielens(folder: Path, events: Rows, items: Rows) -> None:
    lines = ["userId,movieId,rating,timestamp"]
    lines += [f"{row.get('user_id', '')},{row['item_id']},{row['value']},{row['timestamp']}" for row in events]
    (folder / "ratings.csv").write_text("\n".join(lines) + "\n")
    films = ["movieId,title,genres"]
    for row in items:
        genres = "|".join(row["categories"]) or "(no genres listed)"
        films.append(f"{row['item_id']},{row['title']} ({row['attributes']['year']}),{genres}")
    (folder / "movies.csv").write_text("\n".join(films) + "\n")


def write_world(reader: type[Reader], folder: Path, events: Rows, items: Rows) -> Path:
    """Write the same rows in the format of a reader; returns the file of events."""
    folder.mkdir(parents=True, exist_ok=True)
    if reader is MovieLens:
        write_movielens(folder, events, items)
        return folder / "ratings.csv"
    write: Callable[[Path, Rows], None] = {"csv": write_csv, "jsonl": write_jsonl, "parquet": write_parquet}[
        reader.name
    ]
    suffix = reader.suffixes[0]
    write(folder / f"events{suffix}", events)
    write(folder / f"items{suffix}", items)
    return folder / f"events{suffix}"


def read_events(tmp_path: Path, name: str, content: str | bytes, **options: Any) -> Data:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read(path, **options)


# The two layouts of one person a line have no columns to write rows in: see test_people.py.
TABULAR = [reader for reader in READERS if reader not in (Interactions, Sequences)]
every_reader = pytest.mark.parametrize("reader", TABULAR, ids=[reader.name for reader in TABULAR])


# The contract of every reader.


def test_every_reader_is_listed() -> None:
    assert set(READERS) == set(Reader.__subclasses__())
    assert len({reader.name for reader in READERS}) == len(READERS)


@every_reader
def test_the_same_rows_give_the_same_tables_in_every_format(reader: type[Reader], tmp_path: Path) -> None:
    write_world(reader, tmp_path, RATINGS, FILMS)
    for name in ("auto", reader.name):
        data = read(tmp_path, format=name)
        assert data.events.equals(to_table([Event(**row) for row in RATINGS], Event))
        assert data.items.equals(to_table([Item(**row) for row in FILMS], Item))
        assert data.users.equals(USERS.empty_table())
        assert data.counts == Counts(read=5, kept=5)


@every_reader
def test_a_bad_row_is_set_aside_and_the_rest_is_kept(reader: type[Reader], tmp_path: Path) -> None:
    rows = [*RATINGS[:2], RATINGS[2] | {"user_id": ""}, RATINGS[2], RATINGS[1] | {"timestamp": 99_999_999_999_999}]
    file = write_world(reader, tmp_path / "data", rows, FILMS)
    aside = tmp_path / "aside" / "bad.jsonl"
    data = read(tmp_path / "data", quarantine=aside, max_bad_share=0.5)
    assert data.events.equals(to_table([Event(**row) for row in RATINGS], Event))
    written = [json.loads(line) for line in aside.read_text().splitlines()]
    assert written[0]["file"] == str(file)
    assert written[0]["line"] == 3 + (reader.name in ("csv", "movielens"))
    assert written[0]["reason"] == "user_id: is required"
    assert written[0]["row"]["item_id"] == "10"
    assert written[1]["reason"] == "timestamp: lies more than a day in the future"
    assert data.counts == Counts(read=7, kept=5, quarantined=2)
    assert len(written) == len(data.rejected) == 2


@every_reader
def test_too_many_bad_rows_fail_and_name_share_and_reasons(reader: type[Reader], tmp_path: Path) -> None:
    write_world(reader, tmp_path / "data", [*RATINGS, RATINGS[0] | {"user_id": ""}], FILMS)
    aside = tmp_path / "bad.jsonl"
    with pytest.raises(DataError, match=r"25\.0% of the events \(1 of 4\) are bad, more than 1\.0%: .*is required"):
        read(tmp_path / "data", quarantine=aside)
    assert len(aside.read_text().splitlines()) == 1
    assert read(tmp_path / "data", max_bad_share=0.25).counts.quarantined == 1


@every_reader
def test_what_occurs_twice_is_kept_once(reader: type[Reader], tmp_path: Path) -> None:
    changed = FILMS[0] | {"title": "First, again"} if reader is not MovieLens else FILMS[0] | {"title": "Again"}
    write_world(reader, tmp_path, [*RATINGS, RATINGS[0], RATINGS[1] | {"value": 5.0}], [*FILMS, changed])
    data = read(tmp_path)
    assert data.by_table["events"] == Counts(read=5, kept=3, duplicates=2)
    assert data.events["value"].to_pylist() == [4.5, 3.0, 1.0]
    assert data.by_table["items"] == Counts(read=3, kept=2, duplicates=1)
    assert data.items["title"].to_pylist() == ["Second", changed["title"]]
    assert data.counts == Counts(read=8, kept=5, duplicates=3)


@every_reader
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "is a PNG image, not"),
        (b"PK\x03\x04rest", "is a ZIP archive, not"),
        ("user_id,item_id,timestamp\nJosé,1,1\n".encode("latin-1") * 3, None),
        (b"<!DOCTYPE html><html><body>404</body></html>\n", None),
    ],
)
def test_a_file_that_is_not_what_its_name_says(
    reader: type[Reader], tmp_path: Path, content: bytes, words: str | None
) -> None:
    file = write_world(reader, tmp_path, RATINGS, FILMS)
    file.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read(tmp_path)
    assert str(file) in caught.value.message


@every_reader
def test_a_truncated_file_is_never_read_as_if_it_were_whole(reader: type[Reader], tmp_path: Path) -> None:
    file = write_world(reader, tmp_path, RATINGS, FILMS)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) - 4 - 12 * (reader.name == "jsonl")])
    if reader.name == "parquet":
        with pytest.raises(DataError, match="cut short"):
            read(tmp_path, max_bad_share=1.0)
    else:  # text may end early within a number: that cannot be told, but no row is invented and none is lost
        assert read(tmp_path, max_bad_share=1.0).by_table["events"].read == 3


# What may be written differently.


def test_columns_of_other_names_are_mapped(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("Kunde;Artikel;Zeit;Bemerkung\nu1;i1;2024-05-01T10:00:00+02:00;schön\n")
    (tmp_path / "items.jsonl").write_text('{"Artikel": 7, "name": "Stuhl", "Farbe": "rot", "neu": true, "kg": 2}\n')
    columns = {"user_id": "Kunde", "item_id": "Artikel", "timestamp": "Zeit", "title": "name"}
    data = read(tmp_path, columns=columns)
    assert from_table(data.events, Event) == [
        Event(user_id="u1", item_id="i1", timestamp=datetime(2024, 5, 1, 8, tzinfo=UTC))
    ]
    stuhl = Item(item_id="7", title="Stuhl", attributes={"Farbe": "rot", "neu": True, "kg": 2})
    assert from_table(data.items, Item) == [stuhl]
    assert data.ignored == ("Bemerkung",)


def test_a_mapping_of_an_unknown_column_and_a_missing_column_say_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown column 'userid'; did you mean 'user_id'"):
        read_events(tmp_path, "events.csv", "user_id,item_id,timestamp\n", columns={"userid": "Kunde"})
    with pytest.raises(DataError, match="has no column 'user_id'; it has: uid, item_id, timestamp") as caught:
        read_events(tmp_path, "events.csv", "uid,item_id,timestamp\nu,i,1\n")
    assert caught.value.field == "user_id"
    with pytest.raises(DataError, match="has the column 'a' more than once"):
        read_events(tmp_path, "events.csv", "a,user_id,a\n1,2,3\n")


@pytest.mark.parametrize(
    "written",
    [
        "2024-05-01T10:00:00Z",
        "2024-05-01T10:00:00",
        "2024-05-01 10:00:00",
        "2024-05-01T12:00:00+02:00",
        "2024-05-01T10:00:00.000000Z",
        "2024-05-01T10:00",
        "1714557600",
        "1714557600000",
        "1714557600.0",
    ],
)
def test_a_moment_may_be_written_in_many_ways(tmp_path: Path, written: str) -> None:
    expected = [datetime(2024, 5, 1, 10, tzinfo=UTC)]
    text = read_events(tmp_path, "events.csv", f"user_id,item_id,timestamp\nu,i,{written}\n")
    assert text.events["timestamp"].to_pylist() == expected
    value = float(written) if written[4] != "-" else written
    json_ = read_events(tmp_path, "a.jsonl", json.dumps({"user_id": "u", "item_id": "i", "timestamp": value}))
    assert json_.events["timestamp"].to_pylist() == expected


@pytest.mark.parametrize(
    "column",
    [
        pa.array([datetime(2024, 5, 1, 10)], pa.timestamp("ns")),
        pa.array([datetime(2024, 5, 1, 10)], pa.timestamp("ms")),
        pa.array([datetime(2024, 5, 1, 10, tzinfo=UTC)], pa.timestamp("s", "Europe/Berlin")),
        pa.array([1714557600], pa.int32()),
        pa.array([1714557600], pa.uint64()),
        pa.array([1714557600000], pa.int64()),
        pa.array([1714557600.0], pa.float64()),
        pa.array(["2024-05-01T10:00:00Z"], pa.large_string()),
        pa.array(["2024-05-01T10:00:00Z"]).dictionary_encode(),
    ],
)
def test_a_moment_may_have_any_type_in_parquet(tmp_path: Path, column: Any) -> None:
    table = pa.table({"user_id": [2**62], "item_id": pa.array(["i"]).dictionary_encode(), "timestamp": column})
    pq.write_table(table, tmp_path / "events.parquet")
    data = read(tmp_path / "events.parquet")
    assert data.events.schema == EVENTS
    assert data.events["timestamp"].to_pylist() == [datetime(2024, 5, 1, 10, tzinfo=UTC)]
    assert data.events["user_id"].to_pylist() == [str(2**62)]


def test_extra_columns_become_typed_attributes(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\nu,1,1\n")
    (tmp_path / "items.csv").write_text(
        "item_id,title,categories,Brand Name,weight,zip,new,2nd,attributes,price\n"
        '1,Chair,"Home| Seats ||",Norden,1.5,00123,true,x,"{""weight"": 9, ""tags"": [""a"", ""b""]}",10\n'
        "2,Table,,,3,45678,FALSE,,,\n"
    )
    (tmp_path / "users.csv").write_text("user_id,age\nu,30\nv,\n")
    data = read(tmp_path)
    chair, table = from_table(data.items, Item)
    assert chair.categories == ["Home", "Seats"]
    assert chair.price == 10
    assert chair.attributes == {
        "Brand_Name": "Norden",
        "weight": 9.0,
        "zip": "00123",
        "new": True,
        "_2nd": "x",
        "tags": ["a", "b"],
    }
    assert table.attributes == {"weight": 3.0, "zip": "45678", "new": False}
    assert from_table(data.users, User) == [User(user_id="u", attributes={"age": 30}), User(user_id="v")]


def test_the_type_of_an_attribute_is_told_by_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.sources.delimited.BLOCK_BYTES", 256)
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\nu,1,1\n")
    (tmp_path / "items.csv").write_text(
        "item_id,code,size\n" + "".join(f"{n},{n},{n}\n" for n in range(300)) + "x,A7,8\n"
    )
    items = from_table(read(tmp_path).items, Item)
    assert [item.attributes["code"] for item in items] == [*map(str, range(300)), "A7"]
    assert [item.attributes["size"] for item in items] == [*map(float, range(300)), 8.0]


def test_context_and_attributes_as_text_or_object(tmp_path: Path) -> None:
    base = {"user_id": "u", "item_id": "i", "timestamp": 1}
    lines = [
        base | {"context": {"device": "phone", "beta": True, "nothing": None}, "event_id": "a"},
        base | {"context": '{"device": "phone", "beta": true}', "event_id": "b"},
        base | {"context": "", "event_id": "c"},
        base | {"context": "[1]", "event_id": "d"},
        base | {"context": "{", "event_id": "e"},
        base | {"context": {"deep": {"er": 1}}, "event_id": "f"},
    ]
    data = read_events(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)), max_bad_share=0.9)
    same = json.dumps({"beta": True, "device": "phone"})
    assert data.events["context"].to_pylist() == [same, same, "{}"]
    assert [row.line for row in data.rejected] == [4, 5, 6]
    assert [row.reason.partition(":")[0] for row in data.rejected] == ["context", "context", "context.deep"]


def test_a_partitioned_folder_as_the_service_exports_it(tmp_path: Path) -> None:
    shop = Shop(items=200, users=30)
    shop.write(tmp_path / "export", days=20)
    events = tmp_path / "export" / "events"
    (events / "_exported.json").write_text("{}")
    (events / "date=2025-11-20" / ".part-0.parquet.tmp").write_text("half")
    (events / "date=2025-11-20" / ".part-9.parquet").write_text("half")
    data = read(tmp_path / "export")
    assert data.items.equals(shop.items())
    assert data.users.equals(shop.users())
    assert data.events.sort_by("event_id").equals(shop.events(20).sort_by("event_id"))
    alone = read(events)
    assert alone.events.equals(data.events)
    assert len(alone.items) == 0


def test_a_folder_name_gives_a_column_of_ours_and_no_other(tmp_path: Path) -> None:
    for name in ("event_type=view/day=1", "event_type=add%20on/day=2", "event_type=__HIVE_DEFAULT_PARTITION__/day=3"):
        folder = tmp_path / "events" / name
        folder.mkdir(parents=True)
        pq.write_table(
            pa.table({"user_id": ["u"], "item_id": ["i"], "timestamp": [int(name[-1])]}), folder / "a.parquet"
        )
    data = read(tmp_path, max_bad_share=0.5)
    assert data.events["event_type"].to_pylist() == ["view", "view"]
    assert data.rejected[0].row["event_type"] == "add on"
    assert data.ignored == ()


def test_formats_may_differ_between_tables_but_not_within_one(tmp_path: Path) -> None:
    write_csv(tmp_path / "events.csv", RATINGS)
    write_parquet(tmp_path / "items.parquet", FILMS)
    assert read(tmp_path).counts.kept == 5
    write_jsonl(tmp_path / "events.jsonl", RATINGS)
    with pytest.raises(DataError, match="has events in several formats: jsonl, csv"):
        read(tmp_path)
    assert read(tmp_path, format="csv").by_table["events"].kept == 3


def test_what_cannot_be_found_or_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no events that can be read as auto: expected a folder of MovieLens"):
        read(tmp_path)
    with pytest.raises(
        InputError, match="unknown format 'xml'; known: auto, csv, interactions, jsonl, movielens, parquet, sequences"
    ):
        read(tmp_path, format="xml")
    with pytest.raises(InputError, match="max_bad_share must lie between 0 and 1"):
        read(tmp_path, max_bad_share=math.nan)
    with pytest.raises(DataError, match="holds no events"):
        read_events(tmp_path, "events.csv", "user_id,item_id,timestamp\n")


def test_a_file_of_any_name_is_read_as_the_format_asked_for(tmp_path: Path) -> None:
    content = "user_id\titem_id\ttimestamp\nu\ti\t1\n"
    assert len(read_events(tmp_path, "log.txt", content, format="csv").events) == 1
    with pytest.raises(DataError, match="holds no events that can be read as auto"):
        read(tmp_path / "log.txt")


# Lines, quotes and quarantine.


def test_every_bad_row_has_the_line_it_stands_in(tmp_path: Path) -> None:
    content = (
        "user_id,item_id,timestamp,channel\n"  # 1
        "u,a,1,web\n"  # 2
        "\n"  # 3
        'u,b,x,"two\nlines"\n'  # 4 and 5: no moment
        "u,c\n"  # 6: too short
        ",,,\n"  # 7: nothing in it
        'u,"d\n\n,1,"\n'  # 8, 9, 10: too short as well
        "u,e,-5,web\n"  # 11: before 1970
        "u,f,6,web,more\n"  # 12: too long
        "u,g,7,\n"  # 13
        "u,h,8"  # 14: too short, at the end
    )
    data = read_events(tmp_path, "events.csv", content, max_bad_share=1.0)
    assert data.events["item_id"].to_pylist() == ["a", "g"]
    assert [row.line for row in data.rejected] == [4, 6, 8, 11, 12, 14]
    assert data.rejected[1].reason == "has 2 fields instead of 4"
    assert data.rejected[1].row == "u,c"
    assert data.rejected[0].row == {"user_id": "u", "item_id": "b", "timestamp": "x", "channel": "two\nlines"}
    assert data.rejected[3].reason == "timestamp: lies before 1970"
    assert data.counts == Counts(read=8, kept=2, quarantined=6)


def test_lines_stay_right_across_the_blocks_of_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.sources.delimited.BLOCK_BYTES", 512)
    rng = np.random.default_rng(0)
    lines, expected, kept = ["user_id,item_id,timestamp"], [], 0
    for row in range(2000):
        kind = rng.integers(12)
        if kind == 0:
            expected.append(len(lines) + 1)
            lines.append(f"u,{row}")
        elif kind == 1:
            expected.append(len(lines) + 1)
            lines.append(f"u,{row},soon")
        elif kind == 2:
            lines.append("")
        else:
            kept += 1
            item = f'"{row}\n{row}"' if kind == 3 else row
            lines += f"u,{item},{row}".split("\n")
    data = read_events(tmp_path, "events.csv", "\n".join(lines), max_bad_share=1.0)
    assert [row.line for row in data.rejected] == expected
    assert data.counts == Counts(read=kept + len(expected), kept=kept, quarantined=len(expected))


def test_a_quote_that_is_never_closed_swallows_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="opens a quote that it never closes"):
        read_events(tmp_path, "events.csv", 'user_id,item_id,timestamp\nu,"i,1\nu,j,2\n')


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbfuser_id, item_id ,timestamp\r\nu,i,1\r\nu,j,2\r\n"
    assert read_events(tmp_path, "events.csv", content).events["item_id"].to_pylist() == ["i", "j"]
    content = b'\xef\xbb\xbf{"user_id": "u", "item_id": "i", "timestamp": 1}\r\n\r\n'
    assert len(read_events(tmp_path, "a.jsonl", content).events) == 1


def test_lines_of_json_that_are_no_rows(tmp_path: Path) -> None:
    good = '{"user_id": "u", "item_id": "i", "timestamp": 1}'
    bad = ["[1, 2]", "nonsense", '{"user_id": "u", "item_id": ', "[" * 100_000, "null", '"text"']
    data = read_events(tmp_path, "a.jsonl", "\n".join([good, "", *bad]), max_bad_share=1.0)
    assert data.counts == Counts(read=7, kept=1, quarantined=6)
    assert [row.line for row in data.rejected] == [3, 4, 5, 6, 7, 8]
    assert data.rejected[0].reason == "is not a JSON object"
    assert data.rejected[1].row == "nonsense"


def test_values_that_break_parsers_are_only_bad_rows(tmp_path: Path) -> None:
    base = {"user_id": "u", "item_id": "i", "timestamp": 1}
    odd = [
        base | {"user_id": "\ud800"},
        base | {"user_id": "nul\x00"},
        base | {"user_id": True},
        base | {"user_id": 1.5},
        base | {"user_id": ["u"]},
        base | {"user_id": "x" * 129},
        base | {"value": 10**400},
        base | {"value": math.nan},
        base | {"value": True},
        base | {"value": math.inf},
        base | {"position": -1},
        base | {"position": 10**30},
        base | {"timestamp": 10**30},
        base | {"timestamp": {}},
        base | {"timestamp": time.time() + 200_000},
        base | {"context": {"x": 10**400}},
        base | {"context": {"x": "\ud800"}},
        base | {"event_type": "no spaces"},
    ]
    lines = [json.dumps(row) for row in [*odd, base | {"user_id": 5, "value": 3, "position": 2}]]
    aside = tmp_path / "bad.jsonl"
    data = read_events(tmp_path, "a.jsonl", "\n".join(lines), max_bad_share=1.0, quarantine=aside)
    assert [row.line for row in data.rejected] == list(range(1, len(odd) + 1))
    assert from_table(data.events, Event) == [
        Event(user_id="5", item_id="i", timestamp=datetime.fromtimestamp(1, UTC), value=3, position=2)
    ]
    assert [json.loads(line)["line"] for line in aside.read_text().splitlines()] == list(range(1, len(odd) + 1))


def test_quarantine_is_written_only_for_bad_rows_and_never_over_the_data(tmp_path: Path) -> None:
    aside = tmp_path / "bad.jsonl"
    good = "user_id,item_id,timestamp\nu,i,1\n"
    read_events(tmp_path, "events.csv", good, quarantine=aside)
    assert not aside.exists()
    aside.write_text("of an earlier import\n")
    read_events(tmp_path, "events.csv", good, quarantine=aside)
    assert aside.read_text() == ""
    with pytest.raises(InputError, match="is one of the files to read"):
        read(tmp_path / "events.csv", quarantine=tmp_path / "." / "events.csv")
    assert (tmp_path / "events.csv").read_text() == good
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "events.csv"]


def test_a_bad_table_fails_however_good_the_others_are(tmp_path: Path) -> None:
    write_csv(tmp_path / "events.csv", [RATINGS[0] | {"timestamp": n} for n in range(1000)])
    write_jsonl(tmp_path / "items.jsonl", [{"item_id": "1"}, {"item_id": ""}])
    with pytest.raises(DataError, match=r"50\.0% of the items \(1 of 2\) are bad"):
        read(tmp_path)


def test_progress_is_drawn_when_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_csv(tmp_path / "events.csv", RATINGS)
    read(tmp_path, progress=False)
    assert capsys.readouterr().out == ""
    assert read(tmp_path, progress=True).counts.kept == 3


# Duplicates.


def test_duplicates_against_a_slow_reference(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows: Rows = []
    for _ in range(400):
        row = {"user_id": f"u{rng.integers(3)}", "item_id": f"i{rng.integers(3)}", "timestamp": int(rng.integers(4))}
        row |= {"event_type": "view" if rng.random() < 0.5 else "cart", "value": float(rng.random())}
        rows.append(row | ({"event_id": f"e{rng.integers(60)}"} if rng.random() < 0.5 else {}))
    seen, kept = set(), []
    for row in rows:
        key = row.get("event_id") or (row["user_id"], row["item_id"], row["event_type"], row["timestamp"])
        if key not in seen:
            kept.append(row["value"])
        seen.add(key)
    write_jsonl(tmp_path / "a.jsonl", rows)
    data = read(tmp_path / "a.jsonl")
    assert data.events["value"].to_pylist() == kept
    assert data.counts == Counts(read=400, kept=len(kept), duplicates=400 - len(kept))


# MovieLens.


def test_movielens_one_million_layout(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::10::5::978300760\n2::11::3::978302109\n")
    (tmp_path / "movies.dat").write_bytes(
        '10::Amélie: le fabuleux destin (2001)::Comedy|Romance\n11::"Great Performances" Cats (1998)::Musical\n'.encode(
            "latin-1"
        )
    )
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n")
    data = read(tmp_path)
    assert from_table(data.events, Event)[0] == Event(
        user_id="1",
        item_id="10",
        event_type="rating",
        value=5,
        timestamp=datetime(2000, 12, 31, 22, 12, 40, tzinfo=UTC),
    )
    assert from_table(data.items, Item) == [
        Item(
            item_id="10",
            title="Amélie: le fabuleux destin",
            categories=["Comedy", "Romance"],
            attributes={"year": 2001},
        ),
        Item(item_id="11", title='"Great Performances" Cats', categories=["Musical"], attributes={"year": 1998}),
    ]
    assert from_table(data.users, User) == [
        User(user_id="1", attributes={"gender": "F", "age": 1, "occupation": "K-12 student"}),
        User(user_id="2", attributes={"gender": "M", "age": 56, "occupation": "self-employed"}),
    ]


def test_movielens_ten_million_layout_is_utf8(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::10::4.5::838985046\n")
    (tmp_path / "movies.dat").write_text("10::Amélie (2001)::Comedy\n", encoding="utf-8")
    (tmp_path / "tags.dat").write_text("1::10::excellent!::1215184630\n")
    data = read(tmp_path)
    assert data.items["title"].to_pylist() == ["Amélie"]
    assert data.events["value"].to_pylist() == [4.5]


def test_movielens_hundred_thousand_layout(tmp_path: Path) -> None:
    (tmp_path / "u.data").write_text("196\t242\t3\t881250949\n186\t302\t3\t891717742\n")
    flags = "0|0|0|1|1|1" + "|0" * 13
    (tmp_path / "u.item").write_bytes(
        f"242|Misérables, Les (1995)|01-Jan-1995||http://us.imdb.com/x|{flags}\n".encode("latin-1")
        + b"302|unknown|||"
        + b"|1"
        + b"|0" * 18
        + b"\n"
    )
    (tmp_path / "u.user").write_text("196|49|M|writer|55105\n")
    data = read(tmp_path)
    assert from_table(data.items, Item) == [
        Item(
            item_id="242",
            title="Misérables, Les",
            categories=["Animation", "Children's", "Comedy"],
            attributes={"year": 1995},
        ),
        Item(item_id="302", title="unknown"),
    ]
    assert json.loads(data.users["attributes"][0].as_py()) == {"gender": "M", "age": 49, "occupation": "writer"}


@pytest.mark.parametrize(
    ("written", "title", "year"),
    [
        ("Toy Story (1995)", "Toy Story", 1995),
        ("Toy Story (1995) ", "Toy Story", 1995),
        ("(500) Days of Summer (2009)", "(500) Days of Summer", 2009),
        ("2001: A Space Odyssey", "2001: A Space Odyssey", None),
        ("Fawlty Towers (1975-1979)", "Fawlty Towers", 1975),
        ("Doctor Who (2005– )", "Doctor Who (2005– )", None),
        ("Adam (I) (1999)", "Adam (I)", 1999),
        ("(1995)", "", 1995),
    ],
)
def test_the_year_moves_from_the_title_to_an_attribute(tmp_path: Path, written: str, title: str, year: int) -> None:
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,10,4,1\n")
    (tmp_path / "movies.csv").write_text(f'movieId,title,genres\n10,"{written}",Drama\n', encoding="utf-8")
    (item,) = from_table(read(tmp_path).items, Item)
    assert (item.title, item.attributes) == (title, {} if year is None else {"year": year})


def test_every_layout_names_ratings_and_films() -> None:
    for known, files in LAYOUTS.items():
        assert files[known].kind is Event
        assert Item in {layout.kind for layout in files.values()}


def test_a_folder_with_ratings_of_its_own_is_not_movielens(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("user_id,item_id,timestamp\n1,10,1\n")
    assert MovieLens().files(tmp_path) == {}
    assert read(tmp_path).counts.kept == 1


@pytest.mark.skipif("BESPOKE_TEST_DATA" not in os.environ, reason="needs real data in BESPOKE_TEST_DATA")
def test_the_real_ratings_against_the_standard_library() -> None:
    folder = Path(os.environ["BESPOKE_TEST_DATA"]) / "ml-latest-small"
    data = read(folder)
    with (folder / "ratings.csv").open(newline="") as handle:
        slow = list(csv.DictReader(handle))
    assert data.events["user_id"].to_pylist() == [row["userId"] for row in slow]
    assert data.events["item_id"].to_pylist() == [row["movieId"] for row in slow]
    assert data.events["value"].to_pylist() == [float(row["rating"]) for row in slow]
    assert data.events["timestamp"].cast(pa.int64()).to_pylist() == [int(row["timestamp"]) * 1_000_000 for row in slow]
    with (folder / "movies.csv").open(newline="", encoding="utf-8") as handle:
        films = {row["movieId"]: row for row in csv.DictReader(handle)}
    for item in from_table(data.items, Item):
        film = films[item.item_id]
        assert film["title"].startswith(item.title)
        assert "|".join(item.categories) == film["genres"].replace("(no genres listed)", "")
    assert data.counts.quarantined == 0
    years = pc.match_substring(data.items["attributes"], "year")
    assert pc.mean(years.cast(pa.float64())).as_py() > 0.99


def test_a_moment_in_the_future_is_refused_to_the_second(tmp_path: Path) -> None:
    near = datetime.now(UTC) + timedelta(hours=23)
    far = datetime.now(UTC) + timedelta(hours=25)
    rows = [{"user_id": "u", "item_id": "i", "timestamp": moment.isoformat()} for moment in (near, far)]
    write_csv(tmp_path / "events.csv", rows)
    data = read(tmp_path, max_bad_share=0.5)
    assert data.events["timestamp"].to_pylist() == [near]
    assert data.rejected[0].reason == "timestamp: lies more than a day in the future"


def test_tables_have_the_schemas_even_when_empty(tmp_path: Path) -> None:
    data = read_events(tmp_path, "events.csv", "user_id,item_id,timestamp\nu,i,1\n")
    assert (data.events.schema, data.items.schema, data.users.schema) == (EVENTS, ITEMS, USERS)
