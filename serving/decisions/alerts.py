"""Alerts: contents that come when something has happened, each once for each such thing, and never in quiet hours.

Who does not allow marketing gets none; what is known only from what a person did needs their consent to personalization.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from embeddings.replenishment import BOUGHT
from embeddings.schema import allows
from serving.decisions.deciding import Contents, Decided, DecisionQuery, Occasion
from serving.policy.contents import HERE, Content, Trigger
from serving.request.replenishment import due, moment_of
from serving.request.work import Work
from serving.store import Store

CART, UNCART = "cart", "remove_from_cart"
NO_INTEREST = frozenset({"impression", "dislike", "return", UNCART})
"""Event types that do not say that somebody would like to have something."""

ITEMS = 10
"""Of a cart that an alert tells; and occasions that are looked at for one alert."""

INTERESTS = 300
"""Items that somebody looked at last, of which news are looked for."""

DAY_S = 86_400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class AlertsQuery:
    """One request for the alerts that are due; `happened` are the triggers that only the application sees."""

    now: datetime
    user_id: str
    happened: frozenset[str] = frozenset()
    context: Mapping[str, Any] = field(default_factory=dict)
    limit: int = 1

    @property
    def asked(self) -> DecisionQuery:
        """The request as one for decisions."""
        return DecisionQuery(contents=(), now=self.now, user_id=self.user_id, context=self.context)


def alerts_of(contents: Contents, query: AlertsQuery, work: Work) -> list[Decided]:
    """Up to `limit` alerts that are due, those with the highest priority first. Nothing is claimed yet."""
    found: list[Decided] = []
    for content in in_order(work.snapshot.policy.contents.values()):
        if len(found) >= query.limit:
            break
        decided = alert_of(contents, content, work, query.happened)
        if decided is not None and decided.logged:
            found.append(decided)
    return found


def in_order(contents: Iterable[Content]) -> list[Content]:
    """The alerts among some contents, by priority, then id."""
    return sorted((one for one in contents if one.trigger is not None), key=lambda one: (-one.priority, one.id))


def alert_of(contents: Contents, content: Content, work: Work, happened: Iterable[str]) -> Decided | None:
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
    found = {}
    for one in _OCCASIONS[kind](content.trigger, work, store):
        found[one.subject or ""] = one
        if len(found) >= ITEMS:
            break
    if not found:
        return None
    names = {name for name in (work.profile.user_id, work.query.user_id) if name}
    told = store.contacts.told(names, content.counted, list(found))
    return next((one for subject, one in found.items() if subject not in told), None)


def _carts(trigger: Trigger, work: Work, store: Store) -> Iterator[Occasion]:
    """What lies in the cart, if nothing was added or bought for long enough."""
    cart: dict[str, float] = {}
    active = 0.0
    for event in work.history:
        if event.event_type == CART:
            cart.pop(event.item_id, None)  # the last one put in is told first
            cart[event.item_id] = active = event.timestamp
        elif event.event_type in (BOUGHT, UNCART):
            cart.pop(event.item_id, None)
            active = event.timestamp
    if not cart or not 60 * trigger.after_minutes <= work.seconds - active <= DAY_S * trigger.within_days:
        return
    latest = max(cart.values())
    items = [one for name in reversed(cart) if (one := _item(work, name)) is not None]
    if items:
        yield Occasion(f"{trigger.type} {latest:.6f}", {"trigger": trigger.type, "items": items[:ITEMS]})


def _news(trigger: Trigger, work: Work, store: Store) -> Iterator[Occasion]:
    """Good news of what the person looked at before and has not bought since, the latest first."""
    interest: dict[str, float] = {}
    for event in work.history:
        if event.event_type == BOUGHT:
            interest.pop(event.item_id, None)
        elif event.event_type not in NO_INTEREST:
            interest.setdefault(event.item_id, event.timestamp)
    if not interest:
        return
    since = work.query.now - timedelta(days=trigger.within_days)
    for piece in store.catalogue.news.of(list(interest)[-INTERESTS:], trigger.type, since):
        item = _item(work, piece.item_id)
        if item is None or interest[piece.item_id] >= piece.at.timestamp():
            continue
        if trigger.type == "price_drop":
            before, price = piece.before or 0.0, item["price"]
            if price is None or price > before * (1 - trigger.percent / 100):
                continue
            item["before"] = before
        yield Occasion(
            f"{trigger.type} {piece.item_id} {piece.at.timestamp():.6f}", {"trigger": trigger.type, "items": [item]}
        )


def _due(trigger: Trigger, work: Work, store: Store) -> Iterator[Occasion]:
    """What it is time to buy again."""
    if not work.query.personalized:
        return
    for repeat in due(work.snapshot, work.profile, work.seconds):
        item = _item(work, repeat.item_id)
        if item is not None:
            told = {"trigger": trigger.type, "items": [item | {"due_at": moment_of(repeat.outlook.due_at)}]}
            yield Occasion(f"{trigger.type} {repeat.item_id} {repeat.outlook.last:.6f}", told)


_OCCASIONS: Mapping[str, Callable[[Trigger, Work, Store], Iterator[Occasion]]] = {
    "cart_abandonment": _carts,
    "back_in_stock": _news,
    "price_drop": _news,
    "replenishment": _due,
}


def _item(work: Work, item_id: str) -> dict[str, Any] | None:
    """What is told of an item; None if it cannot be had."""
    catalogue = work.catalogue
    row = catalogue.row(item_id)
    if row < 0 or not catalogue.available[row]:
        return None
    price = float(catalogue.prices[row])
    return {"item_id": item_id, "title": catalogue.title(row), "price": None if np.isnan(price) else price}
