"""Slugs: URL-safe names of groups, unique whatever their case, freed when given up.

A slug is 1 to 100 letters, digits, `-` and `_`, beginning with a letter or digit. Slugs
that begin with `direct-` are kept for direct chats (data-model.md, entity 3).
"""

from commands.command import Claim
from domain.ids import ChatId, chat_stream
from domain.refusals import Invalid

RESERVED_PREFIX = "direct-"


def check_slug(slug: str) -> None:
    if slug.lower().startswith(RESERVED_PREFIX):
        raise Invalid(f"a slug may not begin with {RESERVED_PREFIX}", field="slug")


def slug_claim(slug: str, chat_id: ChatId) -> Claim:
    return Claim("slug", slug.lower(), chat_stream(chat_id))
