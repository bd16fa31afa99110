"""Text files with one person a line: the person, then their items, numbers with spaces between them.

Two layouts of published research data, each known by its file names. `sequences` is `sequences.txt`, items in the order
of time, and `item_attributes.json`, item -> attributes, if there is one (S3-Rec, Zhou et al., 2020). `interactions` is
`train.txt` and `test.txt`, plain or gzip, items in no order (NGCF, Wang et al., 2019); the held-out test file is not
among the events.

Neither knows times. The last event of a sequence gets the same day for everybody, those before it the days before; all
interactions lie on one day, in a shuffled order that is the same in every run: files are often sorted by item, and whoever
holds out the last events of a person must hold out random ones. A line may repeat a person in `interactions`; a person's
second sequence is refused, since nothing says which came first.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embeddings.errors import DataError
from embeddings.ids import stable_hash
from embeddings.schema import Event, Item, Row
from training.sources.columns import Columns
from training.sources.files import Part, Plan, Reader
from training.sources.quarantine import Rejected

LAST_DAY_S = 946_684_800  # 2000-01-01: an order of events, not a date anything happened on
DAY_S = 86_400
EVENT_TYPE = "click"
_LONGEST = 18


class Sequences(Reader):
    """`sequences.txt` in the order of time, with `item_attributes.json` beside it."""

    name = "sequences"

    def files(self, path: Path) -> Plan:
        """The folder's two files; a folder without sequences is none of this reader's."""
        if not (path / "sequences.txt").is_file():
            return {}
        plan: Plan = {Event: [path / "sequences.txt"]}
        if (path / "item_attributes.json").is_file():
            plan[Item] = [path / "item_attributes.json"]
        return plan

    def parts(self, file: Path, kind: type[Row], columns: Columns) -> Iterator[Part]:
        """Read the sequences, or the attributes of their items; attributes of other items are refused, row by row."""
        if kind is Item:
            yield _attributes(
                file, {item for _, items, _ in _people(file.with_name("sequences.txt"))[0] for item in items}
            )
            return
        people, broken = _people(file)
        known: set[str] = set()
        kept = []
        for user, items, line in people:
            if user in known:
                broken.append(Rejected(str(file), line, f"person {user} has a sequence already", f"{user} ..."))
            else:
                known.add(user)
                kept.append((user, items, line))
        yield _events(kept, broken, ordered=True)


class Interactions(Reader):
    """`train.txt` or `train.txt.gz`; the test file stays aside (`held_out`)."""

    name = "interactions"

    def files(self, path: Path) -> Plan:
        """The train file, where there is a test file too."""
        train, test = _either(path, "train.txt"), _either(path, "test.txt")
        return {Event: [train]} if train and test else {}

    def parts(self, file: Path, kind: type[Row], columns: Columns) -> Iterator[Part]:
        """Read the train file."""
        people, broken = _people(file)
        shuffled = [
            (user, sorted(items, key=lambda item, user=user: stable_hash(f"{user} {item}")), line)  # type: ignore[misc]
            for user, items, line in people
        ]
        yield _events(shuffled, broken, ordered=False)


def held_out(folder: Path) -> tuple[dict[str, list[str]], list[Rejected]]:
    """What the test file of an `interactions` folder holds: items by person, and the lines that were refused."""
    file = _either(folder, "test.txt")
    if file is None:
        raise DataError(f"'{folder}' has neither test.txt nor test.txt.gz")
    people, broken = _people(file)
    found: dict[str, list[str]] = {}
    for user, items, _ in people:
        found.setdefault(user, []).extend(items)
    return found, broken


def _either(folder: Path, name: str) -> Path | None:
    return next((file for file in (folder / name, folder / f"{name}.gz") if file.is_file()), None)


def _people(file: Path) -> tuple[list[tuple[str, list[str], int]], list[Rejected]]:
    """Person, items and number of each good line, and the lines that are none; blank lines are skipped."""
    people, broken = [], []
    for number, line in enumerate(_text(file).split("\n"), start=1):
        words = line.split()
        if not words:
            continue
        wrong = next((word for word in words if not word.isascii() or not word.isdigit() or len(word) > _LONGEST), None)
        if wrong is not None:
            broken.append(Rejected(str(file), number, f"'{wrong[:40]}' is not a number", line[:200]))
        elif len(words) == 1:
            broken.append(Rejected(str(file), number, f"person {words[0]} has no items", line[:200]))
        else:
            people.append((words[0], words[1:], number))
    return people, broken


def _text(file: Path) -> str:
    try:
        content = file.read_bytes()
        content = gzip.decompress(content) if file.suffix == ".gz" else content
        return content.decode("utf-8")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"'{file}' cannot be read: {error}") from None
    except UnicodeDecodeError:
        raise DataError(f"'{file}' is not text in UTF-8") from None


def _events(people: list[tuple[str, list[str], int]], broken: list[Rejected], *, ordered: bool) -> Part:
    lengths = np.array([len(items) for _, items, _ in people], dtype=np.int64)
    total = int(lengths.sum())
    before_last = (
        np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(total) if ordered else np.zeros(total, np.int64)
    )
    table = pa.table(
        {
            "user_id": pa.array([user for user, items, _ in people for _ in items], pa.string()),
            "item_id": pa.array([item for _, items, _ in people for item in items], pa.string()),
            "event_type": pa.repeat(pa.scalar(EVENT_TYPE), total),
            "timestamp": pa.array(LAST_DAY_S - DAY_S * before_last),
        }
    )
    lines = np.repeat(np.array([line for _, _, line in people], dtype=np.int64), lengths)
    return Part(table=table, lines=lines, broken=broken)


def _attributes(file: Path, known: set[str]) -> Part:
    raw = _json_object(file)
    names, values, lines, broken = [], [], [], []
    for number, (item, found) in enumerate(raw.items(), start=1):
        reason = _trouble(item, found, known)
        if reason:
            broken.append(Rejected(str(file), number, reason, {item: found}))
        else:
            names.append(item)
            values.append(json.dumps({"attribute": [str(entry) for entry in found]}))
            lines.append(number)
    table = pa.table({"item_id": pa.array(names, pa.string()), "attributes": pa.array(values, pa.string())})
    return Part(table=table, lines=np.array(lines, dtype=np.int64), broken=broken)


def _trouble(item: str, found: Any, known: set[str]) -> str:
    if item not in known:
        return f"item {item[:40]} is in no sequence"
    if not isinstance(found, list) or not all(isinstance(entry, (int, str)) for entry in found):
        return f"the attributes of item {item} are not a list of numbers or names"
    return ""


def _json_object(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(_text(file))
    except ValueError as error:
        raise DataError(f"'{file}' is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise DataError(f"'{file}' must be an object: item -> list of attributes")
    return raw
