"""Withheld: people whose rows must not be in an export, because they were erased or do not want to be learned from.

Training learns from whoever refuses neither personalization nor analytics. What was exported of somebody who refuses later,
or is erased, is taken out of the files; decisions about people who refuse analytics lose the person and stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sqlalchemy import Connection, select

from embeddings.durable import put
from embeddings.schema import Purpose, allows
from serving.store.aliases import Groups
from serving.store.consents import consent_of
from serving.store.database import Database
from serving.store.erasures import Erasures
from serving.store.tables import CONSENTS

LEARNING: tuple[Purpose, ...] = ("personalization", "analytics")
"""Purposes of which a refusal of any keeps a person out of the training."""


@dataclass(frozen=True, slots=True)
class Removed:
    """What was taken out of some files: `rows` that went, and the `files` that were written anew."""

    rows: int
    files: tuple[Path, ...]


class Withheld:
    """Who is withheld now: ids of people, all aliases among them."""

    def __init__(self, database: Database) -> None:
        self._erasures = Erasures(database)
        groups = Groups(database)
        self._last = self._erasures.last()

        def work(connection: Connection) -> dict[Purpose, set[str]]:
            refusing = _refusing(connection)
            return {purpose: _with_aliases(groups, connection, refusing[purpose]) for purpose in LEARNING}

        self._refusing = database.read(work)

    @cached_property
    def unlearned(self) -> frozenset[str]:
        """Ids of people whom nothing is learned from."""
        return frozenset().union(*self._refusing.values())

    @property
    def unnamed(self) -> set[str]:
        """Ids of people who are not analysed."""
        return self._refusing["analytics"]

    @property
    def mark(self) -> str:
        """Changes when somebody is withheld who was not, or the other way round."""
        names = "\n".join([*sorted(self.unlearned), "", *sorted(self.unnamed)])
        return f"{self._last}-{sha256(names.encode('utf-8', 'surrogatepass')).hexdigest()}"

    def take_out(self, files: Iterable[Path], time: str, *, named: bool) -> Removed:
        """Write those files anew that hold anybody who is withheld.

        `time` is the column that says when a row happened. `named` rows go with a person who refuses; else they only
        lose the person.
        """
        rows, changed = 0, []
        for path in files:
            people = pq.read_table(path, columns=["user_id"])["user_id"].combine_chunks()
            distinct = [one for one in pc.unique(people).to_pylist() if one is not None]
            erased = self._erasures.among(distinct)
            refusing = self.unlearned if named else self.unnamed
            if not erased and refusing.isdisjoint(distinct):
                continue
            table = pq.ParquetFile(path).read()
            kept = table.filter(pa.array(~_gone(table, time, erased)))
            refused = pc.fill_null(pc.is_in(kept["user_id"], pa.array(sorted(refusing), pa.string())), False)
            if named:
                kept = kept.filter(pc.invert(refused))
            elif pc.any(refused).as_py():
                place = kept.schema.get_field_index("user_id")
                nobody = pc.if_else(refused, pa.scalar(None, pa.string()), kept["user_id"])
                kept = kept.set_column(place, kept.schema.field(place), nobody)
            elif len(kept) == len(table):
                continue
            _put(path, kept)
            rows += len(table) - len(kept)
            changed.append(path)
        return Removed(rows, tuple(changed))


def _gone(table: pa.Table, time: str, erased: dict[str, int]) -> npt.NDArray[np.bool_]:
    """Rows [n] that happened before their person was erased."""
    if not erased:
        return np.zeros(len(table), dtype=bool)
    at = table[time].cast(pa.int64()).to_numpy()
    until = np.array([erased.get(one, -1) for one in table["user_id"].to_pylist()], dtype=np.int64)
    return np.asarray(at <= until)


def _put(path: Path, table: pa.Table) -> None:
    put(path, lambda unfinished: pq.write_table(table, unfinished, compression="zstd"))


def _refusing(connection: Connection) -> dict[Purpose, set[str]]:
    found: dict[Purpose, set[str]] = {purpose: set() for purpose in LEARNING}
    query = select(CONSENTS.c.user_id, CONSENTS.c.consent, CONSENTS.c.checksum).where(
        CONSENTS.c.consent.contains("false")
    )
    for user_id, consent, stored in connection.execute(query):
        said = consent_of(user_id, consent, stored)
        for purpose in LEARNING:
            if not allows(said, purpose):
                found[purpose].add(user_id)
    return found


def _with_aliases(groups: Groups, connection: Connection, user_ids: set[str]) -> set[str]:
    whose = groups.people(connection, user_ids)
    people = {whose.get(user_id, user_id) for user_id in user_ids}
    return people | user_ids | groups.aliases(connection, people).keys()
