"""Arranging a page: what each part is worth to the person, in which order they come, and which items stay where.

A part is worth the share of the person's next wishes that it holds: the sum, over its first items, of what the towers'
softmax gives them. That is one scale for all shelves, however each of them is ordered. An item that two shelves have stays
on the upper one, one that a content or an alert names stays there, and the other list is filled up from behind.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from embeddings.ids import Rows, bucket
from serving.pages.page import Page
from serving.pipeline.fallback import plain_slate
from serving.pipeline.pipeline import run_section, skip_section
from serving.policy.layouts import AlertSlot, ContentSlot, Layout, Shelf, Slot, Tile
from serving.request.work import Work

VISIBLE = 5
"""Items by which a shelf is judged: those that are seen without scrolling."""

NOTHING = -60.0
"""Value, as a power of two, of what holds nothing that anybody wants."""

CHANCES = 1_000_000
Wishes = npt.NDArray[np.float64]


class Order(NamedTuple):
    """Ids of slots in an order, and the probability with which chance led to it."""

    ids: list[str]
    propensity: float


def arrange(page: Page, *, plain: bool = False) -> Page:
    """Order the slots, share out the items, and find the slates; `plain`: without the rules that rearrange lists.

    Returns another page, which shares nothing with the given one that changes: whoever was late with that one may go on.
    """
    done = copy.copy(page)
    done.values = values(page)
    whose = page.base.profile.user_id or page.query.user_id
    order = ordered(page.layout, done.values, whose=whose, at=page.query.now)
    done.propensity = order.propensity
    share_out(done, sequence(page.layout, order.ids), lambda work, taken: _slated(work, taken, plain=plain))
    return done


def share_out(page: Page, slots: Sequence[Slot], filled: Callable[[Work, Rows], Work]) -> None:
    """Find what is shown of the slots, in their order; `filled` gives a list its slate without the rows that are taken.

    Taken is what stands above, and what contents and alerts name. Pinned shelves have their room kept; where one of them
    turns out to be too short while others were passed over for it, the room is shared out again without it.
    """
    given = page.shelves
    kept = {slot.id for slot in slots if isinstance(slot, Shelf) and slot.pinned and slot.id in given}
    while True:
        page.shelves, page.shown = dict(given), []
        room = _shared(page, slots, filled, set(kept))
        passed_over = any(page.shelves[name] is work for name, work in given.items())
        if not room or not passed_over:
            return
        kept.intersection_update(page.shown)


def _shared(page: Page, slots: Sequence[Slot], filled: Callable[[Work, Rows], Work], kept: set[str]) -> int:
    """One round, with room for the `kept` shelves; returns how many more could have been shown."""
    taken, room = page.named, page.layout.max_shelves
    for slot in slots:
        if isinstance(slot, Shelf):
            kept.discard(slot.id)
            if slot.id not in page.shelves or room <= (0 if slot.pinned else len(kept)):
                continue
            work = page.shelves[slot.id] = filled(page.shelves[slot.id], taken)
            if not page.shows(slot):
                continue
            taken = np.concatenate([taken, np.array([place.row for place in work.slate], dtype=np.int64)])
            room -= 1
        elif isinstance(slot, ContentSlot | AlertSlot) and slot.id not in page.decided:
            continue
        page.shown.append(slot.id)
    return room


def values(page: Page) -> dict[str, float]:
    """What shelves and tiles are worth, as powers of two relative to the best item of the page."""
    rows: dict[str, Rows] = {}
    for slot in page.layout.slots:
        if isinstance(slot, Shelf) and slot.id in page.shelves:
            rows[slot.id] = page.shelves[slot.id].candidates.rows[: min(VISIBLE, page.shelves[slot.id].query.k)]
        elif isinstance(slot, Tile) and slot.items is not None:
            found = page.base.candidates.rows
            mask = page.base.catalogue.mask_of(slot.items, page.base.seconds)
            rows[slot.id] = found[mask[found]][:VISIBLE]
    if not rows:
        return {}
    every = np.unique(np.concatenate(list(rows.values())))
    worth = np.zeros(0) if not len(every) else _wishes(page.base, every)
    sums = {name: float(worth[np.searchsorted(every, found)].sum()) for name, found in rows.items()}
    return {name: float(np.log2(total)) if total > 2**NOTHING else NOTHING for name, total in sums.items()}


def ordered(layout: Layout, worth: Mapping[str, float], *, whose: str | None, at: datetime) -> Order:
    """The slots that may move, best first, and now and then one of them somewhere else; pinned ones are not among them."""
    places = {slot.id: place for place, slot in enumerate(layout.slots) if slot.moves and slot.id in worth}
    ids = sorted(places, key=lambda name: (layout.stickiness * places[name] - worth[name], places[name]))
    n = len(ids)
    if n < 2 or not layout.exploration:
        return Order(ids, 1.0)
    # The same for an hour: a page that is loaded again looks as it did.
    text = f"{whose}\n{layout.id}\n{at:%Y-%m-%dT%H}"
    explores = bucket(text, CHANCES, salt="explore") < layout.exploration * CHANCES
    start, stop = (bucket(text, n, salt=salt) if explores else 0 for salt in ("from", "to"))
    ids.insert(stop, ids.pop(start))
    # Neighbours change places in two ways, and nothing changes in n.
    ways = n if start == stop else 2 if abs(start - stop) == 1 else 1
    return Order(ids, (1 - layout.exploration) * (start == stop) + layout.exploration * ways / n**2)


def sequence(layout: Layout, moving: Sequence[str]) -> list[Slot]:
    """All slots in the order of the page: what does not move stays at its place, the others come between."""
    by_id = {slot.id: slot for slot in layout.slots}
    waiting = iter(moving)
    found = [next(waiting, None) if slot.moves else slot.id for slot in layout.slots]
    return [by_id[name] for name in found if name is not None]


def _wishes(base: Work, rows: Rows) -> Wishes:
    """How likely each row is to be the next wish, in proportion: by the towers for a person, by demand for nobody."""
    if not base.query.personalized:
        wishes: Wishes = base.snapshot.trend[rows]
        return wishes / max(float(wishes.max()), 1e-9)
    relevance = base.relevance(rows).astype(np.float64)
    likely: Wishes = np.exp(np.maximum(relevance - relevance.max(), NOTHING))
    return likely


def _slated(work: Work, taken: Rows, *, plain: bool) -> Work:
    one = copy.copy(work)
    one.candidates = work.candidates.take(~np.isin(work.candidates.rows, taken))
    one.slate, one.effects, one.trace = [], {}, list(work.trace)
    one.degraded, one.milliseconds = list(work.degraded), dict(work.milliseconds)
    one.unserved = dict(work.unserved)
    if plain:
        skip_section("rules", one)
        plain_slate(one)
    else:
        run_section("rules", one)
    return one
