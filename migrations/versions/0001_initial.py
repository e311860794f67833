"""The tables."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

KEY = sa.String(64)
AT = sa.DateTime(timezone=True)
BIG_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    names()
    values()
    frames()
    listening()
    ledger()


def downgrade() -> None:
    raise NotImplementedError("migrations only expand: to go back, restore a backup")


def identity(name: str, type_: Any = sa.Integer) -> sa.Column[Any]:
    return sa.Column(name, type_, sa.Identity(), primary_key=True)


def required(name: str, type_: Any) -> sa.Column[Any]:
    return sa.Column(name, type_, nullable=False, autoincrement=False)


def words(name: str, type_: Any = sa.Text) -> sa.Column[Any]:
    return sa.Column(name, type_, nullable=False, server_default="")


def count(name: str, type_: Any = sa.Integer) -> sa.Column[Any]:
    return sa.Column(name, type_, nullable=False, server_default=sa.text("0"))


def optional(name: str, type_: Any) -> sa.Column[Any]:
    return sa.Column(name, type_, nullable=True)


def primary(table: str, *columns: str) -> sa.PrimaryKeyConstraint:
    return sa.PrimaryKeyConstraint(*columns, name=f"pk_{table}")


def unique(table: str, *columns: str) -> sa.UniqueConstraint:
    return sa.UniqueConstraint(*columns, name="_".join(["uq", table, *columns]))


def names() -> None:
    op.create_table(
        "series",
        identity("series_id"),
        *(words(name, KEY) for name in ("feed", "metric", "ticker", "user_id")),
        required("first_seen_at", AT),
        primary("series", "series_id"),
        unique("series", "feed", "metric", "ticker", "user_id"),
    )
    op.create_table(
        "subscriptions",
        identity("subscription_id"),
        words("feed", KEY),
        required("path", sa.String(255)),
        required("method", KEY),
        required("params", sa.String(512)),
        words("ticker", KEY),
        required("first_seen_at", AT),
        primary("subscriptions", "subscription_id"),
        unique("subscriptions", "path", "params"),
    )
    op.create_table(
        "instances",
        identity("instance_id"),
        required("spool_id", KEY),
        words("name"),
        count("position", sa.BigInteger),
        words("version"),
        words("config_sha256"),
        required("started_at", AT),
        optional("heartbeat_at", AT),
        primary("instances", "instance_id"),
        unique("instances", "spool_id"),
    )


def values() -> None:
    for table, key in (("samples", ["series_id", "ts"]), ("sample_revisions", ["series_id", "ts", "revision"])):
        op.create_table(
            table,
            required("series_id", sa.Integer),
            count("revision"),
            required("ts", AT),
            required("value", sa.Double),
            required("received_at", AT),
            optional("published_at", AT),
            required("seq", sa.BigInteger),
            required("instance_id", sa.Integer),
            required("source", KEY),
            primary(table, *key),
            sqlite_with_rowid=False,
        )


def frames() -> None:
    op.create_table(
        "payloads",
        required("instance_id", sa.Integer),
        required("seq", sa.BigInteger),
        words("connection_id", KEY),
        required("source", KEY),
        *(words(name) for name in ("event", "path", "params")),
        required("received_at", AT),
        optional("published_at", AT),
        count("row_count"),
        words("body"),
        primary("payloads", "instance_id", "seq"),
    )
    op.create_table(
        "dead_letters",
        identity("dead_letter_id", BIG_ID),
        required("instance_id", sa.Integer),
        required("seq", sa.BigInteger),
        optional("row_index", sa.Integer),
        required("received_at", AT),
        required("stage", KEY),
        *(words(name) for name in ("reason", "detail", "body")),
        words("connection_id", KEY),
        *(words(name) for name in ("source", "event", "path", "params")),
        optional("retried_at", AT),
        primary("dead_letters", "dead_letter_id"),
        unique("dead_letters", "instance_id", "seq", "row_index"),
    )
    partial_index("uq_dead_letters_frame", "dead_letters", ["instance_id", "seq"], "row_index IS NULL", unique=True)


def listening() -> None:
    op.create_table(
        "coverage",
        required("subscription_id", sa.Integer),
        required("instance_id", sa.Integer),
        required("start_seq", sa.BigInteger),
        required("started_at", AT),
        optional("ended_at", AT),
        required("state", KEY),
        words("reason"),
        primary("coverage", "subscription_id", "instance_id", "start_seq"),
    )
    partial_index("ix_coverage_open", "coverage", ["instance_id", "subscription_id"], "ended_at IS NULL")
    op.create_table(
        "repairs",
        identity("repair_id"),
        required("subscription_id", sa.Integer),
        required("from_ts", AT),
        required("to_ts", AT),
        required("kind", KEY),
        required("state", KEY),
        words("cursor"),
        count("attempts"),
        count("new_rows"),
        words("error"),
        required("created_at", AT),
        optional("finished_at", AT),
        primary("repairs", "repair_id"),
        unique("repairs", "subscription_id", "from_ts", "to_ts"),
    )


def ledger() -> None:
    op.create_table(
        "events",
        required("instance_id", sa.Integer),
        required("seq", sa.BigInteger),
        required("at", AT),
        required("kind", KEY),
        words("detail"),
        primary("events", "instance_id", "seq"),
    )
    counts = "frames facts row_count new_rows revised_rows duplicate_rows dead_frames dead_rows"
    op.create_table(
        "batches",
        required("instance_id", sa.Integer),
        required("first_seq", sa.BigInteger),
        required("last_seq", sa.BigInteger),
        required("committed_at", AT),
        *(count(name) for name in counts.split()),
        primary("batches", "instance_id", "first_seq"),
    )
    op.create_table(
        "leases",
        required("name", KEY),
        required("instance_id", sa.Integer),
        required("until", AT),
        primary("leases", "name"),
    )


def partial_index(name: str, table: str, columns: list[str], where: str, *, unique: bool = False) -> None:
    op.create_index(name, table, columns, unique=unique, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
