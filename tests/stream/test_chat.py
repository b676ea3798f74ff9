"""`messenger chat`: two people talk, whatever becomes of the server, and nothing is lost or doubled."""

import asyncio
import os
import pty
import re
import sys
import termios
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from api.chat.link import return_seconds
from api.chat.server import PAUSE_MAX_SECONDS, backoff, retry_after
from api.cli import messenger
from infra.embedded.process import free_port
from tests.api import process
from tests.api.conversations import befriend, group
from tests.api.served import PASSWORD, Api, Person, serving_all
from tests.infra.daemons import connected as connected_to
from tests.infra.daemons import projected, projecting
from tests.stream.chatting import WAIT_SECONDS, Chatting, bad_line, chatting

NEW_EPOCH = "UPDATE log_head SET epoch = epoch + 1"
LIFE_SECONDS = 3
WHO_ASKED = 100
WHO_SECONDS = 0.1
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
BURST = [f"one of many, {number}" for number in range(20)]

People = tuple[Person, Person, Person]


async def test_two_people_see_what_the_other_does(
    whole_api: Api, people: People, tmp_path: Path
) -> None:
    ann, bob, _ = people
    await group(ann, bob, slug="friends")
    async with (
        chatting(whole_api.url, "ann", "--chat", "friends", directory=tmp_path) as a,
        chatting(whole_api.url, "bob", "--chat", "Friends", directory=tmp_path) as b,
    ):
        await a.sees("Friends (friends), 2 people")
        await b.sees("Friends (friends), 2 people")
        await a.type("Hello")
        assert re.fullmatch(r"#1 \d\d:\d\d ann: Hello \(sent\)", await a.sees("ann: Hello"))
        assert re.fullmatch(r"#1 \d\d:\d\d ann: Hello", await b.sees("ann: Hello"))
        await a.sees("#1 read")
        await b.type("/reply 1 Good day", "/react 1 👍", "/edit 1 Mine")
        await a.sees("bob (to #1 ann: Hello): Good day")
        await a.sees("* #1 bob reacts 👍")
        await b.sees("bob (to #1 ann: Hello): Good day (sent)")
        await b.type("/edit 2 Good evening")
        await a.sees("* #2 bob edited: Good evening")
        await b.sees("! #1 is not edited: only")
        await b.sees("#2 read")
        await b.type("/unreact 1 👍", "/delete 2", "/nonsense", "//slash")
        await a.sees("* #1 bob takes back 👍")
        await a.sees("* #2 was deleted by bob")
        await a.sees("bob: /slash")
        await b.sees("! there is no /nonsense")
        await online(b, "ann")
        await b.sees("* bob: you")
        assert [await one.ends() for one in (a, b)] == [0, 0]
        assert a.messages() == b.messages()
    await projected(whole_api.parts.settings.database_url)
    assert (await ann.see("/v1/unread"))["messages"] == 0
    devices = [one["device_name"] for one in (await ann.see("/v1/sessions"))["items"]]
    assert "messenger chat" not in devices, "who leaves, logs out"


async def online(chat: Chatting, name: str) -> None:
    """That somebody has come is told when it is known, and asked for until then."""
    for asked in range(1, WHO_ASKED + 1):
        await chat.type("/who")
        if "online" in await chat.sees(f"* {name}: ", times=asked):
            return
        await asyncio.sleep(WHO_SECONDS)
    raise AssertionError(f"{name} is not online")


async def test_a_chat_is_found_by_whom_it_is_with_and_those_elsewhere_are_counted(
    whole_api: Api, people: People, tmp_path: Path
) -> None:
    ann, bob, eve = people
    await befriend(ann, bob)
    async with chatting(whole_api.url, "ann", "--chat", "bob", directory=tmp_path) as a:
        # There was none yet: it is opened.
        await a.sees("bob (bob), 2 people")
        chat_id = await group(eve, ann, slug="others")
        await a.sees("* new chat: Friends (others)")
        await eve.do("send-message", chat_id=chat_id, content="You\nthere?")
        await a.sees("* Friends (others), 1 unread: eve: You there?")
        await a.type("/chats", "/open 1")
        await a.sees("* 1  Friends (others), 1 unread")
        assert re.fullmatch(r"#1 \d\d:\d\d eve: You", await a.sees(" eve: You", times=2))
        # A further line is no line of its own.
        await a.sees("    there?")
        await eve.do("update-profile", display_name="Evelyn")
        await a.sees("* eve is called Evelyn now")
        await eve.do("update-group", chat_id=chat_id, name="Foes")
        await a.sees("Evelyn named the group Foes")
        await eve.do("add-members", chat_id=chat_id, user_ids=[bob.user_id])
        await a.sees("Evelyn added bob")
        await eve.do("remove-member", chat_id=chat_id, user_id=ann.user_id)
        await a.sees("* Foes is without you from now on")
        await a.type("Anybody?")
        await a.sees("! no chat is open")
        assert await a.ends() == 0


async def test_nothing_is_lost_or_doubled_when_the_server_is_killed(
    database_url: str, nats_url: str, tmp_path: Path
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    open_it = ("--chat", "friends")
    async with serving_all(database_url, nats_url) as first:
        ann, bob = [await first.person(name) for name in ("ann", "bob")]
        await group(ann, bob, slug="friends")
    async with projecting(database_url, nats_url), AsyncExitStack() as stack:
        async with process.running(database_url, nats_url, port=port) as api:
            a, b = [
                await stack.enter_async_context(chatting(url, name, *open_it, directory=tmp_path))
                for name in ("ann", "bob")
            ]
            await b.sees("Friends (friends)")
            await a.type("Before", *BURST)
            await b.sees(BURST[2])
            api.process.kill()
            await api.process.wait()
        await a.type("Typed", "while it")
        await b.type("was away")
        await b.sees("* connection lost")
        async with process.running(database_url, nats_url, port=port) as api:
            await a.sees("bob: was away")
            await b.sees("ann: while it")
            api.process.terminate()
            await api.process.wait()
        await b.sees("* connection lost (the server restarts)")
        # As after a restored log: nobody can resume, all state is read again.
        async with connected_to(database_url) as connection:
            await connection.execute(NEW_EPOCH)
        await a.type("In a new time")
        async with process.running(database_url, nats_url, port=port) as api:
            await b.sees("ann: In a new time")
            await b.type("It is the same")
            await a.sees("bob: It is the same")
            await b.sees("bob: It is the same")
            _agree(a, b, "Before", *BURST, "Typed", "while it", "In a new time")
            assert [await one.ends() for one in (a, b)] == [0, 0]


def _agree(a: Chatting, b: Chatting, *of_ann: str) -> None:
    """Both screens have the same, in one order, and what Ann said in hers."""
    assert a.messages() == b.messages()
    assert [line for line in a.messages() if line.startswith("ann")] == [
        f"ann: {text}" for text in of_ann
    ]


async def test_a_message_whose_answer_is_lost_is_sent_once_and_one_that_is_lost_is_sent(
    whole_api: Api, people: People, tmp_path: Path
) -> None:
    ann, bob, _ = people
    chat_id = await group(ann, bob, slug="friends")
    async with (
        bad_line(whole_api.url, before=b'"op":"result"') as line,
        chatting(line.url, "ann", "--chat", "friends", directory=tmp_path) as a,
    ):
        await a.sees("Friends (friends)")
        await a.type("Once")
        await a.sees("* connected again")
        await a.sees("ann: Once")
        line.deaf = True
        await a.type("Twice")
        await a.sees("* connected again", times=2)
        await a.sees("ann: Twice")
        assert await a.ends() == 0
        assert a.messages() == ["ann: Once", "ann: Twice"]
    await projected(whole_api.parts.settings.database_url)
    history = await ann.see(f"/v1/chats/{chat_id}/messages")
    assert [one["content"] for one in history["items"]] == ["Twice", "Once"]


async def test_a_script_may_say_all_it_has_at_once(
    whole_api: Api, people: People, tmp_path: Path
) -> None:
    ann, bob, _ = people
    await befriend(ann, bob)
    async with chatting(whole_api.url, "ann", "--chat", "bob", directory=tmp_path) as a:
        await a.type("One", "Two", "/edit 2 Zwei", "/delete 1", "Three", "/quit", "Four")
        assert await a.ended() == 0
        assert a.messages() == ["ann: One", "ann: Two", "ann: Three"]
    await projected(whole_api.parts.settings.database_url)
    chat_id = (await bob.see("/v1/chats"))["items"][0]["id"]
    history = await bob.see(f"/v1/chats/{chat_id}/messages")
    said = [one["content"] for one in history["items"]]
    assert said == ["Three", "Zwei", "[Deleted]"]


async def test_a_chat_outlives_its_first_token(
    database_url: str, nats_url: str, tmp_path: Path
) -> None:
    async with serving_all(database_url, nats_url, access_token_seconds=LIFE_SECONDS) as api:
        for name in ("ann", "bob"):
            await api.register(name)
        async with (
            bad_line(api.url, before=b"contact_requested") as line,
            chatting(line.url, "ann", directory=tmp_path) as a,
        ):
            await a.sees("* no chats yet")
            await asyncio.sleep(LIFE_SECONDS + 0.5)
            await a.type("/contact bob")
            await a.sees("* bob is asked to be your contact")
            await a.sees("* connected again")
            assert await a.ends() == 0


@pytest.mark.parametrize(
    ("reason", "low", "high"),
    [
        ('{"reconnect_ms":1500}', 1.5, 1.5),
        ('{"reconnect_ms":-5}', 0, 0),
        ('{"reconnect_ms":99999999}', PAUSE_MAX_SECONDS, PAUSE_MAX_SECONDS),
        ('{"reconnect_ms":"soon"}', 0, 1),
        ("[1]", 0, 1),
        ("bye", 0, 1),
        ("", 0, 1),
    ],
)
def test_a_server_that_restarts_says_when_to_come_back(
    reason: str, low: float, high: float
) -> None:
    assert low <= return_seconds(reason) <= high


def test_the_pauses_between_attempts_grow_to_a_limit() -> None:
    pauses = [backoff(attempt) for attempt in range(40)]
    assert max(pauses[:2]) < min(pauses[8:]) <= max(pauses) <= PAUSE_MAX_SECONDS
    assert (retry_after("3", 0.5), retry_after(None, 0.5), retry_after("soon", 0.5)) == (
        3,
        0.5,
        0.5,
    )
    assert retry_after("3600", 0.5) == PAUSE_MAX_SECONDS


async def test_on_a_terminal_the_whole_screen_is_used_and_given_back(
    whole_api: Api, people: People
) -> None:
    ann, bob, _ = people
    chat_id = await group(ann, bob, slug="friends")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (12, 60))
    before = termios.tcgetattr(theirs)
    chat = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "api.cli", "chat", "--url", whole_api.url),
        *("--user", "ann", "--chat", "friends"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm"},
    )
    try:
        drawn = Drawn(ours)
        await drawn.shows("Password: ")
        os.write(ours, f"{PASSWORD}\r".encode())
        await drawn.shows("others online")
        os.write(ours, "Grüx\x7fße".encode())
        await drawn.shows("> Grüße")
        os.write(ours, b"\r")
        await drawn.shows("ann: Grüße (sent)")
        await bob.do("mark-read", chat_id=chat_id)
        await drawn.shows("ann: Grüße (read)")
        os.write(ours, b"/quit\r")
        async with asyncio.timeout(WAIT_SECONDS):
            assert await chat.wait() == 0
        assert termios.tcgetattr(theirs) == before
        assert PASSWORD not in drawn.text
    finally:
        if chat.returncode is None:
            chat.kill()
        drawn.close()
        os.close(theirs)
        os.close(ours)


class Drawn:
    """What a terminal was sent: without colours, and all screens one after the other."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._bytes = b""
        self._more = asyncio.Event()
        asyncio.get_running_loop().add_reader(descriptor, self._read)

    @property
    def text(self) -> str:
        return COLOUR.sub("", self._bytes.decode(errors="replace"))

    async def shows(self, text: str) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT_SECONDS):
                while text not in self.text:
                    self._more.clear()
                    await self._more.wait()
        assert text in self.text

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)

    def _read(self) -> None:
        self._bytes += os.read(self._descriptor, 65_536)
        self._more.set()


async def test_what_can_not_be_is_said_in_one_line(
    whole_api: Api, people: People, tmp_path: Path
) -> None:
    url = whole_api.url
    nobody = f"http://127.0.0.1:{free_port()}"
    for address, arguments, password, says in (
        (url, [], "wrong password", "messenger: the username or the password is wrong\n"),
        (url, ["--chat", "nowhere"], PASSWORD, "messenger: there is no chat nowhere\n"),
        (nobody, [], PASSWORD, f"messenger: {nobody} does not answer: "),
        (f"{url}/x", [], PASSWORD, "messenger: there is nothing here\n"),
    ):
        async with chatting(address, "ann", *arguments, directory=tmp_path, password=password) as a:
            complaint = await a.complaint()
            assert complaint.startswith(says)
            assert complaint.count("\n") == 1
            assert (await a.ended(), a.lines) == (1, [])


@pytest.mark.parametrize("url", ["nonsense", "ftp://host", "http://", "http://host:x", "http://["])
def test_an_address_that_is_none_is_a_wrong_command_line(url: str) -> None:
    given = ["chat", "--url", url, "--user", "ann", "--password-file", "-"]
    result = CliRunner().invoke(messenger, given)
    assert result.exit_code == 2
    assert f"--url {url!r} is not an address" in result.output


async def test_a_session_that_is_ended_elsewhere_ends_the_chat(
    whole_api: Api, people: People, tmp_path: Path
) -> None:
    ann = people[0]
    async with chatting(whole_api.url, "ann", directory=tmp_path) as a:
        await a.sees("* no chats yet")
        listed = (await ann.see("/v1/sessions"))["items"]
        ours = next(one for one in listed if one["device_name"] == "messenger chat")
        await ann.client.delete(f"/v1/sessions/{ours['session_id']}")
        assert await a.complaint() == "messenger: the session has ended: log in again\n"
        assert await a.ended() == 1
