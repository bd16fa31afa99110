"""The command line: help without weight, mistakes as sentences, and the whole way from data to a release."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

import bespoke
from embeddings.errors import Unavailable
from embeddings.manifest import read_manifest
from embeddings.releases import current_release
from tests import habits
from training import cli

ROOT = Path(__file__).parent.parent
runner = CliRunner()

TOML = """
[towers]
dim = 16
layers = 1
max_history = 8
dropout = 0.1
id_dropout = 0.0

[ranker]
objectives = ["view"]
hidden = [8]
candidates = 20

[optimisation]
epochs = {epochs}
batch = 16
learning_rate = 0.01
warmup_steps = 5
"""


def call(*words: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command line."""
    found = runner.invoke(bespoke.app, [str(word) for word in words])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code, found.stdout, found.stderr


def python(code: str, *, where: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=where,
        env=environment,
        check=False,
        timeout=120,
    )


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    code = "import sys, bespoke\ntry: bespoke.main()\nexcept SystemExit: print(sorted(sys.modules), file=sys.stderr)"
    found = python(f"import sys; sys.argv = ['bespoke', '--help']\n{code}")
    for name in (*bespoke.COMMANDS, "demo", "load"):
        assert f" {name} " in found.stdout
    loaded = set(ast.literal_eval(found.stderr))
    assert not loaded & {"torch", "numpy", "pandas", "pyarrow", "faiss", "ray", "fastapi", "sqlalchemy"}


@pytest.mark.parametrize("name", bespoke.COMMANDS)
def test_the_line_of_help_is_the_commands_own(name: str) -> None:
    real = bespoke.resolve(name)
    assert real.name == name
    assert (real.help or "").split("\n")[0].split(": eval")[0].rstrip(".") == bespoke.COMMANDS[name][1].rstrip(".")
    code, out, _ = call(name, "--help")
    assert code == 0
    assert f"bespoke {name}" in out or f" {name} " in out


def test_every_command_of_a_package_is_behind_the_front_door() -> None:
    for module, app in (("training.cli", cli.app),):
        real = typer.main.get_command(app)
        listed = {name for name, (where, _) in bespoke.COMMANDS.items() if where == module}
        assert listed == set(real.commands)  # type: ignore[attr-defined]


def test_training_needs_no_ray_and_no_serving() -> None:
    code = """
import sys
sys.modules["ray"] = None
sys.modules["fastapi"] = None
import training.runs, training.publish, training.cli
assert not any(name.split(".")[0] == "serving" for name in sys.modules), "serving was imported"
"""
    assert python(code).returncode == 0


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bespoke.COMMANDS, "serve", ("serving.nowhere", ""))
    with pytest.raises(Unavailable, match=r"'bespoke serve' needs serving.nowhere.*bespoke\[serve\]"):
        bespoke.resolve("serve")


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        ("", 2, "Usage"),
        ("trian", 2, "Did you mean 'train'"),
        ("train", 2, "--data-dir"),
        ("train --data-dir x --surprise 1", 2, "--surprise"),
        ("train --data-dir nowhere", 1, "nowhere"),
        ("train --data-dir nowhere --recipe best", 1, "known: default, interactions, movielens, quick"),
        ("train --data-dir . --device cuda:99", 1, "cuda:99"),
        ("train --data-dir . --device tpu", 1, "device"),
        ("train --data-dir . --seed -1", 1, "seed"),
        ("evaluate --run nowhere", 1, "nowhere holds no training run"),
        ("evaluate --run nowhere -k 0", 1, "k must be at least 1"),
        ("publish --run nowhere", 1, "nowhere holds no training run"),
        ("data get everything", 1, "known: movielens"),
        ("data check nowhere", 1, "nowhere"),
        ("data make-shop --to x --items 3", 1, "items must lie between"),
        ("demo --dataset cinema", 1, "known: movielens, shop"),
    ],
)
def test_mistakes_are_one_sentence(
    words: str, code: int, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, err = call(*words.split())
    assert found == code
    assert part in " ".join((out + err).replace("│", " ").split())
    assert "Traceback" not in out + err
    if code == 1:
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_refused_training_leaves_the_last_run_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    assert call("train", "--data-dir", tmp_path / "nowhere", "--run", run)[0] == 1
    assert (run / "run.json").read_text() == "{}"


def test_make_a_shop_and_check_it(tmp_path: Path) -> None:
    shop = tmp_path / "a shop"
    code, out, _ = call("data", "make-shop", "--items", "200", "--users", "20", "--days", "20", "--to", shop)
    assert (code, "200 items and 20 shoppers" in out) == (0, True)
    code, out, _ = call("data", "check", shop)
    assert code == 0
    rows = {line.split("│")[1].strip(): line for line in out.splitlines() if line.startswith("│")}
    assert set(rows) == {"events", "items", "users", "all"}
    assert [cell.strip() for cell in rows["items"].split("│")[2:-1]] == ["200", "200", "0", "0"]


def test_check_shows_what_was_refused_and_keeps_it(tmp_path: Path) -> None:
    lines = ["user_id,item_id,event_type,timestamp", *(f"u{n},i{n},view,2026-01-01T00:00:00Z" for n in range(300))]
    (tmp_path / "events.csv").write_text("\n".join([*lines, "u1,i1,view,yesterday"]) + "\n")
    code, out, _ = call("data", "check", tmp_path / "events.csv", "--quarantine", tmp_path / "bad.jsonl")
    assert code == 0
    assert "yesterday" in (tmp_path / "bad.jsonl").read_text()
    assert "line 302" in out


def test_from_data_to_a_release(tmp_path: Path) -> None:
    data, run, releases = habits.write(tmp_path / "data"), tmp_path / "run", tmp_path / "releases"
    recipe = tmp_path / "small.toml"
    recipe.write_text(TOML.format(epochs=6))
    common = ("--data-dir", data, "--recipe", recipe, "--run", run, "--device", "cpu", "--threads", "1")
    code, out, err = call("train", *common)
    assert (code, err) == (0, "")  # nobody watches a terminal: no bar
    assert "towers, validation" in out
    assert "best epoch" in out
    assert not (run / "evaluation.json").exists()
    code, out, err = call("evaluate", "--run", run)
    assert (code, err) == (0, "")
    assert "two_tower" in out
    assert "ndcg@10" in out
    stored = json.loads((run / "evaluation.json").read_text())
    code, out, _ = call("evaluate", "--run", run, "--json")
    assert json.loads(out) == stored
    code, out, _ = call("evaluate", "--run", run, "-k", "20")
    assert "recall@20" in out
    code, out, err = call("publish", "--run", run, "--releases", releases)
    assert (code, err) == (0, "")
    name = current_release(releases)
    assert name is not None
    assert name in out
    assert read_manifest(releases / name).metrics["test.two_tower"]["ndcg@20"] > 0

    recipe.write_text(TOML.format(epochs=1).replace("0.01", "0.0000001"))  # learns nothing
    assert call("train", *common)[0] == 0
    assert not (run / "evaluation.json").exists()  # it was that of another model
    manifest = run / "run.json"
    code, _, err = call("publish", "--run", run, "--releases", releases)
    if code:  # the towers may still be better than counting: then there is nothing to refuse
        assert err.startswith("error: not published: ")
        assert current_release(releases) == name
        code, out, _ = call("publish", "--run", run, "--releases", releases, "--force")
        assert code == 0
        assert "overridden:" in out
        assert current_release(releases) != name
    assert manifest.is_file()


def test_the_demo_gives_the_service_everything(tmp_path: Path) -> None:
    from serving.store import Store
    from training.sources import read

    data = read(habits.write(tmp_path / "data"))
    said: list[float] = []
    bespoke._fill_store(f"sqlite:///{tmp_path / 'store.db'}", data, lambda text, share: said.append(share))
    with Store.open(f"sqlite:///{tmp_path / 'store.db'}") as store:
        assert store.catalogue.count() == 120
        assert store.events.count("u000") == len(habits.history(0))
    assert said == sorted(said)
    assert said[-1] == 1.0


def test_the_demo_is_made_once_for_the_same_options(tmp_path: Path) -> None:
    asked = {"data_dir": None, "recipe": "default", "items": 2000, "users": 1000}
    assert not bespoke._is_made(tmp_path, asked)
    (tmp_path / "demo.json").write_text(json.dumps(asked))
    assert bespoke._is_made(tmp_path, asked)
    assert not bespoke._is_made(tmp_path, asked | {"items": 3000})
    (tmp_path / "mine.txt").touch()
    for name in ("data", "run", "releases"):
        (tmp_path / name).mkdir()
    bespoke._clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
