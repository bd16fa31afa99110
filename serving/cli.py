"""Commands of the service: serve, stop, release, environment."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from embeddings.schema import first_error
from serving.options import COMMAND_LINE, ConfigFile, StoreUrl, described
from serving.pipeline.releases import MODES, RELEASE, Releases
from serving.pipeline.releases import described as described_releases
from serving.pipeline.trial import Share
from serving.process import answers, profile, running, wait_for_signal
from serving.process import stop as stop_service
from serving.settings import Settings
from serving.store import Document, Store
from serving.store.database import file_of

app = typer.Typer(no_args_is_help=True, add_completion=False)
console = Console()


@app.command()
def serve(
    releases: Annotated[Path | None, typer.Option(help=described("releases"))] = None,
    store: StoreUrl = None,
    host: Annotated[str | None, typer.Option(help=described("host"))] = None,
    port: Annotated[int | None, typer.Option(help=described("port"))] = None,
    topology: Annotated[str | None, typer.Option(help=described("topology"))] = None,
    replicas: Annotated[int | None, typer.Option(help=described("replicas"))] = None,
    config: ConfigFile = None,
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
    if settings.protected:
        console.print("keys     needed; `bespoke keys create` makes one", highlight=False)
    else:
        console.print("keys     [yellow]off:[/] whoever can reach this machine's loopback may ask for anything")
    if not answers(settings, "/readyz"):
        console.print(
            f"[yellow]no release in service:[/] none in {settings.releases}, or not a sound one; "
            "train and publish one, and it is taken up at once"
        )
    body = json.dumps({"user_id": user_id, "k": 5})
    key = ' -H "authorization: Bearer $BESPOKE_API_KEY"' if settings.protected else ""
    console.print(
        f"\n  curl -s {url}/v1/recommendations{key} -H 'content-type: application/json' -d '{body}'\n",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    console.print("Ctrl-C stops the service.")


release_app = typer.Typer(no_args_is_help=True, help="List, try, promote and take back releases.")
app.add_typer(release_app, name="release")

Name = Annotated[str, typer.Argument(help="Name of the release.")]
ReleasesFolder = Annotated[Path | None, typer.Option("--releases", help=described("releases"))]
ShareOption = Annotated[float, typer.Option(help="Share, above 0 and up to 1.")]
Goal = Annotated[str, typer.Option(help="Type of the events that count as success when they echo a recommendation.")]


@contextlib.contextmanager
def opened(releases: Path | None, store: str | None) -> Iterator[Releases]:
    """The releases that these settings name; a running service with the same settings follows within a second."""
    settings = Settings.load({"releases": releases, "store": store})
    with Store.open(settings.store) as one:
        yield Releases(settings.releases, one.documents)


@release_app.command("list")
def release_list(releases: ReleasesFolder = None, store: StoreUrl = None) -> None:
    """Show every release with its state, newest first."""
    settings = Settings.load({"releases": releases, "store": store})
    found = described_releases(settings.releases, _notes(settings.store))
    if not found:
        console.print(f"no release in {settings.releases}", highlight=False, markup=False, soft_wrap=True)
        return
    table = Table("release", "state", "items", "held-out ndcg@10", "note")
    for one in found:
        state = f"{one['state']} {one['share']:.0%}" if one["state"] in MODES else one["state"]
        figures = one["metrics"].get("ranker_held_out") or one["metrics"].get("two_tower") or {}
        judged = f"{figures['ndcg@10']:.4f}" if "ndcg@10" in figures else ""
        items = "" if one["items"] is None else f"{one['items']:,}"
        table.add_row(one["name"], state, items, judged, one["problem"] or one["reason"] or "")
    console.print(table)


def _notes(store: str) -> Sequence[Document]:
    """What the store has about releases; one that is not there is not made for it."""
    file = file_of(store)
    if file is not None and not file.exists():
        return ()
    with Store.open(store) as one:
        return one.documents.list(RELEASE)


@release_app.command("promote")
def release_promote(name: Name, releases: ReleasesFolder = None, store: StoreUrl = None) -> None:
    """Verify a release and put it in service."""
    with opened(releases, store) as found:
        found.promote(name, by=COMMAND_LINE)
    console.print(f"[bold]{name}[/] is the current release", highlight=False)


@release_app.command("canary")
def release_canary(
    name: Name,
    share: ShareOption = 0.05,
    goal: Goal = "click",
    releases: ReleasesFolder = None,
    store: StoreUrl = None,
) -> None:
    """Let a release answer a share of the people; it is withdrawn by itself if it does worse."""
    with opened(releases, store) as found:
        found.try_out(name, "canary", _share(share, goal), by=COMMAND_LINE)
    console.print(f"[bold]{name}[/] answers {share:.0%} of the people", highlight=False)


@release_app.command("shadow")
def release_shadow(
    name: Name, share: ShareOption = 0.05, releases: ReleasesFolder = None, store: StoreUrl = None
) -> None:
    """Compute a share of the requests on a release too, and compare; GET /v1/releases has the report."""
    with opened(releases, store) as found:
        found.try_out(name, "shadow", _share(share), by=COMMAND_LINE)
    console.print(f"[bold]{name}[/] is computed for {share:.0%} of the requests", highlight=False)


@release_app.command("rollback")
def release_rollback(
    reason: Annotated[str, typer.Option(help="Why; it is kept with the release.")] = "rolled back by hand",
    releases: ReleasesFolder = None,
    store: StoreUrl = None,
) -> None:
    """Withdraw the trial if there is one, else go back to the release before the current one."""
    with opened(releases, store) as found:
        withdrawn, current = found.rollback(by=COMMAND_LINE, reason=reason)
    console.print(f"[bold]{withdrawn}[/] withdrawn; [bold]{current}[/] is the current release", highlight=False)


def _share(share: float, goal: str = "click") -> Share:
    try:
        return Share(share=share, goal=goal)
    except ValidationError as error:
        raise first_error(error, known=Share.model_fields) from None


@app.command()
def stop(port: Annotated[int, typer.Option(help=described("port"))] = 8000) -> None:
    """Stop the service on a port, also one whose command line was killed."""
    console.print(stop_service(port))


@app.command()
def environment() -> None:
    """Print the fast profile as shell exports, for `serve run`: eval "$(bespoke environment)"."""
    for name, value in profile().items():
        typer.echo(f"export {name}={shlex.quote(value)}")
