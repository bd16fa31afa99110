"""The forward passes of both models for one request, written out for one core: NumPy on arrays that fit its cache.

A request is one history and a few hundred candidates. At that size a framework spends more time on calling its kernels
than in them, so here the same arithmetic is done with as few calls as possible: weights are laid out once, products that
share an operand are one product, and the last block of the user tower computes the one place that is asked for. The
models remain what is true; `tests/test_fused.py` holds these passes against them.

Shape suffixes: L events, T = L + 1 places, D dimensions, H heads, K candidates, O objectives, F dense features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embeddings.arrays import Floats, Ints
from embeddings.ranker import Ranker
from embeddings.two_tower import SHORTEST, Attention, Block, FilteredBlock, UserEnsemble, UserTower

Array = npt.NDArray[np.float32]


class FusedUser:
    """The user tower for one person at a time; made from a tower whose weights do not change any more."""

    def __init__(self, tower: UserTower) -> None:
        self.config = tower.config
        self._start, self._places = _plain(tower.start), _plain(tower.places.weight)
        self._types, self._gaps = _plain(tower.types.weight), _plain(tower.gaps.weight)
        self._norm_in, self._norm_out = _Norm(tower.norm_in), _Norm(tower.norm_out)
        self._filtered = tower.config.encoder == "filtered"
        self._blocks: list[_FusedBlock | _FusedFilter] = [
            _FusedFilter(block) if isinstance(block, FilteredBlock) else _FusedBlock(block)  # type: ignore[arg-type]
            for block in tower.blocks
        ]
        self._weigh = None if tower.weigh is None else _Linear(tower.weigh)
        self._context = None if tower.context is None else _plain(tower.context.weight)
        self._mix = None
        if tower.mix is not None:
            first, last = tower.mix[0], tower.mix[-1]
            assert isinstance(first, nn.Linear)
            assert isinstance(last, nn.Linear)
            self._mix = _Linear(first), _Linear(last)

    def query(self, vectors_LD: Floats, types_L: Ints, gaps_L: Ints, context: Sequence[int]) -> Floats:
        """Query vector [D] after L events, at most `max_history`, oldest first; equal to the tower's own to rounding.

        `context` are token rows of the request, `types_L` and `gaps_L` those of the events.
        """
        state_D = self._pooled(vectors_LD) if self._weigh is not None else self._attended(vectors_LD, types_L, gaps_L)
        if self._mix is not None and self._context is not None and context:
            tokens = np.asarray(context, dtype=np.int64)
            context_D = self._context[tokens].sum(0) / max(1, int(np.count_nonzero(tokens)))
            first, last = self._mix
            state_D = state_D + last(_gelu(first(np.concatenate([state_D, context_D]))))
        if self.config.metric == "cosine":
            state_D = state_D / max(float(np.linalg.norm(state_D)), 1e-12)
        return state_D

    def _pooled(self, vectors_LD: Floats) -> Array:
        assert self._weigh is not None
        if not len(vectors_LD):
            return self._start
        weights_L1 = np.logaddexp(np.float32(0.0), self._weigh(vectors_LD))
        if self.config.length_power:
            lengths_L1 = np.maximum(np.linalg.norm(vectors_LD, axis=1, keepdims=True), np.float32(SHORTEST))
            weights_L1 = weights_L1 * lengths_L1 ** np.float32(-self.config.length_power)
        pooled: Array = (self._start + (vectors_LD * weights_L1).sum(0)) / (1.0 + weights_L1.sum())
        return pooled

    def _attended(self, vectors_LD: Floats, types_L: Ints, gaps_L: Ints) -> Array:
        T = len(vectors_LD) + 1
        x_TD = np.empty((T, self.config.dim), dtype=np.float32)
        x_TD[0] = self._start
        np.add(vectors_LD, self._types[types_L], out=x_TD[1:])
        x_TD[1:] += self._gaps[gaps_L]
        x_TD += self._places[T - 1 :: -1] if self._filtered else self._places[:T]
        x_TD = self._norm_in(x_TD)
        for block in self._blocks[:-1]:
            x_TD = block.every(x_TD)
        last_D = self._blocks[-1].last(x_TD) if self._blocks else x_TD[-1]
        return last_D if self._filtered else self._norm_out(last_D)


class FusedUsers:
    """User towers side by side, for one person at a time."""

    def __init__(self, towers: UserEnsemble) -> None:
        self.config = towers.config
        self._members = [FusedUser(member) for member in towers.members]  # type: ignore[arg-type]

    def query(self, vectors_LD: Floats, types_L: Ints, gaps_L: Ints, context: Sequence[int]) -> Floats:
        """Query vector [D], as that of a `FusedUser`."""
        parts = np.split(vectors_LD, len(self._members), axis=-1)
        queries = [
            member.query(part, types_L, gaps_L, context) for member, part in zip(self._members, parts, strict=True)
        ]
        return np.concatenate(queries)


def fuse_users(towers: UserTower | UserEnsemble) -> FusedUser | FusedUsers:
    """The pass of one user tower, or of several side by side."""
    return FusedUsers(towers) if isinstance(towers, UserEnsemble) else FusedUser(towers)


class FusedRanker:
    """The ranking model for one list at a time; made from a model whose weights do not change any more."""

    def __init__(self, ranker: Ranker) -> None:
        self.config = ranker.config
        layers = [_Linear(layer) for layer in ranker.body if isinstance(layer, nn.Linear)]
        first, self._later = layers[0], layers[1:]
        self._heads = _Linear(ranker.heads)
        dim = (len(first.weight) - 4 - ranker.standard.num_features) // 2
        self._by_user, self._by_read = first.weight[:dim], first.weight[dim : 2 * dim]
        self._by_fact, self._bias = np.ascontiguousarray(first.weight[2 * dim :]), first.bias
        self._sharpness = float(F.softplus(ranker.attention.detach()))
        mean, variance = ranker.standard.running_mean, ranker.standard.running_var
        assert mean is not None
        assert variance is not None
        self._mean = _plain(mean)
        self._scale = _plain(torch.rsqrt(variance + ranker.standard.eps))
        self._trust = _plain(ranker.trust)
        self._slope, self._offset = _plain(ranker.slope), _plain(ranker.offset)

    def rank(self, user_D: Floats, history_LD: Floats, items_KD: Floats, features_KF: Floats) -> Floats:
        """Calibrated probabilities [K, O] for one list; equal to `Ranker.rank` to rounding."""
        facts = np.empty((len(items_KD), len(self._by_fact)), dtype=np.float32)
        scaled_DH = user_D[:, None] * self._by_user
        facts[:, 3] = items_KD @ user_D
        np.clip((features_KF - self._mean) * self._scale, -5.0, 5.0, out=facts[:, 4:])
        if len(history_LD):
            similar_KL = items_KD @ history_LD.T
            facts[:, 0] = similar_KL.max(1)
            facts[:, 1] = similar_KL.mean(1)
            read_KD = _softmax(similar_KL * self._sharpness) @ history_LD
            read_KD *= items_KD
            facts[:, 2] = read_KD.sum(1)
            x_KH = read_KD @ self._by_read
            x_KH += items_KD @ scaled_DH
        else:
            facts[:, 0], facts[:, 1:3] = NOTHING_SIMILAR, 0.0
            x_KH = items_KD @ scaled_DH
        np.maximum(facts[:, 0], NOTHING_SIMILAR, out=facts[:, 0])
        x_KH += facts @ self._by_fact
        x_KH += self._bias
        x_KH = _gelu(x_KH)
        for layer in self._later:
            x_KH = _gelu(layer(x_KH))
        logits_KO = features_KF[:, :1] * self._trust + self._heads(x_KH)
        return _sigmoid(logits_KO * self._slope + self._offset)


NOTHING_SIMILAR = np.float32(-30.0)
"""What the ranking model takes for the similarity to a history that is empty."""


class _Linear:
    """x @ weight + bias, with the weight laid out for it: [in, out]."""

    def __init__(self, *layers: nn.Linear) -> None:
        self.weight = np.ascontiguousarray(np.concatenate([_plain(layer.weight) for layer in layers]).T)
        self.bias = np.concatenate([_plain(layer.bias) for layer in layers])

    def __call__(self, x: Array) -> Array:
        product: Array = x @ self.weight
        product += self.bias
        return product


class _Norm:
    """Layer normalisation over the last axis."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        self.weight, self.bias, self.eps = _plain(norm.weight), _plain(norm.bias), norm.eps

    def __call__(self, x: Array) -> Array:
        centred: Array = x - x.mean(-1, keepdims=True)
        variance = np.einsum("...d,...d->...", centred, centred) / np.float32(x.shape[-1])
        centred *= (1.0 / np.sqrt(variance + self.eps))[..., None]
        centred *= self.weight
        centred += self.bias
        return centred


class _Attention:
    """Self-attention of places that were projected to queries, keys and values, with the bias of how far back they lie."""

    def __init__(self, attention: Attention) -> None:
        self.dim, self.heads, self.out = attention.out.in_features, attention.heads, _Linear(attention.out)
        recency = _plain(attention.recency)
        back = np.arange(recency.shape[1])[:, None] - np.arange(recency.shape[1])
        self.bias_HTT = np.where(back < 0, np.float32(-np.inf), recency[:, np.maximum(back, 0)])

    def __call__(self, queries_QX: Array, places_TX: Array) -> Array:
        """What the last Q of T places attend to: [Q, D]."""
        D, Q, T, width = self.dim, len(queries_QX), len(places_TX), self.dim // self.heads
        out_QD = np.empty((Q, D), dtype=np.float32)
        for head in range(self.heads):
            own = slice(head * width, (head + 1) * width)
            keys, values = places_TX[:, D : 2 * D][:, own], places_TX[:, 2 * D : 3 * D][:, own]
            scores_QT = queries_QX[:, own] @ keys.T
            scores_QT *= np.float32(width**-0.5)
            scores_QT += self.bias_HTT[head, T - Q : T, :T]
            out_QD[:, own] = _softmax(scores_QT) @ values
        return self.out(out_QD)


class _FusedBlock:
    """One gated block of the user tower; queries, keys, values and the gate are one product."""

    def __init__(self, block: Block) -> None:
        self.dim, self.attend = block.out.in_features, _Attention(block)
        self.norm1, self.norm2 = _Norm(block.norm1), _Norm(block.norm2)
        self.in_ = _Linear(block.qkv, block.gate1)
        self.up, self.down = _Linear(block.up, block.gate2), _Linear(block.down)
        self.split = block.up.out_features

    def every(self, x_TD: Array) -> Array:
        """All places, each of which sees those up to itself."""
        y_TX = self.in_(self.norm1(x_TD))
        return self._forward(x_TD, self.attend(y_TX, y_TX), y_TX[:, 3 * self.dim :])

    def last(self, x_TD: Array) -> Array:
        """The last place alone: it sees all of them."""
        y_TX = self.in_(self.norm1(x_TD))
        return self._forward(x_TD[-1], self.attend(y_TX[-1:], y_TX)[0], y_TX[-1, 3 * self.dim :])

    def _forward(self, x: Array, attended: Array, gate: Array) -> Array:
        attended *= _sigmoid(gate)
        x = x + attended
        wide = self.up(self.norm2(x))
        z = self.down(_gelu(np.ascontiguousarray(wide[..., : self.split])))
        z *= _sigmoid(wide[..., self.split :])
        z += x
        return z


class _FusedFilter:
    """One filtered block of the user tower."""

    def __init__(self, block: FilteredBlock) -> None:
        self.in_, self.attend, self.share = _Linear(block.qkv), _Attention(block), np.float32(block.share)
        self.norm_filter, self.norm_attention = _Norm(block.norm_filter), _Norm(block.norm_attention)
        self.norm_out, self.up, self.down = _Norm(block.norm_out), _Linear(block.up), _Linear(block.down)
        self.sharpness, self.kernel_TT = _plain(block.sharpness) ** 2, _plain(block.kernel)

    def every(self, x_TD: Array) -> Array:
        """All places, each of which sees those up to itself, and all of them smoothed."""
        return self._forward(x_TD, len(x_TD))

    def last(self, x_TD: Array) -> Array:
        """The last place alone."""
        last: Array = self._forward(x_TD, 1)[0]
        return last

    def _forward(self, x_TD: Array, count: int) -> Array:
        T = len(x_TD)
        x_QD, y_TX = x_TD[T - count :], self.in_(x_TD)
        low_QD = self.kernel_TT[T - count : T, :T] @ x_TD
        low_QD += self.sharpness * (x_QD - low_QD)
        mixed_QD = self.share * self.norm_filter(x_QD + low_QD)
        mixed_QD += (1 - self.share) * self.norm_attention(x_QD + self.attend(y_TX[T - count :], y_TX))
        return self.norm_out(mixed_QD + self.down(_gelu(self.up(mixed_QD))))


def _softmax(x: Array) -> Array:
    x = x - x.max(-1, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(-1, keepdims=True)
    return x


def _sigmoid(x: Array) -> Array:
    return np.float32(1.0) / (np.float32(1.0) + np.exp(-x))


def _gelu(x: Array) -> Array:
    # The exact form, as the models have it; NumPy knows no error function.
    gelu: Array = F.gelu(torch.from_numpy(x)).numpy()
    return gelu


def _plain(tensor: Tensor) -> Array:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())
