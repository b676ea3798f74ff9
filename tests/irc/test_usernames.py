"""No two nicks share a username, however alike they look."""

import re

from hypothesis import example, given
from hypothesis import strategies as st

from api.irc.parse import Nick, as_bytes
from api.irc.usernames import BRIDGE_USERNAME, PREFIX, escape, user_id, usernames

VALID = re.compile("[a-zA-Z0-9_]{3,50}")
ESCAPE = re.compile("_([0-9a-f]{2})")

BYTES = st.binary(min_size=1, max_size=120)
LETTERS = st.text("aA0_-|[]` irchx", min_size=1, max_size=12).map(str.encode)
# Those that look like what other nicks are called.
FORGED = (BYTES | LETTERS).map(lambda raw: usernames(nick(raw))[-1].encode()) | LETTERS.map(
    lambda raw: (PREFIX + escape(nick(raw))).encode()
)
NICKS = (BYTES | LETTERS | FORGED).map(lambda raw: nick(raw))


def nick(raw: bytes) -> Nick:
    return Nick(raw.decode("utf-8", "surrogateescape"))


def unescape(text: str) -> bytes:
    """The rule read backwards."""
    plain_and_escaped = enumerate(ESCAPE.split(text))
    return b"".join(
        bytes.fromhex(part) if index % 2 else part.encode() for index, part in plain_and_escaped
    )


@given(st.lists(NICKS, unique=True, min_size=2, max_size=8))
@example([Nick("a-b"), Nick("irc_a_2db"), Nick("a_2db"), Nick("irc_irc_5fa_5f2db")])
@example([Nick("\udcff"), Nick("\ufffd"), Nick("_ff"), Nick("irc__ff")])
@example([Nick("n" * 51), Nick("n" * 52), usernames(Nick("n" * 51))[0]])
@example([Nick("bob"), Nick("Bob"), Nick("bob "), Nick("irc_bob")])
def test_no_two_nicks_share_a_username(nicks: list[Nick]) -> None:
    names = [name for one in nicks for name in usernames(one)]
    assert len(set(names)) == len(names)
    assert len({user_id(one) for one in nicks}) == len(nicks)


@given(NICKS)
def test_every_nick_has_a_valid_username(one: Nick) -> None:
    names = usernames(one)
    assert names
    assert all(VALID.fullmatch(name) for name in names)
    assert BRIDGE_USERNAME not in names


@given(NICKS)
def test_an_escaped_nick_can_be_read_back(one: Nick) -> None:
    assert unescape(escape(one)) == as_bytes(one)


@given(st.from_regex(VALID, fullmatch=True))
def test_a_nick_that_is_a_username_stays_as_it_is(name: str) -> None:
    assert (usernames(Nick(name))[0] == name) == (not name.startswith(PREFIX))


def test_the_rule_is_what_it_says() -> None:
    assert usernames(Nick("|QuaD-|"))[0] == "irc__7cQuaD_2d_7c"
    assert usernames(Nick("a_b"))[0] == "a_b"
    assert usernames(Nick("x"))[0] == "irc_x"
    assert usernames(Nick("bridge"))[:2] == ("bridge", usernames(Nick("bridge"))[-1])


def test_usernames_and_ids_never_change() -> None:
    """Else a second import of the same logs would make new users."""
    assert usernames(Nick("|" * 60)) == ("irc__hga676v762qo35ysimll63gngie",)
    assert user_id(Nick("|QuaD-|")) == "3a3d789f-143c-5b36-80f2-df3c4bcac637"
