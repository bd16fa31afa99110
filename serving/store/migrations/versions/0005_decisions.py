"""The decision log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

STRING = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "decisions",
        sa.Column("sequence", SEQUENCE, primary_key=True, autoincrement=True),
        sa.Column("recommendation_id", STRING, nullable=False, unique=True),
        sa.Column("user_id", STRING),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("kind", STRING, nullable=False),
        sa.Column("placement", STRING, nullable=False),
        sa.Column("channel", STRING),
        sa.Column("request", STRING, nullable=False),
        sa.Column("items", STRING, nullable=False),
        sa.Column("scores", STRING, nullable=False),
        sa.Column("propensities", STRING),
        sa.Column("sources", STRING, nullable=False),
        sa.Column("arms", STRING, nullable=False),
        sa.Column("model_version", STRING, nullable=False),
        sa.Column("policy_version", sa.BigInteger, nullable=False),
        sa.Column("degraded", STRING, nullable=False),
        sa.Column("checksum", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("decisions_of_user", "decisions", ["user_id", "at"])
    op.create_index("decisions_in_time", "decisions", ["at"])
