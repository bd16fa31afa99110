"""The tables, and how a moment is written into them.

Times are whole microseconds since 1970 in 64-bit integers: exact on both databases and in Parquet. JSON is text, so that a
typed attribute comes back as it went in. Text compares byte by byte on both databases, so that pages come in one order.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import BigInteger, Boolean, Column, Double, Index, Integer, LargeBinary, MetaData, Table, Text

METADATA = MetaData()

STRING = Text().with_variant(Text(collation="C"), "postgresql")
SEQUENCE = BigInteger().with_variant(Integer(), "sqlite")

# Named numbers. `catalogue` and `documents` only grow: the write that raises one holds its row until it commits, so
# that no reader ever sees a later number before an earlier one. `identity` is drawn once and tells stores apart.
NUMBERS = Table(
    "numbers",
    METADATA,
    Column("name", STRING, primary_key=True),
    Column("value", BigInteger, nullable=False),
)

EVENTS = Table(
    "events",
    METADATA,
    Column("sequence", SEQUENCE, primary_key=True, autoincrement=True),
    Column("event_id", STRING, nullable=False, unique=True),
    Column("user_id", STRING, nullable=False),
    Column("item_id", STRING, nullable=False),
    Column("event_type", STRING, nullable=False),
    Column("timestamp", BigInteger, nullable=False),
    Column("value", Double),
    Column("session_id", STRING),
    Column("channel", STRING),
    Column("context", STRING, nullable=False),
    Column("recommendation_id", STRING),
    Column("position", Integer),
    Index("events_of_user", "user_id"),
    # Trending counts by item and type over a window of time: all it needs is in the index.
    Index("events_in_time", "timestamp", "item_id", "event_type"),
    # Without it SQLite gives the numbers of erased events out again, and an export would take new events for old ones.
    sqlite_autoincrement=True,
)

PROFILES = Table(
    "profiles",
    METADATA,
    Column("user_id", STRING, primary_key=True),
    Column("attributes", STRING, nullable=False),
    Column("events", BigInteger, nullable=False),
    Column("last_seen", BigInteger, nullable=False),  # 0: never
    Column("history", LargeBinary, nullable=False),  # last, so that the columns before it do not cost its pages
)
Index("profiles_by_activity", PROFILES.c.last_seen.desc(), PROFILES.c.user_id)

ITEMS = Table(
    "items",
    METADATA,
    Column("item_id", STRING, primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Column("search", STRING, nullable=False),  # title and id, case folded
    Column("body", STRING, nullable=False),
    Index("items_by_revision", "revision", "item_id"),
)

DOCUMENTS = Table(
    "documents",
    METADATA,
    Column("kind", STRING, primary_key=True),
    Column("id", STRING, primary_key=True),
    Column("body", STRING, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("updated_by", STRING, nullable=False),
)

AUDIT = Table(
    "audit",
    METADATA,
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),
    Column("by", STRING, nullable=False),
    Column("action", STRING, nullable=False),
    Column("kind", STRING, nullable=False),
    Column("id", STRING, nullable=False),
    Column("before", STRING),
    Column("after", STRING),
    Index("audit_of_document", "kind", "id", "version"),
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US


def micros(moment: datetime) -> int:
    """Microseconds since 1970 of an aware moment; a naive one is read as UTC."""
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return (aware - EPOCH) // MICROSECOND


def moment(stored: int) -> datetime:
    """Return the moment, in UTC, that `micros` made the number of."""
    return EPOCH + stored * MICROSECOND
