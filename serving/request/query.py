"""What is asked, and what is answered: the two ends of the pipeline, without HTTP and without Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from embeddings.schema import Item
from serving.policy.placements import Placement


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """One request for items.

    Exactly one of three shapes: a person (`user_id`), a person and the caller's own list (`user_id` + `candidates`),
    or an item (`similar_to`, with an optional `user_id` whose seen items are left out). `filter` is a condition over
    item attributes as JSON; `context` holds the request's facts with `channel` among them; `fields` asks for the items
    themselves in the answer. `deadline_ms` asks for an answer sooner than the service would have to give it.

    `k` is 0 for as many as the placement says. `anchor` is the item that sources start from which start from one, if not
    from the person's latest. `shown` are the items of earlier pages, in their order. `draft` stands in for the placement;
    `without_rules` are rules that do not apply, `rules` are drafts of rules that do. `page` is the page that this is the
    person of, without being a list itself; empty where it is for no page either.
    """

    now: datetime
    k: int = 0
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
    deadline_ms: float | None = None
    anchor: str | None = None
    shown: Sequence[str] = ()
    draft: Placement | None = None
    page: str | None = None
    without_rules: Sequence[str] = ()
    rules: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Anchor:
    """The item that a list starts from; `event_type` is what the person did with it, if that is why."""

    item_id: str
    title: str
    event_type: str | None = None


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
    """The list, and everything needed to account for it.

    `experiment` is the arm of each experiment that this answer is part of, and under `release` that of a canary. `anchor`
    is the item that the list starts from, if it does. `unserved` says of sources and parts of the dial why release or
    catalogue cannot serve them. `next_page` asks for what comes below, None where nothing does.
    """

    recommendation_id: str
    items: tuple[Recommended, ...]
    model_version: str
    policy_version: int
    experiment: Mapping[str, str] = field(default_factory=dict)
    degraded: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    unserved: Mapping[str, str] = field(default_factory=dict)
    anchor: Anchor | None = None
    next_page: str | None = None
    trace: Mapping[str, Any] | None = None
    milliseconds: Mapping[str, float] = field(default_factory=dict)
