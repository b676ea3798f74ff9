"""Avatars that were uploaded: an object in the store, known by the plain address in `avatar_url`.

The key is found in the address whatever store it names, so that a store may move; and only under
its owner's own prefix, so that nobody is shown another's objects by naming their address. Signed
ones count too: clients send back what they were shown.
"""

import re

from domain.attachment import EXTENSIONS, FileType
from domain.ids import ChatId, UserId

PREFIX = "avatars"

Owner = UserId | ChatId

_NAME = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}_thumbnail[.](?:jpg|png|gif|webp)"


def avatar_prefix(owner: Owner) -> str:
    return f"{PREFIX}/{owner}/"


def new_avatar_key(owner: Owner, avatar_id: str, file_type: FileType) -> str:
    return f"{avatar_prefix(owner)}{avatar_id}_thumbnail.{EXTENSIONS[file_type]}"


def avatar_key(avatar_url: str | None, owner: Owner) -> str | None:
    """The object's key, if it is one of the owner's; an address elsewhere has none."""
    if avatar_url is None or PREFIX not in avatar_url:
        return None
    found = re.search(f"/({re.escape(avatar_prefix(owner))}{_NAME})(?:[?][^\\s]*)?\\Z", avatar_url)
    return found[1] if found else None
