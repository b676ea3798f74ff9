"""What older versions of events mean today: one step a version, from its fields to the next's.

An event that was written is never edited and never written again; a new version of its type gets
a line in `UPCASTERS`, and the golden file of the old one stays.
"""

from collections.abc import Callable
from typing import Any

Fields = dict[str, Any]


def _with_attachments(fields: Fields) -> Fields:
    """Before there were any, a message had none."""
    return {**fields, "attachment_ids": []}


# By type and the version that a step begins at.
UPCASTERS: dict[tuple[str, int], Callable[[Fields], Fields]] = {
    ("message_sent", 1): _with_attachments,
}
