"""Migrations: the steps that bring a database to the tables of this version, run by `Store.open`.

A step is a file in `versions/`, applied once and in order by Alembic. To change a table: change `tables.py`, then add the
next step there; a test compares the two.
"""

from __future__ import annotations

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, text

from embeddings.errors import StoreError
from serving.store.database import Database

ADVISORY_LOCK = 0x6265_7370  # an arbitrary number that all processes of the service agree on

_ONE_AT_A_TIME = threading.Lock()  # Alembic keeps its context in module globals


def migrate(database: Database) -> None:
    """Bring the tables up to date, in one transaction; returns at once where they are.

    Safe when many threads and processes start together: the first does the work, the rest wait for its lock.
    Raises `StoreError` when the database was written by a newer version, or cannot be reached.
    """
    config = _config()
    head = ScriptDirectory.from_config(config).get_current_head()
    with _ONE_AT_A_TIME:
        if database.read(_revision) != head:
            database.write(lambda connection: _upgrade(connection, config, embedded=database.embedded))


def state(database: Database) -> tuple[str | None, str | None, bool]:
    """The step that a database is at (None: no tables yet), the last one, and whether this version knows the former.

    Changes nothing. Raises `StoreError` when the database cannot be read.
    """
    steps = ScriptDirectory.from_config(_config())
    found = database.read(_revision)
    known = found is None or any(step.revision == found for step in steps.walk_revisions())
    return found, steps.get_current_head(), known


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def _revision(connection: Connection) -> str | None:
    try:
        return MigrationContext.configure(connection).get_current_revision()
    except CommandError as error:
        raise StoreError(f"the database does not say which version wrote it: {error}") from error


def _upgrade(connection: Connection, config: Config, *, embedded: bool) -> None:
    if not embedded:  # an SQLite write has the whole database to itself already
        connection.execute(text(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StoreError(f"the database was written by another version of the service: {error}") from error
