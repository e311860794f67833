"""Repairs that are open are found without reading those that are done."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    is_open = sa.text("state = 'open'")
    op.create_index("ix_repairs_open", "repairs", ["repair_id"], sqlite_where=is_open, postgresql_where=is_open)


def downgrade() -> None:
    raise NotImplementedError("migrations only expand: to go back, restore a backup")
