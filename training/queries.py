"""Queries: targets as vectors of the user tower, and the best rows for each of them over the whole catalogue.

Validation, evaluation and the ranker's examples all come through here; the vectors are those that the service computes
one at a time with `Bundle.encode_user`.

Shapes: Q queries, D dimensions, N items, K places, C context tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from embeddings.arrays import Floats, Ints
from embeddings.errors import InputError
from embeddings.features import ItemFeatures
from embeddings.ids import UNKNOWN
from embeddings.two_tower import TwoTower
from training.dataset import Dataset, Targets
from training.metrics import score
from training.windows import context_matrix, event_gaps, pad

CHUNK_CELLS = 1 << 24
"""Scores held at once by `rank_all`: 64 MB."""


@torch.inference_mode()
def encode_queries(data: Dataset, towers: TwoTower, matrix: Floats, targets: Targets, *, batch: int = 512) -> Floats:
    """Query vectors [Q, D] of the targets, each from the history before it and in its own context.

    `matrix` [N, D] are the item vectors that histories are read as. Equal to `Bundle.encode_user` one at a time. Runs
    where the towers are; they are left in the mode they came in.
    """
    users, device = towers.users, towers.device
    starts = np.maximum(data.offsets[targets.users], targets.ends - users.config.max_history)
    tokens = target_context(data, targets)
    gaps, vectors = event_gaps(data), torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float32)).to(device)
    queries = np.zeros((len(targets), users.config.dim), dtype=np.float32)
    was_training = users.training
    users.eval()
    order = np.argsort(targets.ends - starts, kind="stable")  # similar lengths together: less padding
    for at in range(0, len(order), batch):
        chosen = order[at : at + batch]
        lengths = torch.from_numpy(targets.ends[chosen] - starts[chosen]).to(device)
        padded = pad(data, gaps, starts[chosen], targets.ends[chosen])
        rows, types, since = (torch.from_numpy(part).to(device) for part in padded)
        states = users(vectors[rows], types, since, lengths)[torch.arange(len(chosen), device=device), lengths]
        context = torch.from_numpy(tokens[chosen]).to(device)
        queries[chosen] = users.query(states, context).float().cpu().numpy()
    users.train(was_training)
    return queries


def validate(data: Dataset, towers: TwoTower, catalogue: ItemFeatures, targets: Targets) -> dict[str, float]:
    """Recall and NDCG at 10 of the towers over the whole catalogue, without the items of the histories."""
    matrix = towers.items.encode(catalogue)
    queries = encode_queries(data, towers, matrix, targets)
    ranked = rank_all(queries, matrix, seen_items(data, targets), 10, device=towers.device)
    return score(ranked, (targets.bounds, targets.rows), k=[10], metrics=["recall", "ndcg"]).means


def target_context(data: Dataset, targets: Targets) -> Ints:
    """Context tokens [Q, C] of the requests behind the targets."""
    before = targets.ends > data.offsets[targets.users]
    last = np.where(before, data.times[np.maximum(targets.ends - 1, 0)], np.nan)
    return context_matrix(data, targets.events, targets.times, last)


def seen_items(data: Dataset, targets: Targets) -> list[Ints]:
    """Items of each target's history, in order of the events, repeats included: what `rank_all` leaves out."""
    starts = data.offsets[targets.users]
    return [data.rows[start:end] for start, end in zip(starts.tolist(), targets.ends.tolist(), strict=True)]


@torch.inference_mode()
def rank_all(
    queries: Floats, matrix: Floats, seen: Sequence[Ints] | None, k: int, *, device: str | torch.device = "cpu"
) -> Ints:
    """Rows [Q, k] of the items with the largest dot products, best first, without those of `seen`; exact.

    Where fewer than k items are left, the list ends in `UNKNOWN`. `seen` holds one array of rows a query, or is None.
    """
    if k < 1:
        raise InputError(f"k is {k}, must be at least 1", field="k")
    if seen is not None and len(seen) != len(queries):
        raise InputError(f"{len(queries)} queries, but {len(seen)} lists of seen items", field="seen")
    items = torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float32)).to(device)
    asked = torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32)).to(device)
    N, ranked = len(matrix), np.full((len(queries), k), UNKNOWN, dtype=np.int64)
    step, places = max(1, CHUNK_CELLS // max(1, N)), min(k, N)
    for start in range(0, len(queries), step):
        scores = asked[start : start + step] @ items.T
        if seen is not None:
            known = seen[start : start + step]
            at = np.repeat(np.arange(len(known)), [len(rows) for rows in known])
            scores[torch.from_numpy(at).to(device), torch.from_numpy(np.concatenate(known)).to(device)] = -torch.inf
        best = scores.topk(places, dim=1)
        rows = best.indices.masked_fill(torch.isneginf(best.values), UNKNOWN)
        ranked[start : start + step, :places] = rows.cpu().numpy()
    return ranked
