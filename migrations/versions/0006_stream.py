"""Who is connected to which process, the moves of members found in the log, and what is pending
found among what is not read."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from infra import concurrent_indexes

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

IS_MOVE = (
    "type IN ('direct_chat_opened', 'group_created', 'members_added', 'member_removed',"
    " 'member_left', 'group_deleted')"
)


OPEN = "idx_delivery_user_open"
IS_OPEN = "status <> 'read'"


def upgrade() -> None:
    _index_next_open(["user_id", "status", "chat_id", "position"])
    concurrent_indexes.build(
        "event_log_moves", "event_log", ["position"], postgresql_where=sa.text(IS_MOVE)
    )
    op.create_table(
        "gateways",
        sa.Column("id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("seen_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        comment="Processes that serve the stream, each under a lease (api.stream.presence).",
    )
    op.create_table(
        "gateway_users",
        sa.Column("user_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("gateway_id", sa.UUID(as_uuid=False), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "gateway_id"),
        comment="Who has an open connection to which of them.",
    )
    op.create_index("idx_gateway_users_gateway", "gateway_users", ["gateway_id"])
    concurrent_indexes.take_over(OPEN, "message_delivery")


def downgrade() -> None:
    _index_next_open(["user_id", "chat_id", "position"])
    concurrent_indexes.drop("event_log_moves", "event_log")
    op.drop_table("gateway_users")
    op.drop_table("gateways")
    concurrent_indexes.take_over(OPEN, "message_delivery")


def _index_next_open(columns: list[str]) -> None:
    concurrent_indexes.build(
        concurrent_indexes.next_of(OPEN),
        "message_delivery",
        columns,
        postgresql_where=sa.text(IS_OPEN),
    )
