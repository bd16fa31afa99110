"""The optimizer: by rows it moves the rows of a step as AdamW would, leaves the others alone, and can be taken up again."""

from __future__ import annotations

import pytest
import torch

from embeddings.two_tower import ItemTower, TowerConfig, TwoTower, UserTower
from training.config import OptimisationConfig
from training.optimizer import Optimizer

USED = torch.tensor([3, 5])


def make_towers() -> TwoTower:
    config = TowerConfig(dim=4, layers=1, heads=1, max_history=3)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        items = ItemTower(config, items=9, tokens=3, words=0, numbers=0)
        return TwoTower(items, UserTower(config, event_types=1, context_buckets=0))


def run(towers: TwoTower, optimizer: Optimizer, steps: range) -> None:
    """Take steps whose loss moves some rows of the id table, and the start of every history."""
    for step in steps:
        optimizer.zero_grad()
        ids = towers.items.ids
        assert ids is not None
        ((ids(USED) * (step + 1.0)).sum() + towers.users.start.pow(2).sum()).backward()  # type: ignore[union-attr, operator, no-untyped-call]
        optimizer.clip()
        optimizer.step(step)


def table(towers: TwoTower) -> torch.Tensor:
    assert towers.items.ids is not None
    return towers.items.ids.weight.detach().clone()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_rows_that_every_step_uses_move_as_adamw_moves_them(decay: float) -> None:
    settings = OptimisationConfig(learning_rate=0.1, weight_decay=decay, warmup_steps=2, clip=1e6)
    dense, sparse = make_towers(), make_towers()
    begun = table(sparse)
    run(dense, Optimizer(dense, settings), range(4))
    run(sparse, Optimizer(sparse, settings, by_rows=True), range(4))
    torch.testing.assert_close(table(sparse)[USED], table(dense)[USED], atol=1e-5, rtol=0)
    others = [row for row in range(len(begun)) if row not in USED.tolist()]
    assert torch.equal(table(sparse)[others], begun[others])
    assert torch.equal(dense.users.start, sparse.users.start)


@pytest.mark.parametrize("by_rows", [False, True])
def test_gradients_are_shortened_together(by_rows: bool) -> None:
    towers = make_towers()
    optimizer = Optimizer(towers, OptimisationConfig(clip=0.5), by_rows=by_rows)
    (ids := towers.items.ids)(torch.tensor([1, 1, 2])).sum().backward()  # type: ignore[misc, no-untyped-call]
    # Row 1 was used twice: its gradient is 2 in each of four dimensions, that of row 2 is 1.
    assert optimizer.clip() == pytest.approx((4 * 4 + 4 * 1) ** 0.5)
    assert ids is not None
    assert ids.weight.grad is not None
    assert float(ids.weight.grad.to_dense().norm()) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("by_rows", [False, True])
def test_it_goes_on_as_if_nothing_had_happened(by_rows: bool) -> None:
    settings = OptimisationConfig(learning_rate=0.1, weight_decay=0.1)
    whole = make_towers()
    run(whole, Optimizer(whole, settings, by_rows=by_rows), range(9))
    part = make_towers()
    optimizer = Optimizer(part, settings, by_rows=by_rows)
    run(part, optimizer, range(4))
    kept = {name: value.clone() for name, value in optimizer.tensors().items()}
    again = make_towers()
    again.load_state_dict(part.state_dict())
    optimizer = Optimizer(again, settings, by_rows=by_rows)
    optimizer.restore(kept)
    run(again, optimizer, range(4, 9))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(whole.parameters(), again.parameters(), strict=True))


def test_a_norm_that_is_not_finite_is_told() -> None:
    towers = make_towers()
    optimizer = Optimizer(towers, OptimisationConfig(), by_rows=True)
    (towers.items.ids(USED).sum() * torch.inf).backward()  # type: ignore[misc, no-untyped-call]
    assert not torch.isfinite(torch.tensor(optimizer.clip()))
