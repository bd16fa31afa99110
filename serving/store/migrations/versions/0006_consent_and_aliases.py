"""What people allow, and the other ids they are known by."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

STRING = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Create the tables, and the number that a change of aliases raises."""
    op.create_table(
        "consents",
        sa.Column("user_id", STRING, primary_key=True),
        sa.Column("consent", STRING, nullable=False),
        sa.Column("checksum", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "aliases",
        sa.Column("alias", STRING, primary_key=True),
        sa.Column("user_id", STRING, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("checksum", sa.BigInteger, nullable=False),
    )
    op.create_index("aliases_of_user", "aliases", ["user_id", "alias"])
    numbers = sa.table("numbers", sa.column("name", STRING), sa.column("value", sa.BigInteger))
    op.bulk_insert(numbers, [{"name": "aliases", "value": 0}])
