"""Checkpoints: atomic, whole, and only for the training they belong to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from embeddings.errors import TrainingError
from training.checkpoint import FILE, Checkpoint, load_checkpoint, save_checkpoint

IDENTITY = {"config": {"towers": {"dim": 8}, "betas": (0.9, 0.98)}, "data": "abc", "seed": 0}


def example() -> Checkpoint:
    tensors = {
        "towers.a": torch.arange(6.0).reshape(2, 3),
        "best.a": torch.zeros(2),
        "random.cpu": torch.get_rng_state(),
    }
    return Checkpoint(identity=IDENTITY, tensors=tensors, state={"epoch": 3, "loss": 0.1 + 0.2, "best": None, "é": "ü"})


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "not there yet"
    save_checkpoint(folder, example())
    found = load_checkpoint(folder, identity=IDENTITY)
    assert found is not None
    assert found.state == example().state
    assert set(found.tensors) == set(example().tensors)
    assert torch.equal(found.part("towers.")["a"], example().tensors["towers.a"])
    assert torch.equal(found.tensors["random.cpu"], torch.get_rng_state())


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path, identity=IDENTITY) is None


def test_a_write_that_was_cut_off_leaves_the_old_one(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, example())
    (tmp_path / f".{FILE}-4711").write_bytes(b"half a file")
    assert load_checkpoint(tmp_path, identity=IDENTITY) is not None
    assert not [path for path in tmp_path.iterdir() if path.name.endswith("-") or path.suffix == ".tmp"]


def test_a_write_that_fails_says_so_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, example())

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("embeddings.durable.flush", full)
    with pytest.raises(TrainingError, match="No space left"):
        save_checkpoint(tmp_path, example())
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert load_checkpoint(tmp_path, identity=IDENTITY) is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed was 0, now it is 1"),
        ({"data": "abd"}, "data was abc, now it is abd"),
        ({"config": {"towers": {"dim": 16}, "betas": (0.9, 0.98)}}, "config.towers.dim was 8, now it is 16"),
        ({"config": {"towers": {}, "betas": (0.9, 0.98)}}, "config.towers.dim was 8, now it is None"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    save_checkpoint(tmp_path, example())
    with pytest.raises(TrainingError, match=message):
        load_checkpoint(tmp_path, identity=IDENTITY | change)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, example())
    path = tmp_path / FILE
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(TrainingError, match="not a checkpoint that can be read"):
            load_checkpoint(tmp_path, identity=IDENTITY)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(TrainingError, match="not a checkpoint that can be read"):
        load_checkpoint(tmp_path, identity=IDENTITY)
