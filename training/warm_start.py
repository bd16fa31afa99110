"""Warm start: towers that go on from an earlier model, though items came and went and the vocabulary changed.

Rows are carried over by name: items by id, attributes by token, event types and numbers by their names. A new item
begins with the zero id vector, so it stands on its content; a new attribute begins where its hashed bucket stood.

Shapes: N items, D dimensions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from embeddings.bundle_reader import open_bundle
from embeddings.errors import DataError, InputError, NotFound, TrainingError
from embeddings.features import FeatureSpec
from embeddings.ids import UNKNOWN, IdMap, bucket
from embeddings.manifest import MANIFEST
from embeddings.releases import CURRENT, current_release
from embeddings.two_tower import TowerConfig, TwoTower
from training.about import CONFIG, DONE, FEATURES, ITEMS, TOWERS, About, Effort
from training.config import parse_config
from training.dataset import Dataset

FREE = {"dropout", "id_dropout"}
"""Settings of the towers that may change between two trainings: no weight depends on them."""

MEMBER = re.compile(r"^users\.members\.\d+\.")
"""How the weights of towers side by side begin, where that of one by itself begins with `users.`."""

COLD = "cold training"
"""Under this name a release's metrics keep what the last training from nothing took."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A trained model to go on from."""

    name: str
    config: TowerConfig
    spec: FeatureSpec
    ids: IdMap
    weights: dict[str, Tensor]
    cold: Effort | None


@dataclass(frozen=True, kw_only=True)
class Transplant:
    """Weights for new towers, and how many items were kept, are new, and were retired."""

    weights: dict[str, Tensor]
    kept: int
    new: int
    retired: int


def open_origin(path: Path) -> Origin:
    """Open a run folder, a release, or a folder of releases (the current one); raises `NotFound` if it is none."""
    if (path / DONE).is_file():
        return _from_run(path)
    if (path / CURRENT).is_file():
        path = path / str(current_release(path))
    if not (path / MANIFEST).is_file():
        raise NotFound(f"{path} is neither a finished run nor a release to start from", field="from")
    bundle = open_bundle(path)
    cold = bundle.manifest.metrics.get(COLD)
    return Origin(
        name=bundle.name,
        config=bundle.manifest.towers,
        spec=bundle.spec,
        ids=bundle.ids,
        weights=bundle.towers.state_dict(),
        cold=Effort(epochs=int(cold["epochs"]), seconds=cold["seconds"], ndcg=cold["ndcg@10"]) if cold else None,
    )


def transplant(origin: Origin, towers: TwoTower, data: Dataset) -> Transplant:
    """Weights of `towers`, untrained ones for `data`, with everything taken over that the origin knows by name.

    Raises `TrainingError` that names the first setting in which the architectures differ.
    """
    _require_same_shape(origin, towers.items.config, data.spec)
    old, new = origin.spec, data.spec
    known = {token: row for row, token in enumerate(old.tokens)}
    token_rows = [
        *(known.get(token, len(old.tokens) + bucket(token, old.unknown_buckets)) for token in new.tokens),
        *range(len(old.tokens), old.token_count),
    ]
    item_rows = origin.ids.rows(data.items.all)
    names = sorted(new.event_types)
    event_rows = [0, *(old.event_row(name) if name in old.event_types else UNKNOWN for name in names)]
    id_rows = [0, *(row + 1 if row != UNKNOWN else UNKNOWN for row in item_rows.tolist())]  # the first row is nobody's
    by_name: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "items.ids.weight": lambda was, now: _rows(was, torch.zeros_like(now), id_rows),
        "items.tokens.weight": lambda was, now: _rows(was, now, token_rows),
        "items.numbers.weight": lambda was, now: _columns(was, now, old, new),
        "users.types.weight": lambda was, now: _rows(was, now, event_rows),
    }
    weights = {}
    for name, now in towers.state_dict().items():
        was, plain = origin.weights.get(name), MEMBER.sub("users.", name)
        if was is not None and plain in by_name:
            weights[name] = by_name[plain](was, now)
        elif was is not None and was.shape == now.shape:
            weights[name] = was.clone()
        elif plain in by_name:
            weights[name] = now  # the origin had no such attribute at all
        else:
            raise TrainingError(
                f"{origin.name} has no weights of shape {tuple(now.shape)} for {name}; train from nothing"
            )
    kept = int((item_rows != UNKNOWN).sum())
    return Transplant(weights=weights, kept=kept, new=len(item_rows) - kept, retired=len(origin.ids) - kept)


def _require_same_shape(origin: Origin, config: TowerConfig, spec: FeatureSpec) -> None:
    was = {f"towers.{name}": value for name, value in origin.config.model_dump(exclude=FREE).items()}
    now = {f"towers.{name}": value for name, value in config.model_dump(exclude=FREE).items()}
    for name in ("text_buckets", "context_buckets", "unknown_buckets"):
        was[f"features.{name}"], now[f"features.{name}"] = getattr(origin.spec, name), getattr(spec, name)
    for name, value in now.items():
        if was[name] != value:
            raise TrainingError(
                f"cannot start from {origin.name}: {name} was {was[name]}, now it is {value}; a warm start keeps the "
                "architecture, train from nothing to change it"
            )


def _rows(was: Tensor, now: Tensor, rows: list[int]) -> Tensor:
    """`now`, with row i replaced by row `rows[i]` of `was`, where there is one."""
    found, place = now.clone(), torch.tensor(rows, dtype=torch.int64)
    inside = place != UNKNOWN
    found[inside] = was[place[inside]]
    return found


def _columns(was: Tensor, now: Tensor, old: FeatureSpec, new: FeatureSpec) -> Tensor:
    """Weights [D, M] of the numbers by name, rescaled to the spread that the numbers have today."""
    found, known = now.clone(), {column.name: (at, column) for at, column in enumerate(old.numbers)}
    for at, column in enumerate(new.numbers):
        before = known.get(column.name)
        if before is not None and before[1].log == column.log:
            found[:, at] = was[:, before[0]] * (column.scale / before[1].scale)
    return found


def _from_run(folder: Path) -> Origin:
    try:
        about = About.model_validate_json((folder / DONE).read_bytes())
        config = parse_config(json.loads((folder / CONFIG).read_bytes()), where=str(folder / CONFIG))
        return Origin(
            name=str(folder),
            config=config.towers,
            spec=FeatureSpec.model_validate_json((folder / FEATURES).read_bytes()),
            ids=IdMap(json.loads((folder / ITEMS).read_bytes())),
            weights=load_file(folder / TOWERS),
            cold=about.cold,
        )
    except (ValidationError, ValueError, OSError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise DataError(f"{folder} holds a file that is not of a run: {error}") from None
