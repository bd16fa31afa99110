"""Losses against the plain cross-entropy on the whole matrix of logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from training.losses import draw_candidates, full_softmax, sampled_softmax

P, N, D = 60, 37, 8


def example(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Queries, items, targets, and pairs of hidden items; doubles, so that a wrong formula cannot hide in rounding."""
    torch.manual_seed(seed)
    queries = torch.randn(P, D, dtype=torch.float64, requires_grad=True)
    items = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(N, (P,))
    at = torch.arange(P).repeat_interleave(6)
    rows = torch.randint(N, (len(at),))
    kept = rows != targets[at]
    return queries, items, targets, at[kept], rows[kept]


def gradients(loss: Tensor, *of: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, of))


@pytest.mark.parametrize("hide", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_full_softmax_equals_cross_entropy(hide: bool, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, items, targets, at, rows = example()
    logits = queries @ items.T / temperature
    if hide:
        mask = torch.zeros(P, N, dtype=torch.bool)
        mask[at, rows] = True
        logits = logits.masked_fill(mask, -torch.inf)
    expected = 3.0 * F.cross_entropy(logits, targets)
    # A megabyte holds this example whole; a tall catalogue of zeros would not be the same example.
    monkeypatch.setattr("training.losses.MEGABYTE", 4 * N * 7)
    found = 3.0 * full_softmax(
        queries,
        items,
        targets,
        hidden_at=at if hide else None,
        hidden_rows=rows if hide else None,
        temperature=temperature,
        chunk_mb=1,
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients(found, queries, items), gradients(expected, queries, items), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_full_softmax_survives_large_logits() -> None:
    queries, items = torch.full((2, 4), 100.0, requires_grad=True), torch.full((3, 4), 100.0)
    loss = full_softmax(queries, items, torch.tensor([0, 2]))
    torch.testing.assert_close(loss, torch.log(torch.tensor(3.0)))
    assert torch.isfinite(gradients(loss, queries)[0]).all()


def test_sampled_softmax_with_every_item_once_is_the_full_softmax() -> None:
    queries, items, targets, _, _ = example()
    found = sampled_softmax(
        queries,
        items[targets],
        items,
        targets_P=targets,
        candidates_M=torch.arange(N),
        expected_M=torch.ones(N),
    )
    torch.testing.assert_close(found, F.cross_entropy(queries @ items.T, targets).float())


@pytest.mark.parametrize("in_batch", [0, 1000])
def test_the_sampled_sum_estimates_the_full_sum(in_batch: int) -> None:
    queries, items, targets, _, _ = example()
    queries, items, targets = queries[:2].detach(), items.detach(), torch.cat([targets, torch.full((40,), 5)])
    wanted = torch.tensor([0, 1])
    others = torch.ones(2, N, dtype=torch.bool).scatter(1, wanted[:, None], False)
    expected = ((queries @ items.T).exp() * others).sum(1)
    generator = torch.Generator().manual_seed(0)
    sums = torch.zeros(2, dtype=torch.float64)
    for _ in range(300):
        rows, often = draw_candidates(targets, items=N, negatives=200, in_batch=in_batch, generator=generator)
        weights = (queries @ items[rows].T).exp() / often
        sums += (weights * (rows != wanted[:, None])).sum(1) / 300
    torch.testing.assert_close(sums, expected, rtol=0.03, atol=0.0)


def test_expected_counts_are_those_observed() -> None:
    targets = torch.tensor([3] * 30 + [4] * 10)
    generator = torch.Generator().manual_seed(0)
    counts, expected = torch.zeros(6), torch.zeros(6)
    for _ in range(500):
        rows, often = draw_candidates(targets, items=6, negatives=12, in_batch=20, generator=generator)
        counts += torch.bincount(rows, minlength=6) / 500
        expected[rows] = often
    torch.testing.assert_close(counts, expected, rtol=0.05, atol=0.0)


def test_a_candidate_that_is_the_target_is_no_negative() -> None:
    query = torch.tensor([[1.0, 0.0]])
    item = torch.tensor([[5.0, 0.0]])
    loss = sampled_softmax(
        query,
        item,
        item,
        targets_P=torch.tensor([7]),
        candidates_M=torch.tensor([7]),
        expected_M=torch.ones(1),
    )
    assert loss.item() == 0.0


def test_full_softmax_in_bfloat16_stays_close_and_gives_float_gradients() -> None:
    queries, items, targets, at, rows = example()
    queries, items = queries.detach().float().requires_grad_(), items.detach().float().requires_grad_()
    exact = full_softmax(queries, items, targets, hidden_at=at, hidden_rows=rows)
    with torch.autocast("cpu", torch.bfloat16):
        close = full_softmax(queries, items, targets, hidden_at=at, hidden_rows=rows)
    assert close.dtype == torch.float32
    torch.testing.assert_close(close, exact, rtol=0.02, atol=0.0)
    for ours, theirs in zip(gradients(close, queries, items), gradients(exact, queries, items), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_full_softmax_never_holds_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    product = torch.Tensor.__matmul__

    def watched(left: Tensor, right: Tensor) -> Tensor:
        made = product(left, right)
        held.append(made.numel())
        return made

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    queries, items = torch.randn(700, 8, requires_grad=True), torch.randn(2048, 8, requires_grad=True)
    gradients(full_softmax(queries, items, torch.randint(2048, (700,)), chunk_mb=1), queries, items)
    assert max(held) * 4 <= 2**20 < 700 * 2048 * 4
