"""Sequences and interactions: what is read, what is refused, and the protocols of the accuracy benchmark."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import accuracy
from embeddings.errors import DataError
from training.dataset import leave_last_out
from training.recipes import load_recipe
from training.runs import build_dataset
from training.sources import held_out, read


def sequences(folder: Path, *lines: str, attributes: object = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "sequences.txt").write_text("\n".join(lines) + "\n")
    if attributes is not None:
        (folder / "item_attributes.json").write_text(json.dumps(attributes))
    return folder


def cycles(folder: Path, *, people: int = 120, items: int = 20, length: int = 8) -> Path:
    """Whoever touched item i touches item i + 1 next."""
    lines = [
        f"{person + 1} " + " ".join(str(1 + (7 * person + at) % items) for at in range(length))
        for person in range(people)
    ]
    return sequences(folder, *lines, attributes={str(item): [item % 3] for item in range(1, items + 1)})


def interactions(folder: Path) -> Path:
    """Two circles of friends with items of their own; of each person's eight items two are in the test file."""
    folder.mkdir(exist_ok=True)
    rng, train, test = np.random.default_rng(0), [], []
    for person in range(120):
        own = 20 * (person % 2) + rng.permutation(20)[:10]
        train.append(f"{person} " + " ".join(map(str, sorted(own[:8].tolist()))))
        test.append(f"{person} " + " ".join(map(str, own[8:].tolist())))
    (folder / "train.txt.gz").write_bytes(gzip.compress("\n".join(train).encode()))
    (folder / "test.txt").write_text("\n".join([*test, "999 1 2", "3 77777"]))
    return folder


def test_the_order_of_a_sequence_is_kept_and_the_last_two_are_held_out(tmp_path: Path) -> None:
    found = read(sequences(tmp_path, "7 5 9 5 2", "8 1 2", attributes={"5": [1, 2], "9": []}))
    data = build_dataset(found.events, found.items, found.users, config=load_recipe("sequences"))
    own = slice(data.offsets[data.users.row("7")], data.offsets[data.users.row("7") + 1])
    assert data.items.ids(data.rows[own]) == ["5", "9", "5", "2"]
    split = leave_last_out(data)
    assert [data.users.id(user) for user in split.test.users] == ["7"], "two items are too few to hold two out"
    assert [item.attributes for item in data.item_rows() if item.item_id == "5"] == [{"attribute": ["1", "2"]}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [("9 1 x 2", "'x' is not a number"), ("9", "person 9 has no items"), ("7 1 2", "person 7 has a sequence already")],
)
def test_a_line_that_is_none_is_refused_and_counted(tmp_path: Path, line: str, reason: str) -> None:
    good = [f"{person} " + " ".join(map(str, range(20))) for person in range(1, 20)]
    found = read(sequences(tmp_path, *good, line))
    assert found.counts.quarantined == 1
    assert (found.rejected[0].line, found.rejected[0].reason) == (20, reason)


def test_attributes_of_unknown_items_are_refused_and_too_many_of_them_are_an_error(tmp_path: Path) -> None:
    known = {str(item): [1] for item in range(200)}
    line = "1 " + " ".join(known)
    found = read(sequences(tmp_path, line, attributes=known | {"999": [1]}))
    assert found.by_table["items"].quarantined == 1
    assert found.rejected[0].reason == "item 999 is in no sequence"
    with pytest.raises(DataError, match="item 999 is in no sequence"):
        read(sequences(tmp_path, "1 1 2 3", attributes={"1": [1], "999": [1]}))


@pytest.mark.parametrize("text", ["[1, 2]", "{", "\x00"])
def test_attributes_that_are_no_object_are_an_error(tmp_path: Path, text: str) -> None:
    sequences(tmp_path, "1 1 2 3")
    (tmp_path / "item_attributes.json").write_text(text)
    with pytest.raises(DataError, match=r"item_attributes\.json"):
        read(tmp_path)


def test_an_empty_folder_and_empty_files_say_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no events"):
        read(tmp_path)
    with pytest.raises(DataError, match="holds no events"):
        read(sequences(tmp_path, ""))
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match=r"test\.txt"):
        held_out(tmp_path / "other")


def test_interactions_are_shuffled_the_same_way_every_time(tmp_path: Path) -> None:
    first, again = (read(interactions(tmp_path)).events["item_id"].to_pylist() for _ in range(2))
    assert first == again
    assert first[:8] != sorted(first[:8], key=int)
    line = gzip.decompress((tmp_path / "train.txt.gz").read_bytes()).split(b"\n")[0]
    assert set(first[:8]) == set(line.decode().split()[1:])


def test_a_damaged_gzip_file_is_an_error(tmp_path: Path) -> None:
    interactions(tmp_path)
    (tmp_path / "train.txt.gz").write_bytes((tmp_path / "train.txt.gz").read_bytes()[:50])
    with pytest.raises(DataError, match=r"train\.txt\.gz"):
        read(tmp_path)


@pytest.mark.slow
def test_accuracy_of_sequences_ends_with_its_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cycles(tmp_path / "circle")
    recipe = shorter(tmp_path, "sequences", epochs=12, batch=16)
    accuracy.main(["--format", "sequences", "--data-dir", str(tmp_path / "circle"), "--recipe", recipe, "--seeds", "2"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["dataset"], found["seeds"]) == ("circle", 2)
    assert found["recall@10"] > 0.9, (
        "one of 13 unseen items is right; a random list of ten finds it in 77% of the lists"
    )
    assert found["ndcg@10"] > 0.7, "a random order would have .42"


@pytest.mark.slow
def test_accuracy_of_interactions_counts_what_the_test_file_names_in_vain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interactions(tmp_path / "circles")
    recipe = "interactions"
    options = ["--format", "interactions", "--data-dir", str(tmp_path / "circles"), "--recipe", recipe, "--seeds", "1"]
    accuracy.main(options)
    printed = capsys.readouterr().out
    assert "test_users_unknown 1" in printed
    assert "test_items_unknown 1" in printed
    found = json.loads(printed.splitlines()[-1])
    assert found["recall@20"] > 0.75, "a random twenty of the 32 unseen items would have .62"
    assert found["ndcg@20"] > 0.3, "a random order of all 32 unseen items would have .2"


def shorter(folder: Path, name: str, *, epochs: int, batch: int) -> str:
    """The shipped recipe with few epochs and small steps; returns the path."""
    lines = []
    for line in (Path(accuracy.__file__).parents[1] / "training" / "recipes" / f"{name}.toml").read_text().splitlines():
        key = line.split(" = ")[0]
        lines.append({"epochs": f"epochs = {epochs}", "batch": f"batch = {batch}"}.get(key, line))
    path = folder / f"{name}.toml"
    path.write_text("\n".join(lines))
    return str(path)
