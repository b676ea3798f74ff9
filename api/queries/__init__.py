"""Queries: one module a resource, each with its answers' shapes, its SQL and its table.

A query is a function of a caller, the request and one snapshot; `api.queries.query` does the
rest. Every statement is authorised by membership in `chat_participants`, so what the caller
may not know of looks as if there were none.
"""

from api.operations import Operation
from api.queries import (
    attachments,
    chats,
    contacts,
    delivery,
    messages,
    reactions,
    search,
    state,
    unread,
    users,
)

OPERATIONS: tuple[Operation, ...] = (
    *users.OPERATIONS,
    *contacts.OPERATIONS,
    *chats.OPERATIONS,
    *messages.OPERATIONS,
    *attachments.OPERATIONS,
    *delivery.OPERATIONS,
    *reactions.OPERATIONS,
    *unread.OPERATIONS,
    *search.OPERATIONS,
    *state.OPERATIONS,
)
