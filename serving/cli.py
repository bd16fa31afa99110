"""Commands of the service: serve, stop, recommend, environment."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from embeddings.errors import Unavailable
from serving.process import FAST_PROFILE, answers, running, wait_for_signal
from serving.process import stop as stop_service
from serving.settings import Settings

app = typer.Typer(no_args_is_help=True, add_completion=False)
console = Console()


def described(name: str) -> str:
    """The one description of a setting, for the help of its option."""
    return Settings.model_fields[name].description or ""


@app.command()
def serve(
    releases: Annotated[Path | None, typer.Option(help=described("releases"))] = None,
    store: Annotated[str | None, typer.Option(help=described("store"))] = None,
    host: Annotated[str | None, typer.Option(help=described("host"))] = None,
    port: Annotated[int | None, typer.Option(help=described("port"))] = None,
    topology: Annotated[str | None, typer.Option(help=described("topology"))] = None,
    replicas: Annotated[int | None, typer.Option(help=described("replicas"))] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings.")] = None,
) -> None:
    """Serve until Ctrl-C: every answer follows the last event."""
    given = {
        "releases": releases,
        "store": store,
        "host": host,
        "port": port,
        "topology": topology,
        "replicas": replicas,
    }
    serve_settings(Settings.load(given, file=config))


def serve_settings(settings: Settings, *, user_id: str = "someone") -> None:
    """Serve, tell where, wait for the end, stop cleanly."""
    with contextlib.ExitStack() as stack:
        stopping = console.status("stopping …")
        stack.callback(stopping.stop)
        try:
            with console.status("starting Ray and the service …"):
                url = stack.enter_context(running(settings))
        except KeyboardInterrupt:
            console.print("interrupted before the service was up; no process and no port is left")
            raise typer.Exit(130) from None
        introduce(settings, url, user_id)
        wait_for_signal()
        stopping.start()
    console.print("stopped; no process and no port is left")


def introduce(settings: Settings, url: str, user_id: str) -> None:
    """Say where the service is, and how to ask it."""
    console.print(f"[bold green]ready[/]    {url}", highlight=False)
    if settings.console:
        console.print(f"console  {url}/console", highlight=False)
    console.print(f"API      {url}/docs", highlight=False)
    if not answers(settings, "/readyz"):
        console.print(
            f"[yellow]no release in service:[/] none in {settings.releases}, or not a sound one; "
            "train and publish one, and it is taken up at once"
        )
    body = json.dumps({"user_id": user_id, "k": 5})
    console.print(
        f"\n  curl -s {url}/v1/recommendations -H 'content-type: application/json' -d '{body}'\n",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    console.print("Ctrl-C stops the service.")


@app.command()
def stop(port: Annotated[int, typer.Option(help=described("port"))] = 8000) -> None:
    """Stop the service on a port, also one whose command line was killed."""
    console.print(stop_service(port))


@app.command()
def environment() -> None:
    """Print the fast profile as shell exports, for `serve run`: eval "$(bespoke environment)"."""
    for name, value in FAST_PROFILE.items():
        typer.echo(f"export {name}={value}")


@app.command()
def recommend(
    user_id: Annotated[str, typer.Argument(help="Whose list.")],
    k: Annotated[int, typer.Option(help="How many items.")] = 10,
    url: Annotated[str, typer.Option(help="Where the service answers.")] = "http://127.0.0.1:8000",
) -> None:
    """Ask a running service for a person's list."""
    body = json.dumps({"user_id": user_id, "k": k, "fields": True}).encode()
    request = urllib.request.Request(
        f"{url}/v1/recommendations", data=body, headers={"content-type": "application/json"}
    )
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
