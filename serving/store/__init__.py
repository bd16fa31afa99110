"""The store: everything the service must not forget, behind one object.

Events, profiles, aliases, the catalogue, the documents of policy, the decisions, what was learned
from them, and the API keys live in one database:
SQLite in a file by default, PostgreSQL by URL. What a method acknowledged is on disk; what another process committed is
seen by the next read. Only `embeddings.errors` leave this package, never an exception of the database library.
"""

from __future__ import annotations

import hmac
from hashlib import sha256

from serving.store.aliases import Alias, Aliases
from serving.store.batches import Batch, Batches
from serving.store.catalogue import Catalogue, Changes, ItemPage
from serving.store.contacts import Contact, Contacts
from serving.store.database import WAIT_S, Database, number
from serving.store.decisions import Decision, DecisionPage, Decisions
from serving.store.documents import AuditEntry, Document, Documents, difference
from serving.store.erasures import Erased, Erasures
from serving.store.events import Appended, Events
from serving.store.examine import examine
from serving.store.feedback import Feedback
from serving.store.feedback import Key as FeedbackKey
from serving.store.histories import HISTORY_LIMIT
from serving.store.keys import Key, Keyring, Keys
from serving.store.lessons import Lesson, Lessons
from serving.store.migrations import migrate
from serving.store.outcomes import Outcome, Outcomes
from serving.store.persons import HistoryEvent, Profile, Reading, UserPage, UserSummary
from serving.store.profiles import Profiles
from serving.store.receipts import Receipts
from serving.store.writer import Writer

__all__ = [
    "HISTORY_LIMIT",
    "Alias",
    "Aliases",
    "Appended",
    "AuditEntry",
    "Batch",
    "Batches",
    "Catalogue",
    "Changes",
    "Contact",
    "Contacts",
    "Decision",
    "DecisionPage",
    "Decisions",
    "Document",
    "Documents",
    "Erased",
    "Erasures",
    "Events",
    "Feedback",
    "FeedbackKey",
    "HistoryEvent",
    "ItemPage",
    "Key",
    "Keyring",
    "Keys",
    "Lesson",
    "Lessons",
    "Outcome",
    "Outcomes",
    "Profile",
    "Profiles",
    "Reading",
    "Receipts",
    "Store",
    "UserPage",
    "UserSummary",
    "Writer",
    "difference",
]


class Store:
    """One open database, its parts, and the writer that stores the events of many callers together.

    Any number of threads may call it; other processes open their own. Use `Store.open`; a store is also a context manager
    that closes itself. Do not carry an open store across a fork.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.events = Events(database)
        self.feedback = Feedback(database)
        self.profiles = Profiles(database)
        self.aliases = Aliases(database)
        self.catalogue = Catalogue(database)
        self.documents = Documents(database)
        self.decisions = Decisions(database)
        self.outcomes = Outcomes(database)
        self.batches = Batches(database)
        self.erasures = Erasures(database)
        self.receipts = Receipts(database)
        self.contacts = Contacts(database)
        self.lessons = Lessons(database)
        self.writer = Writer(self.events.append_each, what="events")
        self.claims = Writer(self.contacts.claim_each, what="contacts")
        self.keys = Keys(database)

    @classmethod
    def open(cls, url: str, *, wait_s: float = WAIT_S) -> Store:
        """Connect to `url`, bring its tables up to date and return the store.

        `sqlite:///relative.db`, `sqlite:////absolute.db` (the file and its folder are made) or
        `postgresql://user@host/database`. `wait_s` is how long a call waits, in seconds, for a lock that another
        transaction holds. Several processes may open a new database at once: one builds it, the others wait.
        Raises `ConfigError` for a URL that is not understood, `StoreError` when the database cannot be reached, is not
        a database, is found damaged or was written by a newer version.
        """
        database = Database(url, wait_s=wait_s)
        try:
            migrate(database)
            examine(database)
            return cls(database)
        except BaseException:
            database.close()
            raise

    def key_for(self, purpose: str) -> bytes:
        """A key [32 bytes] to sign with, the same for all processes that use this store; it never leaves the service."""
        identity = self.database.read(lambda connection: number(connection, "identity"))
        return hmac.digest(identity.to_bytes(8, "little"), purpose.encode(), sha256)

    def close(self) -> None:
        """Store the events that wait, then close every connection; a later call raises `StoreError`, `close` does not."""
        self.writer.close()
        self.claims.close()
        self.database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
