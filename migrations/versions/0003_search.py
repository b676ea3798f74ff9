"""The words of messages, to be searched; the projection fills them from the log."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

FORGET_CHECKPOINT = """
    DELETE FROM projection_checkpoints
    WHERE projection = 'search'
"""


def upgrade() -> None:
    op.create_table(
        "message_search",
        sa.Column("message_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("chat_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("words", postgresql.TSVECTOR(), nullable=False),
        sa.PrimaryKeyConstraint("message_id"),
    )
    op.create_index(
        "idx_message_search_words",
        "message_search",
        ["words"],
        postgresql_using="gin",
        postgresql_with={"gin_pending_list_limit": 512},
    )
    op.create_index("idx_message_search_chat", "message_search", ["chat_id", "position"])


def downgrade() -> None:
    op.drop_table("message_search")
    op.execute(FORGET_CHECKPOINT)
