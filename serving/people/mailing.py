"""A mailing: the messages of one campaign, written to a folder partition by partition, each whole or not at all.

    plan    the people are cut into ranges of ids, and the store remembers the folder
    write   compose, keep the decisions aside, put the messages in their place, let the log have the decisions
    finish  the manifest, when no partition is missing

Whatever ends it, the same call goes on where it was: a message that is composed again keeps its id, and no decision is
logged for a message that is not there. Partitions can be written in any order, by any number of processes.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from embeddings.durable import put
from embeddings.errors import Conflict, DataError, StoreError
from embeddings.schema import first_error
from serving.people.messages import FEED, Campaign, Composed, Composer
from serving.replica.engine import Engine
from serving.settings import Settings
from serving.store import Batch, Store
from serving.store.batches import (
    COUNTS,
    MANIFEST,
    Counts,
    Plan,
    alone,
    counts_of,
    decisions_table,
    part,
    pending,
    read_decisions,
    read_plan,
    write_plan,
)
from serving.store.database import number as number_of

PER_PARTITION = 2_000
"""People of a partition: a few seconds of work, which is what a crash costs, and a file of half a megabyte."""

IDS_AT_ONCE = 20_000
LONGEST_MS = 60_000.0
"""There is nobody who waits: nothing is left out of a list for the sake of its deadline."""


def plan_mailing(
    store: Store, folder: Path, campaign: Campaign, *, limit: int | None = None, per_partition: int = PER_PARTITION
) -> Plan:
    """Make the plan of a new mailing, or return that of one which was begun in the folder and is to go on.

    Raises `Conflict` where the folder holds another mailing, one that is finished or one whose time is over.
    """
    folder = folder.resolve()
    identity = store.database.read(lambda connection: number_of(connection, "identity"))
    begun = read_plan(folder)
    if begun is not None:
        _require_same(folder, begun, campaign, identity)
        _register(store, folder, begun)
        return begun
    if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise Conflict(f"{folder} is not empty and holds no mailing; choose another folder", field="out")
    ends, people = _ranges(store, limit, per_partition)
    plan = Plan(
        name=uuid.uuid4().hex, store=identity, campaign=campaign.model_dump(mode="json"), ends=ends, people=people
    )
    write_plan(folder, plan)
    _register(store, folder, plan)  # before the first message is there
    return plan


def _register(store: Store, folder: Path, plan: Plan) -> None:
    store.batches.register(Batch(plan.name, folder, datetime.now(UTC), campaign_of(plan).valid_until))


def campaign_of(plan: Plan) -> Campaign:
    """The campaign of a plan; raises `DataError` where it is none (any more)."""
    try:
        return Campaign(**plan.campaign)
    except ValidationError as error:
        raise DataError(f"the plan of a mailing that this version does not understand: {first_error(error)}") from None


def open_quietly(settings: Settings) -> Engine:
    """An engine that composes: no deadline, one moment, nothing is followed. Raises `Unavailable` without a release."""
    engine = Engine(settings.model_copy(update={"deadline_ms": LONGEST_MS, "threads": 1}))
    try:
        engine.refresh()
        engine.snapshot  # noqa: B018 - says that there is no release
    except BaseException:
        engine.stop()
        raise
    return engine


def check(settings: Settings, campaign: Campaign) -> None:
    """Raise what would keep every partition from being written: no release, or what the campaign names and is not there.

    To be called before the plan is made: what a plan says cannot be corrected any more.
    """
    engine = open_quietly(settings)
    try:
        campaign.check(engine.policy)
    finally:
        engine.stop()


def missing(folder: Path, plan: Plan) -> list[int]:
    """Partitions that still have something to be done."""
    numbers = range(len(plan.ends))
    return [n for n in numbers if not part(folder, n).is_file() or pending(folder, n).is_file()]


def write_partition(engine: Engine, folder: Path, plan: Plan, number: int) -> Counts:
    """Write one partition, or do what is left of it. Raises `StoreError` where folder or store refuse."""
    try:
        if not part(folder, number).is_file():
            _compose(engine, folder, plan, number)
        waiting = pending(folder, number)
        if waiting.is_file():
            engine.store.decisions.write(read_decisions(waiting))
            waiting.unlink()
        return counts_of(part(folder, number))
    except OSError as error:
        raise StoreError(f"cannot write the mailing to {folder}: {error}") from error


def _compose(engine: Engine, folder: Path, plan: Plan, number: int) -> None:
    after, upto = plan.between(number)
    names: list[str] = []
    while page := engine.store.batches.people(names[-1] if names else after, upto, IDS_AT_ONCE):
        names += page
    composer = Composer(engine, campaign_of(plan), uuid.UUID(plan.name))
    composed = asyncio.run(composer.compose(names))
    with alone(folder):
        # Who was erased meanwhile is in no file yet that the erasure could have cleaned.
        composed = _only(composed, engine.store.batches.living(row["user_id"] for row in composed.rows))
        _put(pending(folder, number), decisions_table([one for behind in composed.decisions for one in behind]))
        _put(part(folder, number), _messages(composed))


def _only(composed: Composed, living: set[str]) -> Composed:
    kept = [at for at, row in enumerate(composed.rows) if row["user_id"] in living]
    if len(kept) == len(composed.rows):
        return composed
    skipped = composed.skipped + Counter({"unknown": len(composed.rows) - len(kept)})
    return Composed(
        rows=[composed.rows[at] for at in kept], decisions=[composed.decisions[at] for at in kept], skipped=skipped
    )


def _messages(composed: Composed) -> pa.Table:
    table = pa.Table.from_pylist(composed.rows, schema=FEED)
    return table.replace_schema_metadata({COUNTS: json.dumps(dict(composed.skipped)).encode()})


def _put(path: Path, table: pa.Table) -> None:
    put(path, lambda unfinished: pq.write_table(table, unfinished, compression="zstd"))


def _ranges(store: Store, limit: int | None, per_partition: int) -> tuple[tuple[str, ...], int]:
    """Where each partition ends, and how many people there are."""
    ends: list[str] = []
    people, last = 0, None
    left = limit
    while left is None or left > 0:
        page = store.batches.people(last, None, min(IDS_AT_ONCE, left or IDS_AT_ONCE))
        if not page:
            break
        ends += page[(per_partition - 1 - people % per_partition) :: per_partition]
        people, last = people + len(page), page[-1]
        left = None if left is None else left - len(page)
    if last is not None and (not ends or ends[-1] != last):
        ends.append(last)
    return tuple(ends), people


def _require_same(folder: Path, begun: Plan, campaign: Campaign, identity: int) -> None:
    if (folder / MANIFEST).is_file():
        raise Conflict(f"{folder} holds a finished mailing; choose another folder", field="out")
    if begun.store != identity:
        raise Conflict(f"{folder} holds the mailing of another store; choose another folder", field="out")
    before: dict[str, Any] = dict(begun.campaign)
    now = campaign.model_dump(mode="json")
    differs = sorted(name for name in now if name != "at" and now[name] != before.get(name))
    if differs:
        raise Conflict(
            f"{folder} holds a mailing that differs in {', '.join(differs)}; choose another folder", field="out"
        )
    if datetime.now(UTC) >= campaign_of(begun).valid_until:
        raise Conflict(f"the mailing begun in {folder} may not be sent any more; choose another folder", field="out")
