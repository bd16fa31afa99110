"""A page: several lists for one person at one moment, with whatever else its layout has between them.

What is known of the person is read and computed once, in `base`; each shelf is a `Work` of its own beside it, and runs
through the stages as any list does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from embeddings.errors import NotFound
from embeddings.ids import Rows
from serving.pipeline.pipeline import trace_of
from serving.policy.layouts import AlertSlot, ContentSlot, Layout, Shelf, Slot, Tile, placeholders
from serving.request.behaviour import cart_of
from serving.request.candidates import Candidates
from serving.request.query import Anchor, Query, Recommended
from serving.request.work import Place, Work
from serving.stages.effects import found_by, logged_as
from serving.stages.reasons import LOOKED, VERBS
from serving.store import Decision

LOOKING = "are looking at"
ASKED = ("item_id", "context", "exclude", "personalized")


@dataclass(frozen=True, kw_only=True, slots=True)
class PageQuery:
    """One request for a page by its name; `item_id` is the item that it is about, if it is about one."""

    page: str
    now: datetime
    user_id: str | None = None
    item_id: str | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    exclude: Sequence[str] = ()
    personalized: bool = True
    explain: bool = False
    fields: bool = False
    deadline_ms: float | None = None

    @property
    def person(self) -> Query:
        """The request as far as it is the same for all shelves."""
        beside = () if self.item_id is None else (self.item_id,)
        return Query(
            now=self.now,
            user_id=self.user_id,
            placement="for_you",
            context=self.context,
            exclude=(*self.exclude, *beside),
            personalized=self.personalized,
            explain=self.explain,
            fields=self.fields,
            deadline_ms=self.deadline_ms,
            page=self.page,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownSlot:
    """One slot of the answer: a shelf with its title and items, what was decided for a content or an alert, or a tile."""

    id: str
    type: str
    pinned: bool
    title: str | None = None
    placement: str | None = None
    anchor: Anchor | None = None
    items: tuple[Recommended, ...] = ()
    content: Mapping[str, Any] | None = None
    unserved: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class PageAnswer:
    """The page, and everything needed to account for it; positions of items run through all of its shelves."""

    recommendation_id: str
    page: str
    slots: tuple[ShownSlot, ...]
    model_version: str
    policy_version: int
    experiment: Mapping[str, str] = field(default_factory=dict)
    degraded: tuple[str, ...] = ()
    trace: Mapping[str, Any] | None = None
    milliseconds: Mapping[str, float] = field(default_factory=dict)


class Decider(Protocol):
    """Decides contents and alerts for a person; None where there is nothing for them now. Called in a thread."""

    def content(self, name: str, work: Work) -> Mapping[str, Any] | None:
        """What to show of a content."""

    def alert(self, name: str | None, work: Work) -> Mapping[str, Any] | None:
        """The alert of that name, any if there is no name."""


class Page:
    """A page under way: `shelves` are lists by the id of their slot, `decided` contents and alerts; `shown` the outcome.

    `values` are powers of two, `propensity` is the probability of the order, `left_out` are slots that took too long.
    """

    def __init__(self, query: PageQuery, layout: Layout, base: Work) -> None:
        self.query, self.layout, self.base = query, layout, base
        self.shelves: dict[str, Work] = {}
        self.decided: dict[str, Mapping[str, Any]] = {}
        self.values: dict[str, float] = {}
        self.shown: list[str] = []
        self.propensity = 1.0
        self.left_out: list[str] = []

    @classmethod
    def of(cls, query: PageQuery, base: Work) -> Page:
        """A page at its beginning; raises `NotFound` for a page without layout and for an item that does not exist."""
        layout = base.changes.layouts.get(query.page) or base.snapshot.policy.layout(query.page)
        if query.item_id is not None and base.catalogue.row(query.item_id) < 0:
            raise NotFound(f"unknown item '{query.item_id}'", field="item_id")
        page = cls(query, layout, base)
        page.shelves = dict(page._planned())
        return page

    @property
    def slots(self) -> Iterator[Slot]:
        """The slots to show, in their order."""
        by_id = {slot.id: slot for slot in self.layout.slots}
        return (by_id[name] for name in self.shown)

    @property
    def degraded(self) -> tuple[str, ...]:
        """What the page had to do without: stages, and slots that were left out."""
        stages = [name for work in (self.base, *self.shelves.values()) for name in work.degraded]
        return tuple(dict.fromkeys([*stages, *(slot_name(name) for name in self.left_out)]))

    @property
    def named(self) -> Rows:
        """Rows of the items that contents and alerts name under `items`, by id or in objects with an `item_id`."""
        said = [one for decided in self.decided.values() for one in (decided, decided.get("payload"))]
        lists = [one.get("items") for one in said if isinstance(one, Mapping)]
        each = [one for items in lists if isinstance(items, list) for one in items]
        ids = [one.get("item_id") if isinstance(one, Mapping) else one for one in each]
        rows = self.base.catalogue.rows(one for one in ids if isinstance(one, str))
        return rows[rows >= 0]

    def shows(self, slot: Shelf) -> bool:
        """Whether a shelf has items enough, and whatever its title speaks of."""
        work = self.shelves[slot.id]
        return len(work.slate) >= slot.min_items and (not placeholders(slot.template or "") or work.anchor is not None)

    def _planned(self) -> Iterator[tuple[str, Work]]:
        """The lists to fill. A shelf that starts from an item gets the page's, else the next of the person's latest."""
        begun: Counter[str] = Counter()
        lying = cart_of(self.base.past.events).items if self.layout.about == "cart" else ()
        asked = replace(self.base.query, exclude=(*self.base.query.exclude, *lying), page=None)
        for slot in self.layout.slots:
            if not isinstance(slot, Shelf):
                continue
            query = replace(asked, placement=slot.placement, k=slot.max_items or 0)
            work = self.base.sibling(query)
            if work.placement.anchored:
                if self.query.item_id is not None:
                    query = replace(query, similar_to=self.query.item_id)
                elif begun[slot.placement] < len(self.base.anchors):
                    query = replace(query, anchor=self.base.anchors[begun[slot.placement]].item_id)
                    begun[slot.placement] += 1
                else:
                    continue
                work = self.base.sibling(query)
            yield slot.id, work

    def title(self, slot: Shelf) -> str | None:
        """The title of a shelf, None where it has none or speaks of an item that the list does not start from."""
        if slot.template is None:
            return None
        anchor = self.shelves[slot.id].anchor
        if anchor is None:
            return None if placeholders(slot.template) else slot.template
        verb = LOOKING if self.query.item_id is not None else VERBS.get(anchor.event_type or "", LOOKED)
        return slot.template.format(anchor=anchor.title, verb=verb)

    def answer(self, recommendation_id: str) -> PageAnswer:
        """The answer; `shown` must have been found."""
        works = (self.base, *self.shelves.values())
        spent: Counter[str] = Counter()
        for work in works:
            spent.update(work.milliseconds)
        return PageAnswer(
            recommendation_id=recommendation_id,
            page=self.layout.id,
            slots=tuple(self._shown(slot) for slot in self.slots),
            model_version=self.base.snapshot.bundle.name,
            policy_version=self.base.snapshot.policy.version,
            experiment={name: arm for arms in self._arms(works) for name, arm in arms.items()},
            degraded=self.degraded,
            trace=self._trace() if self.query.explain else None,
            milliseconds=spent,
        )

    def _arms(self, works: Iterable[Work]) -> Iterator[Mapping[str, str]]:
        """Arms of the lists, and of the contents that are shown."""
        yield from (work.arms for work in works)
        yield from (self.decided[name].get("experiment", {}) for name in self.shown if name in self.decided)

    def _trace(self) -> dict[str, Any]:
        """How the order came about, and the story of each list."""
        places = {name: place for place, name in enumerate(self.shown)}
        return {
            "slots": [
                {"id": slot.id, "value": self.values.get(slot.id), "moves": slot.moves, "place": places.get(slot.id)}
                for slot in self.layout.slots
            ],
            "propensity": self.propensity,
            "shelves": {name: trace_of(work) for name, work in self.shelves.items()},
        }

    def _shown(self, slot: Slot) -> ShownSlot:
        match slot:
            case Shelf():
                work = self.shelves[slot.id]
                return ShownSlot(
                    id=slot.id,
                    type="shelf",
                    pinned=slot.pinned,
                    title=self.title(slot),
                    placement=slot.placement,
                    anchor=work.anchor,
                    items=tuple(
                        Recommended(
                            item_id=work.catalogue.id(place.row),
                            score=place.score,
                            reasons=place.reasons,
                            item=work.catalogue.item(place.row) if self.query.fields else None,
                        )
                        for place in work.slate
                    ),
                    unserved=work.unserved,
                )
            case Tile():
                return ShownSlot(id=slot.id, type="tile", pinned=slot.pinned, title=slot.title or None)
            case ContentSlot() | AlertSlot():
                return ShownSlot(id=slot.id, type=slot.type, pinned=slot.pinned, content=self.decided[slot.id])


def slot_name(name: str) -> str:
    """How a slot is called among stages."""
    return f"slot {name}"


class Paged(NamedTuple):
    """A page that went out, and the little of its making that tells where its items came from.

    `lists` has a slate, its candidates, and the probability with which chance put the shelf there, for each shelf shown.
    """

    query: PageQuery
    answer: PageAnswer
    lists: Sequence[tuple[Sequence[Place], Candidates, float]]
    sources: tuple[str, ...]
    user_id: str | None

    @classmethod
    def of(cls, page: Page, answer: PageAnswer) -> Paged:
        """What to keep of a page; references only, and none to a mask of the catalogue."""
        lists, chance = [], 1.0
        for slot in page.slots:
            chance = page.propensity if slot.moves else chance  # what stands below depends on it too
            if isinstance(slot, Shelf):
                work = page.shelves[slot.id]
                lists.append((work.slate, work.candidates, chance))
        return cls(page.query, answer, lists, page.base.snapshot.sources, logged_as(page.base))

    @property
    def recommendation_id(self) -> str:
        """The id of the answer."""
        return self.answer.recommendation_id

    def decision(self) -> Decision:
        """The row of the log: places run through all shelves, and `slots` in the request says how many are whose."""
        query, answer = self.query, self.answer
        asked = {name: value for name in ASKED if (value := getattr(query, name)) not in (None, (), [], {})}
        channel = query.context.get("channel")
        items = [item for slot in answer.slots for item in slot.items]
        return Decision(
            recommendation_id=answer.recommendation_id,
            user_id=self.user_id,
            at=query.now,
            kind="page",
            placement=answer.page,
            channel=channel if isinstance(channel, str) else None,
            request=asked | {"slots": [[slot.id, len(slot.items)] for slot in answer.slots]},
            items=[item.item_id for item in items],
            scores=[item.score for item in items],
            propensities=[chance * place.propensity for slate, _, chance in self.lists for place in slate],
            sources=[names for slate, found, _ in self.lists for names in found_by(slate, found, self.sources)],
            arms=answer.experiment,
            model_version=answer.model_version,
            policy_version=answer.policy_version,
            degraded=answer.degraded,
        )
