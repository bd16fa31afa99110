"""Reasons: why an item is on the list, in words a person can check."""

from __future__ import annotations

import numpy as np

from serving.pipeline.query import Reason
from serving.pipeline.work import Work

NEAR = 0.5
"""An item is explained by one of the history when the cosine of their vectors is at least this."""

LOOK_BACK = 20
VERBS = {"purchase": "bought", "view": "viewed", "click": "viewed", "cart": "put in your cart", "rating": "rated"}


def reasons_for(work: Work, at: int) -> tuple[Reason, ...]:
    """Reasons of one candidate, the most telling first; there is always at least one."""
    row = int(work.candidates.rows[at])
    sources = work.found_by(int(work.candidates.found_by[at]))
    reasons = list(work.effects.get(row, ()))
    if work.query.similar_to is not None:
        likened = work.catalogue.row(work.query.similar_to)
        text = f"Similar to {work.catalogue.title(likened)}"
        reasons.append(Reason(code="similar_to", text=text, item_id=work.query.similar_to))
    else:
        because = _because(work, row)
        if because is not None:
            reasons.append(because)
    if "trending" in sources:
        reasons.append(Reason(code="trending", text="Trending now"))
    if "new_arrivals" in sources:
        reasons.append(Reason(code="new", text="New arrival"))
    if not reasons:
        personal = work.query.personalized and bool(work.history)
        reasons.append(
            Reason(code="for_you", text="Picked for you") if personal else Reason(code="popular", text="Popular")
        )
    return tuple(reasons)


def _because(work: Work, row: int) -> Reason | None:
    """The event of the recent history that the item resembles most, if it resembles any enough."""
    rows = work.history_rows[-LOOK_BACK:]
    if not len(rows):
        return None
    past = work.catalogue.vectors(rows)
    vector = work.catalogue.vectors(np.array([row]))[0]
    cosine = past @ vector / np.maximum(np.linalg.norm(past, axis=1) * np.linalg.norm(vector), 1e-9)
    # Of equally near events the latest is the one a person remembers.
    best = len(rows) - 1 - int(np.argmax(cosine[::-1]))
    if cosine[best] < NEAR or rows[best] == row:
        return None
    event = work.history[len(work.history) - len(rows) + best]
    verb = VERBS.get(event.event_type, "liked")
    return Reason(
        code="similar_to",
        text=f"Because you {verb} {work.catalogue.title(int(rows[best]))}",
        item_id=event.item_id,
    )
