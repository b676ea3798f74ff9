"""What may be a reaction: an emoji or a `:shortcode:` (contract.md, section 2)."""

import pytest

from commands.emoji import check_emoji
from domain.refusals import Invalid

TAKEN = [
    "👍",
    "👍🏽",
    "❤",
    "❤️",
    "☺️",
    "⛹🏻‍♀️",
    "👩‍👩‍👧‍👦",
    "👩🏽‍❤️‍💋‍👨🏿",
    "🏳️‍🌈",
    "🏴‍☠️",
    "🏴󠁧󠁢󠁳󠁣󠁴󠁿",
    "🇩🇪",
    "1️⃣",
    "#⃣",
    "*️⃣",
    "‼️",
    "⁉",
    "\u2139\ufe0f",  # the sign for information
    "〰️",
    "〽️",
    "©️",
    "↔️",
    "▪️",
    "㊗️",
    "🅰️",
    "Ⓜ️",
    "\U0001fae8",  # 🫨, of Unicode 15: unknown to Python 3.11
    ":+1:",
    ":-1:",
    ":white_check_mark:",
    ":8ball:",
]

REFUSED = [
    "a",
    "S",
    "SS",
    "ok",
    "é",
    "日",
    "1",
    "#",
    "+",
    "$",
    " ",
    "👍👍",
    "👍 ",
    " 👍",
    "👍a",
    "a👍",
    "👍\n",
    "🇩",
    "🇩🇪🇫🇷",
    "🇩👍",
    "🏽",
    "\ufe0f",
    "\u200d",
    "👩\u200d",
    "\u200d👩",
    "👍🏽🏽",
    "\u20e3",
    "a\u20e3",
    "👍\u20e3",
    "\u0000",
    "\u202e👍",
    "::",
    ":",
    ":a",
    "a:",
    ":a b:",
    ":A:",
    ":é:",
    ":a:\n",
    ":a::b:",
    "<b>",
]


@pytest.mark.parametrize("emoji", TAKEN)
def test_one_emoji_or_a_shortcode_is_taken(emoji: str) -> None:
    check_emoji(emoji)


@pytest.mark.parametrize("emoji", REFUSED)
def test_anything_else_is_refused(emoji: str) -> None:
    with pytest.raises(Invalid) as refusal:
        check_emoji(emoji)
    assert refusal.value.field == "emoji"
