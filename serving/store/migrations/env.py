"""Alembic's entry: runs the steps on the connection, and inside the transaction, that `migrate` hands over."""

from __future__ import annotations

from alembic import context

from serving.store.tables import METADATA

# SQLite cannot alter most of a table in place: batches rebuild it.
context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
