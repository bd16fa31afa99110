"""The command that writes the people of a segment to a file: members."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console

from embeddings.durable import put
from embeddings.errors import InputError
from serving.options import ConfigFile, StoreUrl, described
from serving.people.segmentation import members as members_of
from serving.replica.engine import Engine
from serving.settings import Settings

AT_ONCE = 1000
COLUMNS = pa.schema([("user_id", pa.string())])

app = typer.Typer(no_args_is_help=True, add_completion=False)
console = Console()


@app.callback()
def people() -> None:
    """Keep `members` a command among others: the front door looks it up by its name."""


@app.command()
def members(
    segment: Annotated[str, typer.Argument(help="Id of the segment.")],
    to: Annotated[Path, typer.Option(help="Parquet file of their ids; it is replaced, and its folder is made.")],
    releases: Annotated[Path | None, typer.Option(help=described("releases"))] = None,
    store: StoreUrl = None,
    config: ConfigFile = None,
) -> None:
    """Write the ids of the people who are in a segment now to a Parquet file."""
    if to.is_dir():
        raise InputError(f"to: {to} is a folder; name a file in it, such as {to / segment}.parquet", field="to")
    engine = Engine(Settings.load({"releases": releases, "store": store}, file=config))
    engine.refresh()
    looked_at = found = 0

    def write(path: Path) -> None:
        nonlocal looked_at, found
        after: str | None = None
        with pq.ParquetWriter(path, COLUMNS, compression="zstd") as writer:
            while True:
                page = members_of(engine.store, engine.snapshot, segment, limit=AT_ONCE, after=after)
                writer.write_table(pa.table({"user_id": pa.array(page.user_ids, pa.string())}, schema=COLUMNS))
                looked_at, found, after = looked_at + page.looked_at, found + len(page.user_ids), page.next
                if after is None:
                    return

    try:
        to.parent.mkdir(exist_ok=True)  # one folder, and not a path that was misspelt
        put(to, write)
    except OSError as error:
        raise InputError(f"to: cannot write {to}: {error.strerror or error}", field="to") from None
    finally:
        engine.stop()
    console.print(
        f"{found:,} of {looked_at:,} people are in '{segment}': {to}",
        highlight=False,
        soft_wrap=True,
    )
