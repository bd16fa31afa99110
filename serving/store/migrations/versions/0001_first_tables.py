"""The first tables: events, profiles, items, documents, their audit, and the named numbers."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

STRING = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create everything."""
    _create_numbers()
    _create_events()
    _create_profiles()
    _create_items()
    _create_documents()
    _create_audit()


def _create_numbers() -> None:
    numbers = op.create_table(
        "numbers",
        sa.Column("name", STRING, primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    first = {"catalogue": 0, "documents": 0, "identity": secrets.randbits(62)}
    op.bulk_insert(numbers, [{"name": name, "value": value} for name, value in first.items()])


def _create_events() -> None:
    op.create_table(
        "events",
        sa.Column("sequence", SEQUENCE, primary_key=True, autoincrement=True),
        sa.Column("event_id", STRING, nullable=False, unique=True),
        sa.Column("user_id", STRING, nullable=False),
        sa.Column("item_id", STRING, nullable=False),
        sa.Column("event_type", STRING, nullable=False),
        sa.Column("timestamp", sa.BigInteger, nullable=False),
        sa.Column("value", sa.Double),
        sa.Column("session_id", STRING),
        sa.Column("channel", STRING),
        sa.Column("context", STRING, nullable=False),
        sa.Column("recommendation_id", STRING),
        sa.Column("position", sa.Integer),
        sqlite_autoincrement=True,
    )
    op.create_index("events_of_user", "events", ["user_id"])
    op.create_index("events_in_time", "events", ["timestamp", "item_id", "event_type"])


def _create_profiles() -> None:
    op.create_table(
        "profiles",
        sa.Column("user_id", STRING, primary_key=True),
        sa.Column("attributes", STRING, nullable=False),
        sa.Column("events", sa.BigInteger, nullable=False),
        sa.Column("last_seen", sa.BigInteger, nullable=False),
        sa.Column("history", sa.LargeBinary, nullable=False),
    )
    op.create_index("profiles_by_activity", "profiles", [sa.text("last_seen DESC"), "user_id"])


def _create_items() -> None:
    op.create_table(
        "items",
        sa.Column("item_id", STRING, primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
        sa.Column("search", STRING, nullable=False),
        sa.Column("body", STRING, nullable=False),
    )
    op.create_index("items_by_revision", "items", ["revision", "item_id"])


def _create_documents() -> None:
    op.create_table(
        "documents",
        sa.Column("kind", STRING, primary_key=True),
        sa.Column("id", STRING, primary_key=True),
        sa.Column("body", STRING, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("updated_by", STRING, nullable=False),
    )


def _create_audit() -> None:
    op.create_table(
        "audit",
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("by", STRING, nullable=False),
        sa.Column("action", STRING, nullable=False),
        sa.Column("kind", STRING, nullable=False),
        sa.Column("id", STRING, nullable=False),
        sa.Column("before", STRING),
        sa.Column("after", STRING),
    )
    op.create_index("audit_of_document", "audit", ["kind", "id", "version"])
