"""What people type into a search as a query of words, and what they are shown of a match.

The query language is that of web searches: all words have to be there, "quoted" ones side by
side, not those after a `-`, and `or` stands between alternatives. Nothing typed is an error.
A snippet is a part of the text as it stands, with the matches as half-open ranges of it.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from projections.words import Word, cut, is_run

MAX_SNIPPET_CHARACTERS = 200
MAX_HIGHLIGHTS = 20
# So much is shown before the first match, if it is not the beginning.
LEAD_CHARACTERS = 40
CUT_OFF = "…"

_TERM = re.compile(r'(-?)(?:"([^"]*)"?|(\S+))')


class Terms(NamedTuple):
    """`query` is what to_tsquery reads, `wanted` the words to be seen in a match, and
    `beginnings` those of which only the beginning has to be there."""

    query: str
    wanted: str
    beginnings: list[str]


class Snippet(msgspec.Struct, frozen=True):
    snippet: str
    highlights: list[tuple[int, int]]


def parse(text: str) -> Terms:
    alternatives: list[list[str]] = [[]]
    wanted: list[str] = []
    beginnings: list[str] = []
    for match in _TERM.finditer(text):
        minus, quoted, plain = match.groups()
        words = [word.text for word in cut(quoted or plain or "")]
        if not minus and words == ["or"] and quoted is None:
            alternatives.append([])
        elif words:
            phrase = _phrase(words)
            alternatives[-1].append(f"!({phrase.query})" if minus else f"({phrase.query})")
            if not minus:
                wanted.append(phrase.wanted)
                beginnings += phrase.beginnings
    query = " | ".join(" & ".join(terms) for terms in alternatives if terms)
    return Terms(query, " ".join(wanted), beginnings)


def _phrase(words: list[str]) -> Terms:
    """Side by side; a single character of a run is the beginning of a pair."""
    words = _without_open_end(words)
    *before, last = words
    quoted = [f"'{word}'" for word in words]
    if not (is_run(last) and len(last) == 1):
        return Terms(" <-> ".join(quoted), " ".join(words), [])
    return Terms(" <-> ".join(quoted) + ":*", " ".join(before), [last])


def _without_open_end(words: list[str]) -> list[str]:
    """In a longer text, a run's last character may be followed by others."""
    is_open = len(words) > 1 and is_run(words[-1]) and is_run(words[-2]) and len(words[-2]) == 2
    return words[:-1] if is_open else words


def snippet(content: str, places: Iterable[int], beginnings: Sequence[str]) -> Snippet:
    """`places` are the numbers, from 1, of the words that match."""
    words = cut(content)
    found = _merged(
        _matched(words[place - 1], beginnings) for place in places if place <= len(words)
    )
    start = _start(content, found)
    end = min(len(content), start + MAX_SNIPPET_CHARACTERS)
    before, after = CUT_OFF * (start > 0), CUT_OFF * (end < len(content))
    shift = len(before) - start
    shown = [(low + shift, min(high, end) + shift) for low, high in found if start <= low < end]
    return Snippet(before + content[start:end] + after, shown[:MAX_HIGHLIGHTS])


def _matched(word: Word, beginnings: Sequence[str]) -> tuple[int, int]:
    """Of a pair that was found by its beginning, that alone."""
    is_beginning = len(word.text) == 2 and word.text[0] in beginnings
    return word.start, word.start + 1 if is_beginning else word.end


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for low, high in ranges:
        if merged and low < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


def _start(content: str, found: list[tuple[int, int]]) -> int:
    """A little before the first match, at the beginning of a word if one is near."""
    if len(content) <= MAX_SNIPPET_CHARACTERS or not found:
        return 0
    start = max(0, min(found[0][0] - LEAD_CHARACTERS, len(content) - MAX_SNIPPET_CHARACTERS))
    space = content.find(" ", start, found[0][0])
    return start if start == 0 or space < 0 else space + 1
