"""Placements: how one spot of the application (a shelf, a mail, a search page) is filled.

A placement says where candidates come from, what a person has had already, how varied the list is, and what it aims at. The
usual ones are there without being written (`READY_MADE`); a document with the id of one takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, Strict

from embeddings.errors import InputError, unknown_name
from embeddings.schema import ITEM_COLUMNS, Label, Name, Row, parse
from serving.policy.kinds import Kind, PolicyDocument, References, by_id

USUAL_SOURCES = ("two_tower", "similar_to_recent", "trending", "new_arrivals")
ANCHORED = ("similar", "bought_together")
"""Sources that start from one item: the one of the request, or else the one that the person touched last."""

SOURCES = (*USUAL_SOURCES, *ANCHORED, "continue", "buy_again", "replenishment")
CONSUMED = ("purchase", "rating")
"""Event types after which an item counts as had, unless a placement says otherwise."""

FINISHED = (*CONSUMED, "finish", "complete")
"""Event types after which there is nothing to continue."""

NO_VALUES = ITEM_COLUMNS - {"price"}
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
Days = Annotated[float, Strict(), Field(gt=0, le=36_525, allow_inf_nan=False)]
Names = Annotated[tuple[Name, ...], Field(max_length=32), AfterValidator(_distinct)]


Objectives = Annotated[dict[Name, Weight], Field(max_length=32)]
Values = Annotated[dict[Name, Weight], Field(max_length=8)]


class Freshness(Row):
    """What newness is worth: `weight` for an item that appears now, half of that after `half_life_days`, and so on."""

    weight: Weight
    half_life_days: Days = 14.0


class Placement(PolicyDocument):
    """One placement, as stored and as answered by the service.

    `seen`: items that the person has an event of these types with are not shown again; empty shows everything. Where
    `replenishment` is a source, what is due is shown all the same, until it is bought.
    `order`: `ranked` by score, or as `found`: source by source in the order of `sources`, each in its own order. `fill`:
    whether the rest of the catalogue completes a list that the sources leave short. `k`: length of the list, and of a page
    of it, when a request does not say. `channel`: where its lists are shown, when a request does not say.

    What a list aims at, the objective dial: `objectives`: weight of each event type in the score, negative for what is
    unwanted; an event type left out weighs nothing, and no objectives at all means the weights that the model release
    recommends. The score is then multiplied by

        1 + sum of values[a] * a / typical a + novelty * unfamiliarity + freshness.weight * 0.5 ** (age / half-life)

    so that 1 in `values` makes a typical margin worth as much as the interest itself, and what nobody is interested in is
    not lifted by anything. `values` names attributes that hold numbers, or `price`; typical is the median of those above 0.
    Unfamiliarity is 0 for the best known item of the catalogue and 1 for those that nobody has touched. `diversity`: 0
    keeps the order of scores, 1 cares for variety alone; maximal marginal relevance with lambda = 1 - diversity (Carbonell
    and Goldstein, SIGIR 1998).

    `exploration`: the share of the requests in which one place gets another item, drawn from the list and as many again
    below it. The decision log has the probabilities, so that `bespoke policy estimate` can judge a change before anybody
    sees it. Pinned places are left alone, and where a cap holds only items of the list change places.
    """

    sources: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_known_sources)] = USUAL_SOURCES
    seen: Names = CONSUMED
    order: Literal["ranked", "found"] = "ranked"
    fill: Annotated[bool, Strict()] = True
    objectives: Objectives = Field(default={})
    values: Values = Field(default={})
    novelty: Weight = 0.0
    freshness: Freshness | None = None
    diversity: Share = 0.0
    exploration: Share = 0.0
    k: Annotated[int, Strict(), Field(ge=1, le=200)] = 20
    channel: Label | None = None

    @property
    def dialled(self) -> bool:
        """Whether anything beside interest counts."""
        return bool(self.novelty or self.freshness or any(self.values.values()))

    @property
    def anchored(self) -> bool:
        """Whether any source starts from one item."""
        return any(name in self.sources for name in ANCHORED)


DEFAULT = Placement(id="default", description="What a placement that nobody described is filled with.")

GORSE = Placement(
    id="gorse",
    description="Lists of the adapter for Gorse's clients: what a person has any feedback on is not shown again.",
    seen=("impression", "view", "click", "cart", "purchase", "rating", "like", "dislike"),
)

READY_MADE: Mapping[str, Placement] = MappingProxyType(
    {
        one.id: one
        for one in (
            DEFAULT,
            Placement(id="for_you", description="What this person is most likely to want now."),
            Placement(id="similar", description="Items like one item.", sources=("similar",)),
            Placement(
                id="bought_together",
                description="What others took along with an item.",
                sources=("bought_together",),
                order="found",
                fill=False,
                k=10,
            ),
            Placement(
                id="because_you_watched",
                description="Items like one that the person touched lately; the answer names it as its anchor.",
                sources=("similar",),
                order="found",
                fill=False,
            ),
            Placement(
                id="trending",
                description="What is in highest demand now, of what this person has not had yet.",
                sources=("trending",),
                order="found",
                fill=False,
            ),
            Placement(
                id="new",
                description="Items of the last thirty days, in this person's order.",
                sources=("new_arrivals",),
                fill=False,
            ),
            Placement(
                id="continue",
                description="Items that this person has begun and not finished, the last one first.",
                sources=("continue",),
                seen=FINISHED,
                order="found",
                fill=False,
                k=10,
            ),
            Placement(
                id="buy_again",
                description="What this person has bought and uses up.",
                sources=("buy_again",),
                seen=(),
                order="found",
                fill=False,
                k=10,
            ),
            Placement(
                id="category_page",
                description="A category in this person's order; the request's filter says which one.",
                seen=(),
                k=40,
            ),
            Placement(id="search_rerank", description="The results of a search in this person's order.", seen=()),
            GORSE,
        )
    }
)
"""Placements that exist without being written."""


def parse_placement(raw: Mapping[str, Any]) -> Placement:
    """Validate one raw document; raises `InputError` that names the first wrong field.

    What a document with the id of a ready-made placement leaves out is as in that one.
    """
    name = raw.get("id") if isinstance(raw, Mapping) else None
    ready = READY_MADE.get(name) if isinstance(name, str) else None
    placement: Placement = parse(Placement, {**ready.model_dump(), **raw} if ready else raw)
    return placement


def _parsed(raw: Mapping[str, Any], references: References) -> Placement:
    placement = parse_placement(raw)
    known = None if references.item_attributes is None else {"price", *references.item_attributes} - NO_VALUES
    for name in placement.values:
        if known is not None and name not in known:
            raise unknown_name("attribute", name, known, field=f"values.{name}")
    return placement


def _as_it_reads(raw: Mapping[str, Any]) -> Placement | None:
    """The placement, if it is sound apart from the attributes it names: a value that is gone counts for nothing."""
    try:
        return parse_placement(raw)
    except InputError:
        return None


PLACEMENTS = Kind(
    name="placement",
    plural="placements",
    model=Placement,
    parse=_parsed,
    compile=by_id,
    despite=_as_it_reads,
    ready_made=READY_MADE,
)
"""Placements, compiled to themselves by id."""
