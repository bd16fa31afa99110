"""The decisions of one placement in time, so that a change of it can be tried on what was asked."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the index."""
    op.create_index("decisions_of_placement", "decisions", ["placement", "at"])
