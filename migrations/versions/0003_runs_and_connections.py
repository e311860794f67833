"""Add what proves who wrote and what was heard: the run of an instance, and each connection's last sign of life.

Replace the view that gives coverage its ends: nothing is covered that was not heard, or that lies in the future.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

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
FOLDER = Path(__file__).parent
VIEW = re.compile(r"^CREATE VIEW (?P<name>\w+) AS /\* (?P<comment>.*?) \*/.*?(?=;$)", re.DOTALL | re.MULTILINE)
ROW_PARAMS = ("ticker", "user_id")  # subscriptions that differ in nothing else share a connection


def upgrade() -> None:
    op.add_column("instances", sa.Column("run_id", KEY, nullable=False, server_default=""))
    op.add_column("instances", sa.Column("stepped_back", sa.Boolean, nullable=False, server_default=sa.false()))
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
    replace_views(op.get_bind())


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


def replace_views(connection: sa.Connection) -> None:
    dialect = connection.dialect.name
    script = (FOLDER / f"0003_views.{dialect}.sql").read_text(encoding="utf-8")
    for view in VIEW.finditer(script):
        name, statement = view["name"], view[0]
        if dialect == "postgresql":  # keeps the views that read from this one
            execute(connection, statement.replace("CREATE VIEW", "CREATE OR REPLACE VIEW", 1))
            execute(connection, f"COMMENT ON VIEW {name} IS '{view['comment']}'")
        else:
            execute(connection, f"DROP VIEW IF EXISTS {name}")
            execute(connection, statement)


def execute(connection: sa.Connection, statement: str) -> None:
    # as is: a colon or a percent sign is no parameter
    connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
