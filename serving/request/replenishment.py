"""Replenishment: what a person will need again, by their own purchases and the paces of the release.

The last purchase decides: the moment something is bought again, it is early for it once more.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from typing import NamedTuple

from embeddings.ids import UNKNOWN
from embeddings.replenishment import BOUGHT, DAY_S, Outlook, outlook
from embeddings.schema import allows
from serving.request.query import Reason
from serving.request.snapshot import Snapshot
from serving.store.persons import Profile

LAST_DATE = datetime(9999, 1, 1, tzinfo=UTC).timestamp()


class Repeat(NamedTuple):
    """An item that a person has bought, and what is to be expected of it."""

    row: int
    item_id: str
    outlook: Outlook


def repeats(snapshot: Snapshot, profile: Profile) -> list[Repeat]:
    """Everything that a person has bought, of the items that exist now, the soonest to be due first.

    Nothing without consent to personalization, and nothing by a release that knows no paces.
    """
    catalogue, paces = snapshot.catalogue, snapshot.bundle.paces
    if paces is None or not allows(profile.consent, "personalization"):
        return []
    bought: defaultdict[str, list[float]] = defaultdict(list)
    for event in profile.history:
        if event.event_type == BOUGHT:
            bought[event.item_id].append(event.timestamp)
    found = []
    for item_id, times in bought.items():
        row = catalogue.row(item_id)
        if row != UNKNOWN:
            pace, level = paces.of(item_id, catalogue.value(row, "categories") or ())
            found.append(Repeat(row, item_id, outlook(pace, level, times)))
    return sorted(found, key=lambda one: (one.outlook.due_at, one.item_id))


def due(snapshot: Snapshot, profile: Profile, now: float) -> list[Repeat]:
    """What it is time for at a moment (seconds since 1970), of what can be had, the longest due first.

    This is what shelves, alerts and mails ask.
    """
    available = snapshot.catalogue.available
    return [one for one in repeats(snapshot, profile) if available[one.row] and one.outlook.due(now)]


def reason(repeat: Repeat, now: float) -> Reason:
    """Why something is due, in words."""
    since = max(1, round((now - repeat.outlook.last) / DAY_S))
    lasts = max(1, round((repeat.outlook.due_at - repeat.outlook.last) / DAY_S))
    text = f"You bought this {_days(since)} ago, and it lasts about {_days(lasts)}"
    return Reason(code="due", text=text, item_id=repeat.item_id)


def moment_of(seconds: float) -> datetime:
    """A moment of an outlook as a date; what lies beyond all dates is told as the last of them."""
    return datetime.fromtimestamp(min(seconds, LAST_DATE), UTC)


def _days(count: int) -> str:
    return "a day" if count == 1 else f"{count} days"
