"""The command `bespoke doctor`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from embeddings.errors import ConfigError
from serving import family
from serving.doctor import data, machine, processes
from serving.doctor.finding import Check, Finding, problem, worst
from serving.options import ConfigFile, StoreUrl, described
from serving.settings import Settings

app = typer.Typer(no_args_is_help=True, add_completion=False)
COLOURS = {"ok": "green", "warning": "yellow", "problem": "bold red"}


@app.callback()
def group() -> None:
    """One command, called by its name all the same."""


@app.command()
def doctor(
    releases: Annotated[Path | None, typer.Option(help=described("releases"))] = None,
    store: StoreUrl = None,
    host: Annotated[str | None, typer.Option(help=described("host"))] = None,
    port: Annotated[int | None, typer.Option(help=described("port"))] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    config: ConfigFile = None,
) -> None:
    """Look at the machine, the ports, the store and the release, and say what to do; 1 if something must be mended."""
    try:
        settings = Settings.load({"releases": releases, "store": store, "host": host, "port": port}, file=config)
    except ConfigError as error:
        advice = "mend it; docs/settings.md has every setting"
        findings = [problem("settings", error.message, advice), *examined(checks_of_the_machine(Settings()))]
    else:
        findings = list(examined(checks(settings)))
    level = worst(findings)
    if as_json:
        typer.echo(json.dumps({"level": level, "findings": [one.as_dict() for one in findings]}, indent=1))
    else:
        show(findings)
    raise typer.Exit(1 if level == "problem" else 0)


def checks_of_the_machine(settings: Settings) -> dict[str, Check]:
    """Every check that needs nothing but the machine, by its subject, in the order of the report."""
    file = data.store_file(settings)
    running = bool(family.members(settings.port))
    return {
        "cores": lambda: machine.cores(settings),
        "memory": lambda: machine.memory(running=running),
        "disk": lambda: machine.disk(settings, file),
        "limits": machine.limits,
        "gpu": lambda: machine.gpu(settings),
        "versions": machine.versions,
        "leftovers": lambda: processes.leftovers(settings),
    }


def checks(settings: Settings) -> dict[str, Check]:
    """Every check."""
    return checks_of_the_machine(settings) | {
        "port": lambda: processes.port(settings),
        "reach": lambda: processes.reach(settings),
        "files": lambda: processes.secrets(settings, data.store_file(settings)),
        "store": lambda: data.store(settings),
        "release": lambda: data.release(settings),
    }


def examined(chosen: dict[str, Check]) -> Iterator[Finding]:
    """Run checks; one that fails itself becomes a finding, and the others go on."""
    for subject, check in chosen.items():
        try:
            yield from check()
        except Exception as error:
            yield machine.finding_of(subject, error)


def show(findings: list[Finding]) -> None:
    """Print findings as a table, each with what to do below it."""
    console = Console()
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for one in findings:
        colour = COLOURS[one.level]
        text = one.text if not one.advice else f"{one.text}\n→ {one.advice}"
        table.add_row(f"[{colour}]{one.level}[/]", one.subject, escape(text))
    console.print(table, highlight=False)
