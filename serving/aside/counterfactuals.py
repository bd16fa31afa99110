"""Counterfactuals: what a list would be without one event, one rule, one of its places, or without the person.

Each is the same request asked again, aside, with one thing left out and everything else as it was: the moment, the release,
the policy. There are few of them and a limit of time, so that whoever asks for an explanation waits and nobody else does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

from serving.pipeline.job import Job
from serving.pipeline.ladder import Ladder
from serving.pipeline.live import Live
from serving.request.query import Query
from serving.request.work import Work
from serving.stages.reasons import VERBS
from serving.store import Profile, Store

EVENTS, RULES, PLACES = 5, 5, 3
"""How many of each kind are left out, one at a time."""

SECONDS = 2.0
NAMED = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Imagined:
    """One thing that is left out: its kind and id, in words, and the request and the person without it."""

    kind: Literal["event", "rule", "place", "person"]
    id: str
    text: str
    query: Query
    profile: Profile | None


async def imagined(ladder: Ladder, live: Live, store: Store, query: Query, *, seconds: float) -> list[dict[str, Any]]:
    """Ask again without one thing at a time, in the form of `CounterfactualOut`; at most for so many seconds.

    The ladder and the release should be none that anybody is answered by.
    """
    until = time.monotonic() + seconds
    profile = (await asyncio.to_thread(store.profiles.read, query.user_id)).profile
    base = await _asked(ladder, live, query, profile)
    told = []
    for one in _left_out(base, query, profile):
        if time.monotonic() >= until:
            break
        told.append(_told(one, base, await _asked(ladder, live, one.query, one.profile)))
    return told


async def _asked(ladder: Ladder, live: Live, query: Query, profile: Profile | None) -> Work:
    return await ladder.run(Job.known(query, live, ladder.deadline_s, profile))


def _left_out(base: Work, query: Query, profile: Profile | None) -> Iterator[Imagined]:
    """What there is to leave out: first what the reasons of the answer name, then the latest, the strongest, the first."""
    if profile is not None and base.history:
        yield from islice(_events(base, query, profile), EVENTS)
    for rule_id in islice(_rules(base), RULES):
        rules = (*query.without_rules, rule_id)
        text = f"without the rule '{rule_id}'"
        yield Imagined(kind="rule", id=rule_id, text=text, query=replace(query, without_rules=rules), profile=profile)
    for place in base.slate[:PLACES]:
        item_id = base.catalogue.id(place.row)
        text = f"without {base.catalogue.title(place.row) or item_id}"
        exclude = (*query.exclude, item_id)
        yield Imagined(kind="place", id=item_id, text=text, query=replace(query, exclude=exclude), profile=profile)
    if base.query.personalized:
        nobody = replace(query, personalized=False)
        yield Imagined(
            kind="person", id=query.user_id or "", text="without anything known of you", query=nobody, profile=profile
        )


def _events(base: Work, query: Query, profile: Profile) -> Iterator[Imagined]:
    """Items of the history, each with everything that was done with it."""
    named = [reason.item_id for place in base.slate for reason in place.reasons if reason.item_id]
    done = {event.item_id: event.event_type for event in base.history}  # the last thing done with each
    latest = list(dict.fromkeys(event.item_id for event in reversed(base.history)))
    for item_id in dict.fromkeys([one for one in named if one in done] + latest):
        row = base.catalogue.row(item_id)
        title = base.catalogue.title(row) if row >= 0 else item_id
        history = [event for event in profile.history if event.item_id != item_id]
        text = f"if you had not {VERBS.get(done[item_id], 'touched')} {title or item_id}"
        yield Imagined(kind="event", id=item_id, text=text, query=query, profile=replace(profile, history=history))


def _rules(base: Work) -> Iterator[str]:
    """Rules in force, but for those that keep items away: what somebody must not see is not told as what might be."""
    kept_away = {rule.id for rule, _ in base.rules.base.limits}
    named = [reason.rule_id for place in base.slate for reason in place.reasons if reason.rule_id]
    return (one for one in dict.fromkeys([*named, *base.rules.ids]) if one not in kept_away)


def _told(one: Imagined, base: Work, other: Work) -> dict[str, Any]:
    """The difference, as data and in a sentence."""
    before, after = _ids(base), _ids(other)
    entered = [item for item in after if item not in before]
    left = [item for item in before if item not in after]
    moved = [item for item in after if item in before and after.index(item) != before.index(item)]
    if not entered and not left and not moved:
        told = f"{one.text[0].upper()}{one.text[1:]}, the list would be the same."
    else:
        said = []
        if entered:
            said.append(f"{_named(entered, other)} would be on it")
        if left:
            said.append(f"{_named(left, base)} would not be")
        if not said:
            said.append(f"{_named(moved, other)} would stand elsewhere")
        told = f"{one.text[0].upper()}{one.text[1:]}, {'; '.join(said)}."
    return {
        "kind": one.kind,
        "id": one.id,
        "text": told,
        "items": after,
        "entered": entered,
        "left": left,
        "moved": len(moved),
        "same": before == after,
    }


def _ids(work: Work) -> list[str]:
    return [work.catalogue.id(place.row) for place in work.slate]


def _named(items: Sequence[str], work: Work) -> str:
    catalogue = work.catalogue
    titles = [(catalogue.title(row) if (row := catalogue.row(item)) >= 0 else "") or item for item in items[:NAMED]]
    more = len(items) - len(titles)
    return ", ".join(titles) + (f" and {more} more" if more else "")
