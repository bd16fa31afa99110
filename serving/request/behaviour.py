"""Behaviour: what a person did, as conditions may ask it, found in the history that a request has read anyway."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from embeddings.ids import Rows
from serving.policy.conditions import Condition
from serving.request.catalogue import Catalogue
from serving.store.persons import HistoryEvent

CART, BOUGHT, TAKEN_OUT = "cart", "purchase", "remove_from_cart"
PAUSE_S = 30 * 60.0
"""A visit ends when nothing was done for half an hour."""


def in_cart(history: Iterable[HistoryEvent]) -> list[str]:
    """The items in the cart, by id: put there, and neither bought nor taken out since."""
    last = {one.item_id: one.event_type for one in history if one.event_type in (CART, BOUGHT, TAKEN_OUT)}
    return [item_id for item_id, event_type in last.items() if event_type == CART]


class Done:
    """A history, oldest first, with the row of each event's item; `now` is the moment of the request."""

    def __init__(self, history: Sequence[HistoryEvent], rows: Rows, catalogue: Catalogue, now: float) -> None:
        self.history, self.rows, self.catalogue, self.now = history, rows, catalogue, now

    def count(self, event_type: str | None, items: Condition | None, since: float) -> int:
        """How often something was done since a moment; the latest first, so that what is older is not looked at."""
        mask = None if items is None else self.catalogue.mask_of(items, self.now)
        found = 0
        for event, row in zip(reversed(self.history), reversed(self.rows.tolist()), strict=True):
            if event.timestamp < since:
                break
            if (event_type is None or event.event_type == event_type) and (mask is None or mask[row]):
                found += 1
        return found

    def cart(self) -> int:
        """How many items are in the cart."""
        return len(in_cart(self.history))

    def visits(self) -> int:
        """Which visit this is, as far as the history goes: the one of this request counts."""
        if not self.history:
            return 1
        times = [event.timestamp for event in self.history]
        pauses = sum(later - earlier > PAUSE_S for earlier, later in pairwise([*times, max(self.now, times[-1])]))
        return 1 + pauses
