"""The retriever: an item tower and a user tower that meet in a dot product.

The item tower adds an id embedding to what the item says of itself (attributes, words, numbers); ids are dropped at
random while training, so that an item nobody has touched yet stands on its content. The user tower reads the
history as *item vectors*, with the kind and the time gap of every event, through causal attention blocks; there is
no user id embedding, so a new person and the last click count at once.

Shape suffixes: B people, L events, T = L + 1 places (a learned start comes first), D dimensions, N items, C context
tokens. Attention follows SASRec (Kang & McAuley, 2018). Blocks are pre-norm with sigmoid-gated residuals (LiGR, Borisyuk
et al., 2025), or mix attention with a low-pass filter over the whole history (BSARec, Shin et al., 2024).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from embeddings.arrays import Floats
from embeddings.features import GAP_BUCKETS, ItemFeatures

SHORTEST = 1e-6
"""Vectors shorter than this count as this long."""


class TowerConfig(BaseModel):
    """Size and shape of both towers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dim: int = Field(default=64, ge=4, le=1024, description="width of the shared space")
    encoder: Literal["attention", "filtered", "pooled"] = Field(
        default="attention",
        description="how a history is read: in its order; in its order and smoothed, which trains one target at a time; or "
        "as a set whose mean counts",
    )
    layers: int = Field(default=2, ge=0, le=24)
    heads: int = Field(default=1, ge=1, le=32)
    feed_forward: int = Field(default=4, ge=1, le=8, description="width of the inner layer, in multiples of dim")
    max_history: int = Field(default=50, ge=1, le=1000)
    dropout: float = Field(default=0.4, ge=0.0, lt=1.0)
    id_dropout: float = Field(default=0.1, ge=0.0, lt=1.0, description="share of items trained without their id")
    id_embedding: bool = True
    metric: Literal["dot", "cosine"] = "dot"
    filter_share: float = Field(
        default=0.7, ge=0.0, le=1.0, description="filtered: weight of the filter beside attention"
    )
    frequencies: int = Field(
        default=3, ge=1, le=500, description="filtered: the lowest ones, which the filter lets pass"
    )
    length_power: float = Field(
        default=0.0,
        ge=0.0,
        le=2.0,
        description="pooled: every item of a history is divided by its length to this power",
    )
    members: int = Field(
        default=1, ge=1, le=16, description="towers side by side, each in its own part of dim, whose scores add up"
    )

    @property
    def alone(self) -> TowerConfig:
        """Of one of the members by itself."""
        return self.model_copy(update={"dim": self.dim // self.members, "members": 1})

    @model_validator(mode="after")
    def _parts_divide_dim(self) -> TowerConfig:
        if self.dim % (self.members * self.heads):
            among = f"{self.members} members of {self.heads} heads" if self.members > 1 else f"heads {self.heads}"
            raise ValueError(f"dim {self.dim} is not divisible by {among}")
        if self.members > 1 and self.metric == "cosine":
            raise ValueError("members whose scores add up need metric = 'dot'")
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


class Attention(nn.Module):
    """Causal self-attention with a bias for how far back an event lies."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads, self.dropout = config.heads, config.dropout
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        # How far back an event lies matters wherever in a window it stands (relative bias, Raffel et al., 2020).
        self.recency = nn.Parameter(torch.zeros(config.heads, config.max_history + 1))

    def attend(self, y_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]; place t sees places 0..t only."""
        B, T, D = y_BTD.shape
        q, k, v = self.qkv(y_BTD).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        place_T = torch.arange(T, device=y_BTD.device)
        back_TT = place_T[:, None] - place_T
        bias_HTT = self.recency[:, back_TT.clamp(min=0)].masked_fill(back_TT < 0, -torch.inf)
        bias_HTT = bias_HTT.to(q.dtype)
        if self.training and self.dropout and q.device.type == "cpu":
            # With dropout PyTorch has no fused kernel for the CPU, and draws its random numbers one by one.
            weights_BHTT = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias_HTT).softmax(-1)
            out = drop(weights_BHTT, self.dropout) @ v
        else:
            dropout = self.dropout if self.training else 0.0
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_HTT, dropout_p=dropout)
        attended: Tensor = self.out(out.transpose(1, 2).reshape(B, T, D))
        return attended

    def drop(self, x: Tensor) -> Tensor:
        """Dropout while training."""
        return drop(x, self.dropout) if self.training else x


class Block(Attention):
    """Attention and a feed-forward layer, each pre-normalised and added through a sigmoid gate."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__(config)
        dim = config.dim
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.up, self.down = (
            nn.Linear(dim, config.feed_forward * dim),
            nn.Linear(config.feed_forward * dim, dim),
        )
        self.gate1, self.gate2 = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x_BTD: Tensor, inside_BT: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]; place t sees places 0..t only."""
        y_BTD = self.norm1(x_BTD)
        x_BTD = x_BTD + torch.sigmoid(self.gate1(y_BTD)) * self.drop(self.attend(y_BTD))
        y_BTD = self.norm2(x_BTD)
        z_BTD = self.down(self.drop(F.gelu(self.up(y_BTD))))
        return x_BTD + torch.sigmoid(self.gate2(y_BTD)) * self.drop(z_BTD)


class FilteredBlock(Attention):
    """Attention beside a low-pass filter of the whole history, then a feed-forward layer; each post-normalised.

    The filter keeps the lowest frequencies of a period of `max_history` places as they are, and scales the rest by a
    learned factor for each dimension. A place sees what comes after it, so only the last one of a history is an answer.
    """

    kernel: Tensor

    def __init__(self, config: TowerConfig) -> None:
        super().__init__(config)
        dim, self.share = config.dim, config.filter_share
        self.norm_filter, self.norm_attention, self.norm_out = (nn.LayerNorm(dim) for _ in range(3))
        self.up, self.down = nn.Linear(dim, config.feed_forward * dim), nn.Linear(config.feed_forward * dim, dim)
        self.sharpness = nn.Parameter(torch.randn(dim))
        self.register_buffer("kernel", low_pass(config.max_history + 1, config.frequencies), persistent=False)

    def forward(self, x_BTD: Tensor, inside_BT: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]; `inside_BT` is false behind the end of a history."""
        T = x_BTD.shape[1]
        low_BTD = self.kernel[:T, :T].to(x_BTD.dtype) @ (x_BTD * inside_BT[..., None])
        sharp_BTD = low_BTD + self.sharpness**2 * (x_BTD - low_BTD)
        filtered_BTD = self.norm_filter(x_BTD + self.drop(sharp_BTD))
        attended_BTD = self.norm_attention(x_BTD + self.drop(self.attend(x_BTD)))
        mixed_BTD = self.share * filtered_BTD + (1.0 - self.share) * attended_BTD
        result: Tensor = self.norm_out(mixed_BTD + self.drop(self.down(F.gelu(self.up(mixed_BTD)))))
        return result


def low_pass(places: int, frequencies: int) -> Tensor:
    """Kernel [T, T] that keeps the `frequencies` lowest ones, the constant included, of a period of T places."""
    place_T = torch.arange(places)
    angle_TT = (place_T[:, None] - place_T).abs() * (2.0 * torch.pi / places)
    waves_TT = torch.ones(places, places)
    for frequency in range(1, frequencies):
        waves_TT += 2.0 * torch.cos(frequency * angle_TT)
    return waves_TT / places


class UserTower(nn.Module):
    """Histories to vectors: one for every prefix, the empty one included, where no place sees what comes after it."""

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
        pooled = config.encoder == "pooled"
        kind = FilteredBlock if config.encoder == "filtered" else Block
        self.blocks = nn.ModuleList(kind(config) for _ in range(0 if pooled else config.layers))
        self.weigh = nn.Linear(dim, 1) if pooled else None
        for table in (self.places, self.types, self.gaps):
            nn.init.normal_(table.weight, std=0.02)
        nn.init.normal_(self.start, std=0.02)
        if config.encoder == "filtered":
            for layer in self.blocks.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=0.02)
                    nn.init.zeros_(layer.bias)
        if self.mix is not None:
            # A context that means nothing yet must not disturb: the correction starts at zero.
            nn.init.zeros_(self.mix[-1].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.mix[-1].bias)  # type: ignore[arg-type]

    def forward(
        self, vectors_BLD: Tensor, types_BL: Tensor, gaps_BL: Tensor, lengths_B: Tensor | None = None
    ) -> Tensor:
        """States [B, L + 1, D] after 0..L events of right-padded histories; place t has read the first t events.

        `lengths_B` are the events of each history, L of them if left out. With the filtered encoder only the state after
        the last event counts.
        """
        B, L, D = vectors_BLD.shape
        if self.weigh is not None:
            # Mean of the first t items by learned weights; the start counts as one more item, of weight one.
            weights_BL1 = F.softplus(self.weigh(vectors_BLD))
            if self.config.length_power:
                lengths_BL1 = vectors_BLD.norm(dim=-1, keepdim=True).clamp(min=SHORTEST)
                weights_BL1 = weights_BL1 * lengths_BL1**-self.config.length_power
            totals_BLD, mass_BL1 = (vectors_BLD * weights_BL1).cumsum(1), weights_BL1.cumsum(1)
            return torch.cat([self.start.expand(B, 1, D), (totals_BLD + self.start) / (1.0 + mass_BL1)], dim=1)
        events_BLD = vectors_BLD + self.types(types_BL) + self.gaps(gaps_BL)
        x_BTD = torch.cat([self.start.expand(B, 1, D), events_BLD], dim=1)
        place_T = torch.arange(L + 1, device=x_BTD.device)
        last_B1 = torch.full((B, 1), L, device=x_BTD.device) if lengths_B is None else lengths_B[:, None]
        if self.config.encoder == "filtered":  # counted from the end, which is where the answer stands
            x_BTD = x_BTD + self.places((last_B1 - place_T).clamp(min=0))
        else:
            x_BTD = x_BTD + self.places.weight[: L + 1]
        x_BTD = self.norm_in(x_BTD)
        x_BTD = drop(x_BTD, self.config.dropout) if self.training else x_BTD
        for block in self.blocks:
            x_BTD = block(x_BTD, place_T <= last_B1)
        states: Tensor = x_BTD if self.config.encoder == "filtered" else self.norm_out(x_BTD)
        return states

    def query(self, states_XD: Tensor, context_XC: Tensor | None) -> Tensor:
        """Query vectors [X, D] of X states, each in its own context (token rows, 0 = none)."""
        if self.context is not None and self.mix is not None and context_XC is not None and context_XC.shape[1]:
            count_X1 = (context_XC > 0).sum(1, keepdim=True).clamp(min=1)
            context_XD = self.context(context_XC).sum(1) / count_X1
            states_XD = states_XD + self.mix(torch.cat([states_XD, context_XD], dim=-1))
        return F.normalize(states_XD, dim=-1) if self.config.metric == "cosine" else states_XD


class UserEnsemble(nn.Module):
    """User towers side by side: each reads and answers in its own part of the space, [.., D / M] of M members.

    A dot product in the whole space is the sum of the members' own, so one index serves all of them (deep ensembles,
    Lakshminarayanan et al., 2017).
    """

    def __init__(self, config: TowerConfig, *, event_types: int, context_buckets: int) -> None:
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(
            UserTower(config.alone, event_types=event_types, context_buckets=context_buckets)
            for _ in range(config.members)
        )

    def forward(
        self, vectors_BLD: Tensor, types_BL: Tensor, gaps_BL: Tensor, lengths_B: Tensor | None = None
    ) -> Tensor:
        """States [B, L + 1, D], as those of a `UserTower`."""
        parts = vectors_BLD.chunk(len(self.members), dim=-1)
        states = [member(part, types_BL, gaps_BL, lengths_B) for member, part in zip(self.members, parts, strict=True)]
        return torch.cat(states, dim=-1)

    def query(self, states_XD: Tensor, context_XC: Tensor | None) -> Tensor:
        """Query vectors [X, D], as those of a `UserTower`."""
        parts = states_XD.chunk(len(self.members), dim=-1)
        queries = [member.query(part, context_XC) for member, part in zip(self.members, parts, strict=True)]  # type: ignore[operator]
        return torch.cat(queries, dim=-1)


class TwoTower(nn.Module):
    """Both towers. Items have one for all members: its tables are theirs, one beside the other."""

    def __init__(self, items: ItemTower, users: UserTower | UserEnsemble) -> None:
        super().__init__()
        self.items, self.users = items, users

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.items.tokens.weight.device


def drop(x: Tensor, share: float) -> Tensor:
    """Dropout; on a CPU one random byte decides an element, in 1/256 steps of `share`.

    PyTorch draws a Bernoulli number for every element one after the other, which took a fifth of a training step.
    """
    if x.device.type != "cpu":
        return F.dropout(x, share)
    limit = round(256 * share)
    if not limit:
        return x
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= limit
    return x * kept.to(x.dtype).mul_(256 / (256 - limit))
