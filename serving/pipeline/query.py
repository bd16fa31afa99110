"""What is asked, and what is answered: the two ends of the pipeline, without HTTP and without Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from embeddings.schema import Item


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """One request for items.

    Exactly one of three shapes: a person (`user_id`), a person and the caller's own list (`user_id` + `candidates`),
    or an item (`similar_to`, with an optional `user_id` whose seen items are left out). `filter` is a condition over
    item attributes as JSON; `context` holds the request's facts with `channel` among them; `fields` asks for the items
    themselves in the answer.
    """

    k: int
    now: datetime
    user_id: str | None = None
    candidates: Sequence[str] | None = None
    similar_to: str | None = None
    placement: str = "default"
    context: Mapping[str, Any] = field(default_factory=dict)
    filter: Mapping[str, Any] | None = None
    exclude: Sequence[str] = ()
    personalized: bool = True
    explain: bool = False
    fields: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """Why an item is on the list: a stable code, a sentence, and the item or rule it refers to."""

    code: str
    text: str
    item_id: str | None = None
    rule_id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Recommended:
    """One place of the answer. `score` orders one answer; scores of different answers do not compare."""

    item_id: str
    score: float
    reasons: tuple[Reason, ...]
    item: Item | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The list, and everything needed to account for it."""

    recommendation_id: str
    items: tuple[Recommended, ...]
    model_version: str
    policy_version: int
    experiment: Mapping[str, str] = field(default_factory=dict)
    degraded: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    trace: Mapping[str, Any] | None = None
    milliseconds: Mapping[str, float] = field(default_factory=dict)
