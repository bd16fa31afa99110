"""Why a document was changed, in the audit."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

STRING = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Add the column; entries from before have no reason, and the checksums that they had."""
    op.add_column("audit", sa.Column("why", STRING))
