"""Documentation is tested: its commands run, its links lead somewhere, its lists are complete."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from serving.settings import Settings
from serving.store import Store
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(heading: str) -> list[str]:
    """Indented code of one section of the README."""
    section = README.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"```\n(.*?)```", section, re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_tree_names_every_module() -> None:
    tree = blocks("The tree")[0]
    listed, folder = set(), ""
    for line in tree.splitlines():
        name = line.split()[0]
        if line.startswith("  "):
            listed.add(folder + name)
        elif name.endswith("/"):
            folder = name
        else:
            listed.add(name)
    found = {
        str(path.relative_to(ROOT))
        for package in ("embeddings", "training", "serving", "benchmarks")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py" and "migrations" not in path.parts
    }
    assert listed - {"bespoke.py"} == found


def test_the_diagram_names_files_that_exist() -> None:
    diagram = blocks("The path of a request")[0]
    named = re.findall(r"(?:serving|embeddings)/[\w/]+\.py", diagram)
    assert len(named) > 12
    assert all((ROOT / name).is_file() for name in named)


def test_figures_are_those_of_the_result_files() -> None:
    results = ROOT / "benchmarks" / "results"
    found = json.loads((results / "movielens-cpu2-2026-11.json").read_text())["evaluation"]["systems"]
    benchmarks = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    systems = ("popularity", "item_knn", "ease", "two_tower", "ranker")
    for row, name in (("Recall@10", "recall@10"), ("NDCG@10", "ndcg@10")):
        cells = [figure(found[system][name][0]) for system in systems]
        assert f"| {row} | {' | '.join(cells)} |" in README
    for system, row in zip(
        systems, ("popularity", "item-kNN", "EASE", "two towers", "two towers + ranker"), strict=True
    ):
        assert (
            f"| {row} | {figure(found[system]['recall@10'][0])} | {figure(found[system]['ndcg@10'][0])} |" in benchmarks
        )
    for name, k in (("beauty", 10), ("gowalla", 20)):
        found = json.loads((results / f"accuracy-{name}-cpu2-2026-11.json").read_text())
        for system in ("", "ranker_") if name == "beauty" else ("",):
            pair = " / ".join(figure(found[f"{system}{metric}@{k}"]) for metric in ("recall", "ndcg"))
            assert pair in " ".join(README.split())


def figure(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


def test_every_setting_is_documented() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    for name, field in Settings.model_fields.items():
        assert f"| `{name}` | `{field.default}` | {field.description} |" in page


def walk_through(url: str) -> str:
    """What the script of the ten minutes says about a service."""
    command = [sys.executable, str(ROOT / "docs" / "ten_minutes.py"), url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    """From a shop to a release, as the README has it; only the sizes are smaller and the recipe is the quick one."""
    smaller = {"make-shop": "make-shop --items 300 --users 200 --days 60", "--recipe default": "--recipe quick"}
    ran = []
    for line in blocks("Use it")[0].splitlines():
        command = line.split("#")[0].strip()
        if not command.startswith("bespoke") or command.startswith("bespoke serve"):
            continue
        for before, after in smaller.items():
            command = command.replace(before, after)
        # So small a shop cannot be learned well: what the gates find is shown, and overridden.
        command = command.replace("bespoke publish", "bespoke publish --force")
        done = subprocess.run(
            [sys.executable, "-m", *shlex.split(command)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        ran.append(command.split()[1])
    assert ran == ["data", "data", "train", "evaluate", "publish", "load"]
    assert (tmp_path / "var" / "releases" / "current").is_file()
    with Store.open(f"sqlite:///{tmp_path / 'var' / 'store.db'}") as store:
        assert len(store.catalogue.list(400).items) == 300


@pytest.mark.slow
def test_the_ten_minutes_with_a_shop_are_as_they_say(live_service: str) -> None:
    done = walk_through(live_service)
    assert re.findall(r"(?m)^(\d+)\. ", done) == [str(part) for part in range(1, 14)]
    for said in (
        "would change 1 of 1 lists",
        "segments of the person: ['tour-lookers']",
        "in force for a share of 0.1",
        "shown it as often as they may be",
        "asked a first time: [('price_drop', ",
        "asked a second time: []",
        "loud, for everybody: ",
        "the same list under both ids: True",
        "a client of Gorse asks /api/recommend: ['g",
        "receipt valid: True",
        "local delete placement tour",
    ):
        assert said in done, done


@pytest.mark.slow
def test_the_requests_of_the_readme_are_answered(live_service: str) -> None:
    requests = re.split(r"\n(?=curl)", blocks("Use it")[2].strip())
    assert len(requests) == 2
    for request in requests:
        command = request.replace("\\\n", " ").replace("http://127.0.0.1:8000", live_service)
        done = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=60, check=True)
        body = json.loads(done.stdout)
        assert "error" not in body, body
    assert body["items"]
    assert body["trace"]["stages"]
