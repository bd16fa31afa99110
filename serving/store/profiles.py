"""Profiles: what is known of each person, in one row that a request reads once.

The row holds the attributes and the most recent events, sorted by time, as one JSON blob; appending events keeps it true in
the same transaction, so the next request of that person sees the last click.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Connection, Row, Select, delete, func, or_, select, update

from embeddings.schema import User
from serving.store.aliases import Groups, erase_aliases, person
from serving.store.bulk import selecting
from serving.store.checksums import checksum, checksum_of_blob, refuse
from serving.store.consents import Consents, Said, consent_of, erase_consent
from serving.store.contacts import erase_contacts
from serving.store.cursors import cursor, cursor_read
from serving.store.database import CHUNK, Database, check_limit, chunks, hold
from serving.store.decisions import erase_decisions
from serving.store.erasures import Erased, Erasures
from serving.store.histories import Histories, blank
from serving.store.persons import HistoryEvent, Profile, Reading, UserPage, UserSummary, nothing, summed, united
from serving.store.tables import ALIASES, CONSENTS, EVENTS, PROFILES


class Profiles:
    """The people of the store."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._histories = Histories(database)
        self._consents = Consents(database)
        self._erasures = Erasures(database)
        columns = (
            "attributes, attributes_sum, events, last_seen, activity_sum, history_sum, history, consent, s.checksum"
        )
        self._groups = Groups(database)
        self._reading = database.prepared(
            "SELECT c.value, d.value, a.user_id, a.created_at, a.checksum,"
            f" EXISTS (SELECT 1 FROM aliases o WHERE o.user_id = COALESCE(a.user_id, ?)), {columns}"
            " FROM numbers c JOIN numbers d ON d.name = 'documents' LEFT JOIN aliases a ON a.alias = ?"
            " LEFT JOIN profiles p ON p.user_id = COALESCE(a.user_id, ?) LEFT JOIN consents s ON s.user_id = p.user_id"
            " WHERE c.name = 'catalogue'"
        )
        self._whole = selecting(
            database,
            f"SELECT p.user_id, {columns} FROM profiles p LEFT JOIN consents s ON s.user_id = p.user_id"
            " WHERE p.user_id AMONG",
        )
        self._others = selecting(
            database,
            f"SELECT a.user_id, a.alias, a.created_at, a.checksum, {columns} FROM aliases a"
            " LEFT JOIN profiles p ON p.user_id = a.alias LEFT JOIN consents s ON s.user_id = a.alias"
            " WHERE a.user_id AMONG",
        )
        insert = database.insert(PROFILES)
        changed = {name: insert.excluded[name] for name in ("attributes", "attributes_sum")}
        self._upsert = insert.on_conflict_do_update(index_elements=["user_id"], set_=changed)

    def get(self, user_id: str) -> Profile | None:
        """Return the profile of a person, or None; it holds every event that was acknowledged before the call.

        All ids of a person count as one, and any of them leads to it; the profile has the person's own id. Raises
        `Damaged` for one that is not what was written.
        """
        return self.read(user_id).profile

    def read(self, user_id: str | None) -> Reading:
        """Return the profile as `get` does, and how far catalogue and documents have come.

        One statement for a request, and another one only for people with several ids. Without a person, only how far
        things have come.
        """
        row = self._reading(*(user_id or "",) * 3)
        assert row is not None  # the numbers are there since the first migration
        revision, version, *alias, several = row[:6]
        if not user_id:
            return Reading(None, revision, version)
        whose = user_id if alias[0] is None else person(user_id, *alias)
        own = None if row[6] is None else _profile(whose, *row[6:])
        if several:
            own = united(own or nothing(whose), self._joined([whose]).get(whose, []))
        return Reading(own, revision, version)

    def some(self, user_ids: Iterable[str]) -> dict[str, Profile]:
        """Return the profiles of several people, as `get` does, by the ids that were asked; who is not known is missing."""
        names = list(user_ids)

        def work(connection: Connection) -> tuple[dict[str, str], Sequence[Any]]:
            whose = self._groups.people(connection, names)
            return whose, self._whole(connection, {*names, *whose.values()})

        whose, rows = self._database.read(work)
        own = {user_id: _profile(user_id, *row) for user_id, *row in rows}
        others = self._joined({whose.get(name, name) for name in names})
        for user_id, known in others.items():
            own[user_id] = united(own.get(user_id) or nothing(user_id), known)
        return {name: own[whose.get(name, name)] for name in names if whose.get(name, name) in own}

    def _joined(self, user_ids: Iterable[str]) -> dict[str, list[Profile]]:
        """What is known of the aliases of people, by person; who has none is missing."""
        found: dict[str, list[Profile]] = {}
        for user_id, alias, created_at, stored, *row in self._database.read(lambda c: self._others(c, user_ids)):
            whose = person(alias, user_id, created_at, stored)
            found.setdefault(whose, []).append(nothing(alias) if row[0] is None else _profile(alias, *row))
        return found

    def upsert(self, users: Sequence[User]) -> None:
        """Set the attributes of people, known or new, in one transaction; the last of two equal ids wins.

        Attributes that a row does not speak of stay as they are. What people say about consent is added to what they said
        before, and said for all of a person's ids: it stays with each when they part.
        """
        told = [user for user in users if "attributes" in user.model_fields_set]
        attributes = {user.user_id: orjson.dumps(user.attributes).decode() for user in told}
        # In one order everywhere, or two such writes could wait for each other.
        rows = [
            {**blank(user_id), "attributes": body, "attributes_sum": checksum(user_id, body)}
            for user_id, body in sorted(attributes.items())
        ]
        said: dict[str, Said] = {}
        for user in users:
            if user.consent:
                said[user.user_id] = said.get(user.user_id, {}) | user.consent

        def work(connection: Connection) -> None:
            if rows:
                connection.execute(self._upsert, rows)
            self._histories.keep(connection, {user.user_id for user in users} - attributes.keys())
            if said:
                spoken = self._groups.spread(connection, said)
                self._histories.keep(connection, spoken.keys() - said.keys())
                self._consents.add(connection, spoken)

        if users:
            self._database.write(work)

    def change(self, user_id: str, how: Callable[[dict[str, Any]], dict[str, Any]]) -> bool:
        """Replace a person's attributes by what `how` makes of them, in one transaction; False where nobody is."""
        columns = (PROFILES.c.user_id, PROFILES.c.attributes, PROFILES.c.attributes_sum)
        stored = select(*columns).where(PROFILES.c.user_id == user_id).with_for_update()

        def work(connection: Connection) -> bool:
            row: Any = connection.execute(stored).first()
            if row is None:
                return False
            body = orjson.dumps(how(_attributes(row))).decode()
            changed = update(PROFILES).where(PROFILES.c.user_id == user_id)
            connection.execute(changed.values(attributes=body, attributes_sum=checksum(user_id, body)))
            return True

        return self._database.write(work)

    def list(self, limit: int = 100, after: str | None = None) -> UserPage:
        """Return up to `limit` people, most recently active first; `after` is the `next` of the page before.

        Aliases are nobody of their own: what is known of them counts for their person, whose place in the order is that
        of the id that was last active. Raises `InputError` for a cursor that no page gave out.
        """
        query = select(PROFILES.c.last_seen, PROFILES.c.user_id, _PERSON).select_from(_ROWS).where(~_speaks_later())
        query = query.order_by(PROFILES.c.last_seen.desc(), PROFILES.c.user_id).limit(check_limit(limit) + 1)
        if after is not None:
            seen, user_id = cursor_read(after)
            same_time = (PROFILES.c.last_seen == seen) & (PROFILES.c.user_id > user_id)
            # The first condition is implied by the second; it lets the index begin at the right place.
            query = query.where(PROFILES.c.last_seen <= seen, or_(PROFILES.c.last_seen < seen, same_time))
        rows = self._database.rows(query)
        users = self._summed(self._own([row.person for row in rows[:limit]]))
        more = cursor(rows[limit - 1].last_seen, rows[limit - 1].user_id) if len(rows) > limit else None
        return UserPage(users=users, next=more)

    def _own(self, user_ids: Sequence[str]) -> tuple[UserSummary, ...]:
        """What is known of people by their own ids, in the order of these."""
        query = _with_consent(*_SUMMARY)
        own = {
            row.user_id: _summary(row)
            for some in chunks(user_ids)
            for row in self._database.rows(query.where(PROFILES.c.user_id.in_(some)))
        }
        return tuple(own[user_id] for user_id in user_ids if user_id in own)  # somebody may have been erased meanwhile

    def _summed(self, users: Sequence[UserSummary]) -> tuple[UserSummary, ...]:
        """People together with their aliases."""
        whose = self._database.read(lambda c: self._groups.aliases(c, [one.user_id for one in users]))
        query = _with_consent(*_SUMMARY)
        known = {
            row.user_id: _summary(row)
            for some in chunks(sorted(whose))
            for row in self._database.rows(query.where(PROFILES.c.user_id.in_(some)))
        }
        others: dict[str, list[UserSummary]] = {}
        for alias, user_id in whose.items():
            if alias in known:
                others.setdefault(user_id, []).append(known[alias])
        return tuple(summed(one, others[one.user_id]) if one.user_id in others else one for one in users)

    def everyone(self, size: int = CHUNK) -> Iterator[tuple[User, ...]]:
        """Yield all users by id, `size` at a time; each person once, also while others are being active."""
        users: tuple[User, ...] = ()
        while users := self.by_id(size, users[-1].user_id if users else None):
            yield users

    def by_id(self, limit: int, after: str | None = None) -> tuple[User, ...]:
        """Return up to `limit` people in the order of their ids, those whose ids come after one; no aliases."""
        query = _with_consent(*_SUMMARY).where(~_joined_to_somebody())
        query = query.order_by(PROFILES.c.user_id).limit(check_limit(limit))
        rows = self._database.rows(query if after is None else query.where(PROFILES.c.user_id > after))
        people = self._summed([_summary(row) for row in rows])
        return tuple(User(user_id=one.user_id, attributes=one.attributes, consent=one.consent) for one in people)

    def erase(self, user_id: str) -> Erased:
        """Forget the person behind an id in one transaction: profile, consent, aliases, contacts, events and decisions.

        Every id of theirs is remembered as erased, without its name: see `erasures`.
        """

        def work(connection: Connection) -> Erased:
            at = self._erasures.begin(connection)
            hold(connection, "aliases")
            ids = self._groups.ids(connection, user_id)
            # The profiles before the events: an append that has one locked commits before they are looked for.
            known = self._histories.settle(connection, ids)
            removed = {
                "events": connection.execute(delete(EVENTS).where(EVENTS.c.user_id.in_(ids))).rowcount,
                "decisions": sum(erase_decisions(connection, one) for one in ids),
                "aliases": erase_aliases(connection, ids[0]),
                "contacts": sum(erase_contacts(connection, one) for one in ids),
                "consents": sum(erase_consent(connection, one) for one in ids),
                "profiles": known,
            }
            connection.execute(delete(PROFILES).where(PROFILES.c.user_id.in_(ids)))
            self._erasures.bury(connection, ids, at)
            return Erased(tuple(ids), at, removed)

        return self._database.write(work)


_SUMMARY = tuple(column for column in PROFILES.c if not column.name.startswith("history"))


_JOINED = ALIASES.alias("joined")
_ROWS = PROFILES.outerjoin(_JOINED, _JOINED.c.alias == PROFILES.c.user_id)
_PERSON = func.coalesce(_JOINED.c.user_id, PROFILES.c.user_id).label("person")


def _speaks_later() -> ColumnElement[bool]:
    """Whether another id of the same person was active later, or as late and is the one that counts.

    One row for each person is left, found by looking at each row's own few others: so a list can follow the index of
    `last_seen` and need not gather and sort everybody.
    """
    own, other, alias = PROFILES.alias("own"), PROFILES.alias("other"), ALIASES.alias("beside")
    seen, is_alias = PROFILES.c.last_seen, _JOINED.c.user_id.is_not(None)
    by_person = select(own.c.user_id).where(own.c.user_id == _JOINED.c.user_id, own.c.last_seen >= seen)
    later = or_(
        other.c.last_seen > seen, (other.c.last_seen == seen) & is_alias & (other.c.user_id < PROFILES.c.user_id)
    )
    beside = select(alias.c.alias).where(alias.c.user_id == _PERSON, alias.c.alias == other.c.user_id, later)
    return or_(by_person.exists(), beside.exists())


def _joined_to_somebody() -> ColumnElement[bool]:
    return select(ALIASES.c.alias).where(ALIASES.c.alias == PROFILES.c.user_id).exists()


def _summary(row: Row[Any]) -> UserSummary:
    if row.activity_sum != checksum(row.user_id, row.events, row.last_seen):
        raise refuse(f"the stored profile of '{row.user_id}'")
    seen = row.last_seen / 1e6 if row.events else None
    return UserSummary(
        user_id=row.user_id, attributes=_attributes(row), events=row.events, last_seen=seen, consent=_consent(row)
    )


def _with_consent(*columns: ColumnElement[Any]) -> Select[Any]:
    wanted = (*columns, CONSENTS.c.consent, CONSENTS.c.checksum.label("consent_sum"))
    return select(*wanted).select_from(PROFILES.outerjoin(CONSENTS, CONSENTS.c.user_id == PROFILES.c.user_id))


def _consent(row: Row[Any]) -> Said:
    return consent_of(row.user_id, row.consent, row.consent_sum)


def _attributes(row: Row[Any]) -> dict[str, Any]:
    if row.attributes_sum != checksum(row.user_id, row.attributes):
        raise refuse(f"the stored profile of '{row.user_id}'")
    attributes: dict[str, Any] = orjson.loads(row.attributes)
    return attributes


def _profile(
    user_id: str,
    attributes: str,
    attributes_sum: int,
    events: int,
    last_seen: int,
    activity_sum: int,
    history_sum: int,
    history: bytes,
    consent: str | None,
    consent_sum: int | None,
) -> Profile:
    expected = (
        checksum(user_id, attributes),
        checksum(user_id, events, last_seen),
        checksum_of_blob(user_id, history),
    )
    if expected != (attributes_sum, activity_sum, history_sum):
        raise refuse(f"the stored profile of '{user_id}'")
    return Profile(
        user_id=user_id,
        attributes=orjson.loads(attributes),
        history=list(map(HistoryEvent._make, orjson.loads(history))),
        events=events,
        last_seen=last_seen / 1e6 if events else None,
        consent=consent_of(user_id, consent, consent_sum),
    )
