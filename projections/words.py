"""Text as words to be found by: cut, folded, and so that PostgreSQL's parser takes each as one.

A word is a run of letters and digits, folded to lower case, to compatible forms (full-width to
plain) and without accents or vowel points; an emoji is a word too. Scripts written without
spaces (Han, kana, Thai, Lao, Khmer, Myanmar, Tibetan…) and Hangul, whose words carry particles,
are cut into pairs: each character begins one, and the run's last one stands alone. So any part
of a run is found by its pairs as a phrase, and a single character as a beginning.

Everything that is searched and everything that is searched for is cut here, so the n-th word
is the tsvector's position n, by which matches are found again in the text.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain, islice, repeat
from typing import NamedTuple
from unicodedata import normalize

# A tsvector's positions end at 16,383 and a lexeme at 2,046 bytes.
MAX_WORDS = 10_000
MAX_WORD_CHARACTERS = 64
FOLDED_PIECES_KEPT = 8_192

_UNSPACED = (
    "\u0e01-\u0e3a\u0e40-\u0e4e"  # Thai
    "\u0e80-\u0ecf\u0edc-\u0eff"  # Lao
    "\u0f40-\u0fbc"  # Tibetan
    "\u1000-\u103f\u1050-\u108f\u109a-\u109f\ua9e0-\ua9ef\ua9fa-\ua9fe\uaa60-\uaa7f"  # Myanmar
    "\u1780-\u17d3\u17d7\u17dc\u17dd"  # Khmer
    "\u1950-\u19ab\u1a20-\u1a7c\uaa80-\uaadf"  # Tai
    "\u3005-\u3007\u3041-\u3096\u3099\u309a\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff"  # kana
    "\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff"  # Bopomofo, small kana
    "\u1100-\u11ff\u3131-\u318e\ua960-\ua97c\uac00-\ud7fb"  # Hangul
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
# Indic scripts: letters with signs that are no letters to Python; not their full stops.
_INDIC = "\u0900-\u0963\u0966-\u096f\u0971-\u0df3"
_SYMBOL = "\u2190-\u2bff\U0001f000-\U0001f3fa\U0001f400-\U0001faff"

_WORD = re.compile(
    f"(?P<run>[{_UNSPACED}]+)|(?P<symbol>[{_SYMBOL}])|(?:[{_INDIC}]|(?![{_UNSPACED}])[^\\W_])+"
)
_ASCII_WORD = re.compile("[0-9a-z]+")
# A character with what is written over it or composes with it; plain ones as they come.
_PIECE = re.compile(
    "[\x00-\x7f]+(?![\u0300-\u036f])"
    "|[\u1100-\u115f][\u1160-\u11a7]?[\u11a8-\u11ff]?"
    "|.[\u0300-\u036f\u3099\u309a\uff9e\uff9f]{0,8}",
    re.DOTALL,
)
# Accents, vowel points, and what only shapes the text: joiners, directions, skin tones.
_UNWRITTEN = re.compile(
    "[\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u0640"
    "\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u0730-\u074a\u07a6-\u07b0\u00ad\u200b-\u200f"
    "\u202a-\u202e\u2060-\u2069\ufe00-\ufe0f\ufeff\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]+"
)


class Word(NamedTuple):
    """A folded word, and where it stands in the text: characters [start, end)."""

    text: str
    start: int
    end: int


def indexed(text: str) -> str:
    """The words of a text with spaces between them."""
    if text.isascii():
        return " ".join(
            word[:MAX_WORD_CHARACTERS] for word in _ASCII_WORD.findall(text.lower())[:MAX_WORDS]
        )
    folded = "".join(map(_fold, _PIECE.findall(text)))
    found = chain.from_iterable(map(_words_of, _WORD.finditer(folded)))
    return " ".join(word.text for word in islice(found, MAX_WORDS))


def cut(text: str) -> list[Word]:
    folded, starts, ends = _folded(text)
    found = chain.from_iterable(map(_words_of, _WORD.finditer(folded)))
    return [
        Word(word, starts[start], ends[end - 1]) for word, start, end in islice(found, MAX_WORDS)
    ]


def is_run(word: str) -> bool:
    """Whether a word is of a script that is written without spaces."""
    match = _WORD.match(word)
    return match is not None and match["run"] is not None


def _words_of(match: re.Match[str]) -> Iterator[Word]:
    begin, end = match.span()
    if match["run"]:
        for at in range(begin, end):
            until = min(at + 2, end)
            yield Word(match.string[at:until], at, until)
    elif match["symbol"]:
        # In ASCII, because not every locale's parser takes a symbol for a word.
        yield Word(f"emoji{ord(match[0]):x}", begin, end)
    else:
        yield Word(match[0][:MAX_WORD_CHARACTERS], begin, end)


def _folded(text: str) -> tuple[str, list[int] | range, list[int] | range]:
    """With the start and the end in the text of what each folded character came from."""
    if text.isascii():
        return text.lower(), range(len(text)), range(1, len(text) + 1)
    pieces: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for match in _PIECE.finditer(text):
        piece = _fold(match[0])
        pieces.append(piece)
        start, end = match.span()
        if piece.isascii() and len(piece) == end - start:
            starts.extend(range(start, end))
            ends.extend(range(start + 1, end + 1))
        else:
            starts.extend(repeat(start, len(piece)))
            ends.extend(repeat(end, len(piece)))
    return "".join(pieces), starts, ends


def _fold(piece: str) -> str:
    return piece.lower() if piece.isascii() else _fold_piece(piece)


@lru_cache(maxsize=FOLDED_PIECES_KEPT)
def _fold_piece(piece: str) -> str:
    bare = _UNWRITTEN.sub("", normalize("NFKD", piece))
    return normalize("NFKC", _UNWRITTEN.sub("", normalize("NFKD", bare.casefold())))
