"""Outcomes: what the people of an experiment did before and after they were first given an answer of it, one row a person.

The database counts; what comes back has a number a person, however many events there are. Events and answers under an alias
count for its person as things stand now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import CTE, ColumnElement, Select, and_, case, func, select, union_all

from serving.store.checksums import checksum, refuse
from serving.store.database import Database
from serving.store.tables import ALIASES, CONSENTS, DAY_US, DECISIONS, EVENTS, PROFILES

BEFORE_DAYS = 28
"""How far back behaviour before the first answer is counted."""

WEEKS = {"active_7": (1, 8), "active_28": (22, 29)}
"""The days after the first answer, from and until before, in which an event means that somebody came back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One person. `arm` and `last_arm` are places in the arms that were asked for, the lowest and the highest seen.

    `first` is the moment of the first answer, in microseconds since 1970. `before` in a name: in the 28 days before it, and
    for `active_before` in the last seven of them.
    `attributes` are what the person said of themselves, if they were asked for.
    """

    person: str
    arm: int
    last_arm: int
    first: int
    answers: int
    clicks: int
    orders: int
    revenue: float
    active_7: int
    active_28: int
    clicks_before: int
    orders_before: int
    revenue_before: float
    active_before: int
    events_before: int
    attributes: dict[str, Any] | None = None


class Outcomes:
    """The outcomes of the store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(
        self,
        experiment: str,
        arms: Sequence[str],
        *,
        since_version: int,
        until: int,
        click: str,
        purchase: str,
        attributes: bool = False,
    ) -> list[Outcome]:
        """Return everybody who was given an answer of the experiment in one of its arms, by their ids.

        Answers of a policy older than `since_version` do not count, nor does what happened from `until` on (microseconds),
        nor who does not allow analytics (any more).
        With `attributes` those of the people come along; raises `Damaged` for some that are not what was written.
        """
        shown = self._shown(experiment, arms, since_version=since_version, until=until)
        query = _counted(shown, until=until, click=click, purchase=purchase, attributes=attributes)
        rows = self._database.rows(query.order_by(shown.c.person))
        return [_outcome(row, attributes) for row in rows]

    def _shown(self, experiment: str, arms: Sequence[str], *, since_version: int, until: int) -> CTE:
        """Each person with their arms, the first answer, and how many there were."""
        at = DECISIONS.c
        inside = func.instr if self._database.embedded else func.strpos
        # A quote within a text is escaped, so nothing but this pair of name and value can read like it.
        pairs = [f"{_quoted(experiment)}:{_quoted(arm)}" for arm in arms]
        arm = case(*((inside(at.arms, pair) > 0, place) for place, pair in enumerate(pairs)))
        person = func.coalesce(ALIASES.c.user_id, at.user_id)
        # What people said last holds for what was logged before, too.
        refused = inside(func.coalesce(CONSENTS.c.consent, ""), f"{_quoted('analytics')}:false") > 0
        people = DECISIONS.outerjoin(ALIASES, ALIASES.c.alias == at.user_id)
        query = select(
            person.label("person"),
            func.min(arm).label("arm"),
            func.max(arm).label("last_arm"),
            func.min(at.at).label("first"),
            func.count().label("answers"),
        ).select_from(people.outerjoin(CONSENTS, CONSENTS.c.user_id == person))
        query = query.where(~refused)
        query = query.where(
            at.user_id.is_not(None), at.policy_version >= since_version, at.at < until, arm.is_not(None)
        )
        return query.group_by(person).cte("shown")


def _counted(shown: CTE, *, until: int, click: str, purchase: str, attributes: bool) -> Select[Any]:
    """The people of `shown` with what they did; the index by person finds their events."""
    ids = union_all(
        select(shown.c.person, shown.c.person.label("id")),
        select(shown.c.person, ALIASES.c.alias).join(ALIASES, ALIASES.c.user_id == shown.c.person),
    ).cte("ids")
    events, first = EVENTS.c, shown.c.first
    past = and_(events.timestamp < first, events.timestamp >= first - BEFORE_DAYS * DAY_US)
    after = events.timestamp >= first
    value = func.coalesce(events.value, 0.0)

    def count(when: ColumnElement[bool]) -> ColumnElement[Any]:
        return func.count(case((when, 1)))

    def total(when: ColumnElement[bool]) -> ColumnElement[Any]:
        return func.coalesce(func.sum(case((when, value))), 0.0)

    def any_of(when: ColumnElement[bool]) -> ColumnElement[Any]:
        return func.max(case((when, 1), else_=0))

    def within(low: int, high: int) -> ColumnElement[bool]:
        return and_(events.timestamp >= first + low * DAY_US, events.timestamp < first + high * DAY_US)

    clicked, bought = events.event_type == click, events.event_type == purchase
    counted = {
        "clicks": count(and_(after, clicked)),
        "orders": count(and_(after, bought)),
        "revenue": total(and_(after, bought)),
        **{name: any_of(within(*days)) for name, days in WEEKS.items()},
        "clicks_before": count(and_(past, clicked)),
        "orders_before": count(and_(past, bought)),
        "revenue_before": total(and_(past, bought)),
        "active_before": any_of(within(-7, 0)),
        "events_before": count(past),
    }
    person = [shown.c[name] for name in ("person", "arm", "last_arm", "first", "answers")]
    known = [PROFILES.c.attributes, PROFILES.c.attributes_sum] if attributes else []
    joined = shown.join(ids, ids.c.person == shown.c.person).outerjoin(
        EVENTS,
        and_(events.user_id == ids.c.id, events.timestamp < until, events.timestamp >= first - BEFORE_DAYS * DAY_US),
    )
    if attributes:
        joined = joined.outerjoin(PROFILES, PROFILES.c.user_id == shown.c.person)
    query = select(*person, *(column.label(name) for name, column in counted.items()), *known)
    return query.select_from(joined).group_by(*person, *known)


def _outcome(row: Any, attributes: bool) -> Outcome:
    counted = {name: value for name, value in row._mapping.items() if not name.startswith("attributes")}
    found: dict[str, Any] | None = None
    if attributes and row.attributes is not None:
        if row.attributes_sum != checksum(row.person, row.attributes):
            raise refuse(f"the stored profile of '{row.person}'")
        found = orjson.loads(row.attributes)
    return Outcome(**counted, attributes=found)


def _quoted(text: str) -> str:
    return orjson.dumps(text).decode()
