"""Behaviour: what a person did, as conditions may ask it, found in the history that a request has read anyway."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from embeddings.replenishment import BOUGHT
from serving.policy.conditions import Condition
from serving.request.catalogue import Catalogue
from serving.request.history import History
from serving.store.persons import HistoryEvent

CART, TAKEN_OUT = "cart", "remove_from_cart"
PAUSE_S = 30 * 60.0
"""A visit ends when nothing was done for half an hour."""


class Cart(NamedTuple):
    """What lies in a cart: items with when they were put there, the latest last; `touched`: when it changed last."""

    items: dict[str, float]
    touched: float


def cart_of(history: Iterable[HistoryEvent]) -> Cart:
    """What was put into the cart and neither bought nor taken out since; moments are seconds since 1970."""
    items: dict[str, float] = {}
    touched = 0.0
    for event in history:
        if event.event_type in (CART, BOUGHT, TAKEN_OUT):
            touched = event.timestamp
            items.pop(event.item_id, None)
            if event.event_type == CART:
                items[event.item_id] = touched
    return Cart(items, touched)


class Done:
    """What was done by `now`, the moment of the request."""

    def __init__(self, past: History, catalogue: Catalogue, now: float) -> None:
        self.history, self.rows, self.catalogue, self.now = past.events, past.rows, catalogue, now

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
        return len(cart_of(self.history).items)

    def visits(self) -> int:
        """Which visit this is, as far as the history goes: the one of this request counts."""
        if not self.history:
            return 1
        times = [event.timestamp for event in self.history]
        pauses = sum(later - earlier > PAUSE_S for earlier, later in pairwise([*times, max(self.now, times[-1])]))
        return 1 + pauses
