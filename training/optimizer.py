"""The optimizer of the towers: AdamW for what every step moves, row by row for a table that a step hardly touches.

A step of the sampled softmax moves a few thousand rows of an id table of millions. Going over the whole of it, its
gradient and its moments costs more than all the rest of the step; so its gradient is sparse, and only the rows that it
names are updated, their moments with them (lazy Adam).

Shape suffixes: U rows of a table that a step used, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from embeddings.two_tower import TwoTower
from training.config import OptimisationConfig


class Optimizer:
    """Updates two towers; `by_rows` says that their id table gets sparse gradients from now on.

    AdamW (Loshchilov and Hutter, 2019) decays matrices and tables, not norms, biases and single vectors; of a table that
    is updated by rows it decays the rows of the step.
    """

    def __init__(self, towers: TwoTower, settings: OptimisationConfig, *, by_rows: bool = False) -> None:
        self.settings, self.weights = settings, [weight for weight in towers.parameters() if weight.requires_grad]
        ids = towers.items.ids
        self.table = ids.weight if by_rows and ids is not None else None
        if ids is not None:
            ids.sparse = self.table is not None
        dense = [weight for weight in self.weights if weight is not self.table]
        decayed = [weight for weight in dense if weight.ndim > 1]
        spared = [weight for weight in dense if weight.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": spared, "weight_decay": 0.0}]
        self._parts: dict[str, torch.optim.Optimizer] = {
            "dense": torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas)
        }
        if self.table is not None:
            self._parts["rows"] = torch.optim.SparseAdam([self.table], lr=settings.learning_rate, betas=settings.betas)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self._parts.values():
            part.zero_grad(set_to_none=True)

    def clip(self) -> float:
        """Shorten all gradients together to the largest norm that the settings allow; returns the norm they had."""
        if self.table is not None and self.table.grad is not None:
            self.table.grad = self.table.grad.coalesce()
        grads = [_dense(weight.grad) for weight in self.weights if weight.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        scale = (self.settings.clip / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(grads, scale)
        return float(norm)

    def step(self, update: int) -> None:
        """Make update number `update`, from 0; the learning rate rises over the first ones."""
        rate = self.settings.learning_rate * min(1.0, (update + 1) / (self.settings.warmup_steps + 1))
        if self.table is not None and self.table.grad is not None and self.settings.weight_decay:
            rows_U = self.table.grad.indices()[0]
            with torch.no_grad():
                self.table[rows_U] *= 1.0 - rate * self.settings.weight_decay
        for part in self._parts.values():
            for group in part.param_groups:
                group["lr"] = rate
            part.step()

    def tensors(self) -> dict[str, Tensor]:
        """The state as flat tensors, by part, place of the parameter and name."""
        return {
            f"{part}.{at}.{name}": torch.as_tensor(value)
            for part, optimizer in self._parts.items()
            for at, entry in optimizer.state_dict()["state"].items()
            for name, value in entry.items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` took out."""
        for part, optimizer in self._parts.items():
            state: dict[int, dict[str, Tensor | int]] = {}
            for name, value in tensors.items():
                of, at, key = name.split(".", 2)
                if of == part:  # SparseAdam counts in Python's numbers, and rounds otherwise with a tensor
                    state.setdefault(int(at), {})[key] = int(value) if (part, key) == ("rows", "step") else value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _dense(grad: Tensor) -> Tensor:
    """The numbers of a gradient: of a sparse one [U, D] the rows that it has."""
    return grad.values() if grad.is_sparse else grad
