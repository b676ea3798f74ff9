"""Reactions get an id that is a function of the log; memberships are claimed from now on."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

COMMENT = "Values that one stream holds: usernames (as keyed hashes) and slugs."
NEW_COMMENT = "Values that one stream holds: usernames (keyed hashes), slugs, members, contacts."

# What groups there are, claim their members; nothing runs while this does.
CLAIM_MEMBERSHIPS = """
    INSERT INTO unique_values (scope, value, holder)
    SELECT 'membership', p.user_id::text || '/' || p.chat_id::text, 'chat-' || p.chat_id::text
    FROM chat_participants AS p
    JOIN chats AS c ON c.id = p.chat_id
    WHERE p.left_at IS NULL AND NOT c.is_deleted AND c.type = 'group'
    ON CONFLICT DO NOTHING
"""

UNCLAIM = """
    DELETE FROM unique_values
    WHERE scope IN ('membership', 'contact')
"""


def upgrade() -> None:
    op.execute(CLAIM_MEMBERSHIPS)
    op.create_table_comment("unique_values", NEW_COMMENT, existing_comment=COMMENT)
    op.drop_table("message_reactions")
    op.create_table(
        "message_reactions",
        sa.Column(
            "id",
            sa.UUID(as_uuid=False),
            sa.Computed(
                "(md5((message_id)::text || (user_id)::text || (emoji)::text))::uuid",
                persisted=True,
            ),
            nullable=False,
        ),
        sa.Column("message_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("user_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("emoji", sa.String(length=32), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("message_id", "user_id", "emoji"),
    )
    _index_by_user()


def downgrade() -> None:
    op.execute(UNCLAIM)
    op.create_table_comment("unique_values", COMMENT, existing_comment=NEW_COMMENT)
    op.drop_table("message_reactions")
    op.create_table(
        "message_reactions",
        sa.Column("id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("message_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("user_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("emoji", sa.String(length=32), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("message_id", "user_id", "emoji", name="unique_user_emoji_message"),
    )
    op.create_index("idx_reactions_message", "message_reactions", ["message_id", "emoji"])
    _index_by_user()


def _index_by_user() -> None:
    op.create_index(
        "idx_reactions_user",
        "message_reactions",
        ["user_id", sa.literal_column("created_at DESC")],
    )
