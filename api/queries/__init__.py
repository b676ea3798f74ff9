"""Queries: one module a resource, each with its answers' shapes, its SQL and its table.

A query is a function of a caller, the request and one snapshot; `api.queries.query` does the
rest. Every statement is authorised by membership in `chat_participants`, so what the caller
may not know of looks as if there were none.
"""

from api.operations import Operation
from api.queries import chats, delivery, messages, unread, users

OPERATIONS: tuple[Operation, ...] = (
    *users.OPERATIONS,
    *chats.OPERATIONS,
    *messages.OPERATIONS,
    *delivery.OPERATIONS,
    *unread.OPERATIONS,
)
