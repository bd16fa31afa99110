"""Reasons: why an item is on the list, in words a person can check."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from embeddings.arrays import unit
from serving.request.query import Reason
from serving.request.replenishment import reason as because_due
from serving.request.work import Work

NEAR = 0.5
"""An item is explained by one of the history when the cosine of their vectors is at least this."""

LOOK_BACK = 20
TRENDING = Reason(code="trending", text="Trending now")
NEW = Reason(code="new", text="New arrival")
FOR_YOU = Reason(code="for_you", text="Picked for you")
POPULAR = Reason(code="popular", text="Popular")
LOOKED = "looked at"
"""What somebody did whose application has a word of its own for it."""

VERBS = {
    "purchase": "bought",
    "view": "viewed",
    "click": "viewed",
    "cart": "put in your cart",
    "rating": "rated",
    "like": "liked",
}


def reasons_for(work: Work, places: list[int]) -> list[tuple[Reason, ...]]:
    """Reasons of candidates by position, the most telling first; there is always at least one each."""
    rows = work.candidates.rows[places]
    becauses = _because(work, rows)
    return [
        _reasons(work, row, int(work.candidates.found_by[at]), because)
        for at, row, because in zip(places, rows.tolist(), becauses, strict=True)
    ]


def _reasons(work: Work, row: int, found_by: int, because: Reason | None) -> tuple[Reason, ...]:
    sources = work.found_by(found_by)
    reasons = list(work.effects.get(row, ()))
    if "replenishment" in sources and row in work.due:
        reasons.append(because_due(work.due[row], work.seconds))
    origin = _origin(work, sources)
    if origin is not None:
        reasons.append(origin)
    elif because is not None:
        reasons.append(because)
    if "trending" in sources:
        reasons.append(TRENDING)
    if "new_arrivals" in sources:
        reasons.append(NEW)
    if not reasons:
        reasons.append(FOR_YOU if work.query.personalized and work.history else POPULAR)
    return tuple(reasons)


def _origin(work: Work, sources: list[str]) -> Reason | None:
    """Why an item is there which only one source could have found."""
    anchor = work.anchor
    if anchor is not None and "bought_together" in sources:
        return Reason(code="bought_together", text=f"Goes with {anchor.title}", item_id=anchor.item_id)
    if anchor is not None and "similar" in sources and work.query.similar_to is None:
        text = f"Because you {VERBS.get(anchor.event_type or '', LOOKED)} {anchor.title}"
        return Reason(code="similar_to", text=text, item_id=anchor.item_id)
    if "continue" in sources:
        return Reason(code="continue", text="Continue where you left off")
    if "buy_again" in sources:
        return Reason(code="buy_again", text="You bought it before")
    return None


def _because(work: Work, rows: npt.NDArray[np.int64]) -> list[Reason | None]:
    """For each row, the item of the request or the recent event that it resembles most, if it resembles any enough."""
    likened = work.query.similar_to
    if likened is not None:
        text = f"Similar to {work.catalogue.title(work.catalogue.row(likened))}"
        return [Reason(code="similar_to", text=text, item_id=likened)] * len(rows)
    # Latest first: of equally near events the latest is the one a person remembers.
    places = work.interests[: -LOOK_BACK - 1 : -1]
    if not len(places) or not len(rows):
        return [None] * len(rows)
    past = work.history_rows[places]
    cosines = unit(work.catalogue.vectors(rows)) @ unit(work.catalogue.vectors(past)).T
    best = np.argmax(cosines, axis=1)
    near = (cosines[np.arange(len(rows)), best] >= NEAR) & (past[best] != rows)
    return [_because_of(work, int(places[at])) if ok else None for at, ok in zip(best.tolist(), near, strict=True)]


def _because_of(work: Work, place: int) -> Reason:
    event = work.history[place]
    title = work.catalogue.title(int(work.history_rows[place]))
    return Reason(
        code="similar_to",
        text=f"Because you {VERBS.get(event.event_type, LOOKED)} {title}",
        item_id=event.item_id,
    )
