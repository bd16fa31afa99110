"""Exploration: now and then two items of a list change places, so that its log can judge lists that were never shown.

In a share of the requests one place, drawn at random, gets an item drawn at random from the list and what would come below
it; the two change places. Every item of that pool can stand on every place then, with a probability that the log has. What
is drawn stays for an hour, so that a list that is loaded again looks as it did, and is the same in both topologies.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from embeddings.ids import bucket

CHANCES = 1_000_000


class Order(NamedTuple):
    """Entries in an order, the probability with which each came to its place, and the places that were drawn, if any."""

    entries: list[int]
    propensities: list[float]
    drawn: tuple[int, int] | None


def explored(entries: Sequence[int], shown: int, share: float, *, whose: str, what: str, at: datetime) -> Order:
    """The first `shown` of some entries, best first, two of which may have changed places; the rest is the pool below.

    With n shown, m entries and the share s, an entry is on its own place with 1 - s (m + n - 2) / (n m); one of the list on
    another place with 2 s / (n m), because it may have been drawn either way; one from below on any place with s / (n m).
    """
    n, m = min(shown, len(entries)), len(entries)
    if m < 2 or share <= 0:
        return Order(list(entries[:n]), [1.0] * n, None)
    text = f"{whose}\n{what}\n{at:%Y-%m-%dT%H}"
    explores = bucket(text, CHANCES, salt="list") < share * CHANCES
    place, other = (bucket(text, size, salt=salt) for size, salt in ((n, "place"), (m, "item")))
    order = list(entries)
    moved = explores and place != other
    if moved:
        order[place], order[other] = order[other], order[place]
    each = share / (n * m)
    propensities = [1.0 - each * (m + n - 2)] * n
    if moved:
        propensities[place] = 2 * each if other < n else each
        if other < n:
            propensities[other] = 2 * each
    return Order(order[:n], propensities, (place, other) if moved else None)
