"""Create the table ``deletions``, which says what retention took, so that readers can tell it from what never was."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v1_0004_deletions"
down_revision = "v1_0003_payloads"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "deletions",
        *(sa.Column(name, sa.DateTime(timezone=True), nullable=False) for name in ("before", "deleted_at")),
        sa.Column("instance_id", sa.Integer, nullable=False, autoincrement=False),
        sa.PrimaryKeyConstraint("before", name="pk_deletions"),
    )


def downgrade() -> None:
    raise NotImplementedError("migrations only expand: to go back, restore a backup")
