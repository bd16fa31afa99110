"""Commands of API keys: create, list, revoke. They work on the store itself, so the service need not run."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from serving.options import COMMAND_LINE, ConfigFile, StoreUrl, open_store
from serving.store.keys import SCOPES

app = typer.Typer(no_args_is_help=True, add_completion=False)
keys = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")
app.add_typer(keys, name="keys")
console = Console()


@keys.command()
def create(
    name: Annotated[str, typer.Option(help="What the key is for; it need not be unique.")],
    scope: Annotated[list[str], typer.Option(help=f"What it may do, repeatable: {', '.join(SCOPES)}.")],
    per_minute: Annotated[int, typer.Option(help="Requests a minute, over all replicas.")] = 6000,
    store: StoreUrl = None,
    config: ConfigFile = None,
) -> None:
    """Make a key and print it; it is shown this once, and in force within a second."""
    with open_store(store, config) as opened:
        key, text = opened.keys.create(name, scope, per_minute=per_minute, by=COMMAND_LINE)
    typer.echo(text)
    typer.echo(f"key {key.id} for {name}; write it down now, it cannot be shown again", err=True)


@keys.command("list")
def list_keys(store: StoreUrl = None, config: ConfigFile = None) -> None:
    """Show every key, without its secret; also the revoked ones."""
    table = Table()
    for column in ("id", "name", "scopes", "per minute", "created", "revoked"):
        table.add_column(column)
    with open_store(store, config) as opened:
        for key in opened.keys.list():
            revoked = f"{key.revoked_at:%Y-%m-%d %H:%M}" if key.revoked_at else ""
            created = f"{key.created_at:%Y-%m-%d %H:%M}"
            table.add_row(key.id, escape(key.name), " ".join(key.scopes), str(key.per_minute), created, revoked)
    console.print(table)


@keys.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The id from `bespoke keys list`.")],
    store: StoreUrl = None,
    config: ConfigFile = None,
) -> None:
    """End a key for good; every replica refuses it within a second."""
    with open_store(store, config) as opened:
        key = opened.keys.revoke(key_id, by=COMMAND_LINE)
    typer.echo(f"key {key.id} for {key.name} is revoked")
