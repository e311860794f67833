"""The tables, as SQLAlchemy Core metadata. ``migrations/`` creates them.

No table has foreign keys. On samples, revisions and payloads each check would cost an index probe per row. On the
others they would order the writes within a transaction and add no safety, because ids are interned and committed before
they are used. ``ingestor audit`` looks for orphans instead.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Double,
    Identity,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.types import TypeEngine

from ingestor.core.times import to_sqlite_text, to_us

KEY_LENGTH = 64  # characters of a feed, metric, ticker or user_id
PATH_LENGTH = 255  # characters
PARAMS_LENGTH = 512  # characters of canonical JSON; together with the path it fits an index key of any database


class _SqliteTime(sqlite.DATETIME):
    """Stores a time as ``to_sqlite_text`` writes it."""

    def bind_processor(self, dialect: Dialect) -> Callable[[datetime | None], str | None]:
        return lambda at: None if at is None else to_sqlite_text(to_us(at))


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, converted to UTC. SQLite stores it as text, see ``to_sqlite_text``.

    Raises ValueError for a naive datetime, because its time zone cannot be guessed.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(_SqliteTime() if dialect.name == "sqlite" else self.impl_instance)  # type: ignore[no-untyped-call]

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"naive datetime {value.isoformat()}: add a time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        # SQLite's text has no zone; it was written in UTC.
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


SOURCE_CODES = {"stream": 1, "snapshot": 2, "backfill": 3}  # the views have the words
_SOURCES = {code: source for source, code in SOURCE_CODES.items()}


class SourceCode(TypeDecorator[str]):
    """The source of a value: a word in the program, a code in the table, which is 8 of 125 bytes smaller by it."""

    impl = SmallInteger
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> int | None:
        return None if value is None else SOURCE_CODES[value]

    def process_result_value(self, value: int | None, dialect: Dialect) -> str | None:
        return None if value is None else _SOURCES[value]


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _id(name: str) -> Column[int]:
    return Column(name, Integer, Identity(), primary_key=True)


_key = partial(Column, type_=String(KEY_LENGTH), nullable=False, server_default="")
_term = partial(Column, type_=String(KEY_LENGTH), nullable=False)  # one of our own: a source, a state, a kind
_text = partial(Column, type_=Text, nullable=False, server_default="")
_int = partial(Column, type_=Integer, nullable=False, autoincrement=False)
_count = partial(Column, type_=Integer, nullable=False, server_default=text("0"))
_big = partial(Column, type_=BigInteger, nullable=False, autoincrement=False)
_at = partial(Column, type_=UtcDateTime, nullable=False)


def _where(condition: str) -> dict[str, Any]:
    """Return the arguments of a partial index."""
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


def _value_columns() -> tuple[Column[Any], ...]:
    # Columns of four bytes in pairs, or at the end: PostgreSQL would pad each to eight bytes, a tenth of the row.
    return (
        _int("series_id"),
        _count("revision"),
        _at("ts"),
        Column("value", Double, nullable=False),
        _at("received_at"),
        _at("published_at", nullable=True),
        _big("seq"),
        _int("instance_id"),
        Column("source", SourceCode, nullable=False),
    )


series = Table(
    "series",
    metadata,
    _id("series_id"),
    _key("feed"),
    _key("metric"),
    _key("ticker"),
    _key("user_id"),
    _at("first_seen_at"),
    UniqueConstraint("feed", "metric", "ticker", "user_id"),
)

# The current value of a series at a ts. `revision` counts the other values recorded for it.
samples = Table(
    "samples", metadata, *_value_columns(), PrimaryKeyConstraint("series_id", "ts"), sqlite_with_rowid=False
)

# Retention deleted samples with a ts before `before`. The row is older than the first of these deletions.
deletions = Table(
    "deletions", metadata, _at("before"), _at("deleted_at"), _int("instance_id"), PrimaryKeyConstraint("before")
)

# Every value that is not current.
sample_revisions = Table(
    "sample_revisions",
    metadata,
    *_value_columns(),
    PrimaryKeyConstraint("series_id", "ts", "revision"),
    sqlite_with_rowid=False,
)

# The frames of a batch that have the same origin, at most one batch to a block. A block of one short frame has its text
# in `body`; of others, `frames` has them, but `body` has the rows of rolling windows. The view `payloads` opens the
# blocks.
payload_blocks = Table(
    "payload_blocks",
    metadata,
    _big("first_seq"),
    _big("last_seq"),
    _at("received_at"),  # the earliest
    _at("last_received_at"),  # the latest
    _at("published_at", nullable=True),
    _int("instance_id"),
    _int("frame_count"),
    _count("row_count"),  # of all frames
    _key("connection_id"),
    _term("source"),
    _text("event"),
    _text("path"),
    _text("params"),
    _text("body"),
    _text("pieces", nullable=True, server_default=None),  # JSON: what control characters in `frames` stand for
    _text("frames", nullable=True, server_default=None),  # behind all others, for SQLite has to read what is before
    PrimaryKeyConstraint("instance_id", "first_seq"),
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("dead_letter_id", BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True),
    _int("instance_id"),
    _big("seq"),
    Column("row_index", Integer),  # NULL: the whole frame
    _at("received_at"),
    _term("stage"),
    _text("reason"),
    _text("detail"),
    _text("body"),
    # The origin of its frame, needed to retry a dead letter.
    _key("connection_id"),
    _text("source"),
    _text("event"),
    _text("path"),
    _text("params"),
    _at("retried_at", nullable=True),
    UniqueConstraint("instance_id", "seq", "row_index"),
    # For a unique constraint two NULLs differ, and NULLS NOT DISTINCT needs PostgreSQL 15.
    Index("uq_dead_letters_frame", "instance_id", "seq", unique=True, **_where("row_index IS NULL")),
)

subscriptions = Table(
    "subscriptions",
    metadata,
    _id("subscription_id"),
    _key("feed"),
    Column("path", String(PATH_LENGTH), nullable=False),
    _term("method"),
    Column("params", String(PARAMS_LENGTH), nullable=False),
    _key("ticker"),
    _at("first_seen_at"),
    # Its params without those that a row names: subscriptions with this path and these params share a connection.
    Column("connection_params", String(PARAMS_LENGTH), nullable=False, server_default=""),
    UniqueConstraint("path", "params"),
    Index(None, "feed", "ticker"),  # finds the subscriptions of a ticker, for each bucket of its candles
)

coverage = Table(
    "coverage",
    metadata,
    _int("subscription_id"),
    _int("instance_id"),
    _big("start_seq"),
    _at("started_at"),
    _at("ended_at", nullable=True),
    _term("state"),
    _text("reason"),
    PrimaryKeyConstraint("subscription_id", "instance_id", "start_seq"),
    # With each state change the writer closes the open interval, however long the history is.
    Index("ix_coverage_open", "instance_id", "subscription_id", **_where("ended_at IS NULL")),
)

repairs = Table(
    "repairs",
    metadata,
    _id("repair_id"),
    _int("subscription_id"),
    _at("from_ts"),
    _at("to_ts"),
    _term("kind"),
    _term("state"),
    _text("cursor"),
    _count("attempts"),
    _count("new_rows"),
    _text("error"),
    _at("created_at"),
    _at("finished_at", nullable=True),
    UniqueConstraint("subscription_id", "from_ts", "to_ts"),
    # Open repairs are queried all the time, and there are few.
    Index("ix_repairs_open", "repair_id", **_where("state = 'open'")),
)

events = Table(
    "events",
    metadata,
    _int("instance_id"),
    _big("seq"),
    _at("at"),
    _term("kind"),
    _text("detail"),
    PrimaryKeyConstraint("instance_id", "seq"),
)

# The counts of a batch: its entries, and the outcome of its rows.
LEDGER_COUNTS = (
    "frames",
    "facts",
    "row_count",
    "new_rows",
    "revised_rows",
    "duplicate_rows",
    "dead_frames",
    "dead_rows",
    "expired_rows",
)

# The ts of a batch's rows: the first and the last, and if those are more than a day apart, JSON with both for each
# series, [[series_id, from, to], …]. NULL without rows, and where it is not known, as for batches that were compacted.
LEDGER_RANGES = ("from_ts", "to_ts", "series_ranges")

batches = Table(
    "batches",
    metadata,
    _big("first_seq"),
    _big("last_seq"),
    _at("committed_at"),
    _int("instance_id"),
    *(_count(name) for name in LEDGER_COUNTS),
    _at("from_ts", nullable=True),
    _at("to_ts", nullable=True),
    _text("series_ranges", nullable=True, server_default=None),
    PrimaryKeyConstraint("instance_id", "first_seq"),
    sqlite_with_rowid=False,  # 60 instead of 70 bytes; the other tables would gain nothing, or lose
)

instances = Table(
    "instances",
    metadata,
    _id("instance_id"),
    Column("spool_id", String(KEY_LENGTH), nullable=False),
    _text("name"),
    Column("position", BigInteger, nullable=False, server_default=text("0")),  # the last committed seq
    _text("version"),
    _text("config_sha256"),
    _at("started_at"),
    _at("heartbeat_at", nullable=True),
    # Whether its clock was ever set back: then its coverage overlaps itself.
    Column("stepped_back", Boolean, nullable=False, server_default=false()),
    _key("run_id"),  # of the process that writes as this instance: part of every compare-and-set
    UniqueConstraint("spool_id"),
)

# When each connection of an instance was last heard: open live intervals of its subscriptions count up to then.
connections = Table(
    "connections",
    metadata,
    _int("instance_id"),
    Column("path", String(PATH_LENGTH), nullable=False),
    Column("params", String(PARAMS_LENGTH), nullable=False),
    _at("heard_at"),
    PrimaryKeyConstraint("instance_id", "path", "params"),
)

leases = Table("leases", metadata, _term("name"), _int("instance_id"), _at("until"), PrimaryKeyConstraint("name"))
