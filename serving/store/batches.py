"""Batches: folders of messages that were written ahead, and what the store has to know of them.

    FOLDER/batch.json                    what is sent to whom, and the partitions: ranges of ids of people
    FOLDER/part-00012.parquet            messages of one partition; it is there whole or not at all
    FOLDER/_pending/part-00012.parquet   the decisions behind them, until the decision log has them
    FOLDER/manifest.json                 written last: what there is, and how many got none, and why

The store remembers every folder, so that whoever is erased is taken out of the messages that wait there too.
"""

from __future__ import annotations

import fcntl
import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sqlalchemy import delete, func, select

from embeddings.durable import put
from embeddings.errors import Conflict, DataError, InputError
from embeddings.schema import DECISIONS as LOGGED
from serving.store.aliases import Groups
from serving.store.bulk import selecting
from serving.store.database import Database, check_limit, chunks
from serving.store.decisions import Decision
from serving.store.tables import ALIASES, BATCHES, DECISIONS, PROFILES, micros, moment

PLAN, MANIFEST, PENDING, LOCK, RUNNING = "batch.json", "manifest.json", "_pending", ".lock", ".running"
COUNTS = b"bespoke.counts"
"""Under which name a file of messages says, as JSON, how many people got none, and why."""

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Batch:
    """A folder that the store remembers; its messages may be sent until just before `valid_until`."""

    name: str
    folder: Path
    created_at: datetime
    valid_until: datetime

    @property
    def reachable(self) -> bool:
        """Whether its folder is there, with its plan."""
        return (self.folder / PLAN).is_file()


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one partition or of all: messages, and people who got none, by reason."""

    messages: int
    skipped: Counter[str]

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.messages + other.messages, self.skipped + other.skipped)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a batch is going to be; `campaign` is what its writer understands.

    Partition n has the people whose ids come after `ends[n - 1]`, up to `ends[n]` and with it.
    """

    name: str
    store: int
    campaign: Mapping[str, Any]
    ends: tuple[str, ...]
    people: int

    def between(self, number: int) -> tuple[str | None, str]:
        """The id before the first of a partition, and its last."""
        return (self.ends[number - 1] if number else None), self.ends[number]

    def partition_of(self, user_id: str) -> int | None:
        """The partition that has a person, if any has."""
        number = bisect_left(self.ends, user_id)
        return number if number < len(self.ends) else None


class Batches:
    """The batches of the store."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._groups = Groups(database)
        self._living = selecting(database, "SELECT user_id FROM profiles WHERE user_id AMONG")

    def register(self, batch: Batch) -> None:
        """Remember a folder, if it is not known already."""
        row = {
            "name": batch.name,
            "folder": str(batch.folder),
            "created_at": micros(batch.created_at),
            "valid_until": micros(batch.valid_until),
        }
        put_it = self._database.insert(BATCHES).on_conflict_do_nothing(index_elements=["name"])
        self._database.write(lambda connection: connection.execute(put_it, row))

    def every(self) -> tuple[Batch, ...]:
        """Return every folder that is remembered, the latest first."""
        rows = self._database.rows(select(BATCHES).order_by(BATCHES.c.created_at.desc(), BATCHES.c.name))
        return tuple(Batch(row.name, Path(row.folder), moment(row.created_at), moment(row.valid_until)) for row in rows)

    def drop(self, name: str) -> None:
        """Forget a folder that is no longer there."""
        self._database.write(lambda connection: connection.execute(delete(BATCHES).where(BATCHES.c.name == name)))

    def people(self, after: str | None, upto: str | None, limit: int) -> list[str]:
        """Return ids of people in their order, those above `after` and up to `upto`; an alias is nobody of its own."""
        alias = select(ALIASES.c.alias).where(ALIASES.c.alias == PROFILES.c.user_id).exists()
        query = select(PROFILES.c.user_id).where(~alias).order_by(PROFILES.c.user_id).limit(check_limit(limit))
        if after is not None:
            query = query.where(PROFILES.c.user_id > after)
        if upto is not None:
            query = query.where(PROFILES.c.user_id <= upto)
        return [user_id for (user_id,) in self._database.rows(query)]

    def living(self, user_ids: Iterable[str]) -> set[str]:
        """Return those of some ids that still have a profile."""
        return {user_id for (user_id,) in self._database.read(lambda connection: self._living(connection, user_ids))}

    def contacts(self, user_ids: Sequence[str], channel: str, since: datetime, until: datetime) -> dict[str, int]:
        """Count the lists and pages that people were shown on a channel between two moments, under any of their ids.

        Who was shown nothing is missing. Contents are part of a message or a page; they have caps of their own.
        """
        table = DECISIONS.c
        whose = self._database.read(lambda connection: self._groups.aliases(connection, user_ids))
        counts: Counter[str] = Counter()
        for some in chunks([*user_ids, *whose]):
            query = (
                select(table.user_id, func.count())
                .where(
                    table.user_id.in_(some),
                    table.at >= micros(since),
                    table.at < micros(until),
                    table.channel == channel,
                )
                .where(table.kind != "content")
            )
            for name, count in self._database.rows(query.group_by(table.user_id)):
                counts[whose.get(name, name)] += count
        return dict(counts)

    def waiting(self, user_ids: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the batches that can be reached and hold a message for any of some ids."""
        found = []
        for batch in self.every():
            plan = read_plan(batch.folder)
            numbers = {plan.partition_of(one) for one in user_ids} - {None} if plan is not None else ()
            files = [
                path for number in numbers if number is not None and (path := part(batch.folder, number)).is_file()
            ]
            if any(pq.read_table(path, filters=[("user_id", "in", user_ids)]).num_rows for path in files):
                found.append(batch.name)
        return tuple(found)

    def forget(self, user_id: str) -> list[Path]:
        """Take a person out of every batch that can be reached; returns the files that were written anew.

        To be called when the person is gone from the store: what is written from then on leaves them out by itself. A
        folder that is gone is forgotten once nothing of it may be sent any more; until then it may only be out of reach.
        """
        changed = []
        for batch in self.every():
            if batch.reachable:
                changed += take_out(batch.folder, [user_id])
            elif batch.valid_until <= datetime.now(UTC):
                self.drop(batch.name)
        return changed

    def out_of_reach(self) -> int:
        """Count the folders that cannot be looked into, while their messages may still be sent."""
        now = datetime.now(UTC)
        return sum(not batch.reachable and batch.valid_until > now for batch in self.every())


def part(folder: Path, number: int) -> Path:
    """The file of a partition's messages."""
    return folder / f"part-{number:05}.parquet"


def pending(folder: Path, number: int) -> Path:
    """The file of a partition's decisions, as long as the log has not got them."""
    return folder / PENDING / f"part-{number:05}.parquet"


def write_plan(folder: Path, plan: Plan) -> None:
    """Write the plan of a batch into its folder, which is made."""
    (folder / PENDING).mkdir(parents=True, exist_ok=True)
    body = {"format": FORMAT, **{name: getattr(plan, name) for name in Plan.__dataclass_fields__}}
    put(folder / PLAN, lambda path: path.write_text(json.dumps(body), encoding="utf-8"))


def read_plan(folder: Path) -> Plan | None:
    """Read the plan of a batch; None where there is none. Raises `DataError` for a file that is none."""
    path = folder / PLAN
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_bytes())
        if raw.pop("format") != FORMAT:
            raise DataError(f"{path}: written by another version")
        return Plan(**raw | {"ends": tuple(raw["ends"])})
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the plan of a batch: {error}") from error


def take_out(folder: Path, user_ids: Iterable[str]) -> list[Path]:
    """Write the files of a batch anew without some people; returns those that had any of them."""
    plan = read_plan(folder)
    if plan is None:
        return []
    by_number: dict[int, list[str]] = {}
    for user_id in user_ids:
        number = plan.partition_of(user_id)
        if number is not None:
            by_number.setdefault(number, []).append(user_id)
    changed = []
    for number, gone in by_number.items():
        with alone(folder):
            files = [path for path in (part(folder, number), pending(folder, number)) if path.is_file()]
            changed += [path for path in files if _without(path, gone)]
            if changed and (folder / MANIFEST).is_file():
                write_manifest(folder, plan)
    return changed


def counts_of(path: Path) -> Counts:
    """What was counted when a file of messages was written; the messages are those that are in it now."""
    found = pq.read_metadata(path)
    return Counts(found.num_rows, Counter(json.loads((found.metadata or {}).get(COUNTS, b"{}"))))


def write_manifest(folder: Path, plan: Plan) -> Counts:
    """Write the manifest of a batch of which nothing is missing."""
    counts = [counts_of(part(folder, n)) for n in range(len(plan.ends))]
    total = sum(counts, Counts(0, Counter()))
    manifest = {
        "format": FORMAT,
        "name": plan.name,
        "campaign": dict(plan.campaign),
        "people": plan.people,
        "messages": total.messages,
        "skipped": dict(total.skipped),
        "files": {part(folder, n).name: one.messages for n, one in enumerate(counts)},
    }
    put(folder / MANIFEST, lambda path: path.write_text(json.dumps(manifest, indent=1), encoding="utf-8"))
    return total


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else changes a file of the folder meanwhile."""
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def sole(folder: Path) -> Iterator[None]:
    """Be the only one who writes this batch. The system lets go when a process ends.

    Raises `Conflict` if somebody writes it, `InputError` where the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        running = (folder / RUNNING).open("w")
    except OSError as error:
        raise InputError(f"out: cannot write messages to {folder}: {error.strerror}", field="out") from None
    with running as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"somebody is writing to {folder} already", field="out") from None
        yield


def decisions_table(decisions: Sequence[Decision]) -> pa.Table:
    """Decisions as the export has them."""
    rows = []
    for one in decisions:
        row = {name: getattr(one, name) for name in LOGGED.names}
        rows.append(row | {name: json.dumps(dict(row[name]), sort_keys=True) for name in ("request", "arms")})
    return pa.Table.from_pylist(rows, schema=LOGGED)


def read_decisions(path: Path) -> list[Decision]:
    """The decisions of a file of `decisions_table`."""
    rows = pq.read_table(path).to_pylist()
    return [Decision(**row | {name: json.loads(row[name]) for name in ("request", "arms")}) for row in rows]


def _without(path: Path, user_ids: Sequence[str]) -> bool:
    table = pq.read_table(path)
    kept = table.filter(pc.invert(pc.fill_null(pc.is_in(table["user_id"], pa.array(user_ids, pa.string())), False)))
    if len(kept) == len(table):
        return False
    put(path, lambda unfinished: pq.write_table(kept, unfinished, compression="zstd"))
    return True
