"""Keep the provider's texts in blocks: one row for all frames of a batch that have the same origin.

The rows there are stay as they are: each is a block of one frame. ``payloads`` becomes a view with a row per frame.
"""

from __future__ import annotations

import re
from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0005_payload_blocks"
down_revision = "0004_instance_gaps"
branch_labels = None
depends_on = None

TIMESTAMP = sa.DateTime(timezone=True)
FOLDER = Path(__file__).parent
VIEW = re.compile(r"^CREATE VIEW (?P<name>\w+) AS /\* (?P<comment>.*?) \*/.*?(?=;$)", re.DOTALL | re.MULTILINE)
# A function of lz4 alone: servers before 14 lack the setting, others may be built without it.
HAS_LZ4 = "SELECT 1 FROM pg_settings WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals)"
GRANTS = """
SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END
FROM pg_class, aclexplode(relacl) WHERE oid = 'payload_blocks'::regclass AND privilege_type = 'SELECT'
"""
# For daemons of an older version that share the database and go on: they insert and delete single frames.
TRIGGERS = """
CREATE FUNCTION insert_payload() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO payload_blocks (instance_id, first_seq, connection_id, source, event, path, params, received_at,
        published_at, row_count, body)
    VALUES (NEW.instance_id, NEW.seq, NEW.connection_id, NEW.source, NEW.event, NEW.path, NEW.params, NEW.received_at,
        NEW.published_at, NEW.row_count, NEW.body);
    RETURN NEW;
END $$;
CREATE FUNCTION delete_payload() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    DELETE FROM payload_blocks WHERE instance_id = OLD.instance_id AND first_seq = OLD.seq AND frames IS NULL;
    RETURN OLD;
END $$;
CREATE TRIGGER insert_payload INSTEAD OF INSERT ON payloads FOR EACH ROW EXECUTE FUNCTION insert_payload();
CREATE TRIGGER delete_payload INSTEAD OF DELETE ON payloads FOR EACH ROW EXECUTE FUNCTION delete_payload()
"""


def upgrade() -> None:
    execute("ALTER TABLE payloads RENAME TO payload_blocks")
    execute("ALTER TABLE payload_blocks RENAME COLUMN seq TO first_seq")
    # Nullable or with a constant default: no row is written again, however many there are.
    op.add_column("payload_blocks", sa.Column("last_seq", sa.BigInteger))
    op.add_column("payload_blocks", sa.Column("frame_count", sa.Integer, nullable=False, server_default=sa.text("1")))
    op.add_column("payload_blocks", sa.Column("last_received_at", TIMESTAMP))
    op.add_column("payload_blocks", sa.Column("pieces", sa.Text))
    op.add_column("payload_blocks", sa.Column("frames", sa.Text))
    dialect = op.get_bind().dialect.name
    view = next(VIEW.finditer((FOLDER / f"0005_views.{dialect}.sql").read_text(encoding="utf-8")))
    execute(view[0])
    if dialect == "postgresql":
        finish_postgres(view["comment"])


def downgrade() -> None:
    raise NotImplementedError("migrations only expand: to go back, restore a backup")


def finish_postgres(comment: str) -> None:
    execute("ALTER INDEX pk_payloads RENAME TO pk_payload_blocks")
    if execute(HAS_LZ4).first():  # compresses in half the time that the default takes
        execute("ALTER TABLE payload_blocks ALTER COLUMN frames SET COMPRESSION lz4")
        execute("ALTER TABLE payload_blocks ALTER COLUMN body SET COMPRESSION lz4")
    execute(f"COMMENT ON VIEW payloads IS '{comment}'")
    for (grantee,) in execute(GRANTS).all():
        execute(f"GRANT SELECT ON payloads TO {grantee}")
    execute(TRIGGERS)


def execute(statement: str) -> sa.CursorResult[tuple[str]]:
    # as is: a colon or a percent sign is no parameter
    return op.get_bind().exec_driver_sql(statement, execution_options={"no_parameters": True})
