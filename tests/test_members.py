"""Towers side by side: each learns as if it were alone, and one dot product adds up what they say."""

from __future__ import annotations

import numpy as np
import torch

from embeddings.bundle import build_towers
from embeddings.two_tower import TowerConfig, UserEnsemble
from tests.histories import cycle
from tests.test_loop import CPU, VIEW, hit_rate, recipe
from training.contenders import item_matrix
from training.dataset import leave_last_out
from training.loop import train
from training.objective import Objective
from training.queries import encode_queries, rank_all, seen_items
from training.windows import Windows


def test_members_learn_it_each_and_together() -> None:
    data = cycle(event_types=VIEW)
    split = leave_last_out(data)
    config = recipe(towers={"dim": 32, "members": 2}, epochs=25, patience=25)
    trained = train(data, split, config, CPU)
    assert hit_rate(data, trained, split.test) > 0.95
    matrix, targets = item_matrix(data, trained.towers), split.test
    queries = encode_queries(data, trained.towers, matrix, targets)
    for own, items in zip(np.split(queries, 2, axis=1), np.split(matrix, 2, axis=1), strict=True):
        ranked = rank_all(own, items, seen_items(data, targets), 1)
        assert (ranked[:, 0] == targets.rows).mean() > 0.95
    assert not np.allclose(*np.split(matrix, 2, axis=1), atol=0.1), "two towers, not one twice"


def test_members_learn_as_if_each_were_alone() -> None:
    data = cycle(event_types=VIEW)
    split = leave_last_out(data)
    config = recipe(towers={"dropout": 0.0, "id_dropout": 0.0})
    pair = TowerConfig.model_validate(config.towers.model_dump() | {"dim": 2 * config.towers.dim, "members": 2})
    catalogue = data.spec.item_features(data.item_rows(), np.arange(len(data.items)))
    windows = Windows(data, split, max_history=pair.max_history, batch=16, hide_seen=True)
    batch = windows.collate(windows.epoch(0, 1)[0])
    torch.manual_seed(1)
    both = build_towers(pair, data.spec, items=len(data.items))
    Objective(both, catalogue, config.loss).loss(batch).backward()
    assert isinstance(both.users, UserEnsemble)
    for at, member in enumerate(both.users.members):
        part = slice(at * config.towers.dim, (at + 1) * config.towers.dim)
        alone = build_towers(pair.alone, data.spec, items=len(data.items))
        alone.users.load_state_dict(member.state_dict())
        alone.items.load_state_dict(
            {
                name: weight[:, part] if weight.shape[-1] == pair.dim else weight[part]
                for name, weight in both.items.state_dict().items()
            }
        )
        Objective(alone, catalogue, config.loss).loss(batch).backward()
        whole = dict(member.named_parameters())
        for name, weight in alone.users.named_parameters():
            if weight.grad is not None:
                torch.testing.assert_close(whole[name].grad * 2, weight.grad, msg=name)
