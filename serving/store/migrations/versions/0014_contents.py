"""Contents: whom they were shown to, what was learned of them, and what alerts wait for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

STRING = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Create the tables, and the numbers that say how far the lessons have come."""
    op.create_table(
        "contacts",
        sa.Column("user_id", STRING, primary_key=True),
        sa.Column("counted", STRING, primary_key=True),
        sa.Column("subject", STRING, primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
    )
    op.create_index("contacts_in_time", "contacts", ["at"])
    op.create_table(
        "lessons",
        sa.Column("content", STRING, primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("basis", STRING, nullable=False),
        sa.Column("arms", STRING, nullable=False),
        sa.Column("sums", sa.LargeBinary, nullable=False),
        sa.Column("checksum", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "news",
        sa.Column("item_id", STRING, primary_key=True),
        sa.Column("kind", STRING, primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("before", sa.Double),
        sa.Column("after", sa.Double),
    )
    numbers = sa.table("numbers", sa.column("name", STRING), sa.column("value", sa.BigInteger))
    op.bulk_insert(numbers, [{"name": f"learned_{name}", "value": 0} for name in ("decisions", "events", "at")])
