"""Commands that look after a store, also while the service runs: export, retain."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from embeddings.errors import InputError
from serving.options import ConfigFile, StoreUrl, open_store
from serving.store.export import export as export_store
from serving.store.retention import retain as retain_events

app = typer.Typer(no_args_is_help=True, add_completion=False)
console = Console()


@app.command()
def export(
    to: Annotated[Path, typer.Option(help="Folder of the export; the same one each time.")],
    store: StoreUrl = None,
    config: ConfigFile = None,
) -> None:
    """Write what happened since the last export to Parquet, for `bespoke train --data-dir`."""
    with open_store(store, config) as opened:
        report = export_store(opened, to)
    console.print(
        f"{report.events:,} new events and {report.decisions:,} decisions in {len(report.files):,} files, "
        f"{report.items:,} items, {report.users:,} users in {to}",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def retain(
    days: Annotated[int, typer.Option(min=1, help="What is older than this many days is deleted.")],
    exported: Annotated[Path | None, typer.Option(help="Only those that are in the export in this folder.")] = None,
    unexported: Annotated[bool, typer.Option("--unexported", help="Also those that no export has.")] = False,
    store: StoreUrl = None,
    config: ConfigFile = None,
) -> None:
    """Delete old events and decisions; people keep the history that their lists are made of."""
    if (exported is None) != unexported:
        raise InputError(
            "give either --exported FOLDER or --unexported: what was never exported is lost", field="exported"
        )
    with open_store(store, config) as opened:
        done = retain_events(opened, before=datetime.now(UTC) - timedelta(days=days), exported=exported)
    staying = done.kept + done.decisions_kept
    freed = f", {done.freed / 1e3:,.0f} kB given back" if done.freed else ""
    kept = f"; {staying:,} as old stay, they are not in {exported}" if staying else ""
    console.print(
        f"{done.deleted:,} events and {done.decisions:,} decisions "
        f"older than {days} {'day' if days == 1 else 'days'} deleted{freed}{kept}",
        highlight=False,
        soft_wrap=True,
    )
