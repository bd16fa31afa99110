"""Contacts: what each person was shown of what must not be shown too often, counted over all channels.

A contact is claimed before something is shown and durable when that is answered, so that several replicas together never
exceed a cap, and an alert that was claimed is claimed for good.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, delete, func, or_, select, text

from embeddings.errors import BespokeError, InputError
from embeddings.ids import stable_hash
from serving.store.aliases import Groups
from serving.store.database import Database
from serving.store.tables import ALIASES, CONTACTS, micros, moment

KEPT = timedelta(days=366)
"""Longer than any cap or alert looks back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contact:
    """Something that is about to be shown to a person.

    `counted` is the name under which it counts, `subject` what it is about. A subject is shown `once` and never again, or
    it is this very showing, and to claim it twice is to claim it once. `caps` are pairs of a limit and a number of days.
    `user_id` is any id of the person: what they were shown under the others counts too.
    """

    user_id: str
    counted: str
    subject: str
    at: datetime
    caps: Sequence[tuple[int, float]] = ()
    once: bool = True


class Told(NamedTuple):
    """What the store keeps of a contact."""

    counted: str
    subject: str
    at: datetime


class Contacts:
    """The contacts of the store: one row for each id of the person, so that ids which part later both know of it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._groups = Groups(database)
        self._put = database.insert(CONTACTS).on_conflict_do_nothing(index_elements=["user_id", "counted", "subject"])

    def open(self, contact: Contact) -> bool:
        """Whether `claim` would let it pass at this moment; nothing is noted down."""
        return self._database.read(lambda connection: _open(connection, contact))

    def claim(self, contact: Contact) -> bool:
        """Note that it is shown, if no cap is reached and its subject was not shown before; whether it may be."""
        (outcome,) = self._claimed([[contact]])[0]
        return outcome

    def claim_each(self, batches: Sequence[Sequence[Contact]]) -> list[list[bool] | BespokeError]:
        """Claim several batches of contacts in one transaction, each contact by itself."""
        try:
            return [*self._claimed(batches)]
        except BespokeError as error:
            if len(batches) == 1 or not isinstance(error, InputError):
                return [error] * len(batches)
        return [outcome for batch in batches for outcome in self.claim_each([batch])]

    def told(self, user_id: str, counted: str, kind: str) -> dict[str, datetime]:
        """Return the subjects of a kind (their first word) that a person was shown, with the last time, in that order."""
        table = CONTACTS.c
        of_kind = table.subject.startswith(f"{kind} ", autoescape=True)
        query = select(table.subject, table.at).where(_of_person(user_id), table.counted == counted, of_kind)
        return {row.subject: moment(row.at) for row in self._database.rows(query.order_by(table.at, table.subject))}

    def of(self, user_ids: Iterable[str]) -> list[Told]:
        """Return every contact with a person, the latest first."""
        table = CONTACTS.c
        query = select(table.counted, table.subject, table.at).where(table.user_id.in_(set(user_ids))).distinct()
        rows = self._database.rows(query.order_by(table.at.desc(), table.counted, table.subject))
        return [Told(row.counted, row.subject, moment(row.at)) for row in rows]

    def forget(self, before: datetime) -> int:
        """Delete the contacts from before a moment; returns how many there were."""
        old = delete(CONTACTS).where(CONTACTS.c.at < micros(before))
        return self._database.write(lambda connection: connection.execute(old).rowcount)

    def _claimed(self, batches: Sequence[Sequence[Contact]]) -> list[list[bool]]:
        def work(connection: Connection) -> list[list[bool]]:
            if not self._database.embedded:  # an SQLite write has the whole database to itself already
                self._lock(connection, [contact for batch in batches for contact in batch])
            return [[self._claim(connection, contact) for contact in batch] for batch in batches]

        return self._database.write(work)

    def _lock(self, connection: Connection, contacts: Sequence[Contact]) -> None:
        """Have what is counted of these people alone until the transaction ends, whichever of their ids is named."""
        whose = self._groups.people(connection, {contact.user_id for contact in contacts})
        counted = {(one.counted, whose.get(one.user_id, one.user_id)) for one in contacts}
        keys = {stable_hash("\n".join(names), salt="contacts") - 2**63 for names in counted}  # 64 bits with a sign
        for key in sorted(keys):  # in one order everywhere, or two such writes could wait for each other
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})

    def _claim(self, connection: Connection, contact: Contact) -> bool:
        if not _open(connection, contact):
            return False
        row = {"counted": contact.counted, "subject": contact.subject, "at": micros(contact.at)}
        ids = self._groups.ids(connection, contact.user_id)
        connection.execute(self._put, [row | {"user_id": user_id} for user_id in ids])
        return True


def _of_person(user_id: str) -> ColumnElement[bool]:
    """Rows of every id of the person behind one, found by the statement that reads them."""
    whose = func.coalesce(select(ALIASES.c.user_id).where(ALIASES.c.alias == user_id).scalar_subquery(), user_id)
    return CONTACTS.c.user_id.in_(select(whose).union_all(select(ALIASES.c.alias).where(ALIASES.c.user_id == whose)))


def _open(connection: Connection, contact: Contact) -> bool:
    """Whether a contact may be: one statement for all caps, and what was shown to several ids at once counts once."""
    table = CONTACTS.c
    longest = timedelta(days=max((days for _, days in contact.caps), default=0.0))
    counts = or_(table.subject == contact.subject, table.at > micros(contact.at - longest))
    query = select(table.subject, table.at).where(_of_person(contact.user_id), table.counted == contact.counted, counts)
    shown = {(row.subject, row.at) for row in connection.execute(query)}
    if any(subject == contact.subject for subject, _ in shown):
        return not contact.once
    since = [(limit, micros(contact.at - timedelta(days=days))) for limit, days in contact.caps]
    return all(sum(at > first for _, at in shown) < limit for limit, first in since)


def erase_contacts(connection: Connection, user_id: str) -> int:
    """Delete the contacts with a person in somebody's transaction; returns how many there were."""
    return connection.execute(delete(CONTACTS).where(CONTACTS.c.user_id == user_id)).rowcount
