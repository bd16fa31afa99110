"""The command that writes messages for many people at once: batch."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from embeddings.errors import ConfigError, InputError, Unavailable
from embeddings.schema import first_error
from serving.options import ConfigFile, StoreUrl, described
from serving.people.mailing import check, missing, plan_mailing
from serving.people.messages import Campaign
from serving.policy.contact import Cap, Quiet, check_zone
from serving.settings import Settings
from serving.store import Store
from serving.store.batches import sole, write_manifest
from serving.writers import CLUSTER, Work, in_processes, in_this_process

app = typer.Typer(no_args_is_help=True, add_completion=False)
console = Console()


@app.callback()
def messages() -> None:
    """Keep `batch` a command among others: the front door looks it up by its name."""


@app.command()
def batch(
    out: Annotated[Path, typer.Option(help="Folder of the messages; the same one again goes on with what was begun.")],
    placement: Annotated[str, typer.Option(help="Placement that fills the lists.")] = "default",
    channel: Annotated[str, typer.Option(help="How they are sent: email, push, …; rules and caps go by it.")] = "email",
    at: Annotated[
        datetime | None, typer.Option(help="The moment they are composed for, in UTC; now if left out.")
    ] = None,
    k: Annotated[int, typer.Option(min=0, max=200, help="Items of a list; 0: as many as the placement says.")] = 0,
    only: Annotated[
        str | None,
        typer.Option("--filter", help="Only people for whom this condition holds, as in a rule's `when`: JSON."),
    ] = None,
    segment: Annotated[str | None, typer.Option(help="Only people who are in this segment.")] = None,
    link: Annotated[
        str | None, typer.Option(help="Address of an item: https://shop.example/{item_id}?r={recommendation_id}")
    ] = None,
    valid_hours: Annotated[float, typer.Option(help="Hours after which a message must not be sent any more.")] = 24.0,
    cap: Annotated[str | None, typer.Option(help="Nobody who got so many on the channel in so many days: 3/7.")] = None,
    quiet: Annotated[
        str | None, typer.Option(help="Hours in which people are left in peace, on their own clock: 21:00-08:00.")
    ] = None,
    time_zone: Annotated[
        str, typer.Option(help="Where somebody lives whose attribute `time_zone` is not set.")
    ] = "UTC",
    content: Annotated[
        str | None, typer.Option(help="A content that each message has beside its list, in the person's variant.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Look at so many people only, by their ids.")] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes; of the cluster that RAY_ADDRESS names, else of this machine.")
    ] = max(1, os.cpu_count() or 1),
    releases: Annotated[Path | None, typer.Option(help=described("releases"))] = None,
    store: StoreUrl = None,
    config: ConfigFile = None,
) -> None:
    """Write messages for everybody who may get one: lists, reasons and what is due, as the service would answer them."""
    settings = Settings.load({"releases": releases, "store": store}, file=config)
    check_zone(time_zone)
    campaign = _campaign(
        placement=placement,
        channel=channel,
        at=datetime.now(UTC) if at is None else at.replace(tzinfo=UTC) if at.tzinfo is None else at,
        k=k,
        filter=_json(only),
        segment=segment,
        link=link,
        valid_hours=valid_hours,
        cap=None if cap is None else Cap.read(cap),
        quiet=None if quiet is None else Quiet.read(quiet, time_zone),
        content=content,
    )
    work = _work(workers)
    folder = out.resolve()
    began = time.monotonic()
    check(settings, campaign)
    with sole(folder):
        with Store.open(settings.store) as opened:
            plan = plan_mailing(opened, folder, campaign, limit=limit)
        left = missing(folder, plan)
        done = 0
        with console.status("composing …") as status:
            for counts in work(settings, folder, plan, left, workers):
                done += counts.messages + sum(counts.skipped.values())
                pace = done / (time.monotonic() - began)
                status.update(f"composing … {done:,} of {plan.people:,} people, {pace:,.0f} a second")
        total = write_manifest(folder, plan)
    seconds = time.monotonic() - began
    skipped = ", ".join(f"{count:,} {why}" for why, count in sorted(total.skipped.items()))
    console.print(
        f"{total.messages:,} messages for {plan.people:,} people in {folder}"
        + (f"; none for {skipped}" if skipped else "")
        + f"; {done / seconds:,.0f} people a second",
        highlight=False,
        soft_wrap=True,
    )


def _work(workers: int) -> Work:
    """By what the partitions are written: Ray Data where a cluster is named, else processes of this machine."""
    if not os.environ.get(CLUSTER):
        return in_this_process if workers == 1 else in_processes
    try:
        from serving.writers_ray import on_ray
    except ImportError as error:
        raise Unavailable(
            f"{CLUSTER} names a cluster, which needs {error.name}: pip install 'bespoke[cluster]'"
        ) from None
    return on_ray


def _campaign(**fields: Any) -> Campaign:
    try:
        campaign = Campaign(**fields)
    except ValidationError as error:
        raise ConfigError(first_error(error).message, field=first_error(error).field) from None
    campaign.condition  # noqa: B018 - reads it, and says what is wrong with it
    return campaign


def _json(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError(f"filter: not JSON: {error}", field="filter") from None
    if not isinstance(found, dict):
        raise InputError("filter: must be an object", field="filter")
    return found
