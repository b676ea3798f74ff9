"""Keys that are destroyed are known for ever; deletions of accounts are found in the log."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

IS_DELETION = "type = 'account_deleted'"
IS_ENDED_AND_NAMED = "ended_at IS NOT NULL AND device_name IS NOT NULL"

SORT_BY_BYTES = """
    ALTER TABLE unique_values ALTER COLUMN value TYPE text COLLATE "C"
"""

SORT_AS_USUAL = """
    ALTER TABLE unique_values ALTER COLUMN value TYPE text COLLATE "default"
"""

VACUUM_SOON = """
    ALTER TABLE user_keys SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 0)
"""

VACUUM_AS_USUAL = """
    ALTER TABLE user_keys RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold)
"""


def upgrade() -> None:
    op.create_table(
        "erased_keys",
        sa.Column("user_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("erased_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("finished_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint("purpose IN ('profile', 'content')", name="erased_keys_purpose"),
        sa.PrimaryKeyConstraint("user_id", "purpose"),
        sa.UniqueConstraint("id"),
        comment="Keys destroyed for ever; finished_at when all else of the deletion is done too.",
    )
    op.execute(VACUUM_SOON)
    op.execute(SORT_BY_BYTES)
    op.create_index(
        "event_log_deletions",
        "event_log",
        ["position"],
        postgresql_where=sa.text(IS_DELETION),
    )
    op.create_index(
        "idx_sessions_ended_named",
        "sessions",
        ["user_id"],
        postgresql_where=sa.text(IS_ENDED_AND_NAMED),
    )


def downgrade() -> None:
    op.drop_index(
        "idx_sessions_ended_named",
        table_name="sessions",
        postgresql_where=sa.text(IS_ENDED_AND_NAMED),
    )
    op.drop_index(
        "event_log_deletions", table_name="event_log", postgresql_where=sa.text(IS_DELETION)
    )
    op.execute(SORT_AS_USUAL)
    op.execute(VACUUM_AS_USUAL)
    op.drop_table("erased_keys")
