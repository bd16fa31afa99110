"""The race of trainings: what a rival is given, what is made of what it says, and what it says if it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import rivals, training
from benchmarks.accuracy import open_protocol
from embeddings.errors import BespokeError
from tests.test_people import cycles, interactions, shorter
from training.recipes import load_recipe


def stand_in(folder: Path, *lines: str, code: int = 0) -> str:
    """An interpreter that says what it is told to, whatever it is to run."""
    path = folder / "python"
    path.write_text("\n".join(["#!/bin/sh", *lines, f"exit {code}"]) + "\n")
    path.chmod(0o755)
    return str(path)


def test_a_rival_is_given_the_history_and_asked_for_what_came_next(tmp_path: Path) -> None:
    config = load_recipe("sequences")
    protocol = open_protocol("sequences", cycles(tmp_path / "circle"), config)
    training.write_events(protocol.data, protocol.choose, tmp_path)
    history, answers = rivals.read(tmp_path / "history.txt"), rivals.read(tmp_path / "answers.txt")
    names = protocol.data.items.all
    assert {name: [names[int(row)] for row in rows] for name, rows in history.items()}["1"] == list("123456")
    assert [names[int(row)] for row in answers["1"]] == ["7"]
    assert len(history) == len(answers) == 120


def test_ndcg_of_a_rival_is_ours() -> None:
    answers = {"ann": ["1", "2"], "bob": ["9"]}
    assert rivals.ndcg({"ann": ["1", "2"], "bob": ["9"]}, answers) == pytest.approx(1.0)
    assert rivals.ndcg({"ann": ["3", "4"]}, answers) == 0.0
    assert rivals.ndcg({"bob": ["8", "9"]}, {"bob": ["9"]}) == pytest.approx(1 / 1.584962500721156)


def test_we_go_on_until_the_rival_is_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = ['{"seconds": 50.0, "ndcg@10": 0.2}', '{"seconds": 100.0, "ndcg@10": 0.3}']
    python = stand_in(tmp_path, "echo a word", *(f"echo '{line}'" for line in said))
    recipe = shorter(tmp_path, "sequences", epochs=12, batch=16)
    options = ["--format", "sequences", "--data-dir", str(cycles(tmp_path / "circle")), "--recipe", recipe]
    training.main([*options, "--rival", "sasrec", "--python", python, "--threads", "1"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["rival_ndcg@10"], found["rival_seconds"]) == (0.3, 100.0)
    assert found["ndcg@10"] >= 0.3
    assert found["speedup"] == pytest.approx(100.0 / found["seconds_to_rival_ndcg"], rel=0.01)


def test_towers_in_closed_form_are_one_point(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python = stand_in(tmp_path, """echo '{"seconds": 1.0, "ndcg@10": 0.99}'""")
    options = [
        "--format",
        "interactions",
        "--data-dir",
        str(tmp_path / "circles"),
        "--rival",
        "als",
        "--python",
        python,
    ]
    interactions(tmp_path / "circles")
    training.main(options)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["speedup"] is None, "the figure that was never reached"
    assert found["ndcg@10"] > 0.05


def test_a_rival_that_is_not_there_says_so(tmp_path: Path) -> None:
    python = stand_in(tmp_path, "echo 'No module named rectools' >&2", code=1)
    with pytest.raises(BespokeError, match=r"sasrec did not train \(No module named rectools\); --python names"):
        training.run_rival("sasrec", python, tmp_path, seconds=1.0, threads=1)
