"""Capacity: the figures are those of a result file, and what is computed follows from them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import bespoke
from benchmarks import capacity as benchmark
from serving.capacity import BUSY, FILE, Figures, Line, Load, need, size
from tests.conftest import ROOT

RESULTS = ROOT / "benchmarks" / "results"
ROUND = Figures(
    source="round numbers",
    cluster_bytes=1e9,
    replica_bytes=Line(base=300e6, per_item=1000),
    shared_bytes=Line(base=0, per_item=500),
    release_bytes=Line(base=0, per_item=800),
    list_cpu_ms=Line(base=5, per_item=0.0001),
    event_cpu_ms=2,
    batched_event_cpu_ms=0.1,
    around_cpu_ms=0.5,
    idle_cores=0.1,
    person_bytes=4000,
    event_bytes=200,
    item_bytes=500,
    largest_catalogue=50_000,
)


def test_the_figures_are_those_of_a_result_file() -> None:
    found = Figures.measured()
    result = json.loads((RESULTS / found.source).read_text(encoding="utf-8"))
    again = benchmark.figures(result["runs"], result["store"], source=found.source)
    assert again == found
    assert json.loads(FILE.read_text(encoding="utf-8")) == json.loads(found.model_dump_json())
    for one in result["runs"]:
        for name in ("list", "event", "batched_event"):
            assert set(one.get(f"{name}_answers", {})) <= {"200", "202"}, "an answer that failed costs something else"


def test_a_load_takes_what_its_parts_take() -> None:
    load = Load(items=50_000, users=200_000, lists_per_s=100, events_per_s=50, events_per_day=1e6, days=90)
    found = need(load, ROUND)
    inside = (100 * 10 + 50 * 2) / 1000
    assert found.busy_cores == pytest.approx(inside + 150 * 0.5 / 1000 + 0.1)
    assert found.cores == 3
    assert found.replicas == 2 + 1  # 1.1 busy cores at 60 %, and one in reserve
    assert (found.nodes, found.replicas_per_node) == (1, 3)
    assert found.replica_memory == 300e6 + 2 * 50_000 * 1000
    assert found.node_memory == 1e9 + 2 * 50_000 * 500 + 3 * 400e6
    assert found.release_disk == 2 * 50_000 * 800
    assert found.store_disk == 200_000 * 4000 + 50_000 * 500 + 1e6 * 90 * 200
    assert found.notes == ()


def test_more_of_anything_never_takes_less() -> None:
    least = Load(items=1000, users=1000, lists_per_s=10, events_per_s=1, events_per_day=1000)
    before = need(least, ROUND)
    for field, value in (
        ("items", 100_000),
        ("users", 10**6),
        ("lists_per_s", 500),
        ("events_per_s", 900),
        ("days", 900),
    ):
        after = need(least.model_copy(update={field: value}), ROUND)
        for name in ("busy_cores", "cores", "nodes", "replicas", "node_memory", "store_disk"):
            assert getattr(after, name) >= getattr(before, name), (field, name)


def test_a_large_load_is_spread_over_nodes_that_can_carry_it() -> None:
    load = Load(items=50_000, users=0, lists_per_s=5000, cores_per_node=8)
    found = need(load, ROUND)
    assert found.nodes * 8 * BUSY >= found.busy_cores
    assert found.replicas_per_node * found.nodes >= found.replicas
    assert found.replicas_per_node <= 8
    assert any("PostgreSQL" in note for note in found.notes)
    smaller = (found.nodes - 1) * 8 * BUSY
    assert smaller < found.busy_cores or (found.nodes - 1) * 8 < found.replicas


def test_batches_cost_less_and_estimates_are_called_so() -> None:
    single = need(Load(items=1000, users=0, lists_per_s=0, events_per_s=1000), ROUND)
    batched = need(Load(items=1000, users=0, lists_per_s=0, events_per_s=1000, batched=True), ROUND)
    assert batched.busy_cores < single.busy_cores / 5
    assert any("--batched" in note for note in single.notes)
    assert any("estimate" in note for note in need(Load(items=200_000, users=0, lists_per_s=1), ROUND).notes)


def test_sizes_for_people() -> None:
    assert [size(one) for one in (1.24e9, 999e6, 4e5)] == ["1.2 GB", "999 MB", "0 MB"]


def test_a_line_goes_through_both_catalogues() -> None:
    runs = json.loads((RESULTS / Figures.measured().source).read_text(encoding="utf-8"))["runs"]
    found = Figures.measured()
    for one in runs:
        if one["replicas"] == 1 and found.list_cpu_ms.per_item and found.list_cpu_ms.base:
            assert found.list_cpu_ms.at(one["items"]) == pytest.approx(one["list_cpu_ms"])


def test_the_command_and_its_page() -> None:
    page = (ROOT / "docs" / "capacity.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"(?m)^bespoke (capacity .+)$", page)
    shown = CliRunner().invoke(bespoke.app, command.split())
    assert shown.exit_code == 0
    blocks = re.findall(r"```\n(.*?)```", page, re.DOTALL)
    assert [line.split() for line in shown.stdout.splitlines()] == [line.split() for line in blocks[1].splitlines()]
    body = json.loads(CliRunner().invoke(bespoke.app, [*command.split(), "--json"]).stdout)
    assert body["need"]["replicas"] >= 2
    assert body["load"]["events_per_day"] == 50 * 86_400 / 3
    for name, value in Figures.measured():
        if isinstance(value, float) and not name.startswith("largest"):
            assert f"| `{name}` |" in page


def test_the_command_asks_for_what_it_needs(tmp_path: Path) -> None:
    shown = CliRunner().invoke(bespoke.app, ["capacity", "--items", "0", "--users", "1", "--rps", "1"])
    assert shown.exit_code == 2
