"""Capacity: memory, cores and replicas for a catalogue and a load, computed from what was measured.

`capacity.json` beside this file holds the figures and names the result file that they come from;
`python -m benchmarks capacity --save` measures them anew and writes both. docs/capacity.md explains the model.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.table import Table

app = typer.Typer(no_args_is_help=True, add_completion=False)

FILE = Path(__file__).parent / "capacity.json"
MB = 1e6
DAY_S = 86_400
SWAP = 2
"""Releases that are in memory while one takes the place of another, or while one is on trial."""

BUSY = 0.6
"""Share of a core that may be busy on average: above it waiting grows quickly, and nothing is left for a lost replica."""


class Line(BaseModel):
    """A quantity that grows with the catalogue: so much, and so much more with each item."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: Annotated[float, Field(ge=0)]
    per_item: Annotated[float, Field(ge=0)]

    def at(self, items: int) -> float:
        """Its value for a catalogue."""
        return self.base + self.per_item * items


class Figures(BaseModel):
    """What was measured, on one machine at one time. Bytes are bytes; CPU is milliseconds of a core."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Annotated[str, Field(description="The result file, in benchmarks/results.")]
    cluster_bytes: Annotated[float, Field(description="Memory of Ray, Serve and HAProxy on a node, without a replica.")]
    replica_bytes: Annotated[Line, Field(description="Memory that each replica has for itself.")]
    shared_bytes: Annotated[Line, Field(description="Memory that the replicas of a node share.")]
    release_bytes: Annotated[Line, Field(description="Size of a release on disk.")]
    list_cpu_ms: Annotated[Line, Field(description="A list, in its replica: k = 20, 50 events, a third with a filter.")]
    event_cpu_ms: Annotated[float, Field(description="An event sent alone, in its replica.")]
    batched_event_cpu_ms: Annotated[float, Field(description="An event in a batch of 100, in its replica.")]
    around_cpu_ms: Annotated[float, Field(description="A request, outside of its replica: HAProxy, Ray.")]
    idle_cores: Annotated[float, Field(description="Cores that a node uses without a request.")]
    person_bytes: Annotated[
        float, Field(description="A person in the store with 50 events of history, without the events.")
    ]
    event_bytes: Annotated[float, Field(description="An event in the store, with its indexes.")]
    item_bytes: Annotated[float, Field(description="An item in the store.")]
    largest_catalogue: Annotated[int, Field(description="Items of the largest catalogue that was measured.")]

    @classmethod
    @cache
    def measured(cls) -> Figures:
        """The figures of this version."""
        return cls.model_validate_json(FILE.read_bytes())


class Load(BaseModel):
    """What the service is to carry, at its busiest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    items: Annotated[int, Field(ge=1)]
    users: Annotated[int, Field(ge=0)]
    lists_per_s: Annotated[float, Field(ge=0)]
    events_per_s: Annotated[float, Field(ge=0)] = 0.0
    batched: bool = False
    events_per_day: Annotated[float, Field(ge=0)] = 0.0
    days: Annotated[int, Field(ge=1)] = 90
    cores_per_node: Annotated[int, Field(ge=1)] = 8


class Need(BaseModel):
    """What it takes; memory and disk in bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    busy_cores: float
    cores: int
    nodes: int
    replicas: int
    replicas_per_node: int
    replica_memory: float
    node_memory: float
    release_disk: float
    store_disk: float
    notes: tuple[str, ...]


def need(load: Load, figures: Figures) -> Need:
    """Compute what a load takes; one more replica than the load needs, so that one may be lost or replaced."""
    event_ms = figures.batched_event_cpu_ms if load.batched else figures.event_cpu_ms
    requests = load.lists_per_s + load.events_per_s / (100 if load.batched else 1)
    inside = (load.lists_per_s * figures.list_cpu_ms.at(load.items) + load.events_per_s * event_ms) / 1e3
    around = requests * figures.around_cpu_ms / 1e3
    # A replica computes in one thread: more than a core it cannot use.
    replicas = max(1, math.ceil(inside / BUSY)) + 1
    nodes = 1
    while True:
        busy = inside + around + nodes * figures.idle_cores
        wanted = max(math.ceil(busy / BUSY / load.cores_per_node), math.ceil(replicas / load.cores_per_node))
        if wanted <= nodes:
            break
        nodes = wanted
    per_node = math.ceil(replicas / nodes)
    own = figures.replica_bytes.base + SWAP * figures.replica_bytes.per_item * load.items
    shared = figures.shared_bytes.base + SWAP * figures.shared_bytes.per_item * load.items
    store = load.users * figures.person_bytes + load.items * figures.item_bytes
    store += load.events_per_day * load.days * figures.event_bytes
    return Need(
        busy_cores=busy,
        cores=math.ceil(busy / BUSY),
        nodes=nodes,
        replicas=replicas,
        replicas_per_node=per_node,
        replica_memory=own,
        node_memory=figures.cluster_bytes + shared + per_node * own,
        release_disk=SWAP * figures.release_bytes.at(load.items),
        store_disk=store,
        notes=tuple(_notes(load, figures, nodes)),
    )


def _notes(load: Load, figures: Figures, nodes: int) -> list[str]:
    notes = []
    if load.items > 2 * figures.largest_catalogue:
        notes.append(
            f"the largest catalogue that was measured has {figures.largest_catalogue:,} items: beyond twice of it this is "
            "an estimate, and above 20,000 items the index reads a part of them, which is cheaper than the line says"
        )
    if nodes > 1:
        notes.append("several nodes need PostgreSQL and a folder of releases that all of them see")
    if load.events_per_s > 0 and not load.batched and load.events_per_s * figures.event_cpu_ms > 500:
        notes.append("events in batches of 100 cost a fraction: send them together where that is possible (--batched)")
    return notes


@app.callback()
def group() -> None:
    """One command, called by its name all the same."""


@app.command()
def capacity(
    items: Annotated[int, typer.Option(help="Items of the catalogue.", min=1)],
    users: Annotated[int, typer.Option(help="People with a history.", min=0)],
    rps: Annotated[float, typer.Option(help="Lists a second, at the busiest.", min=0)],
    events: Annotated[float, typer.Option(help="Events a second, at the busiest.", min=0)] = 0.0,
    batched: Annotated[bool, typer.Option("--batched", help="Events come in batches of 100.")] = False,
    events_per_day: Annotated[
        float | None, typer.Option(help="Events of a whole day, for the disk; a third of the busiest rate if left out.")
    ] = None,
    days: Annotated[int, typer.Option(help="Days that events are kept.", min=1)] = 90,
    cores_per_node: Annotated[int, typer.Option(help="Cores of a node.", min=1)] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compute memory, cores, replicas and disk for a catalogue and a load, from measured figures."""
    load = Load(
        items=items,
        users=users,
        lists_per_s=rps,
        events_per_s=events,
        batched=batched,
        events_per_day=events * DAY_S / 3 if events_per_day is None else events_per_day,
        days=days,
        cores_per_node=cores_per_node,
    )
    figures = Figures.measured()
    found = need(load, figures)
    if as_json:
        body: dict[str, Any] = {"load": load.model_dump(), "need": found.model_dump(), "source": figures.source}
        typer.echo(json.dumps(body, indent=1))
        return
    console = Console()
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in rows(found, cores_per_node):
        table.add_row(name, value)
    console.print(table, highlight=False)
    for note in found.notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    console.print(f"from {figures.source}; {BUSY:.0%} of a core may be busy", highlight=False, style="dim")


def rows(found: Need, cores_per_node: int) -> list[tuple[str, str]]:
    """The lines for people."""
    nodes = f"{found.nodes} of {cores_per_node} cores" if found.nodes > 1 else "1"
    return [
        ("replicas", f"{found.replicas} (replicas = {found.replicas}); one of them is a reserve"),
        ("cores", f"{found.cores}, of which {found.busy_cores:.1f} are busy"),
        ("nodes", nodes),
        ("memory", f"{size(found.node_memory)} a node, of which {size(found.replica_memory)} for each replica"),
        ("disk", f"{size(found.release_disk)} for two releases, {size(found.store_disk)} for the store"),
    ]


def size(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / MB:.0f} MB"
