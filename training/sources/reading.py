"""Reading data: find the files, check every row, set the bad ones aside, drop what occurs twice.

`read` is the one way in. It goes through the readers, the validation of the schema, the quarantine and the counts in this
order, and either gives tables that can be trusted or says why not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from embeddings.errors import DataError, InputError, unknown_name
from embeddings.schema import EVENTS, ITEMS, SCHEMAS, USERS, Event, Item, Row, User
from training.sources.consent import joined, learnable
from training.sources.files import STEMS, Csv, JsonLines, Parquet, Part, Plan, Reader
from training.sources.movielens import MovieLens
from training.sources.people import Interactions, Sequences
from training.sources.quarantine import Quarantine, Rejected
from training.sources.validation import validate

READERS: tuple[type[Reader], ...] = (MovieLens, Sequences, Interactions, Parquet, JsonLines, Csv)
"""Every reader; `auto` asks them in this order."""

LAYOUTS = (MovieLens.name, Sequences.name, Interactions.name)
"""Formats known by the names of their files: where one is found, other files of the folder are not data."""

Files = list[tuple[Reader, type[Row], Path]]
Step = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What became of the rows that were read: read = kept + quarantined + duplicates."""

    read: int = 0
    kept: int = 0
    quarantined: int = 0
    duplicates: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            read=self.read + other.read,
            kept=self.kept + other.kept,
            quarantined=self.quarantined + other.quarantined,
            duplicates=self.duplicates + other.duplicates,
        )


@dataclass(frozen=True, kw_only=True)
class Data:
    """Tables of the schemas EVENTS, ITEMS and USERS, and an account of how they came about.

    `counts` are totals and `by_table` the same for `events`, `items` and `users`; `rejected` are the first bad rows (all
    them are in the quarantine file); `ignored` are columns of event files that mean nothing to us. `withheld` events were
    sound, and are left out because their people do not want to be learned from.
    """

    events: pa.Table
    items: pa.Table
    users: pa.Table
    counts: Counts
    by_table: Mapping[str, Counts]
    rejected: tuple[Rejected, ...] = ()
    ignored: tuple[str, ...] = ()
    withheld: int = 0


def read(
    path: Path | str,
    *,
    format: str = "auto",  # noqa: A002 - the word that people look for
    columns: Mapping[str, str] | None = None,
    max_bad_share: float = 0.01,
    quarantine: Path | None = None,
    progress: bool = False,
) -> Data:
    """Read a file of events, or a folder of events and, if there are any, items and users.

    `format` is `auto` or the name of one of `READERS`; `columns` maps our column names to those of the files. A
    row that the schema refuses goes to the `quarantine` file (JSON lines with file, line, reason and row) and is counted.
    Of rows that occur twice one is kept: the first of two events with one `event_id` (or, without ids, with the same
    person, item, type and time), the last of two items or users with one id.

    Raises `DataError` when a file is not what its name says, when there are no events, or when more than `max_bad_share`
    of the rows of events, items or users are bad; `InputError` for an unknown format or column, or a share outside 0..1.
    """
    path, columns = Path(path), dict(columns or {})
    _check_arguments(columns, max_bad_share)
    plan = _plan(path, format)
    _protect(plan, quarantine)
    ignored: dict[str, None] = {}
    tables: dict[type[Row], pa.Table] = {}
    counts: dict[str, Counts] = {}
    with Quarantine(quarantine) as bad, _bar(plan, shown=progress) as step:
        for kind, stem in STEMS.items():
            tables[kind], counts[stem] = _read_kind(kind, plan, columns, bad, ignored, step)
            _judge(stem, counts[stem], max_bad_share, bad)
    if not counts["events"].read:
        raise DataError(f"'{path}' holds no events")
    total = sum(counts.values(), Counts())
    events = joined(tables[Event], path) if path.is_dir() else tables[Event]
    events = learnable(events, tables[User])
    if not len(events) and len(tables[Event]):
        raise DataError(f"'{path}' holds no events of people who want to be learned from")
    return Data(
        events=events,
        items=tables[Item],
        users=tables[User],
        counts=total,
        by_table=counts,
        rejected=tuple(bad.first),
        ignored=tuple(ignored),
        withheld=len(tables[Event]) - len(events),
    )


def _plan(path: Path, name: str) -> Files:
    """Which reader reads which file as what."""
    readers = {reader.name: reader for reader in READERS}
    if name != "auto" and name not in readers:
        raise unknown_name("format", name, ["auto", *readers], field="format")
    if not path.exists():
        raise DataError(f"'{path}' does not exist")
    asked = [reader() for reader in READERS if name in ("auto", reader.name)]
    if path.is_file() and name in ("csv", "jsonl", "parquet"):
        return [(asked[0], Event, path)]  # whatever its name ends in
    plans: dict[Reader, Plan] = {reader: plan for reader in asked if (plan := reader.files(path))}
    special = [reader for reader in plans if reader.name in LAYOUTS]
    if special:
        plans = {special[0]: plans[special[0]]}
    if path.is_dir() and not plans:
        plans = {reader: {Event: files} for reader in asked if (files := reader.inside(path))}
    for kind, stem in STEMS.items():
        found = [reader.name for reader, plan in plans.items() if kind in plan]
        if len(found) > 1:
            raise DataError(
                f"'{path}' has {stem} in several formats: {', '.join(found)}; name one of them as the format"
            )
    chosen = [(reader, kind, file) for reader, plan in plans.items() for kind, some in plan.items() for file in some]
    if not any(kind is Event for _, kind, _ in chosen):
        raise DataError(
            f"'{path}' holds no events that can be read as {name}: expected a folder of MovieLens, sequences or "
            "interactions, or a file or a folder "
            f"'events' of {', '.join(suffix for reader in READERS for suffix in reader.suffixes)}"
        )
    return chosen


def _read_kind(
    kind: type[Row], plan: Files, columns: Mapping[str, str], bad: Quarantine, ignored: dict[str, None], step: Step
) -> tuple[pa.Table, Counts]:
    tables = [SCHEMAS[kind].empty_table()]
    before, total = bad.count, 0
    for reader, its_kind, file in plan:
        if its_kind is not kind:
            continue
        size, reached = file.stat().st_size, 0.0
        for part in reader.parts(file, kind, columns):
            tables.append(_checked(kind, file, part, bad))
            total += len(part.table) + len(part.broken)
            ignored |= dict.fromkeys(part.ignored)
            step((part.done - reached) * size)
            reached = part.done
    table = pa.concat_tables(tables)
    unique = _without_duplicates(table, kind)
    refused = bad.count - before
    return unique, Counts(read=total, kept=len(unique), quarantined=refused, duplicates=len(table) - len(unique))


def _checked(kind: type[Row], file: Path, part: Part, bad: Quarantine) -> pa.Table:
    """The rows of a part that hold; the others go to quarantine, in the order of their lines."""
    validated = validate(kind, part.table, part.records)
    places = sorted(validated.bad)
    refused = [
        Rejected(str(file), int(part.lines[place]), validated.bad[place], record)
        for place, record in zip(places, part.records(places), strict=True)
    ]
    for rejected in sorted([*part.broken, *refused], key=lambda rejected: rejected.line):
        bad.add(rejected)
    return validated.table


def _judge(stem: str, counts: Counts, max_bad_share: float, bad: Quarantine) -> None:
    if counts.quarantined <= max_bad_share * counts.read:
        return
    mine = bad.first[-counts.quarantined :] if bad.count <= len(bad.first) else bad.first
    reasons = "; ".join(f"{row.file}, line {row.line}: {row.reason}" for row in mine[:3])
    kept = f"; all of them are in '{bad.path}'" if bad.path else ""
    share = counts.quarantined / counts.read
    raise DataError(
        f"{share:.1%} of the {stem} ({counts.quarantined} of {counts.read}) are bad, more than {max_bad_share:.1%}: "
        f"{reasons}{kept}"
    )


def _without_duplicates(table: pa.Table, kind: type[Row]) -> pa.Table:
    if kind is Event:
        twice = _twice(table, ["user_id", "item_id", "event_type", "timestamp"], table["event_id"])
    else:
        twice = pd.Series(_codes(table[table.schema.names[0]])).duplicated(keep="last").to_numpy()
    return table.filter(pa.array(~twice)) if twice.any() else table


def _twice(table: pa.Table, names: list[str], ids: Any) -> npt.NDArray[np.bool_]:
    """Mark events that occurred before: by their id if they have one, else by who did what with what, and when."""
    named = ~np.asarray(ids.is_null().to_numpy(), dtype=bool)
    twice = np.zeros(len(table), dtype=bool)
    if named.any():
        twice[named] = pd.Series(_codes(ids.filter(pa.array(named)))).duplicated().to_numpy()
    if not named.all():
        rest = table.select(names).filter(pa.array(~named))
        frame = pd.DataFrame({name: _codes(rest[name]) for name in names})
        twice[~named] = frame.duplicated().to_numpy()
    return twice


def _codes(column: Any) -> npt.NDArray[np.int64]:
    """Whole numbers that are equal where the values are: far faster to compare than text."""
    if pa.types.is_timestamp(column.type):
        return np.asarray(column.cast(pa.int64()).to_numpy(), dtype=np.int64)
    chunks = column.dictionary_encode().unify_dictionaries().chunks
    return np.concatenate([np.zeros(0, dtype=np.int64), *(chunk.indices.to_numpy() for chunk in chunks)])


def _check_arguments(columns: Mapping[str, str], max_bad_share: float) -> None:
    known = {name for schema in (EVENTS, ITEMS, USERS) for name in schema.names}
    for name in columns:
        if name not in known:
            raise unknown_name("column", name, known, field="columns")
    if not 0 <= max_bad_share <= 1:
        raise InputError(f"max_bad_share must lie between 0 and 1, not {max_bad_share}", field="max_bad_share")


def _protect(plan: Files, quarantine: Path | None) -> None:
    if quarantine is not None and any(quarantine.resolve() == file.resolve() for _, _, file in plan):
        raise InputError(f"the quarantine file '{quarantine}' is one of the files to read", field="quarantine")


@contextmanager
def _bar(plan: Files, *, shown: bool) -> Iterator[Step]:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not shown) as bar:
        task = bar.add_task("Reading", total=sum(file.stat().st_size for _, _, file in plan))
        yield lambda size: bar.advance(task, size)
