"""The one featurizer: items, histories and contexts become arrays here, for training and for serving alike.

An item is a bag of attribute tokens (`colour=red`), a bag of hashed words, and standardised numbers. A history is item
vectors with the kind and the time gap of each event. A context (channel, device, hour, attributes of the person) is
a short list of hashed tokens. What was learned from data (vocabulary, means) is kept in a `FeatureSpec`, a JSON
document of the bundle; everything else is a pure function.

Shapes: N items, B people, L events, C context tokens, M numbers an item.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from embeddings.arrays import Floats, Ints
from embeddings.errors import unknown_name
from embeddings.ids import bucket
from embeddings.schema import Item, Name

GAP_BUCKETS = 24
"""Time gaps fall into powers of two of a minute: bucket 23 is anything over eight years."""

LARGEST = 1e30
"""Numbers of items are told apart up to here: the square of what goes beyond may not be finite."""

ALIKE = 1e-9
"""A deviation that is a smaller share of the mean than this is rounding, of numbers that are all the same."""

MAX_WORDS = 48
MAX_CONTEXT_TOKENS = 16
_WORD = re.compile(r"\w+", re.UNICODE)


class EventKind(BaseModel):
    """What one event type means: its weight (negative for a dislike) and whether it is worth predicting."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: FiniteFloat = 1.0
    positive: bool = True


DEFAULT_EVENT_TYPES: dict[str, EventKind] = {
    "view": EventKind(weight=1.0),
    "click": EventKind(weight=1.0),
    "cart": EventKind(weight=3.0),
    "purchase": EventKind(weight=5.0),
    "rating": EventKind(weight=2.0),
    "like": EventKind(weight=3.0),
    "dwell": EventKind(weight=0.5, positive=False),
    "impression": EventKind(weight=0.0, positive=False),
    "dislike": EventKind(weight=-3.0, positive=False),
}


class NumericColumn(BaseModel):
    """One standardised number: `((log1p(x) if log else x) - mean) / scale`; a missing one becomes 0."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    mean: FiniteFloat
    scale: FiniteFloat
    log: bool


@dataclass(frozen=True, slots=True)
class ItemFeatures:
    """Arrays of N items; bags are flat with offsets, as `torch.nn.functional.embedding_bag` takes them.

    `rows` [N] are rows of the id table (`UNKNOWN` for an item the model has never seen), `tokens` and `words` are
    flat bags with `*_offsets` [N + 1], `numbers` is [N, M].
    """

    rows: Ints
    tokens: Ints
    token_offsets: Ints
    words: Ints
    word_offsets: Ints
    numbers: Floats

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: Ints) -> ItemFeatures:
        """Features of some items, in the order asked for."""
        tokens, token_offsets = _take_bags(self.tokens, self.token_offsets, rows)
        words, word_offsets = _take_bags(self.words, self.word_offsets, rows)
        return ItemFeatures(self.rows[rows], tokens, token_offsets, words, word_offsets, self.numbers[rows])


class FeatureSpec(BaseModel):
    """Everything the featurizer learned from data; stored in the bundle as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    event_types: dict[Name, EventKind] = Field(default_factory=lambda: dict(DEFAULT_EVENT_TYPES))
    tokens: tuple[str, ...] = ()
    unknown_buckets: int = Field(default=64, ge=1)
    text_buckets: int = Field(default=0, ge=0)
    context_buckets: int = Field(default=0, ge=0)
    numbers: tuple[NumericColumn, ...] = ()

    def model_post_init(self, _context: Any) -> None:
        """Index the vocabulary once; lookups are on the path of every upsert and request."""
        object.__setattr__(self, "_token_row", {token: row for row, token in enumerate(self.tokens)})
        names = sorted(self.event_types)
        object.__setattr__(self, "_event_row", {name: row + 1 for row, name in enumerate(names)})

    @classmethod
    def fit(
        cls,
        items: Iterable[Item],
        *,
        event_types: Mapping[str, EventKind] | None = None,
        min_count: int = 2,
        max_tokens: int = 50_000,
        text_buckets: int = 0,
        context_buckets: int = 0,
    ) -> FeatureSpec:
        """Learn vocabulary and means from the catalogue; attributes rarer than `min_count` share hashed buckets."""
        counts: Counter[str] = Counter()
        sums: dict[str, list[float]] = {}
        for item in items:
            counts.update(item_tokens(item))
            for name, value in item_numbers(item).items():
                sums.setdefault(name, []).append(value)
        common = [token for token, count in counts.most_common(max_tokens) if count >= min_count]
        return cls(
            event_types=dict(event_types or DEFAULT_EVENT_TYPES),
            tokens=tuple(sorted(common)),
            text_buckets=text_buckets,
            context_buckets=context_buckets,
            numbers=tuple(_standardise(name, np.asarray(sums[name])) for name in sorted(sums)),
        )

    @property
    def token_count(self) -> int:
        """Size of the attribute table: the vocabulary and the shared buckets behind it."""
        return len(self.tokens) + self.unknown_buckets

    def token_rows(self, item: Item) -> list[int]:
        """Rows of the attribute table for one item."""
        known: dict[str, int] = self._token_row  # type: ignore[attr-defined]
        base = len(self.tokens)
        rows = []
        for token in item_tokens(item):
            row = known.get(token)
            rows.append(base + bucket(token, self.unknown_buckets) if row is None else row)
        return rows

    def item_features(self, items: Sequence[Item], rows: Ints | None = None) -> ItemFeatures:
        """Featurize items; `rows` are their rows in the id table, none of them known if left out."""
        tokens = [self.token_rows(item) for item in items]
        words = [word_buckets(item, self.text_buckets) for item in items] if self.text_buckets else [[]] * len(items)
        numbers = np.zeros((len(items), len(self.numbers)), dtype=np.float32)
        for at, item in enumerate(items):
            values = item_numbers(item)
            for column, spec in enumerate(self.numbers):
                if spec.name in values:
                    numbers[at, column] = _scaled(values[spec.name], spec)
        flat_tokens, token_offsets = _flatten(tokens)
        flat_words, word_offsets = _flatten(words)
        if rows is None:
            rows = np.full(len(items), -1, dtype=np.int64)
        return ItemFeatures(rows, flat_tokens, token_offsets, flat_words, word_offsets, numbers)

    def event_row(self, event_type: str) -> int:
        """Row of an event type in the type table; 0 for one the model was not told about."""
        known: dict[str, int] = self._event_row  # type: ignore[attr-defined]
        return known.get(event_type, 0)

    def event_kind(self, event_type: str) -> EventKind:
        """Weight and sign of an event type; an unlisted one is neutral."""
        return self.event_types.get(event_type, EventKind(weight=0.0, positive=False))

    def positive_types(self) -> tuple[str, ...]:
        """Event types worth predicting, sorted."""
        return tuple(sorted(name for name, kind in self.event_types.items() if kind.positive))

    def telling(self, event_type: str) -> bool:
        """Whether an event of this type says anything about a taste: all but those listed with weight 0."""
        kind = self.event_types.get(event_type)
        return kind is None or kind.weight != 0

    def require_event_type(self, event_type: str, *, field: str) -> None:
        """Raise the error that lists the known event types, if this is none of them."""
        if event_type not in self.event_types:
            raise unknown_name("event type", event_type, self.event_types, field=field)

    def context_tokens(
        self, attributes: Mapping[str, Any], context: Mapping[str, Any], now: float, last: float | None
    ) -> list[int]:
        """Hashed tokens 1..context_buckets of a request: attributes of the person, context, hour, time since `last`.

        `now` and `last` (the latest event) are seconds since 1970. At most MAX_CONTEXT_TOKENS come back.
        """
        if not self.context_buckets:
            return []
        moment = datetime.fromtimestamp(now, UTC)
        words = [f"hour={moment.hour}", f"weekday={moment.weekday()}", f"month={moment.month}"]
        if last is not None:
            words.append(f"idle={gap_bucket(now - last)}")
        words += [f"context.{name}={_plain(value)}" for name, value in sorted(context.items())]
        words += [f"user.{name}={_plain(value)}" for name, value in sorted(attributes.items())]
        return [1 + bucket(word, self.context_buckets, salt="context") for word in words[:MAX_CONTEXT_TOKENS]]


def item_tokens(item: Item) -> list[str]:
    """Categorical tokens of an item, `name=value`; a list attribute gives one token a value."""
    tokens = [f"categories={name}" for name in item.categories]
    for name, value in sorted(item.attributes.items()):
        if isinstance(value, (bool, str)):
            tokens.append(f"{name}={_plain(value)}")
        elif isinstance(value, list):
            tokens += [f"{name}={entry}" for entry in value]
    return tokens


def item_numbers(item: Item) -> dict[str, float]:
    """Numeric features of an item by name."""
    numbers = {
        name: float(value)
        for name, value in item.attributes.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    if item.price is not None:
        numbers["price"] = item.price
    return numbers


def word_buckets(item: Item, buckets: int) -> list[int]:
    """Hashed words of title and description, lower case, each once, in order of appearance."""
    words = _WORD.findall(f"{item.title} {item.description}".lower())
    return [bucket(word, buckets, salt="word") for word in dict.fromkeys(words[: 4 * MAX_WORDS])][:MAX_WORDS]


def gap_bucket(seconds: float) -> int:
    """Bucket 0..GAP_BUCKETS-1 of a time gap, by powers of two of a minute."""
    return min(GAP_BUCKETS - 1, int(math.log2(1.0 + max(0.0, seconds) / 60.0)))


def gap_buckets(times: npt.NDArray[np.float64]) -> Ints:
    """Bucket of the gap before each event of one history, oldest first; the first one has gap 0. [L] -> [L]."""
    return span_buckets(np.diff(times, prepend=times[:1]))


def span_buckets(seconds: npt.NDArray[np.float64]) -> Ints:
    """Bucket of each of many time gaps, as `gap_bucket` has it. [X] -> [X]."""
    return np.minimum(GAP_BUCKETS - 1, np.log2(1.0 + np.maximum(seconds, 0.0) / 60.0)).astype(np.int64)


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _standardise(name: str, values: npt.NDArray[np.float64]) -> NumericColumn:
    values = values.clip(-LARGEST, LARGEST)
    # Prices and counts are skewed by orders of magnitude: their logarithm is what compares.
    log = bool(values.min() >= 0 and values.max() > 20 * max(float(np.median(values)), 1e-9))
    shaped = np.log1p(values) if log else values
    mean, spread = float(shaped.mean()), float(shaped.std())
    return NumericColumn(name=name, mean=mean, scale=spread if spread > ALIKE * max(1.0, abs(mean)) else 1.0, log=log)


def _scaled(value: float, spec: NumericColumn) -> float:
    value = max(-LARGEST, min(LARGEST, value))
    shaped = math.log1p(max(value, 0.0)) if spec.log else value
    return max(-5.0, min(5.0, (shaped - spec.mean) / spec.scale))


def _flatten(bags: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
    offsets = np.zeros(len(bags) + 1, dtype=np.int64)
    np.cumsum([len(bag) for bag in bags], out=offsets[1:])
    return np.fromiter((entry for bag in bags for entry in bag), dtype=np.int64, count=int(offsets[-1])), offsets


def _take_bags(flat: Ints, offsets: Ints, rows: Ints) -> tuple[Ints, Ints]:
    lengths = offsets[rows + 1] - offsets[rows]
    taken = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(lengths, out=taken[1:])
    inside = np.arange(taken[-1]) - np.repeat(taken[:-1], lengths)
    return flat[np.repeat(offsets[rows], lengths) + inside], taken
