"""What a typed line asks for. What begins with a slash is an order, all else is said."""

from collections.abc import Callable
from typing import NamedTuple

HELP = (
    "/chats                 the chats, and how much is unread in each",
    "/open CHAT             a username, a group's name or slug, or a number of /chats",
    "/reply N TEXT          answer message #N",
    "/edit N TEXT           say your message #N differently",
    "/delete N              take message #N away",
    "/react N EMOJI         and /unreact N EMOJI",
    "/who                   who is in the chat",
    "/contact USERNAME      ask somebody to be your contact, or accept who has asked",
    "/quit                  (// at the start says a text that begins with a slash)",
)


class Say(NamedTuple):
    text: str


class Reply(NamedTuple):
    number: int
    text: str


class Edit(NamedTuple):
    number: int
    text: str


class Delete(NamedTuple):
    number: int


class React(NamedTuple):
    number: int
    emoji: str
    is_added: bool


class Open(NamedTuple):
    name: str


class Contact(NamedTuple):
    username: str


class ListChats(NamedTuple): ...


class Who(NamedTuple): ...


class Help(NamedTuple): ...


class Quit(NamedTuple): ...


class Wrong(NamedTuple):
    """No order; `why` is for whoever typed it."""

    why: str


Order = Say | Reply | Edit | Delete | React | Open | Contact | ListChats | Who | Help | Quit | Wrong

Make = Callable[[str], Order]


def parse(line: str) -> Order | None:
    """None for an empty line."""
    line = line.strip()
    if not line:
        return None
    if line.startswith("//"):
        return Say(line[1:])
    if not line.startswith("/"):
        return Say(line)
    word, _, rest = line[1:].partition(" ")
    make = _ORDERS.get(word.lower())
    if make is None:
        return Wrong(f"there is no /{word}: see /help")
    return make(rest.strip())


def _numbered(word: str, wants: str, make: Callable[[int, str], Order]) -> Make:
    def read(rest: str) -> Order:
        number, _, text = rest.partition(" ")
        number = number.removeprefix("#")
        if not (number.isascii() and number.isdigit() and len(number) < 10):
            return Wrong(f"it is /{word} N {wants}".rstrip() + ", with N as in #N")
        if bool(text.strip()) != bool(wants):
            return Wrong(f"it is /{word} N {wants}".rstrip())
        return make(int(number), text.strip())

    return read


def _named(word: str, wants: str, make: Callable[[str], Order]) -> Make:
    return lambda rest: make(rest) if rest else Wrong(f"it is /{word} {wants}")


def _alone(word: str, order: Order) -> Make:
    return lambda rest: Wrong(f"/{word} takes nothing") if rest else order


_ORDERS: dict[str, Make] = {
    "chats": _alone("chats", ListChats()),
    "open": _named("open", "CHAT", Open),
    "reply": _numbered("reply", "TEXT", Reply),
    "edit": _numbered("edit", "TEXT", Edit),
    "delete": _numbered("delete", "", lambda number, _: Delete(number)),
    "react": _numbered("react", "EMOJI", lambda number, emoji: React(number, emoji, True)),
    "unreact": _numbered("unreact", "EMOJI", lambda number, emoji: React(number, emoji, False)),
    "who": _alone("who", Who()),
    "contact": _named("contact", "USERNAME", Contact),
    "help": _alone("help", Help()),
    "quit": _alone("quit", Quit()),
}
