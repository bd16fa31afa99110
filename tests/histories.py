"""Small data sets for tests, written as histories: `{"ann": "a b c"}` is Ann, who viewed three items an hour apart."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from embeddings.schema import Event, Item, User, to_table
from training.dataset import Dataset, load

START = datetime(2026, 1, 5, 8, tzinfo=UTC)
Touch = tuple[str, str, float]
"""Item, event type, hours after `START`."""


def dataset(
    histories: Mapping[str, str | Sequence[Touch]],
    *,
    items: Sequence[Item] = (),
    users: Mapping[str, dict[str, Any]] | None = None,
    contexts: Mapping[str, dict[str, Any]] | None = None,
    shuffled: bool = False,
    **options: Any,
) -> Dataset:
    """Build a data set; `contexts` are by person, `shuffled` mixes the order of the file (not of equal times)."""
    events = []
    for user, history in histories.items():
        touches = (
            [(item, "view", place) for place, item in enumerate(history.split())]
            if isinstance(history, str)
            else history
        )
        context = dict((contexts or {}).get(user, {}))
        channel = context.pop("channel", None)
        for item, kind, hours in touches:
            moment = START + timedelta(hours=hours)
            events.append(
                Event(user_id=user, item_id=item, event_type=kind, timestamp=moment, channel=channel, context=context)
            )
    if shuffled:
        random.Random(0).shuffle(events)
        events.sort(key=lambda event: event.timestamp.minute)  # another order than by time
    people = to_table([User(user_id=name, attributes=value) for name, value in (users or {}).items()], User)
    return load(to_table(events, Event), to_table(items, Item) if items else None, people, **options)


def cycle(*, people: int = 160, items: int = 20, length: int = 7, **options: Any) -> Dataset:
    """A world with one answer: whoever touched item i touches item i + 1 next, around the circle."""
    histories = {}
    for person in range(people):
        first = random.Random(person).randrange(items)
        histories[f"u{person:03}"] = " ".join(f"i{(first + place) % items:02}" for place in range(length))
    return dataset(histories, **options)
