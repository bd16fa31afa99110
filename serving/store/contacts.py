"""Contacts: what each person was shown of what must not be shown too often, counted over all channels.

A contact is claimed before something is shown and durable when that is answered, so that several replicas together never
exceed a cap, and an alert that was claimed is claimed for good.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Connection, delete, func, select, text

from embeddings.errors import BespokeError, InputError
from embeddings.ids import stable_hash
from serving.store.database import Database
from serving.store.tables import CONTACTS, micros, moment

KEPT = timedelta(days=366)
"""Longer than any cap or alert looks back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contact:
    """Something that is about to be shown to a person.

    `counted` is the name under which it counts, `subject` what it is about. A subject is shown `once` and never again, or
    it is this very showing, and to claim it twice is to claim it once. `caps` are pairs of a limit and a number of days.
    `also` are other ids of the person whose contacts count too.
    """

    user_id: str
    counted: str
    subject: str
    at: datetime
    caps: Sequence[tuple[int, float]] = ()
    also: Sequence[str] = ()
    once: bool = True

    @property
    def names(self) -> set[str]:
        """All ids of the person that are known."""
        return {self.user_id, *self.also}


class Told(NamedTuple):
    """What the store keeps of a contact."""

    counted: str
    subject: str
    at: datetime


class Contacts:
    """The contacts of the store."""

    def __init__(self, database: Database) -> None:
        self._database = database
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

    def told(self, user_ids: Iterable[str], counted: str, subjects: Sequence[str]) -> set[str]:
        """Return those of some subjects that a person was shown already."""
        table = CONTACTS.c
        query = select(table.subject).where(
            table.user_id.in_(set(user_ids)), table.counted == counted, table.subject.in_(subjects)
        )
        return {subject for (subject,) in self._database.rows(query)}

    def of(self, user_ids: Iterable[str]) -> list[Told]:
        """Return every contact with a person, the latest first."""
        table = CONTACTS.c
        query = select(table.counted, table.subject, table.at).where(table.user_id.in_(set(user_ids)))
        rows = self._database.rows(query.order_by(table.at.desc(), table.counted, table.subject))
        return [Told(row.counted, row.subject, moment(row.at)) for row in rows]

    def forget(self, before: datetime) -> int:
        """Delete the contacts from before a moment; returns how many there were."""
        old = delete(CONTACTS).where(CONTACTS.c.at < micros(before))
        return self._database.write(lambda connection: connection.execute(old).rowcount)

    def _claimed(self, batches: Sequence[Sequence[Contact]]) -> list[list[bool]]:
        def work(connection: Connection) -> list[list[bool]]:
            if not self._database.embedded:  # an SQLite write has the whole database to itself already
                # In one order everywhere, or two such writes could wait for each other.
                for key in sorted({_lock(contact) for batch in batches for contact in batch}):
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
            return [[self._claim(connection, contact) for contact in batch] for batch in batches]

        return self._database.write(work)

    def _claim(self, connection: Connection, contact: Contact) -> bool:
        if not _open(connection, contact):
            return False
        row = {
            "user_id": contact.user_id,
            "counted": contact.counted,
            "subject": contact.subject,
            "at": micros(contact.at),
        }
        connection.execute(self._put, row)
        return True


def _lock(contact: Contact) -> int:
    """The number, in 64 bits with a sign, of what only one transaction may claim at a time."""
    return stable_hash(f"{contact.counted}\n{contact.user_id}", salt="contacts") - 2**63


def _open(connection: Connection, contact: Contact) -> bool:
    table = CONTACTS.c
    mine = (table.user_id.in_(contact.names), table.counted == contact.counted)
    if connection.execute(select(table.at).where(*mine, table.subject == contact.subject)).first() is not None:
        return not contact.once
    for limit, days in contact.caps:
        since = micros(contact.at - timedelta(days=days))
        met = connection.execute(select(func.count()).select_from(CONTACTS).where(*mine, table.at > since)).scalar_one()
        if met >= limit:
            return False
    return True


def erase_contacts(connection: Connection, user_id: str) -> int:
    """Delete the contacts with a person in somebody's transaction; returns how many there were."""
    return connection.execute(delete(CONTACTS).where(CONTACTS.c.user_id == user_id)).rowcount
