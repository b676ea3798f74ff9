"""In which partitions a page of messages is."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

NEW_COMMENT = "Finds a message's partition by its id, and those of a page."
OLD_COMMENT = "Finds a message's partition by its id."


def upgrade() -> None:
    op.create_index(
        "idx_message_places_page",
        "message_places",
        ["chat_id", "seq"],
        postgresql_include=["created_at"],
    )
    op.create_table_comment("message_places", NEW_COMMENT, existing_comment=OLD_COMMENT)


def downgrade() -> None:
    op.create_table_comment("message_places", OLD_COMMENT, existing_comment=NEW_COMMENT)
    op.drop_index("idx_message_places_page", "message_places")
