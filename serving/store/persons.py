"""Persons: what is known of somebody, as one request reads it, whichever and however many ids they go by.

Events, attributes and consent stay with the id under which they came, so that ids which were joined can part again and
nothing is lost; what a person is to the service is put together when they are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

from serving.store.consents import Said
from serving.store.histories import merge


class HistoryEvent(NamedTuple):
    """One remembered event; `timestamp` in seconds since 1970."""

    item_id: str
    event_type: str
    timestamp: float
    value: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class UserSummary:
    """A person without their history.

    `events` counts all of them; `last_seen` in seconds since 1970, None for never; `consent` has what they said.
    """

    user_id: str
    attributes: dict[str, Any]
    events: int
    last_seen: float | None
    consent: Said = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile(UserSummary):
    """A person: `history` is oldest first and holds at most `HISTORY_LIMIT` events."""

    history: list[HistoryEvent]


class Reading(NamedTuple):
    """A profile, and what the store has come to at the same moment: catalogue revision and version of the documents."""

    profile: Profile | None
    revision: int
    version: int


@dataclass(frozen=True, kw_only=True, slots=True)
class UserPage:
    """Some users, and the cursor of the page after it (None: this was the last)."""

    users: tuple[UserSummary, ...]
    next: str | None


def nothing(user_id: str) -> Profile:
    """A person of whom only the id is known."""
    return Profile(user_id=user_id, attributes={}, history=[], events=0, last_seen=None)


def united(own: Profile, others: Sequence[Profile]) -> Profile:
    """A person and what is known of their other ids, as one.

    Attributes of the person's own id win, then those of the id that was last active. The history is the latest events
    of all, in the order of time.
    """
    known = sorted(others, key=lambda one: (one.last_seen or 0.0, one.user_id))
    return Profile(
        user_id=own.user_id,
        attributes=joined_attributes(own, known),
        history=merge(chain.from_iterable(one.history for one in (own, *known))),
        events=own.events + sum(one.events for one in known),
        last_seen=latest(one.last_seen for one in (own, *known)),
        consent=agreed(one.consent for one in (own, *known)),
    )


def summed(own: UserSummary, others: Sequence[UserSummary]) -> UserSummary:
    """The same without histories."""
    known = sorted(others, key=lambda one: (one.last_seen or 0.0, one.user_id))
    return UserSummary(
        user_id=own.user_id,
        attributes=joined_attributes(own, known),
        events=own.events + sum(one.events for one in known),
        last_seen=latest(one.last_seen for one in (own, *known)),
        consent=agreed(one.consent for one in (own, *known)),
    )


def joined_attributes(own: UserSummary, known: Iterable[UserSummary]) -> dict[str, Any]:
    """Attributes of several ids, the last one's under the person's own."""
    attributes: dict[str, Any] = {}
    for one in (*known, own):
        attributes |= one.attributes
    return attributes


def agreed(said: Iterable[Said]) -> Said:
    """What several ids said, as one voice: a refusal by any of them is a refusal."""
    voice: Said = {}
    for one in said:
        for purpose, allowed in one.items():
            voice[purpose] = allowed and voice.get(purpose, True)
    return voice


def latest(moments: Iterable[float | None]) -> float | None:
    """The last of some moments, None if there is none."""
    return max((one for one in moments if one is not None), default=None)
