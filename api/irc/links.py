"""Which message answers which, as far as an annotation and a messenger agree.

A message answers one message, which is before it: of several, the nearest. All other links
are refused, each with its line and reason.
"""

from typing import NamedTuple

from api.irc.parse import Annotation, Entry, Line, Said, readable


class Refused(NamedTuple):
    """A link of an annotation that is not taken; `number` is its line there."""

    number: int
    reason: str


class Replies(NamedTuple):
    """Which line answers which, counted from 1."""

    answered: dict[int, int]
    refused: list[Refused]


def replies(lines: list[Line], annotation: Annotation) -> Replies:
    messages = {line.number for line in lines if _is_message(line.entry)}
    refused = [Refused(number, "not a line of an annotation") for number in annotation.malformed]
    answered: dict[int, int] = {}
    for link in sorted(annotation.links, key=lambda link: -link.answered):
        reason = _obstacle(link.answered, link.answering, messages)
        if reason is None and link.answering in answered:
            nearest = answered[link.answering]
            reason = f"line {link.answering} answers line {nearest}: a message answers one only"
        if reason is None:
            answered[link.answering] = link.answered
        else:
            refused.append(Refused(link.number, reason))
    return Replies(answered, sorted(refused))


def _obstacle(answered: int, answering: int, messages: set[int]) -> str | None:
    for number in (answered, answering):
        if number not in messages:
            return f"line {number} is no message"
    if answered > answering:
        return f"line {answering} is before line {answered}, which it would answer"
    return None


def _is_message(entry: Entry) -> bool:
    return isinstance(entry, Said) and readable(entry.text)[0] != ""
