"""Add what proves who wrote and what was heard: the run of an instance, and each connection's last sign of life."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0003_runs_and_connections"
down_revision = "0002_views"
branch_labels = None
depends_on = None

KEY = sa.String(64)
PATH = sa.String(255)
PARAMS = sa.String(512)
TIMESTAMP = sa.DateTime(timezone=True)
ROW_PARAMS = ("ticker", "user_id")  # subscriptions that differ in nothing else share a connection


def upgrade() -> None:
    op.add_column("instances", sa.Column("run_id", KEY, nullable=False, server_default=""))
    op.add_column("subscriptions", sa.Column("connection_params", PARAMS, nullable=False, server_default=""))
    op.create_table(
        "connections",
        sa.Column("instance_id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("path", PATH, nullable=False),
        sa.Column("params", PARAMS, nullable=False),
        sa.Column("heard_at", TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint("instance_id", "path", "params", name="pk_connections"),
    )
    fill_connection_params(op.get_bind())


def downgrade() -> None:
    raise NotImplementedError("migrations only expand: to go back, restore a backup")


def fill_connection_params(connection: sa.Connection) -> None:
    table = sa.table("subscriptions", sa.column("subscription_id"), sa.column("params"), sa.column("connection_params"))
    c = table.c
    rows = connection.execute(sa.select(c.subscription_id, c.params)).all()
    if rows:
        fill = sa.update(table).where(c.subscription_id == sa.bindparam("id_"))
        values = [{"id_": row.subscription_id, "connection_params": connection_params(row.params)} for row in rows]
        connection.execute(fill, values)


def connection_params(params: str) -> str:
    shared = {name: value for name, value in json.loads(params).items() if name not in ROW_PARAMS}
    return json.dumps(shared, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
