"""The read models' tables are the data model's: columns, types, what may be null, checks.

What is built otherwise is in the README, with the reasons; more columns are welcome.
"""

import re
from typing import NamedTuple

import pytest

from tests.acceptance.client import Messenger

# `?`: may be null.
TABLES = {
    "users": """
        id uuid, username varchar(50), password_hash varchar(255), display_name varchar(100)?,
        avatar_url varchar(500)?, status varchar(20), last_seen timestamptz?,
        created_at timestamptz, updated_at timestamptz
    """,
    "contacts": """
        id uuid, user_id uuid, contact_id uuid, status varchar(20), requested_by uuid,
        created_at timestamptz, accepted_at timestamptz?
    """,
    "chats": """
        id uuid, type varchar(20), name varchar(100)?, slug varchar(100)?,
        avatar_url varchar(500)?, owner_id uuid?, created_at timestamptz, updated_at timestamptz,
        last_message_at timestamptz?, is_deleted boolean
    """,
    "chat_participants": """
        id uuid, chat_id uuid, user_id uuid, role varchar(20), joined_at timestamptz,
        left_at timestamptz?
    """,
    "messages": """
        id uuid, chat_id uuid, sender_id uuid?, content text, content_type varchar(20),
        metadata jsonb, reply_to_id uuid?, is_edited boolean, edited_at timestamptz?,
        is_deleted boolean, deleted_at timestamptz?, created_at timestamptz
    """,
    "attachments": """
        id uuid, message_id uuid, file_name varchar(255), file_type varchar(50),
        file_size integer, storage_key varchar(500), thumbnail_key varchar(500),
        url varchar(500), thumbnail_url varchar(500), width integer?, height integer?,
        created_at timestamptz
    """,
    "message_reactions": """
        id uuid, message_id uuid, user_id uuid, emoji varchar(32), created_at timestamptz
    """,
    "message_delivery": """
        id uuid, message_id uuid, user_id uuid, status varchar(20), delivered_at timestamptz?,
        read_at timestamptz?, created_at timestamptz
    """,
    "unread_messages": """
        id uuid, user_id uuid, chat_id uuid, message_id uuid, created_at timestamptz
    """,
}

# What each table's checks speak of, value by value.
CHECKS = {
    "users": ["^[a-zA-Z0-9_]{3,50}$", "online", "offline", "away"],
    "contacts": ["pending", "accepted", "blocked", "user_id <> contact_id"],
    "chats": ["direct", "group", "name IS NOT NULL"],
    "chat_participants": ["owner", "admin", "member"],
    "messages": ["text", "image", "system", "10000", "edited_at IS NOT", "deleted_at IS NOT"],
    "attachments": ["10485760", "image/jpeg", "image/png", "image/gif", "image/webp"],
    "message_delivery": ["pending", "delivered", "read", "delivered_at IS NOT", "read_at IS NOT"],
}

UNIQUE = {
    "users": ["(username)"],
    "contacts": ["(user_id, contact_id)"],
    "chats": ["(lower((slug)::text))"],
    "chat_participants": ["(chat_id, user_id)"],
    "message_reactions": ["(message_id, user_id, emoji)"],
    "message_delivery": ["(message_id, user_id)"],
}

COLUMNS = """
    SELECT
        attname AS name,
        format_type(atttypid, atttypmod) AS type,
        attnotnull AS is_required
    FROM pg_attribute
    WHERE attrelid = %(table)s::regclass AND attnum > 0 AND NOT attisdropped
"""

CHECK_CLAUSES = """
    SELECT pg_get_constraintdef(oid) AS clause
    FROM pg_constraint
    WHERE conrelid = %(table)s::regclass AND contype = 'c'
"""

UNIQUE_INDEXES = """
    SELECT pg_get_indexdef(indexrelid) AS definition
    FROM pg_index
    WHERE indrelid = %(table)s::regclass AND indisunique
"""

FOREIGN_KEYS = """
    SELECT
        conrelid::regclass::text AS from_table,
        confrelid::regclass::text AS to_table
    FROM pg_constraint
    WHERE contype = 'f'
"""

SHORT = {"character varying": "varchar", "timestamp with time zone": "timestamptz"}


class Column(NamedTuple):
    name: str
    type: str
    may_be_null: bool


def expected(table: str) -> set[Column]:
    found = re.findall(r"(\w+) (\w+(?:\(\d+\))?)(\??)", TABLES[table])
    return {Column(name, kind, bool(mark)) for name, kind, mark in found}


def short(kind: str) -> str:
    for long, word in SHORT.items():
        kind = kind.replace(long, word)
    return kind


@pytest.mark.parametrize("table", TABLES)
def test_a_table_has_the_data_models_columns(messenger: Messenger, table: str) -> None:
    rows = messenger.rows(COLUMNS, table=table)
    found = {Column(row["name"], short(row["type"]), not row["is_required"]) for row in rows}
    assert expected(table) - found == set()


@pytest.mark.parametrize("table", CHECKS)
def test_a_table_checks_what_the_data_model_does(messenger: Messenger, table: str) -> None:
    clauses = " ".join(row["clause"] for row in messenger.rows(CHECK_CLAUSES, table=table))
    assert [part for part in CHECKS[table] if part not in clauses] == []


@pytest.mark.parametrize("table", UNIQUE)
def test_what_is_unique_in_the_data_model_is_so_here(messenger: Messenger, table: str) -> None:
    indexes = [row["definition"] for row in messenger.rows(UNIQUE_INDEXES, table=table)]
    missing = [one for one in UNIQUE[table] if not any(one in index for index in indexes)]
    assert missing == []


def test_no_foreign_key_crosses_projections(messenger: Messenger) -> None:
    keys = messenger.rows(FOREIGN_KEYS)
    assert [key for key in keys if {key["from_table"], key["to_table"]} & set(TABLES)] == []
