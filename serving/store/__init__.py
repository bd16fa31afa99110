"""The store: everything the service must not forget, behind one object.

Events, profiles, the catalogue and the documents of policy live in one database: SQLite in a file by default, PostgreSQL
by URL. What a method acknowledged is on disk; what another process committed is seen by the next read. Only
`embeddings.errors` leave this package, never an exception of the database library.
"""

from __future__ import annotations

from serving.store.catalogue import Catalogue, Changes, ItemPage
from serving.store.database import WAIT_S, Database
from serving.store.documents import AuditEntry, Document, Documents
from serving.store.events import Appended, Events
from serving.store.migrations import migrate
from serving.store.profiles import HISTORY_LIMIT, HistoryEvent, Profile, Profiles, UserPage, UserSummary

__all__ = [
    "HISTORY_LIMIT",
    "Appended",
    "AuditEntry",
    "Catalogue",
    "Changes",
    "Document",
    "Documents",
    "Events",
    "HistoryEvent",
    "ItemPage",
    "Profile",
    "Profiles",
    "Store",
    "UserPage",
    "UserSummary",
]


class Store:
    """One open database and its four parts. Any number of threads may call it; other processes open their own.

    Use `Store.open`; a store is also a context manager that closes itself. Do not carry an open store across a fork.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.events = Events(database)
        self.profiles = Profiles(database)
        self.catalogue = Catalogue(database)
        self.documents = Documents(database)

    @classmethod
    def open(cls, url: str, *, wait_s: float = WAIT_S) -> Store:
        """Connect to `url`, bring its tables up to date and return the store.

        `sqlite:///relative.db`, `sqlite:////absolute.db` (the file and its folder are made) or
        `postgresql://user@host/database`. `wait_s` is how long a call waits, in seconds, for a lock that another
        transaction holds. Several processes may open a new database at once: one builds it, the others wait.
        Raises `ConfigError` for a URL that is not understood, `StoreError` when the database cannot be reached, is not
        a database or was written by a newer version.
        """
        database = Database(url, wait_s=wait_s)
        try:
            migrate(database)
            return cls(database)
        except BaseException:
            database.close()
            raise

    def close(self) -> None:
        """Close every connection; a later call raises `StoreError`. Closing twice is allowed."""
        self.database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
