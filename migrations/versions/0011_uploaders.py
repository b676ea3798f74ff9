"""Of an upload that broke off it is known whose it is: their erasure removes what it left."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("unfinished_uploads", sa.Column("uploader", sa.Uuid(), nullable=True))


def downgrade() -> None:
    op.drop_column("unfinished_uploads", "uploader")
