"""The objective: the loss of a batch, from item vectors made on the spot.

Both towers learn from every step: the item tower encodes the catalogue (or the part of it that the step samples), the
user tower reads histories as those very vectors, and the loss compares its queries with them again.

Shape suffixes: B windows, L events, T = L + 1 places, P positions, D dimensions, N items, M sampled items, U items used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from embeddings.arrays import Ints
from embeddings.features import ItemFeatures
from embeddings.two_tower import ItemTensors, TwoTower
from training.config import LossConfig
from training.losses import draw_candidates, full_softmax, sampled_softmax
from training.windows import Batch


class Objective:
    """Scores batches of one catalogue with one pair of towers, on the device where the towers are.

    `gather` collects the targets of all workers that share a batch: they are negatives for each other. `compile` runs the
    user tower through `torch.compile`. The full softmax is taken up to `settings.full_up_to` items.
    """

    def __init__(
        self,
        towers: TwoTower,
        catalogue: ItemFeatures,
        settings: LossConfig,
        *,
        gather: Callable[[Tensor], Tensor] | None = None,
        compile: bool = False,  # noqa: A002
    ) -> None:
        self.towers, self.catalogue, self.settings = towers, catalogue, settings
        self.gather = gather or (lambda rows: rows)
        self.device, self.members = towers.device, towers.users.config.members
        self.full = len(catalogue) <= settings.full_up_to
        self.everything = ItemTensors(catalogue, self.device) if self.full else None
        self.read = torch.compile(towers.users, dynamic=True) if compile else towers.users

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss over the positions of a batch; bfloat16 products on a GPU, float32 elsewhere."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return self._full(batch) if self.everything is not None else self._sampled(batch)

    def _full(self, batch: Batch) -> Tensor:
        items_ND = self.towers.items(self.everything)
        queries_PD = self._queries(batch, items_ND[self._put(batch.rows)])
        targets_P, hidden_at, hidden_rows = map(self._put, (batch.targets, batch.hidden_at, batch.hidden_rows))
        return _mean(
            full_softmax(
                queries,
                items.contiguous(),
                targets_P,
                hidden_at=hidden_at,
                hidden_rows=hidden_rows,
                temperature=self.settings.temperature,
                chunk_mb=self.settings.chunk_mb,
            )
            for queries, items in self._parts(queries_PD, items_ND)
        )

    def _sampled(self, batch: Batch) -> Tensor:
        settings, targets_P = self.settings, self._put(batch.targets)
        rows_M, expected_M = draw_candidates(
            self.gather(targets_P), items=len(self.catalogue), negatives=settings.negatives, in_batch=settings.in_batch
        )
        used_U = np.unique(np.concatenate([batch.rows.reshape(-1), batch.targets, rows_M.cpu().numpy()]))
        vectors_UD = self.towers.items(ItemTensors(self.catalogue.take(used_U), self.device))
        place = self._put(used_U)
        queries_PD = self._queries(batch, vectors_UD[self._put(np.searchsorted(used_U, batch.rows))])
        right_PD, drawn_MD = (
            vectors_UD[torch.searchsorted(place, targets_P)],
            vectors_UD[torch.searchsorted(place, rows_M)],
        )
        return _mean(
            sampled_softmax(
                queries,
                right,
                drawn,
                targets_P=targets_P,
                candidates_M=rows_M,
                expected_M=expected_M,
                temperature=settings.temperature,
            )
            for queries, right, drawn in self._parts(queries_PD, right_PD, drawn_MD)
        )

    def _parts(self, *vectors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The parts of every member: each learns for itself, as if it were alone."""
        return zip(*(whole.chunk(self.members, dim=-1) for whole in vectors), strict=True)

    def _queries(self, batch: Batch, vectors_BLD: Tensor) -> Tensor:
        states_BTD = self.read(vectors_BLD, self._put(batch.types), self._put(batch.gaps), self._put(batch.lengths))
        states_PD = states_BTD[self._put(batch.windows), self._put(batch.places)]
        return self.towers.users.query(states_PD, self._put(batch.tokens))

    def _put(self, array: Ints) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)


def _mean(losses: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(losses)).mean()
