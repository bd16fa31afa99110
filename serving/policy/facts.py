"""Facts: the row that a condition is asked of, about a person, a request and a moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from serving.policy.contact import zone_for

KNOWN_ALREADY: Mapping[str, Callable[[], Any]] = MappingProxyType({})


class Facts(dict[str, Any]):
    """A row of facts, of which some are found out when somebody asks for them, once."""

    __slots__ = ("_later",)

    def __init__(self, known: Mapping[str, Any], later: Mapping[str, Callable[[], Any]] = KNOWN_ALREADY) -> None:
        super().__init__(known)
        self._later = dict(later)
        for name in self._later:
            self.pop(name, None)

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a fact, or the default."""
        if name in self._later:
            self[name] = self._later.pop(name)()
        return super().get(name, default)

    def with_fact(self, name: str, value: Any) -> Facts:
        """The same row with one fact more, or another."""
        row = Facts(self, {one: find for one, find in self._later.items() if one != name})
        row[name] = value
        return row


def facts(
    user_attributes: Mapping[str, Any],
    events_count: int,
    context: Mapping[str, Any],
    now: float,
    later: Mapping[str, Callable[[], Any]] = KNOWN_ALREADY,
) -> Facts:
    """Build the row that `when` is asked of; `now` in seconds since 1970.

    Hours and days are those of UTC, the local ones those of the person's attribute `time_zone`, without it of UTC too.
    `user.events` is always the number of events, even if the person has an attribute of that name. `later` has facts that
    cost something, by name, and how to find them out.
    """
    moment = datetime.fromtimestamp(now, UTC)
    here = moment if (zone := zone_for(user_attributes)) is None else moment.astimezone(zone)
    known = {
        **{f"user.{name}": value for name, value in user_attributes.items()},
        **{f"context.{name}": value for name, value in context.items()},
        "user.events": events_count,
        "time.hour": moment.hour,
        "time.weekday": moment.weekday(),
        "time.date": moment.date().isoformat(),
        "time.local_hour": here.hour,
        "time.local_weekday": here.weekday(),
    }
    return Facts(known, later)
