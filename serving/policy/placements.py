"""Placements: how one spot of the application (a shelf, a mail, a search page) is filled.

A placement says where candidates come from, what a person has had already, how varied the list is, and what it aims at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, Strict

from embeddings.errors import InputError, unknown_name
from embeddings.schema import Id, Name, Row, parse

SOURCES = ("two_tower", "similar_to_recent", "trending", "new_arrivals")
CONSUMED = ("purchase", "rating")
"""Event types after which an item counts as had, unless a placement says otherwise."""

MAX_WEIGHT = 1000.0


def _known_sources(sources: tuple[str, ...]) -> tuple[str, ...]:
    for name in sources:
        if name not in SOURCES:
            raise unknown_name("source", name, SOURCES, field="sources")
    return _distinct(sources)


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        raise InputError("must not name anything twice")
    return names


Share = Annotated[float, Strict(), Field(ge=0, le=1, allow_inf_nan=False)]
Weight = Annotated[float, Strict(), Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False)]
Names = Annotated[tuple[Name, ...], Field(max_length=32), AfterValidator(_distinct)]


Objectives = Annotated[dict[Name, Weight], Field(max_length=32)]


class Placement(Row):
    """One placement, as stored and as answered by the service.

    `seen`: items that the person has an event of these types with are not shown again; empty shows everything.
    `diversity`: 0 keeps the order of scores, 1 cares for variety alone; maximal marginal relevance with
    lambda = 1 - diversity (Carbonell and Goldstein, SIGIR 1998). `objectives`: weight of each event type in the
    score, negative for what is unwanted; an event type left out weighs nothing, and no objectives at all means
    the weights that the model release recommends. `k`: length of the list when a request does not say.
    """

    id: Id
    description: Annotated[str, Field(max_length=1000)] = ""
    sources: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_known_sources)] = SOURCES
    seen: Names = CONSUMED
    diversity: Share = 0.0
    objectives: Objectives = Field(default={})
    k: Annotated[int, Strict(), Field(ge=1, le=200)] = 20


DEFAULT = Placement(id="default")
"""What a placement that nobody described is filled with."""


def parse_placement(raw: Mapping[str, Any]) -> Placement:
    """Validate one raw document; raises `InputError` that names the first wrong field."""
    placement: Placement = parse(Placement, raw)
    return placement
