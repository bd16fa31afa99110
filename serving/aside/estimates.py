"""Estimates: what a draft of a placement would bring, from the log of what was shown and what people then did.

Logged requests are asked again with the placement in force and with the draft, both without exploration; the log of what
chance put on which place then tells what either would have brought (`serving/analysis/offpolicy.py`). Answers that went out
degraded are left out: chance had no part in them. Of contents the log tells what each variant would have brought.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from embeddings.arrays import Doubles
from embeddings.errors import InputError
from serving.analysis.offpolicy import CERTAIN, Codes, Log, difference, estimate
from serving.aside.replay import replayed
from serving.pipeline.ladder import Ladder
from serving.pipeline.live import Live
from serving.policy.contents import Content
from serving.policy.placements import Placement
from serving.store import Decision, Store
from serving.store.events import Echoes

WITHIN = timedelta(days=3)
"""How long after an answer an event that echoes it counts."""

NEVER = datetime.max.replace(tzinfo=UTC)

LEAST = 100
"""Answers below which nothing is estimated."""


async def estimated(
    ladder: Ladder,
    live: Live,
    store: Store,
    draft: Placement,
    *,
    event_type: str,
    by_value: bool,
    requests: int,
    seconds: float,
) -> dict[str, Any]:
    """Estimates for the placement in force and for a draft of it, in the form of `EstimateOut`.

    The reward of an item on its place is 1 if an event of the type echoes it, or the sum of their values. Raises
    `InputError` where there are too few answers, or none that left anything to chance.
    """
    began = time.monotonic()
    current = live.snapshot.policy.placement(draft.id)
    logged = await asyncio.to_thread(_logged, store, draft.id, requests, "list")
    usable = [one for one in logged if one.user_id is not None and not one.degraded and one.items]
    what = f"placement '{draft.id}'"
    _check(what, logged, usable)
    changes = [
        lambda query, one=one: replace(query, draft=one.model_copy(update={"id": draft.id, "exploration": 0.0}))
        for one in (current, draft)
    ]
    shown: list[Decision] = []
    lists: tuple[list[list[str]], list[list[str]]] = ([], [])
    async for again in replayed(ladder, live, store, usable, changes, until=began + seconds):
        shown.append(again.decision)
        for found, work in zip(lists, again.lists, strict=True):
            found.append([work.catalogue.id(place.row) for place in work.slate])
    _check(what, logged, shown)
    first, last = min(one.at for one in shown), max(one.at for one in shown)
    echoes = await asyncio.to_thread(store.events.echoes, event_type, first, last + WITHIN)
    log, in_force, drafted = coded(shown, *lists, echoes=echoes, by_value=by_value)
    return {
        "placement": draft.id,
        "reward": event_type,
        "by_value": by_value,
        "logged": len(logged),
        "replayed": len(shown),
        "seconds": round(time.monotonic() - began, 3),
        "explored": float((np.where(log.places, log.propensities, 1.0) < CERTAIN).any(axis=1).mean()),
        "shown": float(log.rewards.sum() / len(shown)),
        "current": _told(log, in_force),
        "draft": _told(log, drafted),
        "difference": difference(log, drafted, in_force)._asdict(),
    }


def variants_estimated(store: Store, content: Content, *, requests: int) -> dict[str, Any]:
    """What each variant of a content would bring if everybody were shown it, in the form of `VariantsOut`.

    The reward of a decision is 1 if an event of the content's goal names it within `goal_hours` of it, as for learning.
    Raises `InputError` as `estimated` does.
    """
    logged = _logged(store, content.id, requests, "content")
    shown = [one for one in logged if one.user_id is not None and one.items]
    _check(f"content '{content.id}'", logged, shown)
    first, last = min(one.at for one in shown), max(one.at for one in shown)
    within = timedelta(hours=content.goal_hours)
    named = store.events.answers(content.goal, first, last + within)
    reached = [timedelta(0) <= named.get(one.recommendation_id, NEVER) - one.at <= within for one in shown]
    ids = [variant.id for variant in content.variants]
    numbers = {name: number for number, name in enumerate(dict.fromkeys([*ids, *(one.items[0] for one in shown)]))}
    people: dict[str | None, int] = {}
    log = Log(
        items=np.array([[numbers[one.items[0]]] for one in shown], dtype=np.int64),
        propensities=np.array([one.propensities for one in shown], dtype=np.float64),
        rewards=np.array(reached, dtype=np.float64)[:, None],
        person=np.array([people.setdefault(one.user_id, len(people)) for one in shown], dtype=np.int64),
    )
    return {
        "content": content.id,
        "reward": content.goal,
        "logged": len(logged),
        "used": len(shown),
        "shown": float(log.rewards.mean()),
        "variants": {name: _told(log, np.full((len(shown), 1), numbers[name])) for name in ids},
    }


def _logged(store: Store, placement: str, requests: int, kind: str) -> list[Decision]:
    """The latest answers, under the id of the person behind the one that asked: several ids are not several people."""
    logged = store.decisions.latest(placement, requests, kind=kind)
    whose = store.aliases.people({one.user_id for one in logged if one.user_id is not None})
    return [replace(one, user_id=whose.get(one.user_id or "", one.user_id)) for one in logged]


def coded(
    shown: Sequence[Decision], *policies: Sequence[Sequence[str]], echoes: Echoes, by_value: bool
) -> tuple[Log, Codes, Codes]:
    """The log, and the lists of two policies for the same answers, with numbers for ids."""
    current, draft = policies
    length = max(len(ids) for lists in ([one.items for one in shown], *policies) for ids in lists)
    numbers: dict[str, int] = {}
    people: dict[str | None, int] = {}

    def table(lists: Sequence[Sequence[str]]) -> Codes:
        found = np.full((len(lists), length), -1, dtype=np.int64)
        for row, ids in enumerate(lists):
            found[row, : len(ids)] = [numbers.setdefault(name, len(numbers)) for name in ids]
        return found

    rewards: Doubles = np.zeros((len(shown), length))
    chances: Doubles = np.ones((len(shown), length))
    for row, one in enumerate(shown):
        chances[row, : len(one.items)] = one.propensities
        for place, item in enumerate(one.items):
            count, value = echoes.get((one.recommendation_id, item), (0, 0.0))
            rewards[row, place] = value if by_value else float(count > 0)
    log = Log(
        items=table([one.items for one in shown]),
        propensities=chances,
        rewards=rewards,
        person=np.array([people.setdefault(one.user_id, len(people)) for one in shown], dtype=np.int64),
    )
    return log, table(current), table(draft)


def _told(log: Log, lists: Codes) -> dict[str, Any]:
    found = estimate(log, lists)
    intervals = {name: getattr(found, name)._asdict() for name in ("ips", "snips", "dr")}
    return {**intervals, "effective": found.effective, "supported": found.supported}


def _check(what: str, logged: Sequence[Decision], usable: Sequence[Decision]) -> None:
    if len(usable) < LEAST:
        raise InputError(
            f"{what} has {len(logged)} logged answers, {len(usable)} of which can be used; {LEAST} are needed, of people "
            "who can be told apart, not degraded, and asked again in time",
            field="requests",
        )
    if all(chance == 1.0 for one in usable for chance in one.propensities):
        raise InputError(
            f"no answer of {what} left anything to chance, so its log says nothing about anything else; give the one in "
            "force an 'exploration' such as 0.1 and wait for new answers",
            field="exploration",
        )
