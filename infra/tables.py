"""Every table, defined once: Alembic, replay and the queries use these definitions.

Three kinds: the log and what guards it, what stands beside the log (keys, sessions), and the
read models. A read model's tables carry `info["projection"]`, the one that owns them; they
are rebuilt from the log at will, so nothing else may write to them, and no foreign key
crosses projections. Columns and checks are data-model.md's; where an index differs from it,
the comment says why.
"""

from typing import Any, LiteralString

import sqlalchemy as sa
from sqlalchemy import Column, Index, Table, text
from sqlalchemy.dialects.postgresql import ARRAY, JSON, JSONB, TIMESTAMP, TSVECTOR, UUID

metadata = sa.MetaData()

TIME = TIMESTAMP(timezone=True)
ID = UUID(as_uuid=False)


def _required(name: str, kind: Any, *more: Any, **options: Any) -> Column[Any]:
    return Column(name, kind, *more, nullable=False, **options)


# ------------------------------------------------------------------------------- the log

IS_UPLOAD = text("type = 'attachment_uploaded'")

event_log = Table(
    "event_log",
    metadata,
    Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
    _required("event_id", ID),
    _required("stream", sa.Text),
    _required("stream_version", sa.Integer),
    _required("type", sa.Text),
    _required("schema_version", sa.Integer),
    _required("data", JSON),
    _required("metadata", JSON),
    _required("recorded_at", TIME),
    sa.UniqueConstraint("stream", "stream_version", name="event_log_stream_version"),
    sa.CheckConstraint("position > 0", name="event_log_position"),
    sa.CheckConstraint("stream_version > 0", name="event_log_version"),
    # A message's attachments, a sender's, and all in turn: for removing objects (infra.removals).
    Index(
        "event_log_uploads_of_message", text("(data ->> 'message_id')"), postgresql_where=IS_UPLOAD
    ),
    Index(
        "event_log_uploads_of_sender", text("(data ->> 'sender_id')"), postgresql_where=IS_UPLOAD
    ),
    Index("event_log_uploads", "position", postgresql_where=IS_UPLOAD),
    comment="Append-only, gapless from 1; written by append_v1 and, while it is empty, imports.",
)
# The newest message of a chat, for mark-read without a message (NewestMessage).
Index(
    "event_log_messages",
    text("(data ->> 'chat_id')"),
    event_log.c.position,
    postgresql_where=text("type = 'message_sent'"),
)

# Deletions of accounts, for the sweep that finishes them (infra.erasure).
Index(
    "event_log_deletions",
    event_log.c.position,
    postgresql_where=text("type = 'account_deleted'"),
)

# Who comes into a chat and goes, for those who resume the stream (api.stream.readings).
Index(
    "event_log_moves",
    event_log.c.position,
    postgresql_where=text(
        "type IN ('direct_chat_opened', 'group_created', 'members_added', 'member_removed',"
        " 'member_left', 'group_deleted')"
    ),
)

log_head = Table(
    "log_head",
    metadata,
    Column("singleton", sa.Boolean, primary_key=True, server_default=text("true")),
    _required("position", sa.BigInteger),
    _required("epoch", sa.Integer),
    sa.CheckConstraint("singleton", name="log_head_one_row"),
    comment="One row; its lock is the log's order. The epoch rises if the log ever goes back.",
)

unique_values = Table(
    "unique_values",
    metadata,
    Column("scope", sa.Text, primary_key=True),
    # Sorts by bytes: a user's memberships and contacts, `USER/…`, are one range.
    Column("value", sa.Text(collation="C"), primary_key=True),
    _required("holder", sa.Text),
    comment="Values that one stream holds: usernames (keyed hashes), slugs, members, contacts.",
)

command_keys = Table(
    "command_keys",
    metadata,
    Column("scope", sa.Text, primary_key=True),
    Column("key", sa.Text, primary_key=True),
    _required("body_hash", sa.LargeBinary),
    _required("position", sa.BigInteger),
    _required("answer", JSON),
    Column("secret", sa.Text),
    comment="Idempotency keys and what was answered, for ever; hashes are keyed.",
)

imports = Table(
    "imports",
    metadata,
    Column("singleton", sa.Boolean, primary_key=True, server_default=text("true")),
    _required("digest", sa.Text),
    _required("lines", sa.BigInteger),
    _required("begun_at", TIME),
    Column("finished_at", TIME),
    sa.CheckConstraint("singleton", name="imports_one_row"),
    comment="The export that the log came with, and how many of its lines are in.",
)

# -------------------------------------------------------------------------- beside the log

user_keys = Table(
    "user_keys",
    metadata,
    Column("user_id", ID, primary_key=True),
    Column("purpose", sa.Text, primary_key=True),
    _required("key", sa.LargeBinary),
    _required("created_at", TIME),
    sa.CheckConstraint("purpose IN ('profile', 'content')", name="user_keys_purpose"),
    comment="What seals the log's personal data, itself wrapped by the instance's secret.",
    # A destroyed key leaves the pages too, within a minute or so, not when a fifth is dead.
    postgresql_with={"autovacuum_vacuum_scale_factor": 0, "autovacuum_vacuum_threshold": 0},
)

erased_keys = Table(
    "erased_keys",
    metadata,
    Column("user_id", ID, primary_key=True),
    Column("purpose", sa.Text, primary_key=True),
    _required("id", sa.BigInteger, unique=True),
    _required("erased_at", TIME),
    Column("finished_at", TIME),
    sa.CheckConstraint("purpose IN ('profile', 'content')", name="erased_keys_purpose"),
    comment="Keys destroyed for ever; finished_at when all else of the deletion is done too.",
)

instance_secrets = Table(
    "instance_secrets",
    metadata,
    Column("name", sa.Text, primary_key=True),
    _required("value", sa.LargeBinary),
    comment="The secret of an instance for which MESSENGER_SECRET is not set.",
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", ID, primary_key=True),
    _required("user_id", ID),
    Column("device_name", sa.String(100)),
    _required("refresh_hash", sa.LargeBinary),
    _required("created_at", TIME),
    _required("last_used_at", TIME),
    _required("expires_at", TIME),
    Column("ended_at", TIME),
    Index("idx_sessions_user", "user_id", postgresql_where=text("ended_at IS NULL")),
    Index("idx_sessions_ended", "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
    # What a deleted account's ended sessions still say of it.
    Index(
        "idx_sessions_ended_named",
        "user_id",
        postgresql_where=text("ended_at IS NOT NULL AND device_name IS NOT NULL"),
    ),
)

login_failures = Table(
    "login_failures",
    metadata,
    Column("key", sa.LargeBinary, primary_key=True),
    _required("failures", sa.Integer),
    _required("window_ends_at", TIME),
    comment="Throttles logins per account and per address; keys are keyed hashes.",
)

unfinished_uploads = Table(
    "unfinished_uploads",
    metadata,
    Column("id", ID, primary_key=True),
    _required("stream", sa.Text),
    _required("keys", ARRAY(sa.Text)),
    _required("begun_at", TIME),
    Column("uploader", ID),
    comment="Objects that may be in the store before the stream's event says so, or without it.",
)

upkeep_positions = Table(
    "upkeep_positions",
    metadata,
    Column("work", sa.Text, primary_key=True),
    _required("position", sa.BigInteger),
    _required("updated_at", TIME),
    comment="Up to where in the log each work of `messenger maintain` is done.",
)

gateways = Table(
    "gateways",
    metadata,
    Column("id", ID, primary_key=True),
    _required("seen_at", TIME),
    comment="Processes that serve the stream, each under a lease (api.stream.presence).",
)

gateway_users = Table(
    "gateway_users",
    metadata,
    Column("user_id", ID, primary_key=True),
    Column("gateway_id", ID, primary_key=True),
    Index("idx_gateway_users_gateway", "gateway_id"),
    comment="Who has an open connection to which of them.",
)

projection_checkpoints = Table(
    "projection_checkpoints",
    metadata,
    Column("projection", sa.Text, primary_key=True),
    _required("position", sa.BigInteger),
    _required("updated_at", TIME),
    _required("version", sa.Integer, server_default=text("1")),
    comment="Moved in the transaction that writes the rows. Of which code's version those are.",
)

projection_failures = Table(
    "projection_failures",
    metadata,
    Column("projection", sa.Text, primary_key=True),
    _required("position", sa.BigInteger),
    _required("type", sa.Text),
    _required("reason", sa.Text),
    _required("failed_at", TIME),
    comment="The event at which a projection stands still; gone when it moves again.",
)

# An operator's decisions, no read model: kept by backups and replays.
skipped_events = Table(
    "skipped_events",
    metadata,
    Column("projection", sa.Text, primary_key=True),
    Column("position", sa.BigInteger, primary_key=True),
    _required("type", sa.Text),
    _required("reason", sa.Text),
    _required("why", sa.Text),
    _required("skipped_at", TIME),
    comment="Events that a projection does without, live and in every rebuild (infra.skips).",
)

# --------------------------------------------------------------------------- read models


def _read_model(projection: str, name: str, *columns: Any, **options: Any) -> Table:
    return Table(name, metadata, *columns, info={"projection": projection}, **options)


def _pair_id(first: str, second: str) -> Column[Any]:
    """An id that is a function of the pair that the row stands for, so rebuilds are equal."""
    expression = f"(md5(uuid_send({first}) || uuid_send({second})))::uuid"
    return _required("id", ID, sa.Computed(expression, persisted=True))


users = _read_model(
    "users",
    "users",
    Column("id", ID, primary_key=True),
    _required("username", sa.String(50)),
    _required("password_hash", sa.String(255)),
    Column("display_name", sa.String(100)),
    Column("avatar_url", sa.String(500)),
    _required("status", sa.String(20), server_default="offline"),
    Column("last_seen", TIME),
    _required("created_at", TIME),
    _required("updated_at", TIME),
    sa.UniqueConstraint("username", name="users_username"),
    sa.CheckConstraint("username ~ '^[a-zA-Z0-9_]{3,50}$'", name="username_format"),
    sa.CheckConstraint("status IN ('online', 'offline', 'away')", name="users_status"),
    Index("idx_users_status", "status"),
    Index("idx_users_created", text("created_at DESC")),
    # No index on last_seen: nothing looks users up by it, and it changes with each message.
    # Half-filled pages: last_seen changes in place, touching no index.
    postgresql_with={"fillfactor": 70},
)

Index(
    "idx_users_username_prefix",
    sa.func.lower(users.c.username).label("lower_username"),
    postgresql_ops={"lower_username": "text_pattern_ops"},
)
Index(
    "idx_users_display_name_prefix",
    sa.func.lower(users.c.display_name).label("lower_display_name"),
    postgresql_ops={"lower_display_name": "text_pattern_ops"},
)

contacts = _read_model(
    "contacts",
    "contacts",
    _pair_id("user_id", "contact_id"),
    Column("user_id", ID, primary_key=True),
    Column("contact_id", ID, primary_key=True),
    _required("status", sa.String(20)),
    _required("requested_by", ID),
    _required("created_at", TIME),
    Column("accepted_at", TIME),
    sa.CheckConstraint("status IN ('pending', 'accepted', 'blocked')", name="contacts_status"),
    sa.CheckConstraint("user_id <> contact_id", name="no_self_contact"),
    Index("idx_contacts_user_status", "user_id", "status"),
    Index("idx_contacts_contact_status", "contact_id", "status"),
)

chats = _read_model(
    "chats",
    "chats",
    Column("id", ID, primary_key=True),
    _required("type", sa.String(20)),
    Column("name", sa.String(100)),
    Column("slug", sa.String(100)),
    Column("avatar_url", sa.String(500)),
    Column("owner_id", ID),
    _required("created_at", TIME),
    _required("updated_at", TIME),
    Column("last_message_at", TIME),
    _required("is_deleted", sa.Boolean, server_default=text("false")),
    sa.CheckConstraint("type IN ('direct', 'group')", name="chats_type"),
    sa.CheckConstraint("type = 'direct' OR name IS NOT NULL", name="group_must_have_name"),
    # Unique among the living: a deleted group's slug is free again.
    Index(
        "idx_chats_slug", text("lower(slug)"), unique=True, postgresql_where=text("NOT is_deleted")
    ),
    Index("idx_chats_owner", "owner_id", postgresql_where=text("NOT is_deleted")),
    # No index on last_message_at: a user's chats are found by participant, then sorted, and
    # without one a new message changes the row in place.
    postgresql_with={"fillfactor": 70},
)

chat_participants = _read_model(
    "chats",
    "chat_participants",
    _pair_id("chat_id", "user_id"),
    Column("chat_id", ID, primary_key=True),
    Column("user_id", ID, primary_key=True),
    _required("role", sa.String(20), server_default="member"),
    _required("joined_at", TIME),
    Column("left_at", TIME),
    sa.CheckConstraint("role IN ('owner', 'admin', 'member')", name="chat_participants_role"),
    Index(
        "idx_participants_chat_active",
        "chat_id",
        "joined_at",
        postgresql_where=text("left_at IS NULL"),
    ),
    Index("idx_participants_user_active", "user_id", postgresql_where=text("left_at IS NULL")),
)

messages = _read_model(
    "messages",
    "messages",
    Column("id", ID, primary_key=True),
    _required("chat_id", ID),
    Column("sender_id", ID),
    _required("content", sa.Text),
    _required("content_type", sa.String(20), server_default="text"),
    _required("metadata", JSONB, server_default=text("'{}'")),
    Column("reply_to_id", ID),
    _required("is_edited", sa.Boolean, server_default=text("false")),
    Column("edited_at", TIME),
    _required("is_deleted", sa.Boolean, server_default=text("false")),
    Column("deleted_at", TIME),
    # In the key because it is the partition key; `message_places` keeps ids unique.
    Column("created_at", TIME, primary_key=True),
    _required("seq", sa.Integer),
    _required("position", sa.BigInteger),
    sa.CheckConstraint("char_length(content) <= 10000", name="content_length"),
    sa.CheckConstraint("content_type IN ('text', 'image', 'system')", name="messages_content_type"),
    sa.CheckConstraint("NOT is_edited OR edited_at IS NOT NULL", name="edit_timestamp"),
    sa.CheckConstraint("NOT is_deleted OR deleted_at IS NOT NULL", name="delete_timestamp"),
    # A chat in log order, for keyset paging; `created_at` can repeat, `seq` can't.
    Index("idx_messages_chat_seq", "chat_id", text("seq DESC")),
    Index(
        "idx_messages_sender",
        "sender_id",
        text("created_at DESC"),
        postgresql_where=text("sender_id IS NOT NULL"),
    ),
    Index("idx_messages_reply", "reply_to_id", postgresql_where=text("reply_to_id IS NOT NULL")),
    postgresql_partition_by="RANGE (created_at)",
)

message_places = _read_model(
    "messages",
    "message_places",
    Column("id", ID, primary_key=True),
    _required("chat_id", ID),
    _required("created_at", TIME),
    _required("seq", sa.Integer),
    # Which partitions a page is in, by the index alone.
    Index("idx_message_places_page", "chat_id", "seq", postgresql_include=["created_at"]),
    comment="Finds a message's partition by its id, and those of a page.",
)

chat_sequences = _read_model(
    "messages",
    "chat_sequences",
    Column("chat_id", ID, primary_key=True),
    _required("last_seq", sa.Integer),
    _required("last_message_id", ID),
    postgresql_with={"fillfactor": 50},
    comment="How many messages each chat has, and its last.",
)

attachments = _read_model(
    "messages",
    "attachments",
    Column("id", ID, primary_key=True),
    _required("message_id", ID),
    _required("file_name", sa.String(255)),
    _required("file_type", sa.String(50)),
    _required("file_size", sa.Integer),
    _required("storage_key", sa.String(500)),
    _required("thumbnail_key", sa.String(500)),
    _required("url", sa.String(500)),
    _required("thumbnail_url", sa.String(500)),
    Column("width", sa.Integer),
    Column("height", sa.Integer),
    _required("created_at", TIME),
    _required("chat_id", ID),
    _required("sender_id", ID),
    _required("medium_key", sa.String(500)),
    # Its place in the message; null while that is not sent.
    Column("ordinal", sa.SmallInteger),
    sa.CheckConstraint("file_size > 0 AND file_size <= 10485760", name="valid_file_size"),
    sa.CheckConstraint(
        "file_type IN ('image/jpeg', 'image/png', 'image/gif', 'image/webp')",
        name="valid_file_type",
    ),
    Index("idx_attachments_message", "message_id"),
    Index("idx_attachments_created", text("created_at DESC")),
    Index("idx_attachments_sender", "sender_id"),
)

message_reactions = _read_model(
    "reactions",
    "message_reactions",
    _required(
        "id",
        ID,
        sa.Computed(
            "(md5((message_id)::text || (user_id)::text || (emoji)::text))::uuid",
            persisted=True,
        ),
    ),
    # The key serves what the data model has an index by message for.
    Column("message_id", ID, primary_key=True),
    Column("user_id", ID, primary_key=True),
    # 32, not 10: contract.md allows shortcodes of up to 32 characters.
    Column("emoji", sa.String(32), primary_key=True),
    _required("created_at", TIME),
    Index("idx_reactions_user", "user_id", text("created_at DESC")),
)

message_delivery = _read_model(
    "delivery",
    "message_delivery",
    _pair_id("message_id", "user_id"),
    Column("message_id", ID, primary_key=True),
    Column("user_id", ID, primary_key=True),
    _required("status", sa.String(20), server_default="pending"),
    Column("delivered_at", TIME),
    Column("read_at", TIME),
    _required("created_at", TIME),
    _required("chat_id", ID),
    _required("position", sa.BigInteger),
    sa.CheckConstraint(
        "status IN ('pending', 'delivered', 'read')", name="message_delivery_status"
    ),
    sa.CheckConstraint(
        "(status = 'pending' OR delivered_at IS NOT NULL)"
        " AND (status IN ('pending', 'delivered') OR read_at IS NOT NULL)",
        name="status_timestamps",
    ),
    # What a mark still changes, in the order of marks: serves the data model's two partial
    # indexes by user at a third of the cost of writing. The status comes before the chat: what
    # is pending is found at a cost of its own, however much was delivered and never read.
    Index(
        "idx_delivery_user_open",
        "user_id",
        "status",
        "chat_id",
        "position",
        postgresql_where=text("status <> 'read'"),
        info={"needed_to_write": True},
    ),
)

delivery_members = _read_model(
    "delivery",
    "delivery_members",
    Column("chat_id", ID, primary_key=True),
    Column("user_id", ID, primary_key=True),
    Column("joined_position", sa.BigInteger, primary_key=True),
    Column("left_position", sa.BigInteger),
    comment="Who is in which chat, as the delivery projection knows it from the log.",
)

unread_messages = _read_model(
    "unread",
    "unread_messages",
    _pair_id("user_id", "message_id"),
    Column("user_id", ID, primary_key=True),
    Column("chat_id", ID, primary_key=True),
    _required("message_id", ID),
    _required("created_at", TIME),
    # A position names a message; in the key, it puts a mark's rows side by side.
    Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
)

unread_counts = _read_model(
    "unread",
    "unread_counts",
    Column("user_id", ID, primary_key=True),
    Column("chat_id", ID, primary_key=True),
    _required("count", sa.Integer),
    sa.CheckConstraint("count > 0", name="unread_counts_positive"),
    postgresql_with={"fillfactor": 50},
    comment="Always the number of rows in unread_messages; no row means none.",
)

unread_members = _read_model(
    "unread",
    "unread_members",
    Column("chat_id", ID, primary_key=True),
    Column("user_id", ID, primary_key=True),
    _required("joined_position", sa.BigInteger),
    comment="Who is in which chat since when, as the unread projection knows it from the log.",
)


message_search = _read_model(
    "search",
    "message_search",
    Column("message_id", ID, primary_key=True),
    _required("chat_id", ID),
    _required("position", sa.BigInteger),
    _required("words", TSVECTOR),
    # New rows wait in a list that is merged in at so many kB: writing is 4 times as fast as
    # without one, and reading the list costs a search some 0.3 ms at most.
    Index(
        "idx_message_search_words",
        "words",
        postgresql_using="gin",
        postgresql_with={"gin_pending_list_limit": 512},
    ),
    # For people whose many chats are a small part of all.
    Index("idx_message_search_chat", "chat_id", "position"),
)


# The table of a projection that a swap locks first, and so the one that readers hold.
TAKEN_FIRST: dict[str, LiteralString] = {
    "users": "users",
    "contacts": "contacts",
    "chats": "chat_participants",
    "messages": "chat_sequences",
    "reactions": "message_reactions",
    "delivery": "delivery_members",
    "unread": "unread_counts",
    "search": "message_search",
}


def tables_of(projection: str) -> list[Table]:
    """The tables that a projection owns, in the order of their definition."""
    return [
        table for table in metadata.tables.values() if table.info.get("projection") == projection
    ]
