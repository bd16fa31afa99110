"""Checkpoints: everything a training needs to go on as if it had never stopped, in one file.

The file is safetensors: tensors by name, and the rest as JSON in its header, so that one atomic rename publishes both.
It holds no pickle. A checkpoint belongs to one configuration, one data set and one seed, and is refused elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from embeddings.durable import put
from embeddings.errors import TrainingError

FILE = "checkpoint.safetensors"
FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """`identity` says whose checkpoint it is; `tensors` and the JSON-able `state` are what the loop put in."""

    identity: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose names begin with a prefix, without it."""
        chosen = {name: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}
        return {name.removeprefix(prefix): tensor for name, tensor in chosen.items()}


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write atomically: a reader finds the old checkpoint or the new one, whenever the machine stops."""
    folder.mkdir(parents=True, exist_ok=True)
    header = {"format": FORMAT, "identity": checkpoint.identity, "state": checkpoint.state}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in checkpoint.tensors.items()}
    try:
        put(folder / FILE, lambda path: save_file(tensors, path, metadata={"bespoke": json.dumps(header)}))
    except OSError as error:
        raise TrainingError(f"the checkpoint in {folder} could not be written: {error}") from error


def load_checkpoint(folder: Path, *, identity: Mapping[str, Any]) -> Checkpoint | None:
    """Read the checkpoint of a folder, None if there is none.

    Raises `TrainingError` if it is damaged, or belongs to another configuration, data set or seed.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["bespoke"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            found = Checkpoint(identity=header["identity"], tensors=tensors, state=header["state"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{path} is not a checkpoint that can be read: {error}") from None
    if header.get("format") != FORMAT:
        raise TrainingError(f"{path} has format {header.get('format')}, this version reads {FORMAT}")
    differing = _first_difference(dict(found.identity), json.loads(json.dumps(dict(identity))))
    if differing:
        raise TrainingError(f"{path} belongs to another training, {differing}; use another folder, or do not resume")
    return found


def _first_difference(theirs: Any, ours: Any, path: str = "") -> str:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted(theirs.keys() | ours.keys()):
            found = _first_difference(theirs.get(key), ours.get(key), f"{path}.{key}" if path else key)
            if found:
                return found
        return ""
    return "" if theirs == ours else f"{path} was {theirs}, now it is {ours}"
