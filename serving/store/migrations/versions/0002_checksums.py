"""Checksums: each row that is served or exported carries one, filled in here for the rows that are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

from serving.store.checksums import checksum, checksum_of_blob

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

STRING = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
ROWS_AT_ONCE = 1000

EVENT = ("event_id", "user_id", "item_id", "event_type", "timestamp", "value", "session_id", "channel", "context")
COVERED = {
    "events": (*EVENT, "recommendation_id", "position"),
    "items": ("item_id", "deleted", "body"),
    "documents": ("kind", "id", "body", "version", "updated_at", "updated_by"),
    "audit": ("version", "at", "by", "action", "kind", "id", "before", "after"),
}
KEYS = {"events": ("sequence",), "items": ("item_id",), "documents": ("kind", "id"), "audit": ("version",)}


def upgrade() -> None:
    """Add the columns and fill them."""
    for name, covered in COVERED.items():
        op.add_column(name, sa.Column("checksum", sa.BigInteger, nullable=False, server_default="0"))
        _fill(name, covered, KEYS[name])
    _rebuild_profiles()


def _fill(name: str, covered: tuple[str, ...], keys: tuple[str, ...]) -> None:
    columns: list[sa.ColumnClause[Any]] = [
        sa.column(one, sa.Boolean() if one == "deleted" else sa.types.NullType())
        for one in dict.fromkeys((*keys, *covered))
    ]
    table = sa.table(name, sa.column("checksum", sa.BigInteger), *columns)
    this = sa.and_(*(table.c[key] == sa.bindparam(f"key_{key}") for key in keys))
    update = sa.update(table).where(this).values(checksum=sa.bindparam("sum"))
    for rows in _pages(sa.select(*columns), [table.c[key] for key in keys]):
        sums = [{"sum": checksum(*(getattr(row, one) for one in covered))} for row in rows]
        for row, values in zip(rows, sums, strict=True):
            values.update({f"key_{key}": getattr(row, key) for key in keys})
        op.get_bind().execute(update, sums)


def _rebuild_profiles() -> None:
    """Make the table anew: the history is to stay the last column, so that those before it do not cost its pages."""
    made = op.create_table(
        "profiles_new",
        sa.Column("user_id", STRING, primary_key=True),
        sa.Column("attributes", STRING, nullable=False),
        sa.Column("attributes_sum", sa.BigInteger, nullable=False),
        sa.Column("events", sa.BigInteger, nullable=False),
        sa.Column("last_seen", sa.BigInteger, nullable=False),
        sa.Column("activity_sum", sa.BigInteger, nullable=False),
        sa.Column("history_sum", sa.BigInteger, nullable=False),
        sa.Column("history", sa.LargeBinary, nullable=False),
    )
    names = ("user_id", "attributes", "events", "last_seen", "history")
    old = sa.table("profiles", *(sa.column(name) for name in names))
    for rows in _pages(sa.select(old), [old.c.user_id]):
        op.bulk_insert(made, [_profile(row) for row in rows])
    op.drop_table("profiles")
    op.rename_table("profiles_new", "profiles")
    op.create_index("profiles_by_activity", "profiles", [sa.text("last_seen DESC"), "user_id"])


def _profile(row: sa.Row[Any]) -> dict[str, Any]:
    return {
        **row._asdict(),
        "attributes_sum": checksum(row.user_id, row.attributes),
        "activity_sum": checksum(row.user_id, row.events, row.last_seen),
        "history_sum": checksum_of_blob(row.user_id, row.history),
    }


def _pages(query: sa.Select[Any], keys: list[sa.ColumnElement[Any]]) -> Iterator[Sequence[sa.Row[Any]]]:
    page = query.order_by(*keys).limit(ROWS_AT_ONCE)
    rows = op.get_bind().execute(page).all()
    while rows:
        yield rows
        last = [getattr(rows[-1], str(key.key)) for key in keys]
        rows = op.get_bind().execute(page.where(sa.tuple_(*keys) > sa.tuple_(*map(sa.literal, last)))).all()
