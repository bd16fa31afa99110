"""News of a price: what it was before each of the latest changes, instead of the latest fall alone."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

STRING = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the table anew, with the falls that are known as the only changes."""
    op.execute("CREATE TABLE old_news AS SELECT item_id, kind, at, before FROM news")
    op.drop_table("news")
    op.create_table(
        "news",
        sa.Column("item_id", STRING, primary_key=True),
        sa.Column("kind", STRING, primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("before", STRING, nullable=False),
    )
    op.execute("INSERT INTO news SELECT item_id, kind, at, '[]' FROM old_news WHERE kind = 'back_in_stock'")
    op.execute(
        "INSERT INTO news SELECT item_id, 'price', at, '[[' || at || ',' || before || ']]' FROM old_news"
        " WHERE kind = 'price_drop'"
    )
    op.drop_table("old_news")
