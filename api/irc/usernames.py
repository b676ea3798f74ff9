"""Nick to username, never two nicks to one; the same in every run, whatever was imported.

A nick that is a valid username stays as it is, unless it begins with `irc_`. All others are
`irc_` and the nick, where each byte but letters and digits is `_` and two hex digits:
`|QuaD-|` is `irc__7cQuaD_2d_7c`. That can be read back, so no two nicks share it. A nick
too long for that is `irc_`, its first letters and digits, `_h` and a hash of 128 bits; `h`
is no hex digit, so the two forms never meet.

Somebody else may hold a username already: then the next form that the nick has is tried. The
log gives a username to one account only, so even equal hashes would merge nobody.
"""

import base64
import re
from functools import lru_cache
from hashlib import blake2b
from uuid import UUID, uuid5

from api.irc.parse import Nick, as_bytes
from domain.ids import UserId

PREFIX = "irc_"
BRIDGE_USERNAME = "irc_bridge"
MAX_USERNAME_CHARACTERS = 50
HASH_BYTES = 16
READABLE_CHARACTERS = 16
MAX_CACHED_IDS = 10_000

# Any fixed UUID does; it must never change, or a second import would make new users.
NICKS = UUID("0b0ffe0a-6f0e-5d0c-9a55-4c1d6f7a2b01")

_VALID = re.compile(r"[a-zA-Z0-9_]{3,50}")
_ESCAPES = [
    chr(byte) if chr(byte).isalnum() and byte < 0x80 else f"_{byte:02x}" for byte in range(256)
]


def usernames(nick: Nick) -> tuple[str, ...]:
    """What the nick may be called, the best first. No two nicks have one in common."""
    escaped = PREFIX + escape(nick)
    forms = []
    if _VALID.fullmatch(nick) and not nick.startswith(PREFIX):
        forms.append(str(nick))
    if len(escaped) <= MAX_USERNAME_CHARACTERS and escaped != BRIDGE_USERNAME:
        forms.append(escaped)
    return *forms, _hashed(nick)


@lru_cache(MAX_CACHED_IDS)
def user_id(nick: Nick) -> UserId:
    return UserId(str(uuid5(NICKS, escape(nick))))


def escape(nick: Nick) -> str:
    return "".join([_ESCAPES[byte] for byte in as_bytes(nick)])


def _hashed(nick: Nick) -> str:
    digest = blake2b(as_bytes(nick), digest_size=HASH_BYTES).digest()
    code = base64.b32encode(digest).decode().rstrip("=").lower()
    letters = "".join(c for c in nick if c.isalnum() and c.isascii())[:READABLE_CHARACTERS]
    return f"{PREFIX}{letters}_h{code}"
