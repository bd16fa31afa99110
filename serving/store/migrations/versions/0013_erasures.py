"""Who was erased, the folders of exports they may still be in, and keys that never leave the store."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

STRING = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the tables, draw the keys, and make the number that an erasure holds."""
    op.create_table(
        "erasures",
        sa.Column("sequence", SEQUENCE, primary_key=True, autoincrement=True),
        sa.Column("digest", STRING, nullable=False),
        sa.Column("erased_at", sa.BigInteger, nullable=False),
        sa.Column("checksum", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("erasures_by_digest", "erasures", ["digest"])
    op.create_table(
        "exports",
        sa.Column("folder", STRING, primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
    )
    keys = op.create_table(
        "secrets",
        sa.Column("name", STRING, primary_key=True),
        sa.Column("value", STRING, nullable=False),
    )
    op.bulk_insert(keys, [{"name": name, "value": secrets.token_hex(32)} for name in ("erasures", "receipts")])
    numbers = sa.table("numbers", sa.column("name", STRING), sa.column("value", sa.BigInteger))
    op.bulk_insert(numbers, [{"name": "erasures", "value": 0}])
