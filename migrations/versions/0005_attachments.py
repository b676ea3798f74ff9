"""Attachments as they are uploaded and sent, and what removes their objects from the store."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

IS_UPLOAD = sa.text("type = 'attachment_uploaded'")
BY_MEMBER = {"message": "message_id", "sender": "sender_id"}
COLUMNS = ("chat_id", "sender_id", "medium_key", "ordinal")


def upgrade() -> None:
    # Nothing could be in the table before.
    op.add_column("attachments", sa.Column("chat_id", sa.UUID(as_uuid=False), nullable=False))
    op.add_column("attachments", sa.Column("sender_id", sa.UUID(as_uuid=False), nullable=False))
    op.add_column("attachments", sa.Column("medium_key", sa.String(500), nullable=False))
    op.add_column("attachments", sa.Column("ordinal", sa.SmallInteger(), nullable=True))
    op.create_index("idx_attachments_sender", "attachments", ["sender_id"])
    op.create_table(
        "unfinished_uploads",
        sa.Column("id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("keys", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("begun_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        comment="Objects that may be in the store before the stream's event says so, or without it.",
    )
    op.create_table(
        "upkeep_positions",
        sa.Column("work", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("work"),
        comment="Up to where in the log each work of `messenger maintain` is done.",
    )
    for whose, member in BY_MEMBER.items():
        op.create_index(
            f"event_log_uploads_of_{whose}",
            "event_log",
            [sa.text(f"(data ->> '{member}')")],
            postgresql_where=IS_UPLOAD,
        )
    op.create_index("event_log_uploads", "event_log", ["position"], postgresql_where=IS_UPLOAD)


def downgrade() -> None:
    op.drop_index("event_log_uploads", table_name="event_log", postgresql_where=IS_UPLOAD)
    for whose in BY_MEMBER:
        op.drop_index(
            f"event_log_uploads_of_{whose}", table_name="event_log", postgresql_where=IS_UPLOAD
        )
    op.drop_table("upkeep_positions")
    op.drop_table("unfinished_uploads")
    op.drop_index("idx_attachments_sender", table_name="attachments")
    for column in COLUMNS:
        op.drop_column("attachments", column)
