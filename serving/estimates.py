"""Commands about the policy: estimate, what a change would bring before anybody is shown it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from embeddings.errors import InputError, unknown_name
from serving.aside.estimates import variants_estimated
from serving.options import ConfigFile, StoreUrl, described
from serving.people.mailing import open_quietly
from serving.policy.placements import PLACEMENTS, Placement
from serving.replica.engine import Engine
from serving.settings import Settings

app = typer.Typer(no_args_is_help=True, add_completion=False)
policy = typer.Typer(no_args_is_help=True, help="Judge a change of the policy by the log, before anybody is shown it.")
app.add_typer(policy, name="policy")
console = Console()

SUPPORTED = 0.8
"""Below this share of the places the estimate is about what little the log could have shown."""


@policy.callback()
def commands() -> None:
    """Keep `estimate` a command among others."""


@policy.command()
def estimate(
    draft: Annotated[
        Path | None, typer.Option(help="JSON file with the draft of a placement, as it would be stored.")
    ] = None,
    content: Annotated[
        str | None, typer.Option(help="Instead of a draft: each variant of this content, if everybody were shown it.")
    ] = None,
    placement: Annotated[str | None, typer.Option(help="Its id, if the file does not say.")] = None,
    reward: Annotated[str, typer.Option(help="Type of the events that count, if they echo the answer.")] = "click",
    value: Annotated[bool, typer.Option("--value", help="Sum their values instead of counting who did it.")] = False,
    requests: Annotated[int, typer.Option(min=1, help="At most so many logged requests, the latest.")] = 10_000,
    seconds: Annotated[float, typer.Option(min=1, help="Ask them again for so long at most.")] = 120.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    releases: Annotated[Path | None, typer.Option(help=described("releases"))] = None,
    store: StoreUrl = None,
    config: ConfigFile = None,
) -> None:
    """Estimate what a draft of a placement would bring, from answers that left something to chance."""
    if (draft is None) == (content is None):
        raise InputError("draft: give either --draft FILE or --content NAME", field="draft")
    raw = None if draft is None else _read(draft, placement)
    engine = open_quietly(Settings.load({"releases": releases, "store": store}, file=config))
    try:
        if raw is None:
            _tell_variants(_variants(engine, content or "", requests), as_json=as_json)
            return
        attributes = engine.snapshot.catalogue.attributes
        document: Placement = engine.policy.admit(PLACEMENTS, raw, item_attributes=attributes)
        found = asyncio.run(
            engine.aside.estimate(document, event_type=reward, by_value=value, requests=requests, seconds=seconds)
        )
    finally:
        engine.stop()
    if as_json:
        typer.echo(json.dumps(found))
        return
    console.print(_table({name: found[name] for name in ("current", "draft")}))
    gap = found["difference"]
    unit = "value" if value else "rate"
    console.print(
        f"{found['replayed']} of {found['logged']} answers, {found['explored']:.0%} open to chance; shown: "
        f"{found['shown']:.4f} '{reward}' ({unit}) an answer; draft - current {_cell(gap, sign='+')}",
        highlight=False,
        soft_wrap=True,
    )
    for name in ("current", "draft"):
        if found[name]["supported"] < SUPPORTED:
            console.print(
                f"the log could have shown only {found[name]['supported']:.0%} of what '{name}' shows: of the rest it "
                "knows nothing",
                highlight=False,
                soft_wrap=True,
            )


def _variants(engine: Engine, name: str, requests: int) -> dict[str, Any]:
    contents = engine.policy.contents
    if name not in contents:
        raise unknown_name("content", name, contents, field="content")
    return variants_estimated(engine.store, contents[name], requests=requests)


def _tell_variants(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found))
        return
    console.print(_table(found["variants"]))
    console.print(
        f"{found['used']} of {found['logged']} decisions; shown: {found['shown']:.4f} '{found['reward']}' a decision",
        highlight=False,
        soft_wrap=True,
    )


def _read(path: Path, placement: str | None) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"draft: no file {path}", field="draft") from None
    except ValueError as error:
        raise InputError(f"draft: {path} is not JSON: {error}", field="draft") from None
    if not isinstance(raw, dict):
        raise InputError(f"draft: {path} must hold an object, a placement", field="draft")
    if placement is None and "id" not in raw:
        raise InputError(f"placement: say whose draft {path} is; it has no 'id'", field="placement")
    if placement is not None and raw.get("id", placement) != placement:
        raise InputError(f"placement: the draft in {path} is of '{raw['id']}', not of '{placement}'", field="placement")
    return {**raw, "id": raw.get("id", placement)}


def _table(sides: dict[str, Any]) -> Table:
    table = Table("an answer", "ips", "snips", "doubly robust", "effective answers", "supported")
    for name, one in sides.items():
        cells = [_cell(one[estimator]) for estimator in ("ips", "snips", "dr")]
        table.add_row(escape(name), *cells, f"{one['effective']:.0f}", f"{one['supported']:.0%}")
    return table


def _cell(interval: dict[str, float], sign: str = "") -> str:
    return f"{interval['estimate']:{sign}.4f} [{interval['low']:{sign}.4f}, {interval['high']:{sign}.4f}]"
