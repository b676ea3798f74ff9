"""The log, what stands beside it, and the read models with their first shape."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from infra.migrate import function_sql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

APPEND_ONLY = (
    ("event_log_no_change", "UPDATE OR DELETE"),
    ("event_log_no_truncate", "TRUNCATE"),
)
APPEND_V1_ARGUMENTS = (
    "(text[], int[], int[], int[], int[], int[], json, text[], text[], text[], text[],"
    " int[], text[], text[], text[], boolean[])"
)


def upgrade() -> None:
    op.create_table(
        "attachments",
        sa.Column("id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("message_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("file_name", sa.String(length=255), nullable=False),
        sa.Column("file_type", sa.String(length=50), nullable=False),
        sa.Column("file_size", sa.Integer(), nullable=False),
        sa.Column("storage_key", sa.String(length=500), nullable=False),
        sa.Column("thumbnail_key", sa.String(length=500), nullable=False),
        sa.Column("url", sa.String(length=500), nullable=False),
        sa.Column("thumbnail_url", sa.String(length=500), nullable=False),
        sa.Column("width", sa.Integer(), nullable=True),
        sa.Column("height", sa.Integer(), nullable=True),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.CheckConstraint(
            "file_type IN ('image/jpeg', 'image/png', 'image/gif', 'image/webp')",
            name="valid_file_type",
        ),
        sa.CheckConstraint("file_size > 0 AND file_size <= 10485760", name="valid_file_size"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "idx_attachments_created",
        "attachments",
        [sa.literal_column("created_at DESC")],
        unique=False,
    )
    op.create_index("idx_attachments_message", "attachments", ["message_id"], unique=False)
    op.create_table(
        "chat_participants",
        sa.Column(
            "id",
            sa.UUID(as_uuid=False),
            sa.Computed("(md5(uuid_send(chat_id) || uuid_send(user_id)))::uuid", persisted=True),
            nullable=False,
        ),
        sa.Column("chat_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("user_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("role", sa.String(length=20), server_default="member", nullable=False),
        sa.Column("joined_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("left_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint("role IN ('owner', 'admin', 'member')", name="chat_participants_role"),
        sa.PrimaryKeyConstraint("chat_id", "user_id"),
    )
    op.create_index(
        "idx_participants_chat_active",
        "chat_participants",
        ["chat_id", "joined_at"],
        unique=False,
        postgresql_where=sa.text("left_at IS NULL"),
    )
    op.create_index(
        "idx_participants_user_active",
        "chat_participants",
        ["user_id"],
        unique=False,
        postgresql_where=sa.text("left_at IS NULL"),
    )
    op.create_table(
        "chat_sequences",
        sa.Column("chat_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("last_seq", sa.Integer(), nullable=False),
        sa.Column("last_message_id", sa.UUID(as_uuid=False), nullable=False),
        sa.PrimaryKeyConstraint("chat_id"),
        comment="How many messages each chat has, and its last.",
        postgresql_with={"fillfactor": 50},
    )
    op.create_table(
        "chats",
        sa.Column("id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("type", sa.String(length=20), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=True),
        sa.Column("slug", sa.String(length=100), nullable=True),
        sa.Column("avatar_url", sa.String(length=500), nullable=True),
        sa.Column("owner_id", sa.UUID(as_uuid=False), nullable=True),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("updated_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("last_message_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("is_deleted", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.CheckConstraint("type = 'direct' OR name IS NOT NULL", name="group_must_have_name"),
        sa.CheckConstraint("type IN ('direct', 'group')", name="chats_type"),
        sa.PrimaryKeyConstraint("id"),
        postgresql_with={"fillfactor": 70},
    )
    op.create_index(
        "idx_chats_owner",
        "chats",
        ["owner_id"],
        unique=False,
        postgresql_where=sa.text("NOT is_deleted"),
    )
    op.create_index(
        "idx_chats_slug",
        "chats",
        [sa.literal_column("lower(slug)")],
        unique=True,
        postgresql_where=sa.text("NOT is_deleted"),
    )
    op.create_table(
        "command_keys",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("body_hash", sa.LargeBinary(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("answer", postgresql.JSON(astext_type=sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("scope", "key"),
        comment="Idempotency keys and what was answered, for ever; hashes are keyed.",
    )
    op.create_table(
        "contacts",
        sa.Column(
            "id",
            sa.UUID(as_uuid=False),
            sa.Computed("(md5(uuid_send(user_id) || uuid_send(contact_id)))::uuid", persisted=True),
            nullable=False,
        ),
        sa.Column("user_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("contact_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("requested_by", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("accepted_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint("status IN ('pending', 'accepted', 'blocked')", name="contacts_status"),
        sa.CheckConstraint("user_id <> contact_id", name="no_self_contact"),
        sa.PrimaryKeyConstraint("user_id", "contact_id"),
    )
    op.create_index(
        "idx_contacts_contact_status", "contacts", ["contact_id", "status"], unique=False
    )
    op.create_index("idx_contacts_user_status", "contacts", ["user_id", "status"], unique=False)
    op.create_table(
        "delivery_members",
        sa.Column("chat_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("user_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("joined_position", sa.BigInteger(), nullable=False),
        sa.Column("left_position", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("chat_id", "user_id", "joined_position"),
        comment="Who is in which chat, as the delivery projection knows it from the log.",
    )
    op.create_table(
        "event_log",
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("event_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("stream_version", sa.Integer(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("schema_version", sa.Integer(), nullable=False),
        sa.Column("data", postgresql.JSON(astext_type=sa.Text()), nullable=False),
        sa.Column("metadata", postgresql.JSON(astext_type=sa.Text()), nullable=False),
        sa.Column("recorded_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.CheckConstraint("position > 0", name="event_log_position"),
        sa.CheckConstraint("stream_version > 0", name="event_log_version"),
        sa.PrimaryKeyConstraint("position"),
        sa.UniqueConstraint("stream", "stream_version", name="event_log_stream_version"),
        comment="Append-only, gapless from 1; written by append_v1 alone.",
    )
    op.create_index(
        "event_log_messages",
        "event_log",
        [sa.literal_column("(data ->> 'chat_id')"), "position"],
        unique=False,
        postgresql_where=sa.text("type = 'message_sent'"),
    )
    op.create_table(
        "instance_secrets",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
        comment="The secret of an instance for which MESSENGER_SECRET is not set.",
    )
    op.create_table(
        "log_head",
        sa.Column("singleton", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.CheckConstraint("singleton", name="log_head_one_row"),
        sa.PrimaryKeyConstraint("singleton"),
        comment="One row; its lock is the log's order. The epoch rises if the log ever goes back.",
    )
    op.create_table(
        "login_failures",
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("window_ends_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key"),
        comment="Throttles logins per account and per address; keys are keyed hashes.",
    )
    op.create_table(
        "message_delivery",
        sa.Column(
            "id",
            sa.UUID(as_uuid=False),
            sa.Computed("(md5(uuid_send(message_id) || uuid_send(user_id)))::uuid", persisted=True),
            nullable=False,
        ),
        sa.Column("message_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("user_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("status", sa.String(length=20), server_default="pending", nullable=False),
        sa.Column("delivered_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("read_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("chat_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "(status = 'pending' OR delivered_at IS NOT NULL) AND (status IN ('pending', 'delivered') OR read_at IS NOT NULL)",
            name="status_timestamps",
        ),
        sa.CheckConstraint(
            "status IN ('pending', 'delivered', 'read')", name="message_delivery_status"
        ),
        sa.PrimaryKeyConstraint("message_id", "user_id"),
    )
    op.create_index(
        "idx_delivery_user_open",
        "message_delivery",
        ["user_id", "chat_id", "position"],
        unique=False,
        postgresql_where=sa.text("status <> 'read'"),
    )
    op.create_table(
        "message_places",
        sa.Column("id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("chat_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        comment="Finds a message's partition by its id.",
    )
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
    op.create_index(
        "idx_reactions_message", "message_reactions", ["message_id", "emoji"], unique=False
    )
    op.create_index(
        "idx_reactions_user",
        "message_reactions",
        ["user_id", sa.literal_column("created_at DESC")],
        unique=False,
    )
    op.create_table(
        "messages",
        sa.Column("id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("chat_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("sender_id", sa.UUID(as_uuid=False), nullable=True),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("content_type", sa.String(length=20), server_default="text", nullable=False),
        sa.Column(
            "metadata",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column("reply_to_id", sa.UUID(as_uuid=False), nullable=True),
        sa.Column("is_edited", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("edited_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("is_deleted", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("deleted_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "content_type IN ('text', 'image', 'system')", name="messages_content_type"
        ),
        sa.CheckConstraint("NOT is_deleted OR deleted_at IS NOT NULL", name="delete_timestamp"),
        sa.CheckConstraint("NOT is_edited OR edited_at IS NOT NULL", name="edit_timestamp"),
        sa.CheckConstraint("char_length(content) <= 10000", name="content_length"),
        sa.PrimaryKeyConstraint("id", "created_at"),
        postgresql_partition_by="RANGE (created_at)",
    )
    op.create_index(
        "idx_messages_chat_seq",
        "messages",
        ["chat_id", sa.literal_column("seq DESC")],
        unique=False,
    )
    op.create_index(
        "idx_messages_reply",
        "messages",
        ["reply_to_id"],
        unique=False,
        postgresql_where=sa.text("reply_to_id IS NOT NULL"),
    )
    op.create_index(
        "idx_messages_sender",
        "messages",
        ["sender_id", sa.literal_column("created_at DESC")],
        unique=False,
        postgresql_where=sa.text("sender_id IS NOT NULL"),
    )
    op.create_table(
        "projection_checkpoints",
        sa.Column("projection", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("projection"),
        comment="Moved in the transaction that writes the rows.",
    )
    op.create_table(
        "projection_failures",
        sa.Column("projection", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("failed_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("projection"),
        comment="The event at which a projection stands still; gone when it moves again.",
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("user_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("device_name", sa.String(length=100), nullable=True),
        sa.Column("refresh_hash", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("last_used_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("expires_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("ended_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "idx_sessions_ended",
        "sessions",
        ["ended_at"],
        unique=False,
        postgresql_where=sa.text("ended_at IS NOT NULL"),
    )
    op.create_index(
        "idx_sessions_user",
        "sessions",
        ["user_id"],
        unique=False,
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_table(
        "unique_values",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "value"),
        comment="Values that one stream holds: usernames (as keyed hashes) and slugs.",
    )
    op.create_table(
        "unread_counts",
        sa.Column("user_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("chat_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.CheckConstraint("count > 0", name="unread_counts_positive"),
        sa.PrimaryKeyConstraint("user_id", "chat_id"),
        comment="Always the number of rows in unread_messages; no row means none.",
        postgresql_with={"fillfactor": 50},
    )
    op.create_table(
        "unread_members",
        sa.Column("chat_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("user_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("joined_position", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("chat_id", "user_id"),
        comment="Who is in which chat since when, as the unread projection knows it from the log.",
    )
    op.create_table(
        "unread_messages",
        sa.Column(
            "id",
            sa.UUID(as_uuid=False),
            sa.Computed("(md5(uuid_send(user_id) || uuid_send(message_id)))::uuid", persisted=True),
            nullable=False,
        ),
        sa.Column("user_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("chat_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("message_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("user_id", "chat_id", "position"),
    )
    op.create_table(
        "user_keys",
        sa.Column("user_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.CheckConstraint("purpose IN ('profile', 'content')", name="user_keys_purpose"),
        sa.PrimaryKeyConstraint("user_id", "purpose"),
        comment="What seals the log's personal data, itself wrapped by the instance's secret.",
    )
    op.create_table(
        "users",
        sa.Column("id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("username", sa.String(length=50), nullable=False),
        sa.Column("password_hash", sa.String(length=255), nullable=False),
        sa.Column("display_name", sa.String(length=100), nullable=True),
        sa.Column("avatar_url", sa.String(length=500), nullable=True),
        sa.Column("status", sa.String(length=20), server_default="offline", nullable=False),
        sa.Column("last_seen", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("updated_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.CheckConstraint("status IN ('online', 'offline', 'away')", name="users_status"),
        sa.CheckConstraint("username ~ '^[a-zA-Z0-9_]{3,50}$'", name="username_format"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("username", name="users_username"),
        postgresql_with={"fillfactor": 70},
    )
    op.create_index(
        "idx_users_created", "users", [sa.literal_column("created_at DESC")], unique=False
    )
    op.create_index(
        "idx_users_display_name_prefix",
        "users",
        [sa.literal_column("lower(display_name) text_pattern_ops")],
        unique=False,
    )
    op.create_index("idx_users_status", "users", ["status"], unique=False)
    op.create_index(
        "idx_users_username_prefix",
        "users",
        [sa.literal_column("lower(username) text_pattern_ops")],
        unique=False,
    )
    op.execute("INSERT INTO log_head (position, epoch) VALUES (0, 1)")
    op.execute(function_sql("append_v1"))
    op.execute(function_sql("refuse_change_v1"))
    for name, events in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER {name} BEFORE {events} ON event_log EXECUTE FUNCTION refuse_change_v1()"
        )
        # Also for sessions that replay replication changes.
        op.execute(f"ALTER TABLE event_log ENABLE ALWAYS TRIGGER {name}")


def downgrade() -> None:
    op.execute(f"DROP FUNCTION append_v1{APPEND_V1_ARGUMENTS}")
    op.drop_index("idx_users_username_prefix", table_name="users")
    op.drop_index("idx_users_status", table_name="users")
    op.drop_index("idx_users_display_name_prefix", table_name="users")
    op.drop_index("idx_users_created", table_name="users")
    op.drop_table("users")
    op.drop_table("user_keys")
    op.drop_table("unread_messages")
    op.drop_table("unread_members")
    op.drop_table("unread_counts")
    op.drop_table("unique_values")
    op.drop_index(
        "idx_sessions_user", table_name="sessions", postgresql_where=sa.text("ended_at IS NULL")
    )
    op.drop_index(
        "idx_sessions_ended",
        table_name="sessions",
        postgresql_where=sa.text("ended_at IS NOT NULL"),
    )
    op.drop_table("sessions")
    op.drop_table("projection_failures")
    op.drop_table("projection_checkpoints")
    op.drop_index(
        "idx_messages_sender",
        table_name="messages",
        postgresql_where=sa.text("sender_id IS NOT NULL"),
    )
    op.drop_index(
        "idx_messages_reply",
        table_name="messages",
        postgresql_where=sa.text("reply_to_id IS NOT NULL"),
    )
    op.drop_index("idx_messages_chat_seq", table_name="messages")
    op.drop_table("messages")
    op.drop_index("idx_reactions_user", table_name="message_reactions")
    op.drop_index("idx_reactions_message", table_name="message_reactions")
    op.drop_table("message_reactions")
    op.drop_table("message_places")
    op.drop_index(
        "idx_delivery_user_open",
        table_name="message_delivery",
        postgresql_where=sa.text("status <> 'read'"),
    )
    op.drop_table("message_delivery")
    op.drop_table("login_failures")
    op.drop_table("log_head")
    op.drop_table("instance_secrets")
    op.drop_index(
        "event_log_messages",
        table_name="event_log",
        postgresql_where=sa.text("type = 'message_sent'"),
    )
    op.drop_table("event_log")
    op.drop_table("delivery_members")
    op.drop_index("idx_contacts_user_status", table_name="contacts")
    op.drop_index("idx_contacts_contact_status", table_name="contacts")
    op.drop_table("contacts")
    op.drop_table("command_keys")
    op.drop_index("idx_chats_slug", table_name="chats", postgresql_where=sa.text("NOT is_deleted"))
    op.drop_index("idx_chats_owner", table_name="chats", postgresql_where=sa.text("NOT is_deleted"))
    op.drop_table("chats")
    op.drop_table("chat_sequences")
    op.drop_index(
        "idx_participants_user_active",
        table_name="chat_participants",
        postgresql_where=sa.text("left_at IS NULL"),
    )
    op.drop_index(
        "idx_participants_chat_active",
        table_name="chat_participants",
        postgresql_where=sa.text("left_at IS NULL"),
    )
    op.drop_table("chat_participants")
    op.drop_index("idx_attachments_message", table_name="attachments")
    op.drop_index("idx_attachments_created", table_name="attachments")
    op.drop_table("attachments")
    op.execute("DROP FUNCTION refuse_change_v1()")
