"""The tables, and how a moment is written into them.

Times are whole microseconds since 1970 in 64-bit integers: exact on both databases and in Parquet. JSON is text, so that a
typed attribute comes back as it went in. Text compares byte by byte on both databases, so that pages come in one order.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import BigInteger, Boolean, Column, Double, Index, Integer, LargeBinary, MetaData, Table, Text

METADATA = MetaData()

# A checksum covers the other columns of its row that are served; a profile has one for each part written by itself.

STRING = Text().with_variant(Text(collation="C"), "postgresql")
SEQUENCE = BigInteger().with_variant(Integer(), "sqlite")

# Named numbers. `catalogue`, `documents`, `aliases` and `erasures` only grow: the write that raises one holds its row
# until it commits, so that no reader ever sees a later number before an earlier one. `identity` is drawn once, to tell
# stores apart. `learned_decisions` and `learned_events` are how far the lessons have come, `learned_at` is when.
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
    Column("checksum", BigInteger, nullable=False),
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
    Column("attributes_sum", BigInteger, nullable=False),
    Column("events", BigInteger, nullable=False),
    Column("last_seen", BigInteger, nullable=False),  # 0: never
    Column("activity_sum", BigInteger, nullable=False),
    Column("history_sum", BigInteger, nullable=False),
    Column("history", LargeBinary, nullable=False),  # last, so that the columns before it do not cost its pages
)
Index("profiles_by_activity", PROFILES.c.last_seen.desc(), PROFILES.c.user_id)

# What people said about what may be done with what is known of them; who never said anything has no row.
CONSENTS = Table(
    "consents",
    METADATA,
    Column("user_id", STRING, primary_key=True),
    Column("consent", STRING, nullable=False),
    Column("checksum", BigInteger, nullable=False),
)

# Other ids of a person: never chains, so that one look-up leads from an alias to the person.
ALIASES = Table(
    "aliases",
    METADATA,
    Column("alias", STRING, primary_key=True),
    Column("user_id", STRING, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("checksum", BigInteger, nullable=False),
    Index("aliases_of_user", "user_id", "alias"),
)

ITEMS = Table(
    "items",
    METADATA,
    Column("item_id", STRING, primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Column("search", STRING, nullable=False),  # title and id, case folded
    Column("body", STRING, nullable=False),
    Column("checksum", BigInteger, nullable=False),
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
    Column("checksum", BigInteger, nullable=False),
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
    Column("checksum", BigInteger, nullable=False),
    Column("why", STRING),
    Index("audit_of_document", "kind", "id", "version"),
)

KEYS = Table(
    "keys",
    METADATA,
    Column("id", STRING, primary_key=True),
    Column("name", STRING, nullable=False),
    Column("scopes", STRING, nullable=False),  # separated by spaces
    Column("digest", STRING, nullable=False),  # SHA-256 of the secret, in hexadecimal digits
    Column("per_minute", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
)

DECISIONS = Table(
    "decisions",
    METADATA,
    Column("sequence", SEQUENCE, primary_key=True, autoincrement=True),
    Column("recommendation_id", STRING, nullable=False, unique=True),
    Column("user_id", STRING),
    Column("at", BigInteger, nullable=False),
    Column("kind", STRING, nullable=False),
    Column("placement", STRING, nullable=False),
    Column("channel", STRING),
    Column("request", STRING, nullable=False),
    Column("items", STRING, nullable=False),
    Column("scores", STRING, nullable=False),
    Column("propensities", STRING),  # nothing where nothing was left to chance
    Column("sources", STRING, nullable=False),  # source -> the places it found
    Column("arms", STRING, nullable=False),
    Column("model_version", STRING, nullable=False),
    Column("policy_version", BigInteger, nullable=False),
    Column("degraded", STRING, nullable=False),
    Column("checksum", BigInteger, nullable=False),
    Index("decisions_of_user", "user_id", "at"),
    Index("decisions_in_time", "at"),
    Index("decisions_of_placement", "placement", "at"),
    sqlite_autoincrement=True,  # as for events
)

# Folders of messages that were written ahead; where they lie, nothing of people.
BATCHES = Table(
    "batches",
    METADATA,
    Column("name", STRING, primary_key=True),
    Column("folder", STRING, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("valid_until", BigInteger, nullable=False),
)

# Who was erased: digests of ids, nothing that names anybody.
ERASURES = Table(
    "erasures",
    METADATA,
    Column("sequence", SEQUENCE, primary_key=True, autoincrement=True),
    Column("digest", STRING, nullable=False),
    Column("erased_at", BigInteger, nullable=False),
    Column("checksum", BigInteger, nullable=False),
    Index("erasures_by_digest", "digest"),
    sqlite_autoincrement=True,  # an export remembers how far it has followed them
)

# Folders that something was exported to, so that an erasure finds them.
EXPORTS = Table(
    "exports",
    METADATA,
    Column("folder", STRING, primary_key=True),
    Column("at", BigInteger, nullable=False),
)

# Keys to sign with; they are drawn when the store is made and never leave it.
SECRETS = Table(
    "secrets",
    METADATA,
    Column("name", STRING, primary_key=True),
    Column("value", STRING, nullable=False),
)

# What people were shown of what is not shown too often, or once only. `subject` tells one showing from another: the id of
# the decision, or what an alert was about.
CONTACTS = Table(
    "contacts",
    METADATA,
    Column("user_id", STRING, primary_key=True),
    Column("counted", STRING, primary_key=True),
    Column("subject", STRING, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Index("contacts_in_time", "at"),
)

# What was learned about the variants of each content: sums over showings, nothing of people.
LESSONS = Table(
    "lessons",
    METADATA,
    Column("content", STRING, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("basis", STRING, nullable=False),
    Column("arms", STRING, nullable=False),
    Column("sums", LargeBinary, nullable=False),
    Column("checksum", BigInteger, nullable=False),
)

# The latest news of an item: that it can be had again, what it cost before each of the latest changes of its price.
NEWS = Table(
    "news",
    METADATA,
    Column("item_id", STRING, primary_key=True),
    Column("kind", STRING, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("before", STRING, nullable=False),  # [[moment of the change, price before], ...], the latest last
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
