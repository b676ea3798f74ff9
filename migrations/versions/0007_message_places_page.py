"""In which partitions a page of messages is."""

from alembic import op

from infra import concurrent_indexes

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

NEW_COMMENT = "Finds a message's partition by its id, and those of a page."
OLD_COMMENT = "Finds a message's partition by its id."


PAGE = "idx_message_places_page"


def upgrade() -> None:
    concurrent_indexes.build(
        PAGE, "message_places", ["chat_id", "seq"], postgresql_include=["created_at"]
    )
    op.create_table_comment("message_places", NEW_COMMENT, existing_comment=OLD_COMMENT)


def downgrade() -> None:
    concurrent_indexes.drop(PAGE, "message_places")
    op.create_table_comment("message_places", OLD_COMMENT, existing_comment=NEW_COMMENT)
