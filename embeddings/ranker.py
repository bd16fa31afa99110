"""The ranking model: orders the few hundred candidates that retrieval found.

It sees each candidate beside the whole history (attention with the candidate as the query, as in DIN, Zhou et al.,
2018), the retrieval score, statistics of the item, how often it followed the latest events (`Successors`), and what it
has in common with them (`Traits`). It predicts several objectives at once (click, cart, purchase, …), each calibrated by
Platt scaling; the final score is the sum of objective weight x probability. Its logit starts as the retrieval score itself
plus a correction of zero, so an untrained ranker keeps the retrieval order, and training can only move away from it where
validation agrees.

Shape suffixes: B lists, K candidates, L events, D dimensions, O objectives, F dense features.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from embeddings.arrays import Floats
from embeddings.ids import UNKNOWN
from embeddings.successors import Successors
from embeddings.traits import KEPT, Traits

FEATURES = (
    "score",
    "rank",
    "popularity",
    "recent_popularity",
    "age",
    "price_gap",
    "repeats",
    "known",
    "follows",
    "follows_last",
    "alike",
    "alike_last",
)
"""Dense features of a candidate, in column order; see `candidate_features`."""

UNKNOWN_AGE_DAYS = 365.0
CLOSENESS = 100.0
"""Successors are a few hundredths close; below that the logarithm is a straight line."""


class RankerConfig(BaseModel):
    """Size and objectives of the ranking model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    objectives: tuple[str, ...] = Field(default=("click",), min_length=1, description="event types to predict")
    hidden: tuple[int, ...] = (64, 32)
    dropout: float = Field(default=0.2, ge=0.0, lt=1.0)
    history: int = Field(default=50, ge=1, le=1000, description="events of the history it attends to")
    candidates: int = Field(default=200, ge=10, le=2000, description="length of the lists it learns from and ranks")
    successors: int = Field(default=32, ge=0, le=500, description="kept of each item; 0 asks for none")
    reach: int = Field(
        default=3, ge=0, le=100, description="next events that follow one; 0: all of a person, in no order"
    )


def candidate_features(
    scores: Floats,
    *,
    popularity: npt.NDArray[np.float64],
    recent_popularity: npt.NDArray[np.float64],
    age_days: npt.NDArray[np.float64],
    prices: npt.NDArray[np.float64],
    history_prices: npt.NDArray[np.float64],
    repeats: npt.NDArray[np.int64],
    known: npt.NDArray[np.bool_],
    follows: Floats,
    alike: Floats,
) -> Floats:
    """Dense features [K, F] of one list of K candidates, every column of the order of one.

    `scores` are retrieval scores; popularities are event counts known at request time; `age_days` and `prices` are NaN
    where unknown; `history_prices` are those of the history; `repeats` counts the candidate in the history; `known`
    says whether the model has an id embedding for it; `follows` [K, 2] is what `Successors.follow` says of them, `alike`
    [K, 2] what `traits.alike` does.
    """
    K = len(scores)
    ranks = np.empty(K, dtype=np.float64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(K)
    age = np.where(np.isfinite(age_days), np.maximum(age_days, 0.0), UNKNOWN_AGE_DAYS)
    usual = np.log1p(history_prices[np.isfinite(history_prices)])
    gap = np.log1p(prices) - (usual.mean() if len(usual) else np.nan)
    columns = (
        scores - (scores.max() if K else 0.0),
        np.log1p(ranks) / 5.0,
        np.log1p(popularity) / 5.0,
        np.log1p(recent_popularity) / 5.0,
        np.log1p(age) / 5.0,
        np.nan_to_num(gap).clip(-3.0, 3.0),
        np.log1p(repeats),
        known,
        *(np.log1p(CLOSENESS * follows) / 3.0).T,
        *alike.T,
    )
    return np.stack([np.asarray(column, dtype=np.float32) for column in columns], axis=1)


class Ranker(nn.Module):
    """Scores candidates for several objectives at once."""

    slope: Tensor
    offset: Tensor
    next_rows: Tensor
    next_weights: Tensor
    trait_tokens: Tensor
    trait_weights: Tensor
    rarity: Tensor

    def __init__(self, config: RankerConfig, *, dim: int, items: int = 0, tokens: int = 0) -> None:
        """What it knows of `items` items and `tokens` attributes is part of the model; nothing at first."""
        super().__init__()
        self.config = config
        objectives = len(config.objectives)
        self.attention = nn.Parameter(torch.tensor(0.0))
        self.standard = nn.BatchNorm1d(len(FEATURES), affine=False)
        layers: list[nn.Module] = []
        width = 2 * dim + 4 + len(FEATURES)
        for hidden in config.hidden:
            layers += [nn.Linear(width, hidden), nn.GELU(), nn.Dropout(config.dropout)]
            width = hidden
        self.body = nn.Sequential(*layers)
        self.heads = nn.Linear(width, objectives)
        nn.init.zeros_(self.heads.weight)
        nn.init.zeros_(self.heads.bias)
        self.trust = nn.Parameter(torch.ones(objectives))
        # Platt scaling, fitted after training on held-out lists: probability = sigmoid(slope * logit + offset).
        self.register_buffer("slope", torch.ones(objectives))
        self.register_buffer("offset", torch.zeros(objectives))
        for names, width in (
            (("next_rows", "next_weights"), config.successors),
            (("trait_tokens", "trait_weights"), KEPT),
        ):
            self.register_buffer(names[0], torch.full((items, width), UNKNOWN, dtype=torch.int32))
            self.register_buffer(names[1], torch.zeros(items, width, dtype=torch.float16))
        self.register_buffer("rarity", torch.zeros(tokens))

    @property
    def successors(self) -> Successors:
        """What followed each item while it was trained."""
        rows, weights = self.next_rows.cpu().numpy(), self.next_weights.cpu().numpy()
        return Successors(rows=rows, weights=weights, ordered=self.config.reach > 0)

    @property
    def traits(self) -> Traits:
        """What is known of each item's attributes."""
        return Traits(tokens=self.trait_tokens.cpu().numpy(), weights=self.trait_weights.cpu().numpy())

    def set_successors(self, successors: Successors) -> None:
        """Take what followed each item."""
        self.next_rows = torch.from_numpy(successors.rows)
        self.next_weights = torch.from_numpy(successors.weights)

    def set_traits(self, traits: Traits, rarity_T: Floats) -> None:
        """Take what is known of each item's attributes, and how rare every token is."""
        self.trait_tokens, self.trait_weights = torch.from_numpy(traits.tokens), torch.from_numpy(traits.weights)
        self.rarity = torch.from_numpy(rarity_T)

    def forward(
        self, user_BD: Tensor, history_BLD: Tensor, mask_BL: Tensor, items_BKD: Tensor, features_BKF: Tensor
    ) -> Tensor:
        """Uncalibrated logits [B, K, O]; `mask_BL` is true where the history holds an event."""
        similar_BKL = torch.einsum("bkd,bld->bkl", items_BKD, history_BLD)
        hidden = ~mask_BL[:, None, :]
        focus = (similar_BKL * F.softplus(self.attention)).masked_fill(hidden, -1e4).softmax(-1)
        read_BKD = torch.einsum("bkl,bld->bkd", focus, history_BLD) * mask_BL.any(1)[:, None, None]
        B, K, _ = items_BKD.shape
        summary = torch.stack(
            [
                similar_BKL.masked_fill(hidden, -1e4).amax(-1).clamp(min=-30.0),
                similar_BKL.masked_fill(hidden, 0.0).sum(-1) / mask_BL.sum(1, keepdim=True).clamp(min=1),
                (read_BKD * items_BKD).sum(-1),
                (user_BD[:, None] * items_BKD).sum(-1),
            ],
            dim=-1,
        )
        dense = self.standard(features_BKF.reshape(B * K, -1)).view(B, K, -1).clamp(-5.0, 5.0)
        x = torch.cat([user_BD[:, None] * items_BKD, read_BKD * items_BKD, summary, dense], dim=-1)
        base_BK1 = features_BKF[..., :1]
        logits: Tensor = base_BK1 * self.trust + self.heads(self.body(x))
        return logits

    def probabilities(self, logits_BKO: Tensor) -> Tensor:
        """Calibrated probabilities [B, K, O]."""
        return torch.sigmoid(logits_BKO * self.slope + self.offset)

    @torch.inference_mode()
    def rank(self, user_D: Floats, history_LD: Floats, items_KD: Floats, features_KF: Floats) -> Floats:
        """Calibrated probabilities [K, O] for one list; the one-list form of `forward`, for serving."""
        length = max(1, len(history_LD))
        history = np.zeros((1, length, len(user_D)), dtype=np.float32)
        history[0, : len(history_LD)] = history_LD
        mask = torch.zeros(1, length, dtype=torch.bool)
        mask[0, : len(history_LD)] = True
        device = self.trust.device
        logits = self(
            torch.from_numpy(np.ascontiguousarray(user_D))[None].to(device),
            torch.from_numpy(history).to(device),
            mask.to(device),
            torch.from_numpy(np.ascontiguousarray(items_KD))[None].to(device),
            torch.from_numpy(np.ascontiguousarray(features_KF))[None].to(device),
        )
        found: Floats = self.probabilities(logits)[0].float().cpu().numpy()
        return found
