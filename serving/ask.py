"""The command that asks a running service for a list. It imports nothing of the service, so that it answers at once."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from embeddings.errors import Unavailable

app = typer.Typer(no_args_is_help=True, add_completion=False)
console = Console()


@app.callback()
def group() -> None:
    """One command, called by its name all the same."""


@app.command()
def recommend(
    user_id: Annotated[str, typer.Argument(help="Whose list.")],
    k: Annotated[int, typer.Option(help="How many items.")] = 10,
    url: Annotated[str, typer.Option(help="Where the service answers.")] = "http://127.0.0.1:8000",
    api_key: Annotated[
        str | None, typer.Option(envvar="BESPOKE_API_KEY", help="Key, where the service needs one.")
    ] = None,
) -> None:
    """Ask a running service for a person's list."""
    body = json.dumps({"user_id": user_id, "k": k, "fields": True}).encode()
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {api_key}"} if api_key else {})
    request = urllib.request.Request(f"{url}/v1/recommendations", data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            answer = json.load(reply)
    except urllib.error.HTTPError as error:
        raise Unavailable(json.load(error)["error"]["message"]) from None
    except OSError as error:
        raise Unavailable(f"no service answers at {url}: {error}") from None
    table = Table(title=f"for {user_id} · model {answer['model_version']}")
    for column in ("#", "item", "score", "because"):
        table.add_column(column)
    for one in answer["items"]:
        title = one["item"]["title"] or one["item_id"]
        table.add_row(str(one["position"] + 1), title, f"{one['score']:.4f}", one["reasons"][0]["text"])
    console.print(table)
