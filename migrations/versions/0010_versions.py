"""A checkpoint says which version of the projection's code the rows are of."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

NEW_COMMENT = "Moved in the transaction that writes the rows. Of which code's version those are."
OLD_COMMENT = "Moved in the transaction that writes the rows."


def upgrade() -> None:
    version = sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False)
    op.add_column("projection_checkpoints", version)
    op.create_table_comment("projection_checkpoints", NEW_COMMENT, existing_comment=OLD_COMMENT)


def downgrade() -> None:
    op.create_table_comment("projection_checkpoints", OLD_COMMENT, existing_comment=NEW_COMMENT)
    op.drop_column("projection_checkpoints", "version")
