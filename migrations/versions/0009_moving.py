"""A log can move in from another house: what is imported, and hashes that were made elsewhere."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from infra.migrate import function_sql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

NEW_COMMENT = "Append-only, gapless from 1; written by append_v1 and, while it is empty, imports."
OLD_COMMENT = "Append-only, gapless from 1; written by append_v1 alone."

REFUSE = """
    CREATE TRIGGER event_log_no_append_while_importing
    BEFORE INSERT ON event_log
    FOR EACH STATEMENT
    EXECUTE FUNCTION refuse_while_importing_v1()
"""

ALLOW = """
    DROP TRIGGER event_log_no_append_while_importing ON event_log
"""


def upgrade() -> None:
    op.create_table(
        "imports",
        sa.Column("singleton", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("lines", sa.BigInteger(), nullable=False),
        sa.Column("begun_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("finished_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint("singleton", name="imports_one_row"),
        sa.PrimaryKeyConstraint("singleton"),
        comment="The export that the log came with, and how many of its lines are in.",
    )
    op.add_column("command_keys", sa.Column("secret", sa.Text(), nullable=True))
    op.execute(function_sql("refuse_while_importing_v1"))
    op.execute(REFUSE)
    op.create_table_comment("event_log", NEW_COMMENT, existing_comment=OLD_COMMENT)


def downgrade() -> None:
    op.create_table_comment("event_log", OLD_COMMENT, existing_comment=NEW_COMMENT)
    op.execute(ALLOW)
    op.execute("DROP FUNCTION refuse_while_importing_v1()")
    op.drop_column("command_keys", "secret")
    op.drop_table("imports")
