"""How things are said: lines of styled parts, plain when joined.

What others wrote is shown, never obeyed: control characters, and those that turn the direction
of what follows, are replaced, and every further line of a message is indented, so nobody can
write a line that looks like another's.
"""

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime
from typing import Any, Literal, NamedTuple

Json = dict[str, Any]
NameOf = Callable[[str | None], str]
Standing = Literal["sent", "delivered", "read"]

DELETED = "[Deleted]"
DELETED_USER = "[Deleted User]"
REPLY_TO_DELETED = "[Message Deleted]"
SOMEBODY = "somebody"

INDENT = "\n    "
SHORT_CHARACTERS = 60
MAX_NAMED = 5
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Left-to-right and right-to-left embeddings, overrides and isolates.
TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Part(NamedTuple):
    text: str
    style: str = ""


class Line(NamedTuple):
    """Of a message (`message_id`), a note, or news (`is_passing`) that a whole screen shows where
    the thing itself is shown."""

    parts: tuple[Part, ...]
    message_id: str | None = None
    is_passing: bool = False

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts)


class Person(NamedTuple):
    name: str
    username: str
    status: str


def note(text: str) -> Line:
    return Line((Part(f"* {text}", "cyan"),))


def failed(text: str) -> Line:
    return Line((Part(f"! {text}", "bold red"),))


def announced(text: str) -> Line:
    return Line((Part(f"* {text}", "dim"),), is_passing=True)


def day(on: date) -> Line:
    return Line((Part(f"* {on:%A}, {on.day} {on:%B} {on.year}", "dim"),))


def message(
    message_id: str,
    *,
    number: int,
    at: datetime,
    sender: str,
    content: str,
    replied: str,
    is_own: bool,
    is_edited: bool,
    reactions: Mapping[str, int],
    mark: str,
) -> Line:
    counted = "  ".join(f"{one_line(emoji)} {count}" for emoji, count in reactions.items())
    parts = (
        Part(f"#{number} {at:%H:%M} ", "dim"),
        Part(sender, "bold green" if is_own else "bold yellow"),
        Part(f" (to {replied})" if replied else "", "dim italic"),
        Part(": "),
        Part(shown(content), "dim" if content == DELETED else ""),
        Part(" (edited)" if is_edited else "", "dim"),
        Part(f" [{counted}]" if counted else "", "magenta"),
        Part(f" ({mark})" if mark else "", "blue"),
    )
    return Line(tuple(part for part in parts if part.text), message_id)


def system(message_id: str, number: int, at: datetime, told: Json, name_of: NameOf) -> Line:
    said = f"#{number} {at:%H:%M} - {sentence(told, name_of)}"
    return Line((Part(said, "italic cyan"),), message_id)


def sentence(told: Json, name_of: NameOf) -> str:
    """What a system message says, with the names of the day."""
    actor = name_of(told["actor_id"])
    people = _list(told["user_ids"], name_of)
    is_self = told["user_ids"] in ([], [told["actor_id"]])
    match told["kind"]:
        case "members_added":
            return f"{actor} joined" if is_self else f"{actor} added {people}"
        case "member_removed":
            return f"{actor} removed {people}"
        case "member_left":
            return f"{people or actor} left"
        case "group_renamed":
            return f"{actor} named the group {one_line(told.get('name') or '')}"
        case "ownership_transferred":
            return f"{people} owns the group now"
        case "admin_appointed":
            return f"{actor} made {people} an admin"
        case "admin_dismissed":
            return f"{people} is no admin any more"
        case kind:
            return f"{actor}: {one_line(str(kind)).replace('_', ' ')}"


def named_in(told: Json) -> list[str]:
    """Whom the sentence names."""
    return [*filter(None, [told.get("actor_id")]), *told.get("user_ids", [])[:MAX_NAMED]]


def _list(user_ids: list[str], name_of: NameOf) -> str:
    names = [name_of(one) for one in user_ids[:MAX_NAMED]]
    if len(user_ids) > MAX_NAMED:
        names.append(f"{len(user_ids) - MAX_NAMED} others")
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def mark(standing: Iterable[Standing]) -> str:
    """How far a message of one's own got: with its recipients counted, if they are several."""
    levels = list(standing)
    read = levels.count("read")
    delivered = len(levels) - levels.count("sent")
    if not delivered:
        return "sent"
    said, reached = ("read", read) if read else ("delivered", delivered)
    return (
        said
        if len(levels) == 1
        else f"{said} by {reached} of {len(levels)}".replace("delivered by", "delivered to")
    )


def numbers(found: list[int]) -> str:
    return f"#{found[0]}" if len(found) == 1 else f"#{found[0]} to #{found[-1]}"


def contact(kind: str, other: str, *, is_mine: bool) -> str:
    """Nothing where there is nothing to say."""
    match kind, is_mine:
        case "contact_requested", True:
            return f"{other} is asked to be your contact"
        case "contact_requested", False:
            return f"{other} asks to be your contact"
        case "contact_accepted", _:
            return f"{other} is your contact now"
        case "contact_removed", _:
            return f"{other} is not your contact"
        case "contact_blocked", _:
            return f"{other} is blocked"
        case "contact_unblocked", _:
            return f"{other} is not blocked any more"
        case _:
            return ""


def person(who: Person) -> str:
    username = f" ({who.username})" if who.username and who.username != who.name else ""
    return f"{who.name}{username}: {who.status}"


def shown(text: str) -> str:
    """What somebody wrote, of however many lines."""
    return INDENT.join(_clean(line) for line in text.splitlines()) or _clean(text)


def one_line(text: str) -> str:
    return _clean(" ".join(text.split()))


def short(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= SHORT_CHARACTERS else line[: SHORT_CHARACTERS - 1] + "…"


def _clean(text: str) -> str:
    return "".join(_seen(character) for character in text)


def _seen(character: str) -> str:
    if character == "\t":
        return " "
    if character in TURNING or unicodedata.category(character) in ("Cc", "Cs"):
        return REPLACEMENT
    return character
