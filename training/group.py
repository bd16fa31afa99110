"""A group: workers that train one model together, each on its part of every batch.

The weights of all workers stay equal: they begin equal, and every update is made of the gradients of all. One worker
alone is a group too, which has nothing to exchange. Processes find each other through `torch.distributed`, which
whoever starts them has set up.

Shape suffixes: B windows of a batch, P positions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, distributed

from embeddings.arrays import Ints


class Group:
    """One worker by itself."""

    rank = 0
    size = 1

    def share(self, windows: Ints) -> Ints:
        """The part of a batch's windows [B, 3] that this worker works on, never empty."""
        return windows

    def gather(self, rows_P: Tensor) -> Tensor:
        """The rows of all workers, one worker after the other."""
        return rows_P

    def average(self, model: torch.nn.Module, loss: float, count: int) -> tuple[float, int]:
        """Make every gradient, and the loss, the mean over the positions of all workers; also returns their number."""
        return loss, count

    def any(self, here: bool) -> bool:
        """Whether something is so at any worker."""
        return here

    def agree(self, metrics: dict[str, float]) -> dict[str, float]:
        """The metrics as the first worker has them: what follows from them must follow everywhere."""
        return metrics


class Workers(Group):
    """One process among others, as `torch.distributed` knows them; `device` is where its model is.

    Everything that is exchanged lies there: NCCL takes nothing else.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()

    def share(self, windows: Ints) -> Ints:
        """Every `size`-th window; where there are fewer windows than workers, some are read twice."""
        mine = windows[self.rank :: self.size]
        return mine if len(mine) else windows[[self.rank % len(windows)]]

    def gather(self, rows_P: Tensor) -> Tensor:
        """The rows [P] or vectors [P, D] of all workers, one worker after the other; their numbers may differ."""
        counts = [torch.zeros(1, dtype=torch.int64, device=rows_P.device) for _ in range(self.size)]
        distributed.all_gather(counts, torch.tensor([len(rows_P)], device=rows_P.device))
        longest = int(torch.cat(counts).max())
        padded = torch.zeros(longest, *rows_P.shape[1:], dtype=rows_P.dtype, device=rows_P.device)
        padded[: len(rows_P)] = rows_P
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        distributed.all_gather(parts, padded)
        return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])

    def average(self, model: torch.nn.Module, loss: float, count: int) -> tuple[float, int]:
        """One sum over all workers: gradients, the loss and the count, and which parameters have a gradient at all."""
        every = [weight for weight in model.parameters() if weight.requires_grad]
        sparse = [weight for weight in every if weight.grad is not None and weight.grad.is_sparse]
        weights = [weight for weight in every if all(weight is not other for other in sparse)]
        device = weights[0].device
        grads = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        used = torch.tensor([float(weight.grad is not None) for weight in weights], device=device)
        flat = torch.cat([count * grad.float().reshape(-1) for grad in grads])
        total = torch.cat([flat, used, torch.tensor([count * loss, float(count)], device=device)])
        distributed.all_reduce(total)
        summed, used, (loss_sum, counted) = total[: len(flat)], total[len(flat) : -2], total[-2:].tolist()
        at = 0
        for weight, anywhere in zip(weights, used.tolist(), strict=True):
            own = summed[at : at + weight.numel()].view_as(weight) / counted
            weight.grad = own.to(weight.dtype) if anywhere else None
            at += weight.numel()
        for weight in sparse:  # every step has one at every worker: each reads some items
            weight.grad = self._sum_rows(weight, count) / counted
        return loss_sum / counted, int(counted)

    def _sum_rows(self, weight: Tensor, count: int) -> Tensor:
        """The sparse gradients of all workers, `count` times each, as one."""
        grad = weight.grad.coalesce()  # type: ignore[union-attr]
        rows, values = self.gather(grad.indices()[0]), self.gather(count * grad.values())
        return torch.sparse_coo_tensor(rows[None], values, weight.shape).coalesce()

    def any(self, here: bool) -> bool:
        """Whether something is so at any worker."""
        flag = torch.tensor([float(here)], device=self.device)
        distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
        return bool(flag.item())

    def agree(self, metrics: dict[str, float]) -> dict[str, float]:
        """The metrics as the first worker has them."""
        said = [metrics]
        distributed.broadcast_object_list(said, src=0)
        return said[0]


def seed_apart(group: Group, seed: int) -> None:
    """Let every worker but the first draw its own dropout and its own samples."""
    if group.rank:
        torch.manual_seed(int(np.random.SeedSequence((seed, group.rank)).generate_state(1)[0]))
