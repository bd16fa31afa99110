"""Windows: pieces of histories that fit the user tower, and the batches made of them.

A window reads the training events `starts:ends` of one person and asks for the events `firsts..ends`, each from the
events before it. A long history becomes several overlapping windows with a random phase, new in every epoch, so that
every event is asked for exactly once an epoch and never from less than half a window of its past.

Shapes: W windows, B windows of a batch, L events (padded on the right), P positions that are scored, C context tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from embeddings.arrays import Ints, Mask
from embeddings.features import MAX_CONTEXT_TOKENS, FeatureSpec, gap_buckets, span_buckets
from training.dataset import Dataset, Split, Times, first_touches

ROUNDING = 8
"""Batches are padded to a multiple of this many events: few shapes, so compiled kernels are reused."""

_BUCKET = 16


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Right-padded histories and the positions to score in them.

    `rows`, `types`, `gaps` are [B, L], `lengths` [B] the events of each; `windows`, `places`, `targets` are [P]: in window
    w, after reading
    `places` events, item `targets` was found in data set event `events`; `tokens` is [P, C]. `hidden_at` and
    `hidden_rows` are pairs (position, item) that lists would leave out, because the person knew the item.
    """

    rows: Ints
    types: Ints
    gaps: Ints
    lengths: Ints
    windows: Ints
    places: Ints
    targets: Ints
    tokens: Ints
    hidden_at: Ints
    hidden_rows: Ints

    def __len__(self) -> int:
        return len(self.targets)


class Windows:
    """The training events of a split, ready to be cut into batches; one object serves a whole training."""

    def __init__(
        self, data: Dataset, split: Split, *, max_history: int, batch: int, hide_seen: bool, single: bool = False
    ) -> None:
        """`single`: every window asks for one event only, from as much of its past as fits."""
        self.data, self.max_history, self.batch, self.hide_seen = data, max_history, batch, hide_seen
        self.single = single
        self.gaps = event_gaps(data)
        self.scored: Mask = split.train & data.positive & first_touches(data)
        counts = np.bincount(data.owners[split.train], minlength=len(data.users))
        self.stops = data.offsets[:-1] + counts  # training events are the beginning of every history
        last = np.where(np.arange(len(data)) > data.offsets[data.owners], np.roll(data.times, 1), np.nan)
        self.tokens = context_matrix(data, np.arange(len(data)), data.times, last)

    def epoch(self, seed: int, epoch: int) -> list[Ints]:
        """Cut this epoch's windows and group them into batches; a list of [B, 3] (start, end, first target).

        Windows of similar length share a batch; the order is a function of seed and epoch alone.
        """
        rng = np.random.default_rng((seed, epoch))
        windows = self._cut(rng)
        windows = windows[rng.permutation(len(windows))]
        batches: list[Ints] = []
        for start in range(0, len(windows), self.batch * _BUCKET):
            group = windows[start : start + self.batch * _BUCKET]
            group = group[np.argsort(group[:, 1] - group[:, 0], kind="stable")]
            batches += [group[at : at + self.batch] for at in range(0, len(group), self.batch)]
        return [batches[at] for at in rng.permutation(len(batches))]

    def collate(self, windows: Ints) -> Batch:
        """Gather the arrays of one batch."""
        data, (starts, ends, firsts) = self.data, windows.T
        longest = int((ends - starts).max())
        width = min(self.max_history, -(-longest // ROUNDING) * ROUNDING)
        rows, types, gaps = pad(data, self.gaps, starts, ends, width=width)
        owner, events = _ragged(firsts, ends + 1)
        kept = self.scored[events]
        owner, events = owner[kept], events[kept]
        hidden_at, hidden = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        if self.hide_seen:
            hidden_at, hidden = _ragged(data.offsets[data.owners[events]], events)
        return Batch(
            rows=rows,
            types=types,
            gaps=gaps,
            lengths=ends - starts,
            windows=owner,
            places=events - starts[owner],
            targets=data.rows[events],
            tokens=self.tokens[events],
            hidden_at=hidden_at,
            hidden_rows=data.rows[hidden],
        )

    def _cut(self, rng: np.random.Generator) -> Ints:
        starts, stops, longest = self.data.offsets[:-1], self.stops, self.max_history
        if self.single:
            asked = np.flatnonzero(self.scored)
            return np.stack([np.maximum(starts[self.data.owners[asked]], asked - longest), asked, asked], axis=1)
        filled = stops > starts
        short = filled & (stops - starts <= longest + 1)
        parts = [np.stack([starts[short], stops[short] - 1, starts[short]], axis=1)]
        for start, stop in zip(starts[filled & ~short].tolist(), stops[filled & ~short].tolist(), strict=True):
            parts += [_phased(start, stop, longest, rng)]
        windows: Ints = np.concatenate(parts)
        scored_before = np.concatenate([[0], np.cumsum(self.scored)])
        scored = scored_before[windows[:, 1] + 1] - scored_before[windows[:, 2]]
        kept: Ints = windows[scored > 0]
        return kept


def event_gaps(data: Dataset) -> Ints:
    """Bucket of the time since the same person's event before: [E], 0 for a first event."""
    gaps = gap_buckets(data.times)
    starts = data.offsets[:-1]
    gaps[starts[starts < len(gaps)]] = 0
    return gaps


def pad(data: Dataset, gaps: Ints, starts: Ints, ends: Ints, *, width: int | None = None) -> tuple[Ints, Ints, Ints]:
    """Rows, types and gaps of the events `starts:ends`, padded with zeros on the right to [B, L]."""
    places = np.arange(int((ends - starts).max(initial=0)) if width is None else width)
    inside = places < (ends - starts)[:, None]
    events = np.where(inside, starts[:, None] + places, 0)
    rows, types, since = (np.where(inside, column[events], 0) for column in (data.rows, data.types, gaps))
    return rows, types, since


def context_matrix(data: Dataset, events: Ints, now: Times, last: Times) -> Ints:
    """Context tokens [Q, C] of requests at the times `now`, in the context and by the owner of `events`.

    `last` is the time of the latest event before, NaN if there is none. Equal to `FeatureSpec.context_tokens` row by
    row, padded with 0; every distinct word is hashed once, because hashing millions of events one by one takes hours.
    """
    spec, Q = data.spec, len(events)
    if not spec.context_buckets or not Q:
        return np.zeros((Q, 0), dtype=np.int64)
    moments = np.floor(now).astype("datetime64[s]")
    days = moments.astype("datetime64[D]").astype(np.int64)
    hours = moments.astype("datetime64[h]").astype(np.int64) % 24
    months = moments.astype("datetime64[M]").astype(np.int64) % 12
    _, example, clock = np.unique((months * 7 + days % 7) * 24 + hours, return_index=True, return_inverse=True)
    base = [spec.context_tokens({}, {}, float(now[at]), None) for at in example]
    idle = np.where(np.isnan(last), -1, span_buckets(now - np.nan_to_num(last)))
    kinds, since = np.unique(idle, return_inverse=True)
    waits = [_idle_tokens(spec, int(kind)) for kind in kinds]
    places, where = np.unique(data.context[events], return_inverse=True)
    about = [spec.context_tokens({}, data.contexts[at], 0.0, None)[3:] for at in places]
    owners, who = np.unique(data.owners[events], return_inverse=True)
    people = [spec.context_tokens(data.user_attributes[at], {}, 0.0, None)[3:] for at in owners]
    parts = [_table(base)[clock], _table(waits)[since], _table(about)[where], _table(people)[who]]
    tokens = np.concatenate(parts, axis=1)
    tokens = np.take_along_axis(tokens, np.argsort(tokens == 0, axis=1, kind="stable"), axis=1)
    tokens = tokens[:, :MAX_CONTEXT_TOKENS]
    return tokens[:, : int((tokens > 0).sum(1).max())]


def _idle_tokens(spec: FeatureSpec, kind: int) -> list[int]:
    return spec.context_tokens({}, {}, 60.0 * (2.0**kind - 1.0), 0.0)[3:] if kind >= 0 else []


def _table(lists: list[list[int]]) -> Ints:
    table = np.zeros((len(lists), max(len(entry) for entry in lists)), dtype=np.int64)
    for row, entry in enumerate(lists):
        table[row, : len(entry)] = entry
    return table


def _phased(start: int, stop: int, longest: int, rng: np.random.Generator) -> Ints:
    """Windows of one long history: the first asks for everything it reads, the others for their newer half."""
    stride = max(1, longest // 2)
    end = start + int(rng.integers(longest - stride, longest + 1))
    windows = [(start, end, start)]
    while end < stop - 1:
        first, end = end + 1, min(end + stride, stop - 1)
        windows.append((end - longest, end, first))
    return np.asarray(windows, dtype=np.int64)


def _ragged(starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
    """Numbers of every range `starts:ends`, with the index of their range."""
    lengths = ends - starts
    owner = np.repeat(np.arange(len(starts)), lengths)
    before = np.cumsum(lengths) - lengths
    return owner, np.arange(lengths.sum()) - np.repeat(before - starts, lengths)
