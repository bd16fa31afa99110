"""Losses: softmax cross-entropy of queries against the catalogue, whole or sampled.

The full softmax never holds the matrix of all logits: it works through blocks of positions, computes the gradient of a
block while its logits are there, and keeps only sums. The sampled softmax estimates the same sum from a few items.

Shape suffixes: P positions, N items, M sampled items, D dimensions.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MEGABYTE = 2**20


def full_softmax(
    queries_PD: Tensor,
    items_ND: Tensor,
    targets_P: Tensor,
    *,
    hidden_at: Tensor | None = None,
    hidden_rows: Tensor | None = None,
    temperature: float = 1.0,
    chunk_mb: int = 8,
) -> Tensor:
    """Mean cross-entropy of P positions over all N items, differentiable in queries and items.

    The pairs (`hidden_at`, `hidden_rows`), sorted by position, take items out of the sum of their position: those that a
    list would not show. A target must not be hidden from its own position. Equal to `F.cross_entropy` on the whole
    matrix; memory is that of `chunk_mb` of logits and of the two gradients.
    """
    block = max(1, chunk_mb * MEGABYTE // (4 * len(items_ND)))
    loss: Tensor = _FullSoftmax.apply(queries_PD, items_ND, targets_P, hidden_at, hidden_rows, temperature, block)  # type: ignore[no-untyped-call]
    return loss


class _FullSoftmax(torch.autograd.Function):
    # The gradient of cross-entropy in the logits is softmax - onehot, known as soon as the logits are. Computing it in
    # the forward pass saves the second product that checkpointing would need, and nothing of size P x N is kept.

    @staticmethod
    def forward(
        ctx: Any,
        queries_PD: Tensor,
        items_ND: Tensor,
        targets_P: Tensor,
        hidden_at: Tensor | None,
        hidden_rows: Tensor | None,
        temperature: float,
        block: int,
    ) -> Tensor:
        # Autocast does not reach into a custom function: the products run in the narrower type only if asked to.
        kind = queries_PD.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else queries_PD.dtype
        queries_PD, items_ND = (queries_PD / temperature).to(dtype), items_ND.to(dtype)
        P, total = len(queries_PD), queries_PD.new_zeros((), dtype=torch.float32)
        grad_q = torch.zeros_like(queries_PD, dtype=torch.float32)
        grad_i = torch.zeros_like(items_ND, dtype=torch.float32)
        edges = [*range(0, P, block), P]
        cuts = _cuts(hidden_at, edges)
        for start, end, (low, high) in zip(edges[:-1], edges[1:], cuts, strict=True):
            q, wanted = queries_PD[start:end], targets_P[start:end]
            logits = (q @ items_ND.T).float()
            if hidden_at is not None and hidden_rows is not None:
                logits[hidden_at[low:high] - start, hidden_rows[low:high]] = -torch.inf
            right, top = logits.gather(1, wanted[:, None]), logits.amax(1, keepdim=True)
            # From here on the block holds exp(logit - top), and 1 / sum is applied on the narrow side of the products:
            # every pass over P x N costs as much as the products themselves.
            mass = logits.sub_(top).exp_()
            sums = mass.sum(1, keepdim=True)
            total += (sums.log() + (top - right)).sum()
            mass, share = mass.to(dtype), sums.reciprocal()
            grad_q[start:end] = (mass @ items_ND) * share - items_ND[wanted]
            grad_i += (mass.T @ (q * share).to(dtype)).float()
        grad_i.index_add_(0, targets_P, queries_PD.float(), alpha=-1.0)
        ctx.save_for_backward(grad_q / (P * temperature), grad_i / P)
        return total / P

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_q, grad_i = ctx.saved_tensors
        return grads[0] * grad_q, grads[0] * grad_i, None, None, None, None, None


def sampled_softmax(
    queries_PD: Tensor,
    targets_PD: Tensor,
    candidates_MD: Tensor,
    *,
    targets_P: Tensor,
    candidates_M: Tensor,
    expected_M: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """Mean cross-entropy of each target against M sampled items that all positions share.

    `targets_P` and `candidates_M` are rows, `targets_PD` and `candidates_MD` their vectors. `expected_M` is how often
    each sampled item was to be expected in such a sample; a negative counts by the inverse (Bengio and Senécal, 2008),
    so that the sum estimates the one over the whole catalogue. The target itself is certain, hence not corrected
    (Khrylchenko et al., 2025), and no candidate counts where it is the target.
    """
    right_P1 = (queries_PD * targets_PD).sum(-1, keepdim=True).float() / temperature
    logits_PM = (queries_PD @ candidates_MD.T).float() / temperature - expected_M.log()
    logits_PM = logits_PM.masked_fill(targets_P[:, None] == candidates_M, -torch.inf)
    logits = torch.cat([right_P1, logits_PM], dim=1)
    return F.cross_entropy(logits, torch.zeros_like(targets_P))


def draw_candidates(
    targets_P: Tensor, *, items: int, negatives: int, in_batch: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Rows [M] of sampled items, and how often each was to be expected in the sample: [M].

    `negatives` are drawn uniformly from the catalogue, up to `in_batch` from the targets of the batch. An item comes from
    the second part in proportion to its share of the targets: without that correction (logQ, Yi et al., 2019) popular
    items would be punished for being popular.
    """
    device = targets_P.device
    uniform = torch.randint(items, (negatives,), device=device, generator=generator)
    expected = torch.full((negatives,), negatives / items, device=device)
    drawn = min(in_batch, len(targets_P))
    if not drawn:
        return uniform, expected
    chosen = targets_P[torch.randperm(len(targets_P), device=device, generator=generator)[:drawn]]
    rows = torch.cat([uniform, chosen])
    known, count = torch.unique(targets_P, return_counts=True)
    place = torch.searchsorted(known, rows).clamp(max=len(known) - 1)
    share = torch.where(known[place] == rows, count[place] / len(targets_P), 0.0)
    return rows, negatives / items + drawn * share


def _cuts(hidden_at: Tensor | None, edges: list[int]) -> list[tuple[int, int]]:
    if hidden_at is None:
        return [(0, 0)] * (len(edges) - 1)
    at = torch.searchsorted(hidden_at, torch.tensor(edges, device=hidden_at.device)).tolist()
    return list(itertools.pairwise(at))
