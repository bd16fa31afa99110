"""The retriever: an item tower and a user tower that meet in a dot product.

The item tower adds an id embedding to what the item says of itself (attributes, words, numbers); ids are dropped at
random while training, so that an item nobody has touched yet stands on its content. The user tower reads the
history as *item vectors*, with the kind and the time gap of every event, through causal attention blocks; there is
no user id embedding, so a new person and the last click count at once.

Shape suffixes: B people, L events, T = L + 1 places (a learned start comes first), D dimensions, N items, C context
tokens. Attention follows SASRec (Kang & McAuley, 2018), blocks are pre-norm with sigmoid-gated residuals (LiGR,
Borisyuk et al., 2025).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from embeddings.features import GAP_BUCKETS, Floats, ItemFeatures


class TowerConfig(BaseModel):
    """Size and shape of both towers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dim: int = Field(default=64, ge=4, le=1024, description="width of the shared space")
    layers: int = Field(default=2, ge=0, le=24)
    heads: int = Field(default=1, ge=1, le=32)
    feed_forward: int = Field(default=4, ge=1, le=8, description="width of the inner layer, in multiples of dim")
    max_history: int = Field(default=50, ge=1, le=1000)
    dropout: float = Field(default=0.4, ge=0.0, lt=1.0)
    id_dropout: float = Field(default=0.1, ge=0.0, lt=1.0, description="share of items trained without their id")
    id_embedding: bool = True
    metric: Literal["dot", "cosine"] = "dot"

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> TowerConfig:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not divisible by heads {self.heads}")
        return self


class ItemTower(nn.Module):
    """Items to vectors. Row 0 of the id table stays zero: it is the id of every item the model has not seen."""

    def __init__(self, config: TowerConfig, *, items: int, tokens: int, words: int, numbers: int) -> None:
        super().__init__()
        self.config = config
        self.ids = nn.Embedding(items + 1, config.dim, padding_idx=0) if config.id_embedding else None
        self.tokens = nn.EmbeddingBag(tokens, config.dim, mode="mean", include_last_offset=True)
        self.words = nn.EmbeddingBag(words, config.dim, mode="mean", include_last_offset=True) if words else None
        self.numbers = nn.Linear(numbers, config.dim, bias=False) if numbers else None
        # Small, all alike: the first logits are near zero, and no part drowns the others.
        for table in (self.ids, self.tokens, self.words, self.numbers):
            if table is not None:
                nn.init.normal_(table.weight, std=0.02)
        if self.ids is not None:
            nn.init.zeros_(self.ids.weight[0])

    def forward(self, items: ItemFeatures | ItemTensors) -> Tensor:
        """Vectors [N, D] of N items."""
        x = items if isinstance(items, ItemTensors) else ItemTensors(items, self.tokens.weight.device)
        vectors_ND: Tensor = self.tokens(x.tokens, x.token_offsets)
        if self.words is not None:
            vectors_ND = vectors_ND + self.words(x.words, x.word_offsets)
        if self.numbers is not None:
            vectors_ND = vectors_ND + self.numbers(x.numbers)
        if self.ids is not None:
            ids_ND = self.ids(x.ids)
            if self.training and self.config.id_dropout:
                kept_N1 = torch.rand(len(ids_ND), 1, device=ids_ND.device) >= self.config.id_dropout
                ids_ND = ids_ND * kept_N1
            vectors_ND = vectors_ND + ids_ND
        return F.normalize(vectors_ND, dim=-1) if self.config.metric == "cosine" else vectors_ND

    @torch.inference_mode()
    def encode(self, items: ItemFeatures, *, chunk: int = 65_536) -> Floats:
        """Vectors [N, D] as float32, in chunks, without gradients."""
        was_training, self_ = self.training, self.eval()
        parts = [
            self_(items.take(np.arange(start, min(start + chunk, len(items))))).float().cpu().numpy()
            for start in range(0, len(items), chunk)
        ]
        self.train(was_training)
        return np.concatenate(parts) if parts else np.zeros((0, self.config.dim), dtype=np.float32)


class ItemTensors:
    """`ItemFeatures` on a device, made once for a catalogue that is encoded every step."""

    def __init__(self, items: ItemFeatures, device: torch.device | str) -> None:
        def put(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        self.ids = put(items.rows + 1)
        self.tokens, self.token_offsets = put(items.tokens), put(items.token_offsets)
        self.words, self.word_offsets = put(items.words), put(items.word_offsets)
        self.numbers = put(items.numbers)


class Block(nn.Module):
    """Causal self-attention and a feed-forward layer, each pre-normalised and added through a sigmoid gate."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads, self.dropout = config.heads, config.dropout
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = (
            nn.Linear(dim, config.feed_forward * dim),
            nn.Linear(config.feed_forward * dim, dim),
        )
        self.gate1, self.gate2 = nn.Linear(dim, dim), nn.Linear(dim, dim)
        # How far back an event lies matters wherever in a window it stands (relative bias, Raffel et al., 2020).
        self.recency = nn.Parameter(torch.zeros(config.heads, config.max_history + 1))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]; place t sees places 0..t only."""
        y_BTD = self.norm1(x_BTD)
        x_BTD = x_BTD + torch.sigmoid(self.gate1(y_BTD)) * self._drop(self.out(self._attend(y_BTD)))
        y_BTD = self.norm2(x_BTD)
        z_BTD = self.down(self._drop(F.gelu(self.up(y_BTD))))
        return x_BTD + torch.sigmoid(self.gate2(y_BTD)) * self._drop(z_BTD)

    def _attend(self, y_BTD: Tensor) -> Tensor:
        B, T, D = y_BTD.shape
        q, k, v = self.qkv(y_BTD).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        place_T = torch.arange(T, device=y_BTD.device)
        back_TT = place_T[:, None] - place_T
        bias_HTT = self.recency[:, back_TT.clamp(min=0)].masked_fill(back_TT < 0, -torch.inf)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_HTT.to(q.dtype), dropout_p=dropout)
        return out.transpose(1, 2).reshape(B, T, D)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class UserTower(nn.Module):
    """Histories to vectors: one for every prefix, the empty one included."""

    def __init__(self, config: TowerConfig, *, event_types: int, context_buckets: int) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.start = nn.Parameter(torch.zeros(dim))
        self.places = nn.Embedding(config.max_history + 1, dim)
        self.types = nn.Embedding(event_types + 1, dim)
        self.gaps = nn.Embedding(GAP_BUCKETS, dim)
        self.context = nn.Embedding(context_buckets + 1, dim, padding_idx=0) if context_buckets else None
        self.mix = nn.Sequential(nn.Linear(2 * dim, dim), nn.GELU(), nn.Linear(dim, dim)) if context_buckets else None
        self.norm_in, self.norm_out = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        for table in (self.places, self.types, self.gaps):
            nn.init.normal_(table.weight, std=0.02)
        nn.init.normal_(self.start, std=0.02)
        if self.mix is not None:
            # A context that means nothing yet must not disturb: the correction starts at zero.
            nn.init.zeros_(self.mix[-1].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.mix[-1].bias)  # type: ignore[arg-type]

    def forward(self, vectors_BLD: Tensor, types_BL: Tensor, gaps_BL: Tensor) -> Tensor:
        """States [B, L + 1, D] after 0..L events of right-padded histories; place t has read the first t events."""
        B, L, D = vectors_BLD.shape
        events_BLD = vectors_BLD + self.types(types_BL) + self.gaps(gaps_BL)
        x_BTD = torch.cat([self.start.expand(B, 1, D), events_BLD], dim=1) + self.places.weight[: L + 1]
        x_BTD = F.dropout(self.norm_in(x_BTD), self.config.dropout, self.training)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        states: Tensor = self.norm_out(x_BTD)
        return states

    def query(self, states_XD: Tensor, context_XC: Tensor | None) -> Tensor:
        """Query vectors [X, D] of X states, each in its own context (token rows, 0 = none)."""
        if self.context is not None and self.mix is not None and context_XC is not None and context_XC.shape[1]:
            count_X1 = (context_XC > 0).sum(1, keepdim=True).clamp(min=1)
            context_XD = self.context(context_XC).sum(1) / count_X1
            states_XD = states_XD + self.mix(torch.cat([states_XD, context_XD], dim=-1))
        return F.normalize(states_XD, dim=-1) if self.config.metric == "cosine" else states_XD


class TwoTower(nn.Module):
    """Both towers, with the scale that turns their dot product into a logit while training."""

    def __init__(self, items: ItemTower, users: UserTower) -> None:
        super().__init__()
        self.items, self.users = items, users
