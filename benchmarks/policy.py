"""Policies: the documents that a measured service has in force, ten rules, or one of everything beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RULES: tuple[dict[str, Any], ...] = (
    {
        "id": "in-stock-range",
        "items": {"attribute": "price", "op": "lt", "value": 100_000},
        "action": {"type": "include"},
    },
    {
        "id": "no-lavender",
        "items": {"attribute": "material", "op": "eq", "value": "Lavender"},
        "action": {"type": "exclude"},
    },
    {
        "id": "adults-only",
        "when": {"attribute": "context.country", "op": "eq", "value": "AT"},
        "items": {"attribute": "categories", "op": "contains", "value": "Beauty"},
        "action": {"type": "exclude"},
    },
    {
        "id": "web-margin",
        "when": {"attribute": "context.channel", "op": "eq", "value": "web"},
        "items": {"attribute": "margin", "op": "gt", "value": 0.4},
        "action": {"type": "boost", "factor": 1.2},
    },
    {
        "id": "sporty",
        "items": {"attribute": "style", "op": "eq", "value": "sporty"},
        "action": {"type": "boost", "factor": 1.1},
    },
    {
        "id": "dear",
        "items": {"attribute": "price", "op": "gt", "value": 500},
        "action": {"type": "bury", "factor": 0.5},
    },
    {
        "id": "sand",
        "items": {"attribute": "colour", "op": "eq", "value": "sand"},
        "action": {"type": "bury", "factor": 0.9},
    },
    {
        "id": "groceries-first",
        "items": {"attribute": "categories", "op": "contains", "value": "Grocery"},
        "action": {"type": "pin", "position": 2},
    },
    {"id": "brands", "action": {"type": "cap", "attribute": "brand", "limit": 3}},
    {"id": "colours", "action": {"type": "cap", "attribute": "colour", "limit": 8}},
)
"""Ten rules of every kind; all but one are in force in every request."""

LOOKERS = {"attribute": "user.segment", "op": "in", "value": ["lookers"]}
EVERYTHING: Mapping[str, tuple[dict[str, Any], ...]] = {
    "placement": ({"id": "default", "values": {"margin": 0.2}, "novelty": 0.1, "exploration": 0.1},),
    "segment": (
        {"id": "lookers", "when": {"did": "view", "days": 7, "at_least": 2}},
        {"id": "regulars", "when": {"attribute": "history.visits", "op": "ge", "value": 3}},
    ),
    "rule": ({"id": "for-lookers", "when": LOOKERS, "action": {"type": "cap", "attribute": "style", "limit": 10}},),
    "content": ({"id": "hero", "variants": [{"id": one, "payload": {"text": one}} for one in ("calm", "loud")]},),
    "experiment": (
        {
            "id": "novelty",
            "state": "running",
            "arms": [{"id": "as_is"}, {"id": "novel", "placements": {"default": {"novelty": 0.3}}}],
        },
    ),
}
"""A dial, exploration, segments by behaviour with a rule that asks for one, a content, and an experiment."""
