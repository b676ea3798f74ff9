"""Bytes of a log to typed lines, and annotations to links; nothing here ever fails.

A line is bytes up to a newline (a carriage return before it belongs to it), numbered from 1.
What is none of the known kinds becomes `Unknown`, with the reason. Text is decoded so that no
two different byte strings become equal ("surrogateescape"): nicks stay apart whatever their
bytes are. `readable` makes of it what people may see, and says what that changed.

The older logger put a space after each `]` in a nick (`<bur[n] er>`, `<zcat[1] >`). A nick
keeps the inner ones, as they are the same in all its lines; outer ones are no part of it.
"""

import re
from typing import NamedTuple, NewType

Nick = NewType("Nick", str)

MINUTES_PER_HOUR = 60
NUL = "\0"
# IRC itself allows 512; matching a longer line could take a time that grows with its square.
MAX_SYSTEM_CHARACTERS = 4_096


class Said(NamedTuple):
    """A message, or with `is_action` what `/me` said."""

    nick: Nick
    text: str
    is_action: bool


class Joined(NamedTuple):
    nick: Nick
    channel: str


class Left(NamedTuple):
    nick: Nick
    channel: str


class Renamed(NamedTuple):
    old: Nick
    new: Nick


class TopicSet(NamedTuple):
    """`by` is None where the log only shows the topic."""

    by: Nick | None
    topic: str
    channel: str


class Unknown(NamedTuple):
    """A line without a counterpart in a messenger, or one that nobody can read."""

    reason: str


Entry = Said | Joined | Left | Renamed | TopicSet | Unknown


class Line(NamedTuple):
    """`minute` is the clock's minute of the day, None on lines without a clock."""

    number: int
    minute: int | None
    entry: Entry


class Link(NamedTuple):
    """Line `number` of an annotation says that one line of the log answers another."""

    number: int
    answered: int
    answering: int


class Annotation(NamedTuple):
    """`malformed` are the numbers of the annotation's lines that are none."""

    links: list[Link]
    malformed: list[int]


def _pattern(text: str) -> re.Pattern[str]:
    # ASCII: a no-break space is a character like others here, not a separator.
    return re.compile(text, re.ASCII | re.DOTALL)


# Inside a nick a space comes after a bracket only (see above).
_NICK = r"((?:\S|(?<=\]) )+)"
_CHANNEL = r"([#&][^\s:]{0,49})"

_CLOCK = _pattern(r"\[([01]\d|2[0-3]):([0-5]\d)\] (.*)")
_MESSAGE = _pattern(r"<([^>]*)>(?: (.*))?")
_ACTION = _pattern(r" ?\* (\S+)(?: (.*))?")
_ELSEWHERE = _pattern(r"\([^)]*/[#&][^)]*\) .*")

_SYSTEM = _pattern(r"=== (.*)")
_JOINED = _pattern(rf"{_NICK} \[.*\] {{1,2}}has joined {_CHANNEL} *")
_LEFT = _pattern(rf"{_NICK} \[.*?\] {{1,2}}has left {_CHANNEL}(?: .*)?")
_RENAMED = _pattern(rf"{_NICK} is now known as {_NICK} *")
_TOPIC_SHORT = _pattern(rf"\.\.\[topic/{_CHANNEL}:{_NICK}\] : (.*)")
_TOPIC_SHOWN = _pattern(rf"Topic for {_CHANNEL}: (.*)")
_TOPIC_CHANGED = _pattern(rf"{_NICK} changed the topic of {_CHANNEL} to: (.*)")
_TOPIC_AGE = _pattern(r"Topic \([#&][^)]*\): .*")
_MODE = _pattern(r"mode/[#&].*")
_SYSTEM_ACTION = _pattern(rf"{_NICK} (.*)")

_LINK = re.compile(rb"(\d{1,9}) (\d{1,9}) -\s*")


def parse_log(data: bytes) -> list[Line]:
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [parse_line(number, raw) for number, raw in enumerate(lines, 1)]


def parse_line(number: int, raw: bytes) -> Line:
    text = raw.removesuffix(b"\r").decode("utf-8", "surrogateescape")
    if clock := _CLOCK.fullmatch(text):
        minute = int(clock[1]) * MINUTES_PER_HOUR + int(clock[2])
        return Line(number, minute, _clocked(clock[3]))
    if system := _SYSTEM.fullmatch(text):
        return Line(number, None, _system(system[1]))
    return Line(number, None, Unknown("not a line of an IRC log" if text else "an empty line"))


def parse_annotation(data: bytes) -> Annotation:
    """Lines `a b -`, counted from 0, as links counted from 1; `a a -` links nothing."""
    links, malformed = [], []
    for number, raw in enumerate(data.splitlines(), 1):
        link = _LINK.fullmatch(raw)
        if link is None:
            malformed.append(number)
        elif link[1] != link[2]:
            links.append(Link(number, int(link[1]) + 1, int(link[2]) + 1))
    return Annotation(links, malformed)


def readable(text: str) -> tuple[str, tuple[str, ...]]:
    """The text without what no message may hold, and what had to be changed for that."""
    if text.isascii() and NUL not in text:
        return text, ()
    changes = []
    valid = as_bytes(text).decode("utf-8", "replace")
    if valid != text:
        changes.append("bytes that are no UTF-8 are shown as \N{REPLACEMENT CHARACTER}")
    if NUL in valid:
        changes.append("NUL characters are taken out")
    return valid.replace(NUL, ""), tuple(changes)


def shown(text: str) -> str:
    """For reports: nothing in it moves a terminal's cursor."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def as_bytes(text: str) -> bytes:
    """The bytes that stand in the log for it."""
    return text.encode("utf-8", "surrogateescape")


def nicks_of(entry: Entry) -> tuple[Nick, ...]:
    """Who is named in a line as one who does something."""
    match entry:
        case Said(nick=nick) | Joined(nick=nick) | Left(nick=nick):
            return (nick,)
        case Renamed(old=old, new=new):
            return old, new
        case TopicSet(by=by):
            return () if by is None else (by,)
        case Unknown():
            return ()


def _clocked(text: str) -> Entry:
    if message := _MESSAGE.fullmatch(text):
        return _said(message[1], message[2], is_action=False)
    if action := _ACTION.fullmatch(text):
        return _said(action[1], action[2], is_action=True)
    if len(text) <= MAX_SYSTEM_CHARACTERS and _ELSEWHERE.fullmatch(text):
        return Unknown("text that was sent from another window has no counterpart")
    return Unknown("not a line of an IRC log")


def _said(nick: str, text: str | None, *, is_action: bool) -> Entry:
    if not nick.strip(" "):
        return Unknown("a message of nobody: the nick is empty")
    return Said(_nick(nick), text or "", is_action)


def _system(text: str) -> Entry:
    if len(text) > MAX_SYSTEM_CHARACTERS:
        return Unknown(f"a system line of more than {MAX_SYSTEM_CHARACTERS} characters")
    if joined := _JOINED.fullmatch(text):
        return Joined(_nick(joined[1]), joined[2])
    if left := _LEFT.fullmatch(text):
        return Left(_nick(left[1]), left[2])
    if renamed := _RENAMED.fullmatch(text):
        return Renamed(_nick(renamed[1]), _nick(renamed[2]))
    return _topic(text) or _other(text)


def _topic(text: str) -> Entry | None:
    if short := _TOPIC_SHORT.fullmatch(text):
        return TopicSet(_nick(short[2]), short[3], short[1])
    if shown := _TOPIC_SHOWN.fullmatch(text):
        return TopicSet(None, shown[2], shown[1])
    if changed := _TOPIC_CHANGED.fullmatch(text):
        return TopicSet(_nick(changed[1]), changed[3], changed[2])
    return None


def _other(text: str) -> Entry:
    if _TOPIC_AGE.fullmatch(text):
        return Unknown("who set a topic, and when, has no counterpart")
    if _MODE.fullmatch(text):
        return Unknown("a mode of the channel has no counterpart")
    if (action := _SYSTEM_ACTION.fullmatch(text)) and action[1].strip(" "):
        return Said(_nick(action[1]), action[2], is_action=True)
    return Unknown("a system line of no known kind")


def _nick(text: str) -> Nick:
    return Nick(text.strip(" "))
