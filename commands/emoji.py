"""What a reaction may be: one emoji, or a shortcode like `:+1:` (contract.md, section 2).

An emoji is a symbol of Unicode with whatever belongs to it: a variation selector, a skin
tone, tags (the flags of England, Scotland and Wales), others joined to it; two regional
letters (a flag); or a keycap. Which symbols are emoji changes every year, so any may stand.
"""

import re
from typing import Annotated
from unicodedata import category

from msgspec import Meta

from domain.refusals import Invalid

MAX_EMOJI_CHARACTERS = 32

Emoji = Annotated[str, Meta(min_length=1, max_length=MAX_EMOJI_CHARACTERS)]

_SHORTCODE = re.compile(r":[a-z0-9_+-]+:")
# Symbols are written S here before they are matched, what belongs to them as it is.
_SHAPE = re.compile(
    "[\U0001f1e6-\U0001f1ff]{2}"
    "|[0-9#*]\ufe0f?\u20e3"
    "|S\ufe0f?[\U0001f3fb-\U0001f3ff]?[\U000e0020-\U000e007f]*"
    "(?:\u200dS\ufe0f?[\U0001f3fb-\U0001f3ff]?)*"
)
_PARTS = re.compile("[\U0001f1e6-\U0001f1ff\U0001f3fb-\U0001f3ff]")
_SYMBOLS = ("So", "Sm")
# Emoji that Unicode does not count among the symbols.
_OTHERS = "\u203c\u2049\u2139\u3030\u303d"


def check_emoji(emoji: str) -> None:
    if not _SHORTCODE.fullmatch(emoji) and not _SHAPE.fullmatch("".join(map(_part, emoji))):
        raise Invalid("expected one emoji or a :shortcode:", field="emoji")


def _part(character: str) -> str:
    if character.isascii() or _PARTS.match(character):
        return "?" if character == "S" else character
    # What became an emoji lately, this Python may not know to be a symbol.
    is_new = "\U0001f000" <= character <= "\U0001faff"
    is_symbol = is_new or category(character) in _SYMBOLS or character in _OTHERS
    return "S" if is_symbol else character
