"""Consent: whom a model may learn from, and which ids are one person.

An export of the service leaves out who refuses, but refusals also come after it, and data come from elsewhere too; so what
`users` says is asked again here. `aliases.parquet` beside an export's tables says which ids were joined.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embeddings.errors import DataError
from embeddings.schema import Purpose, allows

ALIASES = "aliases.parquet"
LEARNING: tuple[Purpose, ...] = ("personalization", "analytics")
"""Purposes of which a refusal of any keeps a person out of the training."""


def joined(events: pa.Table, folder: Path) -> pa.Table:
    """Events under the ids of people, where the folder says which other ids they have; raises `DataError`."""
    path = folder / ALIASES
    if not path.is_file():
        return events
    try:
        table = pq.read_table(path, columns=["alias", "user_id"])
    except (pa.ArrowException, KeyError, OSError) as error:
        raise DataError(f"'{path}' is not a table of aliases: {error}") from error
    at = pc.index_in(events["user_id"], value_set=table["alias"].combine_chunks())
    people = table["user_id"].combine_chunks().take(at.combine_chunks() if isinstance(at, pa.ChunkedArray) else at)
    place = events.schema.get_field_index("user_id")
    return events.set_column(place, events.schema.field(place), pc.coalesce(people, events["user_id"]))


def learnable(events: pa.Table, users: pa.Table) -> pa.Table:
    """The events of people who refuse nothing that learning needs."""
    refusing = [
        user_id
        for user_id, consent in zip(users["user_id"].to_pylist(), users["consent"].to_pylist(), strict=True)
        if consent and "false" in consent and not all(allows(json.loads(consent), one) for one in LEARNING)
    ]
    if not refusing:
        return events
    return events.filter(pc.invert(pc.is_in(events["user_id"], value_set=pa.array(refusing, pa.string()))))
