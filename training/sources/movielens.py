"""The folder layouts of the MovieLens data sets, as GroupLens publishes them.

`latest-small`, `latest`, `20m`, `25m` and `32m` are CSV with a header; `1m` and `10m` have `::` between the fields; `100k`
has tabs and bars. A rating becomes an event `rating` whose value is the stars; the year moves from the title to an
attribute, genres become categories. Tags are left aside: they are given after watching, often by the very person whose
next film is to be predicted, so an attribute made of them would give the answer away.

F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. ACM TiiS 5, 4.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embeddings.errors import DataError
from embeddings.schema import Event, Item, Row, User
from training.sources.columns import Columns
from training.sources.delimited import Batch, read_delimited, read_header
from training.sources.files import Part, Plan, Reader, inspect

RATINGS = ("user_id", "item_id", "value", "timestamp")
GENRES = (
    "unknown,Action,Adventure,Animation,Children's,Comedy,Crime,Documentary,Drama,Fantasy,Film-Noir,Horror,Musical,Mystery,"
    "Romance,Sci-Fi,Thriller,War,Western"
)
OCCUPATIONS = (
    "other,academic/educator,artist,clerical/admin,college/grad student,customer service,doctor/health care,"
    "executive/managerial,farmer,homemaker,K-12 student,lawyer,programmer,retired,sales/marketing,scientist,self-employed,"
    "technician/engineer,tradesman/craftsman,unemployed,writer"
)
NO_GENRE = "(no genres listed)"
_TITLE = r"^(?P<title>.*?)\s*(?:\((?P<year>[0-9]{4})(?:[-–][0-9]{0,4})?\))?\s*$"


@dataclass(frozen=True)
class Layout:
    """One file of one layout: what it holds, its columns (those of the header if `None`), and how it is written."""

    kind: type[Row]
    names: tuple[str, ...] | None
    delimiter: str = ","
    encoding: str = "utf-8"


LAYOUTS: dict[str, dict[str, Layout]] = {
    "ratings.csv": {
        "ratings.csv": Layout(Event, None),
        "movies.csv": Layout(Item, None),
    },
    "ratings.dat": {
        "ratings.dat": Layout(Event, RATINGS, "::"),
        "movies.dat": Layout(Item, ("item_id", "title", "genres"), "::"),
        "users.dat": Layout(User, ("user_id", "gender", "age", "occupation", "zip"), "::", "latin-1"),
    },
    "u.data": {
        "u.data": Layout(Event, RATINGS, "\t", "latin-1"),
        "u.item": Layout(Item, ("item_id", "title", "released", "video", "url", *GENRES.split(",")), "|", "latin-1"),
        "u.user": Layout(User, ("user_id", "age", "gender", "occupation", "zip"), "|", "latin-1"),
    },
}
"""The file of ratings that a layout is known by -> its files."""

HEADERS = {"userId": "user_id", "movieId": "item_id", "rating": "value"}


class MovieLens(Reader):
    """A folder of one of the MovieLens data sets; the columns have names of their own, so a mapping has no effect."""

    name = "movielens"

    def files(self, path: Path) -> Plan:
        """The files of the layout that the folder has; only a folder can be one."""
        for known, layout in LAYOUTS.items():
            # A plain ratings.csv may be anybody's: a MovieLens folder has its films beside it.
            films = next(name for name, about in layout.items() if about.kind is Item)
            if (path / known).is_file() and (path / films).is_file():
                return {about.kind: [path / name] for name, about in layout.items() if (path / name).is_file()}
        return {}

    def parts(self, file: Path, kind: type[Row], columns: Columns) -> Iterator[Part]:
        """Read one file of the layout."""
        inspect(file, self.name)
        layout = next(files[file.name] for files in LAYOUTS.values() if file.name in files)
        shape = {Event: _events, Item: _items, User: _users}[kind]
        for batch in _batches(file, layout):
            yield Part(table=shape(batch.table), lines=batch.lines, broken=batch.broken, done=batch.done)


def _batches(file: Path, layout: Layout) -> Iterator[Batch]:
    if layout.names is None:
        names, delimiter = read_header(file)
        ours = [HEADERS.get(name, name) for name in names]
        wanted = RATINGS if layout.kind is Event else ("item_id", "title", "genres")
        missing = [name for name in wanted if name not in ours]
        if missing:
            raise DataError(f"'{file}' is no MovieLens file: its columns are {', '.join(names)}")
        yield from read_delimited(file, names=ours, delimiter=delimiter)
        return
    # Arrow splits at one character only, and no character of these files is a unit separator.
    text = _decoded(file, layout.encoding).replace(layout.delimiter, "\x1f").encode()
    yield from read_delimited(file, names=layout.names, delimiter="\x1f", quoted=False, header=False, data=text)


def _decoded(file: Path, encoding: str) -> str:
    content = file.read_bytes()
    if b"\x00" in content:
        raise DataError(f"'{file}' is not text")
    if encoding != "utf-8":
        return content.decode(encoding)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")  # 1m is Latin-1 where 10m, in the same layout, is UTF-8


def _events(table: pa.Table) -> pa.Table:
    kinds = pa.repeat(pa.scalar("rating"), len(table))
    return table.select(RATINGS).append_column("event_type", kinds)


def _items(table: pa.Table) -> pa.Table:
    found = pc.extract_regex(pc.fill_null(table["title"], ""), pattern=_TITLE)
    year = pc.struct_field(found, "year")
    attributes = pc.binary_join_element_wise('{"year": ', year, "}", "")
    return pa.table(
        {
            "item_id": table["item_id"],
            "title": pc.struct_field(found, "title"),
            "categories": _genres(table),
            "attributes": pc.if_else(pc.equal(pc.utf8_length(year), 4), attributes, None),
        }
    )


def _genres(table: pa.Table) -> Any:
    if "genres" in table.column_names:
        return pc.if_else(pc.equal(table["genres"], NO_GENRE), None, table["genres"])
    flags = np.stack([table[name].fill_null("0").to_numpy(zero_copy_only=False) == "1" for name in GENRES.split(",")])
    known = np.array(GENRES.split(","))
    # 100k calls a genre "unknown" where later sets list none.
    rows = ["|".join(name for name in known[row] if name != "unknown") for row in flags.T]
    return pa.array(rows, pa.string())


def _users(table: pa.Table) -> pa.Table:
    """Gender, age and occupation; the occupation of 1m is a number that its README spells out."""
    occupations = dict(enumerate(OCCUPATIONS.split(",")))
    columns = (table[name].to_pylist() for name in ("gender", "age", "occupation"))
    rows = []
    for gender, age, occupation in zip(*columns, strict=True):
        known = {"gender": gender, "age": _number(age), "occupation": occupations.get(_number(occupation), occupation)}
        rows.append(json.dumps({name: value for name, value in known.items() if value is not None}))
    return pa.table({"user_id": table["user_id"], "attributes": pa.array(rows, pa.string())})


def _number(text: str | None) -> Any:
    return int(text) if text is not None and text.isdecimal() and len(text) < 5 else text
