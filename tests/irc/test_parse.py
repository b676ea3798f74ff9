"""Logs and annotations are read whole, whatever is in them."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.irc.parse import (
    MAX_SYSTEM_CHARACTERS,
    Entry,
    Joined,
    Left,
    Link,
    Nick,
    Renamed,
    Said,
    TopicSet,
    Unknown,
    as_bytes,
    nicks_of,
    parse_annotation,
    parse_line,
    parse_log,
    readable,
    shown,
)


def said(nick: str, text: str) -> Said:
    return Said(Nick(nick), text, is_action=False)


def did(nick: str, text: str) -> Said:
    return Said(Nick(nick), text, is_action=True)


KNOWN: list[tuple[bytes, Entry]] = [
    (b"[12:18] <|trey|> usual,  stable", said("|trey|", "usual,  stable")),
    (b"[12:18] <a> b> c", said("a", "b> c")),
    (b"[12:18] <a>", said("a", "")),
    (b"[12:18] <a> ", said("a", "")),
    (b"[12:18] <a>  ", said("a", " ")),
    (b"[12:18] <a> tail\r", said("a", "tail")),
    (b"[12:18] <bur[n] er> x", said("bur[n] er", "x")),
    (b"[12:18] <zcat[1] > x", said("zcat[1]", "x")),
    (b"[12:18] <]Alex[> x", said("]Alex[", "x")),
    (b"[12:18]  * genii sips a coffee", did("genii", "sips a coffee")),
    (b"[12:18]  * genii", did("genii", "")),
    (b"=== Matt| scrolls up", did("Matt|", "scrolls up")),
    (b"=== zcat[1]  plays video", did("zcat[1]", "plays video")),
    (b"=== s3[mn] rain waves", did("s3[mn] rain", "waves")),
    (b"=== a [~u@h.example]  has joined #Tea", Joined(Nick("a"), "#Tea")),
    (b"=== zcat[1]  [n=z[1] @h]  has joined #tea", Joined(Nick("zcat[1]"), "#tea")),
    (b"=== Guard] [an [n=G@h]  has joined #tea", Joined(Nick("Guard] [an"), "#tea")),
    (b"=== a [[H] -8@h]  has joined #tea", Joined(Nick("a"), "#tea")),
    (b"=== a [~u@h]  has left #tea []", Left(Nick("a"), "#tea")),
    (b'=== a [~u@h]  has left #tea ["see [you]', Left(Nick("a"), "#tea")),
    (b"=== a] b is now known as c[d]", Renamed(Nick("a] b"), Nick("c[d]"))),
    (b"=== gNk[zZz]  is now known as gNk", Renamed(Nick("gNk[zZz]"), Nick("gNk"))),
    (b"=== ..[topic/#tea:Sev] : T | t", TopicSet(Nick("Sev"), "T | t", "#tea")),
    (b"=== Topic for #tea: T: t", TopicSet(None, "T: t", "#tea")),
    (b"=== L changed the topic of #tea to: T", TopicSet(Nick("L"), "T", "#tea")),
]

UNKNOWN = [
    b"",
    b"===",
    b"=== ",
    b"=== alone",
    b"=== mode/#tea [+o a]  by b",
    b"=== Topic (#tea): set by a at Mon Dec  4 07:27:08 2006",
    b"[01:09] (a/#tea) b: have you seen it?",
    b"[24:00] <a> x",
    b"[12:60] <a> x",
    b"[12:18] <> x",
    b"[12:18] < > x",
    b"[12:18]",
    b"[12:18] a",
    b"12:18 <a> x",
    b"=== a " + b"b" * MAX_SYSTEM_CHARACTERS,
    b"\xff\x00\x07",
]


@pytest.mark.parametrize(("raw", "entry"), KNOWN)
def test_a_line_of_a_known_kind_is_read_as_it(raw: bytes, entry: Entry) -> None:
    assert parse_line(7, raw).entry == entry
    assert parse_line(7, raw).number == 7


@pytest.mark.parametrize("raw", UNKNOWN)
def test_any_other_line_is_unknown_with_a_reason(raw: bytes) -> None:
    entry = parse_line(1, raw).entry
    assert isinstance(entry, Unknown)
    assert entry.reason


def test_the_clock_is_the_minute_of_the_day() -> None:
    assert parse_line(1, b"[23:59] <a> x").minute == 23 * 60 + 59
    assert parse_line(1, b"=== a waves").minute is None


@pytest.mark.fuzz
@given(st.binary(max_size=400))
@example(b"[12:18] <a> x\n\n[12:19] <a> y")
@example(b"=== " + b"] " * 2000 + b"[" * 50)
@example(b"[00:00] (" + b"/#" * 2000)
def test_every_line_of_any_bytes_is_read(data: bytes) -> None:
    lines = parse_log(data)
    assert [line.number for line in lines] == list(range(1, len(lines) + 1))
    assert len(lines) == data.count(b"\n") + (not data.endswith(b"\n") and data != b"")


@pytest.mark.fuzz
@given(st.binary(min_size=1, max_size=20), st.binary(min_size=1, max_size=20))
@example(b"\xff", b"\xfe")
@example("é".encode(), "é".encode("latin-1"))
def test_nicks_of_other_bytes_are_other_nicks(first: bytes, second: bytes) -> None:
    nicks = []
    for raw in (first, second):
        raw = bytes(byte for byte in raw if byte not in b"> \n\r") or b"x"
        (nick,) = nicks_of(parse_line(1, b"[12:18] <" + raw + b"> x").entry)
        assert as_bytes(nick) == raw
        nicks.append((raw, nick))
    assert (nicks[0][0] == nicks[1][0]) == (nicks[0][1] == nicks[1][1])


@pytest.mark.fuzz
@given(st.binary(max_size=50))
def test_what_people_read_is_unicode_without_nul(raw: bytes) -> None:
    text, changes = readable(raw.decode("utf-8", "surrogateescape"))
    assert "\0" not in text
    assert text.encode().decode() == text
    assert bool(changes) == (text.encode() != raw)


def test_what_was_changed_is_said() -> None:
    assert readable("tea\t\x07") == ("tea\t\x07", ())
    assert readable("te\0a")[0] == "tea"
    assert "NUL" in readable("te\0a")[1][0]
    assert "UTF-8" in readable("te\udce9")[1][0]


def test_reports_hold_nothing_that_moves_a_cursor() -> None:
    assert shown("a\x1b[2Jb\u202ec") == "a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}c"


def test_an_annotation_counts_from_nought_and_its_links_from_one() -> None:
    data = b"0 3 -\n3 3 -\n3 12 - \n\n1 2\nx y -\n9999999999 1 -\n"
    annotation = parse_annotation(data)
    assert annotation.links == [Link(1, 1, 4), Link(3, 4, 13)]
    assert annotation.malformed == [4, 5, 6, 7]


@pytest.mark.fuzz
@given(st.binary(max_size=200))
def test_any_bytes_are_an_annotation(data: bytes) -> None:
    annotation = parse_annotation(data)
    assert len(annotation.links) + len(annotation.malformed) <= len(data.splitlines())
