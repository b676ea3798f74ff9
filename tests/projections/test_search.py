"""The words that messages are found by: cut as they say, and the same however the log is batched."""

from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.event import Event, Recorded
from domain.ids import MessageId, UserId
from domain.message import MAX_CONTENT_CHARACTERS, MessageDeleted, MessageEdited, MessageSent
from domain.user import AccountDeleted
from infra import database
from infra.database import Connection
from infra.projector import Writer
from projections import search, words
from projections.words import cut, indexed
from tests.commands.history import ANNA, BEN, CARL, CHAT, FIRST_TIME, message_id, sent

# Whatever people type, and much of what is hard about it.
HARD = "aZ9 _-.'\"&<>/@#\t\n1e5É\u0301ß½ﬁ漢字かガｶﾞー학교ภาษาไทยြမန်မာहिन्दी\u200d\u200c👍🏽❤️\ufeff\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9مُحَمَّد"
texts = st.text(st.sampled_from(HARD) | st.characters(exclude_characters="\0"), max_size=40)

EMPTY = "TRUNCATE message_search, projection_checkpoints"

ROWS = """
    SELECT message_id::text, chat_id::text, position, words::text
    FROM message_search
    ORDER BY position
"""

# How many words PostgreSQL takes a text for: a stop word keeps its place.
PARSED = """
    SELECT count(*), array_agg(token ORDER BY number)
    FROM ts_parse('default', %s) WITH ORDINALITY AS parsed (tokid, token, number)
    WHERE token <> ' '
"""

VECTOR = """
    SELECT (to_tsvector('pg_catalog.english', %s) || array_to_tsvector(%s))::text
"""

SIZE = """
    SELECT length(to_tsvector('pg_catalog.english', %s))
"""


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[Connection]:
    async with await database.connect(database_url, name="test") as connection:
        yield connection


# Words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, WORLD's e-mail_a", "hello world s e mail a"),
        ("日本語2024年", "日本 本語 語 2024 年"),
        ("東 京", "東 京"),
        ("ราคา 5", "รา าค คา า 5"),
        ("학교에서", "학교 교에 에서 서"),
        ("iPhone手机", "iphone 手机 机"),
        ("Café NAÏVE Straße e\u0301te\u0301", "cafe naive strasse ete"),
        ("\uff26\uff55\uff4c\uff4c ｶﾞｷﾞ ｶ", "full ガギ ギ カ"),
        ("हिन्दी भाषा।", "हिन्दी भाषा"),
        ("مُحَمَّد שָׁלוֹם", "محمد שלום"),
        ("👍🏽❤️ ok", "emoji1f44d emoji2764 ok"),
        ("½", "1 2"),
        (" -!?… ", ""),
    ],
)
def test_a_text_is_cut_into_words(text: str, expected: str) -> None:
    assert indexed(text) == expected


@given(texts)
def test_words_say_where_they_stand(text: str) -> None:
    found = cut(text)
    assert indexed(text) == " ".join(word.text for word in found)
    for word in found:
        assert 0 <= word.start < word.end <= len(text)
        # What stands there is the word, or is folded to it and what belongs with it.
        assert word.text in indexed(text[word.start : word.end]).split(" ")
    assert all(one.start <= other.start for one, other in pairwise(found))


@given(texts)
async def test_postgresql_takes_each_word_as_one(connection: Connection, text: str) -> None:
    cursor = await connection.execute(PARSED, (indexed(text),))
    [(number, tokens)] = await cursor.fetchall()
    assert (tokens or []) == [word.text for word in cut(text)]
    assert number == len(cut(text))


@pytest.mark.parametrize(
    "text",
    [
        "".join(map(chr, range(0x4E00, 0x4E00 + MAX_CONTENT_CHARACTERS))),
        "漢" * MAX_CONTENT_CHARACTERS,
        "x" * MAX_CONTENT_CHARACTERS,
        "é" * MAX_CONTENT_CHARACTERS,
        "\ufdfa" * MAX_CONTENT_CHARACTERS,
        "\u0301" * MAX_CONTENT_CHARACTERS,
        "".join(chr(0x1F300 + n % 200) for n in range(MAX_CONTENT_CHARACTERS)),
        " ".join(f"{n:04}" for n in range(2_000)),
    ],
    ids=["Han", "one character", "one word", "not ASCII", "ligatures", "marks", "emoji", "numbers"],
)
async def test_the_longest_message_is_no_problem_for_the_index(
    connection: Connection, text: str
) -> None:
    found = indexed(text).split(" ")
    assert len(found) <= words.MAX_WORDS
    assert max(map(len, found)) <= words.MAX_WORD_CHARACTERS
    [(lexemes,)] = await (await connection.execute(SIZE, (" ".join(found),))).fetchall()
    assert lexemes <= len(set(found))


# Rows


class Step(NamedTuple):
    """Somebody does something to a message, if they may and there is one."""

    what: str
    number: int
    by: UserId
    content: str


people = st.sampled_from([ANNA, BEN, CARL])
steps = st.builds(
    Step,
    st.sampled_from(["send", "send", "edit", "delete", "erase"]),
    st.integers(1, 8),
    people,
    st.sampled_from(["one running man", "二つの言葉", "three", "😀", "", "the"]),
)


def log_of(taken: Sequence[Step]) -> list[Recorded]:
    """What the log of it would say: only senders edit and delete, nothing follows an erasure."""
    events: list[Event] = []
    places: dict[tuple[int, UserId], int] = {}
    erased: set[UserId] = set()
    for what, number, by, content in taken:
        here = {"message_id": message_id(number), "chat_id": CHAT}
        if by in erased:
            continue
        if what == "send" and all(number != one for one, _ in places):
            places[number, by] = len(events) + 1
            events.append(sent(number, by, content=content))
        elif what == "edit" and (number, by) in places:
            events.append(MessageEdited(**here, sender_id=by, content=content))
        elif what == "delete" and (number, by) in places:
            at = places.pop((number, by))
            places[number, UserId("")] = at  # its id is never used again
            events.append(MessageDeleted(**here, by=by, sent_position=at))
        elif what == "erase":
            erased.add(by)
            events.append(AccountDeleted(user_id=by, erase_messages=True))
    return [Recorded(position, FIRST_TIME, event) for position, event in enumerate(events, 1)]


def unreadable(events: Sequence[Recorded]) -> list[Recorded]:
    """As a rebuild reads them, once the keys of those who erased are destroyed."""
    gone = {one.event.user_id for one in events if isinstance(one.event, AccountDeleted)}
    return [
        one._replace(event=msgspec.structs.replace(one.event, content=None))
        if isinstance(one.event, MessageSent | MessageEdited) and one.event.sender_id in gone
        else one
        for one in events
    ]


def left(events: Sequence[Recorded]) -> dict[MessageId, tuple[int, UserId, str]]:
    """What there is to be found in the end: an independent fold."""
    found: dict[MessageId, tuple[int, UserId, str]] = {}
    for position, _, event in events:
        match event:
            case MessageSent(content=str(content)):
                found[event.message_id] = (position, event.sender_id, content)
            case MessageEdited(content=str(content)):
                at, sender, _ = found[event.message_id]
                found[event.message_id] = (at, sender, content)
            case MessageDeleted():
                found.pop(event.message_id, None)
            case AccountDeleted():
                found = {key: one for key, one in found.items() if one[1] != event.user_id}
            case _:
                pass
    return found


async def apply(connection: Connection, events: Sequence[Recorded], size: int) -> list[object]:
    """The rows that batches of this size come to."""
    await connection.execute(EMPTY)
    writer = Writer(search.PROJECTION, connection)
    position = await writer.checkpoint()
    for begin in range(0, len(events), size):
        position = await writer.apply(list(events[begin : begin + size]), after=position)
    return await (await connection.execute(ROWS)).fetchall()


async def expected(connection: Connection, events: Sequence[Recorded]) -> list[object]:
    rows: list[object] = []
    for key, (position, sender, content) in left(events).items():
        scope = [f"chat:{CHAT}", f"from:{sender}"]
        scope += [f"block:{bits}:{position // 2**bits}" for bits in (13, 17, 21)]
        cursor = await connection.execute(VECTOR, (indexed(content), scope))
        [(vector,)] = await cursor.fetchall()
        rows.append((key, CHAT, position, vector))
    return sorted(rows, key=lambda row: row[2])  # type: ignore[index]


@given(st.lists(steps, max_size=30), st.integers(1, 30))
async def test_rows_are_what_can_be_found_whatever_the_batches_and_in_rebuilds(
    connection: Connection, taken: list[Step], size: int
) -> None:
    events = log_of(taken)
    rows = await expected(connection, events)
    assert await apply(connection, events, size) == rows
    assert await apply(connection, events, 1) == rows
    assert await apply(connection, unreadable(events), size) == rows


async def test_positions_far_into_the_log_are_in_their_blocks(connection: Connection) -> None:
    far = 5_000_000_000
    writer = Writer(search.PROJECTION, connection)
    await writer.checkpoint()
    await writer.apply([Recorded(far, FIRST_TIME, sent(1))], after=0)
    [(_, _, position, vector)] = await (await connection.execute(ROWS)).fetchall()
    assert position == far
    for bits in search.BLOCK_BITS:
        assert f"'block:{bits}:{far // 2**bits}'" in vector
