"""Time and new ids, for the shell to hand to decisions. UUIDv7, so ids sort by time."""

from datetime import UTC, datetime

import uuid_utils


def now() -> datetime:
    return datetime.now(UTC)


def new_id() -> str:
    return str(uuid_utils.uuid7())
