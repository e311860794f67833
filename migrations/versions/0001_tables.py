"""Create the tables and their indexes."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "v1_0001_tables"
down_revision = None
branch_labels = None
depends_on = None

KEY = sa.String(64)  # also for our own terms: a state, a kind, a source
PATH = sa.String(255)
PARAMS = sa.String(512)
TIMESTAMP = sa.DateTime(timezone=True)
BIG_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
# A function of lz4 alone: servers before 14 lack the setting, others may be built without it.
HAS_LZ4 = "SELECT 1 FROM pg_settings WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals)"


def upgrade() -> None:
    create_names()
    create_values()
    create_frames()
    create_coverage()
    create_ledger()


def downgrade() -> None:
    raise NotImplementedError("migrations only expand: to go back, restore a backup")


def identity(name: str, type_: Any = sa.Integer) -> sa.Column[Any]:
    return sa.Column(name, type_, sa.Identity(), primary_key=True)


def required(name: str, type_: Any) -> sa.Column[Any]:
    return sa.Column(name, type_, nullable=False, autoincrement=False)


def defaulted(name: str, type_: Any = sa.Text) -> sa.Column[Any]:
    return sa.Column(name, type_, nullable=False, server_default="")


def count(name: str, type_: Any = sa.Integer) -> sa.Column[Any]:
    return sa.Column(name, type_, nullable=False, server_default=sa.text("0"))


def optional(name: str, type_: Any) -> sa.Column[Any]:
    return sa.Column(name, type_, nullable=True)


def create_table(
    table: str, *columns: sa.Column[Any], key: list[str], unique: list[str] | None = None, **options: Any
) -> None:
    constraints: list[sa.Constraint] = [sa.PrimaryKeyConstraint(*key, name=f"pk_{table}")]
    if unique:
        constraints.append(sa.UniqueConstraint(*unique, name="_".join(["uq", table, *unique])))
    op.create_table(table, *columns, *constraints, **options)


def create_names() -> None:
    create_table(
        "series",
        identity("series_id"),
        *(defaulted(name, KEY) for name in ("feed", "metric", "ticker", "user_id")),
        required("first_seen_at", TIMESTAMP),
        key=["series_id"],
        unique=["feed", "metric", "ticker", "user_id"],
    )
    create_table(
        "subscriptions",
        identity("subscription_id"),
        defaulted("feed", KEY),
        required("path", PATH),
        required("method", KEY),
        required("params", PARAMS),
        defaulted("ticker", KEY),
        required("first_seen_at", TIMESTAMP),
        defaulted("connection_params", PARAMS),
        key=["subscription_id"],
        unique=["path", "params"],
    )
    op.create_index("ix_subscriptions_feed_ticker", "subscriptions", ["feed", "ticker"])
    create_table(
        "instances",
        identity("instance_id"),
        required("spool_id", KEY),
        defaulted("name"),
        count("position", sa.BigInteger),
        defaulted("version"),
        defaulted("config_sha256"),
        required("started_at", TIMESTAMP),
        optional("heartbeat_at", TIMESTAMP),
        sa.Column("stepped_back", sa.Boolean, nullable=False, server_default=sa.false()),
        defaulted("run_id", KEY),
        key=["instance_id"],
        unique=["spool_id"],
    )
    create_table(
        "connections",
        required("instance_id", sa.Integer),
        required("path", PATH),
        required("params", PARAMS),
        required("heard_at", TIMESTAMP),
        key=["instance_id", "path", "params"],
    )


def create_values() -> None:
    for table, key in (("samples", ["series_id", "ts"]), ("sample_revisions", ["series_id", "ts", "revision"])):
        create_table(
            table,
            required("series_id", sa.Integer),
            count("revision"),
            required("ts", TIMESTAMP),
            required("value", sa.Double),
            required("received_at", TIMESTAMP),
            optional("published_at", TIMESTAMP),
            required("seq", sa.BigInteger),
            required("instance_id", sa.Integer),
            required("source", sa.SmallInteger),  # 1 stream, 2 snapshot, 3 backfill
            key=key,
            sqlite_with_rowid=False,
        )


def create_frames() -> None:
    create_table(
        "payload_blocks",
        required("first_seq", sa.BigInteger),
        required("last_seq", sa.BigInteger),
        required("received_at", TIMESTAMP),
        required("last_received_at", TIMESTAMP),
        optional("published_at", TIMESTAMP),
        required("instance_id", sa.Integer),
        required("frame_count", sa.Integer),
        count("row_count"),
        defaulted("connection_id", KEY),
        required("source", KEY),
        *(defaulted(name) for name in ("event", "path", "params", "body")),
        optional("pieces", sa.Text),
        optional("frames", sa.Text),
        key=["instance_id", "first_seq"],
    )
    compress_texts()
    create_table(
        "dead_letters",
        identity("dead_letter_id", BIG_ID),
        required("instance_id", sa.Integer),
        required("seq", sa.BigInteger),
        optional("row_index", sa.Integer),
        required("received_at", TIMESTAMP),
        required("stage", KEY),
        *(defaulted(name) for name in ("reason", "detail", "body")),
        defaulted("connection_id", KEY),
        *(defaulted(name) for name in ("source", "event", "path", "params")),
        optional("retried_at", TIMESTAMP),
        key=["dead_letter_id"],
        unique=["instance_id", "seq", "row_index"],
    )
    create_partial_index(
        "uq_dead_letters_frame", "dead_letters", ["instance_id", "seq"], "row_index IS NULL", unique=True
    )


def compress_texts() -> None:
    """Let PostgreSQL compress with lz4 where it can, in half the time that its default takes."""
    connection = op.get_bind()
    if connection.dialect.name == "postgresql" and connection.exec_driver_sql(HAS_LZ4).first():
        for column in ("frames", "body"):
            op.execute(f"ALTER TABLE payload_blocks ALTER COLUMN {column} SET COMPRESSION lz4")


def create_coverage() -> None:
    create_table(
        "coverage",
        required("subscription_id", sa.Integer),
        required("instance_id", sa.Integer),
        required("start_seq", sa.BigInteger),
        required("started_at", TIMESTAMP),
        optional("ended_at", TIMESTAMP),
        required("state", KEY),
        defaulted("reason"),
        key=["subscription_id", "instance_id", "start_seq"],
    )
    create_partial_index("ix_coverage_open", "coverage", ["instance_id", "subscription_id"], "ended_at IS NULL")
    create_table(
        "repairs",
        identity("repair_id"),
        required("subscription_id", sa.Integer),
        required("from_ts", TIMESTAMP),
        required("to_ts", TIMESTAMP),
        required("kind", KEY),
        required("state", KEY),
        defaulted("cursor"),
        count("attempts"),
        count("new_rows"),
        defaulted("error"),
        required("created_at", TIMESTAMP),
        optional("finished_at", TIMESTAMP),
        key=["repair_id"],
        unique=["subscription_id", "from_ts", "to_ts"],
    )
    create_partial_index("ix_repairs_open", "repairs", ["repair_id"], "state = 'open'")


def create_ledger() -> None:
    create_table(
        "events",
        required("instance_id", sa.Integer),
        required("seq", sa.BigInteger),
        required("at", TIMESTAMP),
        required("kind", KEY),
        defaulted("detail"),
        key=["instance_id", "seq"],
    )
    create_table(
        "batches",
        required("first_seq", sa.BigInteger),
        required("last_seq", sa.BigInteger),
        required("committed_at", TIMESTAMP),
        required("instance_id", sa.Integer),
        *(count(name) for name in ("frames", "facts", "row_count", "new_rows", "revised_rows", "duplicate_rows")),
        *(count(name) for name in ("dead_frames", "dead_rows", "expired_rows")),
        key=["instance_id", "first_seq"],
        sqlite_with_rowid=False,
    )
    create_table(
        "leases",
        required("name", KEY),
        required("instance_id", sa.Integer),
        required("until", TIMESTAMP),
        key=["name"],
    )


def create_partial_index(name: str, table: str, columns: list[str], where: str, *, unique: bool = False) -> None:
    op.create_index(name, table, columns, unique=unique, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
