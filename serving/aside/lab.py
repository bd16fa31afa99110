"""The lab of rules: what a draft would do to logged requests, and where it stands in the way of others."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from embeddings.arrays import Mask
from serving.aside.preview import compared
from serving.aside.replay import Replayed
from serving.pipeline.ladder import Ladder
from serving.pipeline.live import Live
from serving.policy.conflicts import conflicts
from serving.policy.rules import Include, Rule
from serving.request.catalogue import Catalogue
from serving.request.query import Query
from serving.store import Decision, Store

PLACEMENTS = 20
"""Placements whose requests are looked at, of a rule that names more."""


DAY = timedelta(days=1)


async def simulated(
    ladder: Ladder, live: Live, store: Store, name: str, draft: Rule | None, *, requests: int, seconds: float
) -> dict[str, Any]:
    """Compare the rules in force with a draft of one among them (None: without it), in the form of `SimulationOut`.

    The draft is tried on everybody, however small its share, and also if it is not enabled or its time has not come.
    """
    until = time.monotonic() + seconds
    snapshot = live.snapshot
    tried = None if draft is None else _in_force(draft)
    old = next((rule for rule in snapshot.policy.rules if rule.id == name), None)
    decisions = await asyncio.to_thread(_logged, store, [one for one in (old, tried) if one is not None], requests)
    since = min((one.at for one in decisions), default=datetime.now(UTC) - DAY)
    pages = await asyncio.to_thread(store.decisions.count, "page", since, requests)
    others = [rule for rule in snapshot.policy.rules if rule.id != name]
    fired: tuple[Counter[str], Counter[str]] = (Counter(), Counter())

    def mask(rule: Rule) -> Mask:
        assert rule.items is not None
        return snapshot.catalogue.mask_of(rule.items, time.time())

    acts = await asyncio.to_thread(
        lambda: [
            {rule.id for rule in (*others, one) if rule is not None and _acts(rule, snapshot.catalogue, mask)}
            for one in (old, tried)
        ]
    )

    def look(one: Replayed) -> None:
        for counter, work, able in zip(fired, one.lists, acts, strict=True):
            counter.update(able.intersection(work.rules.ids))

    def change(query: Query) -> Query:
        if tried is None:
            return replace(query, without_rules=(name,))
        return replace(query, rules=(tried.model_dump(mode="json"),))

    found = await compared(ladder, live, store, decisions, change, until=until, look=look)
    names = sorted({rule.id for rule in (*others, *(one for one in (old, tried) if one is not None)) if rule.enabled})
    at_odds = [] if tried is None else await asyncio.to_thread(lambda: list(conflicts(tried, others, mask)))
    return found | {
        "rule": name,
        "pages": pages,
        "fired": [{"rule": one, "current": fired[0][one], "draft": fired[1][one]} for one in names],
        "never": [one for one in names if found["replayed"] and not fired[0][one] and not fired[1][one]],
        "conflicts": [asdict(one) for one in at_odds],
    }


def _in_force(draft: Rule) -> Rule:
    return draft.model_copy(update={"enabled": True, "share": 1.0, "starts_at": None, "ends_at": None})


def _acts(rule: Rule, catalogue: Catalogue, mask: Callable[[Rule], Mask]) -> bool:
    """Whether a rule, where it is in force, does anything to an item that can be had."""
    if rule.items is None:
        return True
    touched = ~mask(rule) if isinstance(rule.action, Include) else mask(rule)
    return bool((touched & catalogue.available).any())


def _logged(store: Store, rules: Sequence[Rule], requests: int) -> list[Decision]:
    """The latest requests of the placements that the rules speak of."""
    if not rules or any(not rule.placements for rule in rules):
        return list(store.decisions.latest(None, requests, kind="list"))
    placements = sorted({name for rule in rules for name in rule.placements})[:PLACEMENTS]
    found = [one for name in placements for one in store.decisions.latest(name, requests, kind="list")]
    return sorted(found, key=lambda one: one.at, reverse=True)[:requests]
