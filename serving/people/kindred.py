"""Kindred people: those of whom the user tower thinks alike, among the ones who were active last."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from embeddings.arrays import Floats, unit
from embeddings.schema import allows
from serving.request.query import Query
from serving.request.snapshot import Snapshot
from serving.request.work import Work
from serving.store.persons import Profile

AMONG = 500
"""People who are looked at; each costs an encoding of a history, a third of a millisecond."""


def kindred(snapshot: Snapshot, person: Profile, others: Iterable[Profile], now: datetime) -> list[tuple[str, float]]:
    """Ids and cosines of other people, the most alike first; who does not want personalization is nobody's kin."""
    query = Query(k=1, now=now)

    def seen(profile: Profile) -> Floats:
        return unit(Work(query, snapshot, profile).user_vector)

    if not allows(person.consent, "personalization"):
        return []
    asked = [one for one in others if one.user_id != person.user_id and allows(one.consent, "personalization")]
    mine = seen(person)
    alike = [(one.user_id, float(seen(one) @ mine)) for one in asked if one.history]
    return sorted(alike, key=lambda pair: (-pair[1], pair[0]))
