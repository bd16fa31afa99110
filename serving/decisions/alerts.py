"""Alerts: contents that come when something has happened, each once for each such thing, and never in quiet hours.

Who does not allow marketing gets none; what is known only from what a person did needs their consent to personalization.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import numpy as np

from embeddings.replenishment import BOUGHT
from embeddings.schema import allows
from serving.decisions.deciding import Contents, Decided, DecisionQuery, Occasion
from serving.policy.contents import HERE, Content, Trigger
from serving.request.behaviour import TAKEN_OUT, cart_of
from serving.request.replenishment import due, moment_of
from serving.request.work import Work
from serving.store import Store
from serving.store.news import BACK, PRICE, Piece

NO_INTEREST = frozenset({"impression", "return", TAKEN_OUT})
"""Event types that do not say that somebody would like to have something."""

NO_MORE = frozenset({BOUGHT, "dislike"})
"""Event types after which nobody waits for news of an item."""

ITEMS = 10
"""Of a cart that an alert tells."""

INTERESTS = 300
"""Items that somebody looked at last, of which news are looked for."""

DAY_S = 86_400.0

Told = Callable[[], Mapping[str, datetime]]
"""What of its kind a person was told, by subject, and when, in this order; the store is asked when it is called first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AlertsQuery:
    """One request for the alerts that are due; `happened` are the triggers that only the application sees."""

    now: datetime
    user_id: str
    happened: frozenset[str] = frozenset()
    context: Mapping[str, Any] = field(default_factory=dict)
    personalized: bool = True
    limit: int = 1
    deadline_ms: float | None = None

    @property
    def asked(self) -> DecisionQuery:
        """The request as one for decisions."""
        return DecisionQuery(
            contents=(),
            now=self.now,
            user_id=self.user_id,
            context=self.context,
            personalized=self.personalized,
            deadline_ms=self.deadline_ms,
        )


def alerts_of(contents: Contents, query: AlertsQuery, before: Sequence[Decided], work: Work) -> list[Decided]:
    """Alerts that are due, those with the highest priority first; `limit` together with those that were decided `before`.

    One that somebody is held out of takes a place as if it were shown. Nothing is claimed yet.
    """
    known = {one.content for one in before}
    wanted = query.limit - sum(one.logged for one in before)
    found: list[Decided] = []
    for content in in_order(work.snapshot.policy.contents.values()):
        if len(found) >= wanted:
            break
        decided = None if content.id in known else alert_of(contents, content, work, query.happened)
        if decided is not None and decided.logged:
            found.append(decided)
    return found


def in_order(contents: Iterable[Content]) -> list[Content]:
    """The alerts among some contents, by priority, then id."""
    return sorted((one for one in contents if one.trigger is not None), key=lambda one: (-one.priority, one.id))


def alert_of(contents: Contents, content: Content, work: Work, happened: Iterable[str] = ()) -> Decided | None:
    """What is decided about one alert, if it is due; None if it is not."""
    profile, now = work.profile, work.query.now
    if content.trigger is None or not content.in_force(work.seconds) or work.stranger:
        return None
    if not allows(profile.consent, "marketing"):
        return None
    if content.quiet is not None and content.quiet.until(now, profile.attributes) is not None:
        return None
    occasion = _first(content, work, contents.store, happened)
    return None if occasion is None else contents.decide(content, work, occasion)


def _first(content: Content, work: Work, store: Store, happened: Iterable[str]) -> Occasion | None:
    """The first thing that an alert has to say and has not said before."""
    assert content.trigger is not None
    kind = content.trigger.type
    if kind in HERE:
        return Occasion(None, {"trigger": kind, "items": []}) if kind in happened else None
    told = cache(lambda: store.contacts.told(work.profile.user_id or work.query.user_id or "", content.counted, kind))
    occasions = _OCCASIONS[kind](content.trigger, work, store, told)
    return next((one for one in occasions if one.subject not in told()), None)


def _carts(trigger: Trigger, work: Work, store: Store, told: Told) -> Iterator[Occasion]:
    """What lies in the cart, if nothing was added or bought for long enough."""
    cart, touched = cart_of(work.past.events)
    if not cart or not 60 * trigger.after_minutes <= work.seconds - touched <= DAY_S * trigger.within_days:
        return
    latest = max(cart.values())
    items = [one for name in reversed(cart) if (one := _item(work, name)) is not None]
    if items:
        yield Occasion(f"{trigger.type} {latest:.6f}", {"trigger": trigger.type, "items": items[:ITEMS]})


def _back(trigger: Trigger, work: Work, store: Store, told: Told) -> Iterator[Occasion]:
    """What can be had again since the person looked at it last, the latest first."""
    for piece, looked in _news(BACK, trigger, work, store):
        item = _item(work, piece.item_id)
        if item is not None and looked < piece.at.timestamp():
            yield _told_of(trigger, item, piece.at.timestamp())


def _cheaper(trigger: Trigger, work: Work, store: Store, told: Told) -> Iterator[Occasion]:
    """What costs less than when the person looked at it last, or was told; many small steps count as one."""
    since = work.seconds - DAY_S * trigger.within_days
    heard = cache(lambda: {subject.rpartition(" ")[0]: at.timestamp() for subject, at in told().items()})
    for piece, looked in _news(PRICE, trigger, work, store):
        item = _item(work, piece.item_id)
        if item is None or item["price"] is None:
            continue
        before = piece.price_at(max(since, looked, heard().get(f"{trigger.type} {piece.item_id}", 0.0)))
        if before is not None and item["price"] <= before * (1 - trigger.percent / 100):
            yield _told_of(trigger, item | {"before": before}, piece.at.timestamp())


def _news(kind: str, trigger: Trigger, work: Work, store: Store) -> Iterator[tuple[Piece, float]]:
    """News of what the person looked at and still may want, the latest first, and when they looked at it last."""
    looked: dict[str, float] = {}
    for event in work.history:
        if event.event_type in NO_MORE:
            looked.pop(event.item_id, None)
        elif event.event_type not in NO_INTEREST:
            looked.pop(event.item_id, None)  # what was looked at last stands last
            looked[event.item_id] = event.timestamp
    if not looked:
        return
    since = work.query.now - timedelta(days=trigger.within_days)
    for piece in store.catalogue.news.of(list(looked)[-INTERESTS:], kind, since):
        yield piece, looked[piece.item_id]


def _due(trigger: Trigger, work: Work, store: Store, told: Told) -> Iterator[Occasion]:
    """What it is time to buy again."""
    if not work.query.personalized:
        return
    for repeat in due(work.snapshot, work.profile, work.seconds):
        item = _item(work, repeat.item_id)
        if item is not None:
            yield _told_of(trigger, item | {"due_at": moment_of(repeat.outlook.due_at)}, repeat.outlook.last)


def _told_of(trigger: Trigger, item: Mapping[str, Any], at: float) -> Occasion:
    """What is told of one item that something happened to at a moment."""
    return Occasion(f"{trigger.type} {item['item_id']} {at:.6f}", {"trigger": trigger.type, "items": [item]})


_OCCASIONS: Mapping[str, Callable[[Trigger, Work, Store, Told], Iterator[Occasion]]] = {
    "cart_abandonment": _carts,
    "back_in_stock": _back,
    "price_drop": _cheaper,
    "replenishment": _due,
}


def _item(work: Work, item_id: str) -> dict[str, Any] | None:
    """What is told of an item; None if it cannot be had, or a rule keeps it from the person."""
    catalogue = work.catalogue
    row = catalogue.row(item_id)
    if row < 0 or not catalogue.available[row] or not work.permits(row):
        return None
    price = float(catalogue.prices[row])
    return {"item_id": item_id, "title": catalogue.title(row), "price": None if np.isnan(price) else price}
