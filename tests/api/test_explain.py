"""`messenger explain unread`: as an operator runs it."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE

from tests.api.conversations import group, say
from tests.api.served import Api, Person
from tests.infra.daemons import connected, projected
from tests.stream.client import connected as streaming

People = tuple[Person, Person, Person]
TIMEOUT_SECONDS = 30.0

MISCOUNT = """
    UPDATE unread_counts
    SET count = count + 1
"""


async def explained(database_url: str, user: str, chat: str) -> tuple[int | None, str]:
    """Exit code and all that was said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "api.cli", "explain", "unread", user, chat),
        env={**os.environ, "MESSENGER_DATABASE_URL": database_url},
        stdout=PIPE,
        stderr=PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), TIMEOUT_SECONDS)
    return process.returncode, (out + err).decode()


async def test_a_count_is_explained_message_by_message(database_url: str, people: People) -> None:
    ann, bob, _ = people
    chat_id = await group(ann, bob, slug="friends")
    [read, *unread] = [*await say(ann, chat_id, "a", "b"), *await say(ann, chat_id, "c")]
    await bob.do("mark-read", chat_id=chat_id, up_to_message_id=read["message_id"])
    await projected(database_url)
    code, said = await explained(database_url, "bob", "Friends")
    assert code == 0, said
    assert "bob has 2 unread in group chat" in said
    assert f"has read up to position {read['position']}" in said
    assert f"counted after position {read['position'] - 1}" in said
    for sent in unread:
        [line] = [line for line in said.splitlines() if sent["message_id"] in line]
        assert f" {sent['position']} " in line
        assert " ann " in line
    assert read["message_id"] not in said
    assert await explained(database_url, bob.user_id, chat_id) == (code, said)
    code, said = await explained(database_url, "eve", chat_id)
    assert (code, "eve has 0 unread" in said, "never was in the chat" in said) == (0, True, True)
    await bob.do("leave-group", chat_id=chat_id)
    await projected(database_url)
    code, said = await explained(database_url, "bob", chat_id)
    assert (code, "bob has 0 unread" in said, "left the chat at" in said) == (0, True, True)


async def test_what_the_stream_has_delivered_is_not_taken_for_read(
    database_url: str, whole_api: Api, people: People
) -> None:
    ann, bob, _ = people
    chat_id = await group(ann, bob)
    [read, unread] = await say(ann, chat_id, "a", "b")
    await bob.do("mark-read", chat_id=chat_id, up_to_message_id=read["message_id"])
    tokens = [person.session["access_token"] for person in (ann, bob)]
    async with streaming(whole_api.url, tokens[0]) as a, streaming(whole_api.url, tokens[1]) as b:
        await a.start()
        await b.start()
        await b.say("received", position=unread["position"])
        delivered = await a.event("messages_delivered")
    await bob.see("/v1/unread", delivered["position"])
    code, said = await explained(database_url, "bob", chat_id)
    assert code == 0, said
    assert "bob has 1 unread" in said
    assert f"has read up to position {read['position']}" in said


async def test_a_count_that_is_not_that_of_the_rows_is_told(
    database_url: str, people: People
) -> None:
    ann, bob, _ = people
    chat_id = await group(ann, bob)
    await say(ann, chat_id, "a")
    await projected(database_url)
    async with connected(database_url) as connection:
        await connection.execute(MISCOUNT)
    code, said = await explained(database_url, "bob", chat_id)
    assert code == 1
    assert "the counter says 2, but there are 1 rows" in said


async def test_who_or_what_is_not_there_is_told_in_one_line(
    database_url: str, people: People
) -> None:
    ann, *_ = people
    chat_id = await group(ann, people[1])
    await projected(database_url)
    for user, chat, told in (
        ("nobody", chat_id, "there is no user 'nobody'"),
        ("ann", "nothing", "there is no chat 'nothing'"),
    ):
        assert await explained(database_url, user, chat) == (1, f"messenger: {told}\n")
