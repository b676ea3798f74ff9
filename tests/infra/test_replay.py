"""Replay and verify: rebuilt beside the live tables, swapped whole, compared row by row."""

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from api.read_models import ReadModels, Snapshot
from commands.add_reaction import AddReaction
from commands.mark_delivered import MarkDelivered
from commands.mark_read import MarkRead
from commands.remove_member import RemoveMember
from commands.request_contact import RequestContact
from commands.send_message import SendMessage
from commands.update_profile import UpdateProfile
from commands.upload_attachment import StoredImage, UploadAttachment
from domain.ids import AttachmentId, ChatId, MessageId, UserId
from infra import (
    clock,
    copies,
    database,
    event_log,
    migrate,
    pipelined,
    rebuild,
    replay,
    tables,
    verify,
)
from infra.bus import Bus
from infra.errors import Unavailable
from infra.executor import Request
from infra.objects import Objects
from infra.projector import Poisoned
from projections import BY_NAME, NAMES, PROJECTIONS
from projections.projection import Projection
from tests import model
from tests.api.served import settings
from tests.commands.history import uploaded
from tests.infra import daemons, machines
from tests.infra.daemons import (
    check,
    check_rows,
    connected,
    copied,
    keyring,
    named_too_long,
    opened_log,
    projected,
    projecting,
    relaying,
    tasks,
    until,
)
from tests.infra.killed import LONG_STATEMENT, NOWHERE, PLACES
from tests.infra.machines import Machine, answer

ROOT = Path(__file__).parents[2]
KILLS = 3
STATEMENT_KILLS = 14
STATEMENTS = 60  # some more than a short replay sends
POOL_SIZE = 8
READERS = 4
SWAPS = 6
EXIT_SECONDS = 60.0
SWAP_TABLES_SECONDS = 2 * replay.SWAP_TABLES_TIMEOUT_MS / 1_000

COUNT_SENT = """
    SELECT count(*) AS count
    FROM messages
    WHERE content_type <> 'system'
"""

COUNT_SENT_IN_LOG = """
    SELECT position
    FROM event_log
    WHERE type = 'message_sent'
    ORDER BY position
"""

WAITED_FOR = """
    SELECT EXISTS (
        SELECT
        FROM pg_locks
        WHERE relation = to_regclass('public.' || %s) AND NOT granted
    )
"""

SCHEMAS = """
    SELECT nspname
    FROM pg_namespace
    WHERE nspname LIKE 'rebuild%' OR nspname LIKE 'aside%' OR nspname LIKE 'verify%' OR nspname LIKE '%building'
"""


@pytest.fixture
async def machine(database_url: str) -> AsyncIterator[Machine]:
    async with machines.running(database_url) as machine:
        yield machine


class Crowd:
    """A history with something in every table."""

    def __init__(self, machine: Machine, people: list[UserId], chat_id: ChatId) -> None:
        self.machine = machine
        self.people = people
        self.chat_id = chat_id

    async def send(self, content: str = "hello") -> MessageId:
        sender = self.people[len(content) % 2]
        done = await self.machine.run(SendMessage(chat_id=self.chat_id, content=content), sender)
        return MessageId(answer(done)["message_id"])

    async def talk(self, messages: int) -> None:
        first, second, third, *_ = self.people
        for number in range(messages):
            message_id = await self.send("x" * (1 + number))
            if number % 4 == 0:
                mark = MarkDelivered(chat_id=self.chat_id, up_to_message_id=message_id)
                await self.machine.run(mark, third)
            if number % 6 == 0:
                await self.machine.run(MarkRead(chat_id=self.chat_id), first)
        await self.machine.run(UpdateProfile(display_name=f"after {messages}"), second)

    async def show(self) -> None:
        """One of two images, in a message."""
        message_id, sender = MessageId(clock.new_id()), self.people[0]
        ids = [AttachmentId(clock.new_id()) for _ in range(2)]
        for one in ids:
            fields = {name: getattr(uploaded(1), name) for name in StoredImage.__struct_fields__}
            image = StoredImage(**fields | {"attachment_id": one})
            upload = UploadAttachment(chat_id=self.chat_id, message_id=message_id, image=image)
            await self.machine.run(upload, sender)
        send = SendMessage(
            chat_id=self.chat_id, content="", message_id=message_id, attachment_ids=ids[:1]
        )
        await self.machine.run(send, sender)


@pytest.fixture
async def crowd(machine: Machine) -> Crowd:
    people = await machine.people(5)
    crowd = Crowd(machine, people, await machine.group(*people[:4]))
    await crowd.talk(12)
    await machine.run(RemoveMember(chat_id=crowd.chat_id, user_id=people[3]), people[0])
    await machine.add(people[0], crowd.chat_id, people[4])
    await crowd.talk(6)
    await machine.run(RequestContact(user_id=people[1]), people[0])
    sent = SendMessage(chat_id=crowd.chat_id, content="liked")
    message_id = answer(await machine.run(sent, people[0]))["message_id"]
    await machine.run(AddReaction(message_id=message_id, emoji="👍"), people[1])
    await crowd.show()
    return crowd


async def up_to(
    url: str, position: int, progress: rebuild.Progress = lambda *_: None
) -> replay.Past:
    """The messages as of then."""
    async with keyring(url) as keys:
        return await replay.as_of(
            BY_NAME["messages"],
            url=url,
            keyring=keys,
            until=position,
            schema="past",
            progress=progress,
        )


async def replayed(url: str, projection: Projection, progress: Any = lambda *_: None) -> Any:
    async with keyring(url) as keys:
        return await replay.replay(projection, url=url, keyring=keys, progress=progress)


async def verdict_of(url: str, name: str) -> verify.Verdict:
    async with keyring(url) as keys:
        return await verify.verify(BY_NAME[name], url=url, keyring=keys, progress=lambda *_: None)


async def schemas(url: str) -> list[str]:
    async with connected(url) as connection:
        return [row[0] for row in await (await connection.execute(SCHEMAS)).fetchall()]


async def command(url: str, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `messenger …`."""
    process = await spawned(url, *arguments)
    out, errors = await asyncio.wait_for(process.communicate(), EXIT_SECONDS)
    return process.returncode or 0, out.decode(), errors.decode()


async def spawned(url: str, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "api.cli", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={
            **os.environ,
            "MESSENGER_DATABASE_URL": url,
            "MESSENGER_SECRET": machines.SECRET_TEXT,
        },
    )


# ----------------------------------------------------------------------------------- swapping


async def test_a_replay_gives_the_same_rows_and_the_shape_of_the_migrations(
    database_url: str, nats_url: str, crowd: Crowd
) -> None:
    async with projecting(database_url, nats_url):
        await projected(database_url)
    for projection in PROJECTIONS:
        swap = await replayed(database_url, projection)
        assert swap.position == await _head(database_url)
    await check_rows(database_url)
    migrate.check(database_url)
    assert await schemas(database_url) == []


async def _head(url: str) -> int:
    async with connected(url) as connection:
        return (await event_log.head(connection)).position


async def test_a_replay_makes_the_read_models_of_a_log_that_was_never_projected(
    database_url: str, crowd: Crowd
) -> None:
    for projection in PROJECTIONS:
        await replayed(database_url, projection)
    await check_rows(database_url)


async def test_the_tables_that_were_live_are_kept_until_they_are_dropped(
    database_url: str, nats_url: str, crowd: Crowd
) -> None:
    async with projecting(database_url, nats_url):
        await projected(database_url)
    await replayed(database_url, BY_NAME["messages"])
    async with connected(database_url) as connection:
        live = await model._rows(connection, "public", "messages")
        assert await model._rows(connection, "retired_messages", "messages") == live
        await replay.drop_retired(BY_NAME["messages"], connection)
        retired = "SELECT to_regnamespace('retired_messages')"
        assert await (await connection.execute(retired)).fetchone() == (None,)
    await check_rows(database_url)


async def test_daemons_go_on_over_swaps_under_load(
    database_url: str, nats_url: str, crowd: Crowd
) -> None:
    """Live daemons, steady commands, every projection swapped again and again."""

    async def talk() -> None:
        while True:
            await crowd.talk(5)

    async with relaying(database_url, nats_url), projecting(database_url, nats_url):
        async with tasks(talk()):
            for _ in range(2):
                for projection in PROJECTIONS:
                    await replayed(database_url, projection)
        await projected(database_url)
        await copied(database_url, nats_url)
    await check(database_url, nats_url)


async def test_new_months_come_after_a_swap(database_url: str, nats_url: str, crowd: Crowd) -> None:
    """What the live daemon knows of partitions holds for the tables that were swapped in."""
    async with projecting(database_url, nats_url):
        await projected(database_url)
        await replayed(database_url, BY_NAME["messages"])
        for year in (2003, 2031):
            await _send_in(crowd, year)
            await projected(database_url)
    await check_rows(database_url)


async def _send_in(crowd: Crowd, year: int) -> None:
    send = SendMessage(chat_id=crowd.chat_id, content=f"in {year}")
    now = clock.now().replace(year=year, day=1)
    await crowd.machine.executor.execute(Request(send, crowd.people[0], now=now))


async def test_no_reader_sees_less_than_its_position_says(
    database_url: str, nats_url: str, crowd: Crowd
) -> None:
    """While the tables under the readers are exchanged, with more rows each time."""
    seen: list[tuple[int, int]] = []

    async def read(models: ReadModels) -> None:
        async def count(snapshot: Snapshot) -> int:
            # Long enough for a swap to come between the snapshot and what is read in it.
            await asyncio.sleep(random.uniform(0, 0.02))
            row = await snapshot.row(COUNT_SENT, {})
            return 0 if row is None else row["count"]

        while True:
            found, position = await models.read(("messages",), 0, count)
            seen.append((position, found))

    async def talk() -> None:
        while True:
            await crowd.send()

    async with (
        database.pool(database_url, name="test", size=1) as log_pool,
        pipelined.pool(database_url, name="test read", size=POOL_SIZE) as pool,
        Bus(nats_url, name="test") as bus,
        Objects(settings(database_url, nats_url)) as objects,
        ReadModels(pool, log_pool, bus, objects, wait_seconds=5) as models,
        projecting(database_url, nats_url),
    ):
        await projected(database_url)
        async with tasks(talk(), *(read(models) for _ in range(READERS))):
            for _ in range(SWAPS):
                await replayed(database_url, BY_NAME["messages"])
        await projected(database_url)
    async with connected(database_url) as connection:
        rows = await (await connection.execute(COUNT_SENT_IN_LOG)).fetchall()
    sent = [position for (position,) in rows]
    assert len(seen) > READERS * SWAPS
    for position, found in seen:
        assert found == sum(1 for one in sent if one <= position), f"as of {position}"


async def test_a_reader_that_stays_is_not_broken_and_the_swap_comes_through(
    database_url: str, nats_url: str, crowd: Crowd
) -> None:
    async with projecting(database_url, nats_url):
        await projected(database_url)
        async with connected(database_url) as reader, connected(database_url) as looking:
            await reader.execute("BEGIN")
            await reader.execute(COUNT_SENT)
            swapping = asyncio.create_task(replayed(database_url, BY_NAME["messages"]))
            for _ in range(3):
                await until(partial(_is_waited_for, looking, "messages"), "the swap waits")
                await asyncio.sleep(SWAP_TABLES_SECONDS)
            assert not swapping.done()
            await reader.execute(COUNT_SENT)
            await reader.execute("COMMIT")
        await swapping
        await crowd.talk(3)
        await projected(database_url)
    await check_rows(database_url)


async def test_a_swap_that_waits_for_a_reader_keeps_no_other_table_from_it(
    database_url: str, nats_url: str, crowd: Crowd
) -> None:
    """Else the two would wait for each other, until the swap gave up."""
    async with projecting(database_url, nats_url):
        await projected(database_url)
    for projection in PROJECTIONS:
        async with connected(database_url) as reader:
            await reader.execute("BEGIN")
            first = tables.TAKEN_FIRST[projection.name]
            await reader.execute(f"LOCK TABLE ONLY {first} IN ACCESS SHARE MODE".encode())
            await reader.execute("SET LOCAL lock_timeout = 1")
            swapping = asyncio.create_task(replayed(database_url, projection))
            await until(partial(_is_waited_for, reader, first), f"the swap waits for {first}")
            for table in daemons.table_names(projection):
                await reader.execute(f"SELECT count(*) FROM {table}".encode())
            await reader.execute("COMMIT")
        await swapping
    await check_rows(database_url)


async def _is_waited_for(connection: database.Connection, table: str) -> bool:
    row = await (await connection.execute(WAITED_FOR, (table,))).fetchone()
    return row == (True,)


# ------------------------------------------------------------------------------- interrupted


async def test_killed_at_any_moment_and_started_again_it_comes_to_the_same_rows(
    database_url: str, nats_url: str, crowd: Crowd
) -> None:
    chance = random.Random(7)
    async with relaying(database_url, nats_url), projecting(database_url, nats_url):
        for _ in range(KILLS):
            process = await spawned(database_url, "replay", "--all")
            await asyncio.sleep(chance.uniform(0.3, 1.6))
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
            await process.communicate()
            await crowd.talk(3)
        code, out, said = await command(database_url, "replay", "--all")
        assert code == 0, said
        assert [line.partition(":")[0] for line in out.splitlines()] == list(NAMES)
        await projected(database_url)
        await copied(database_url, nats_url)
    await check(database_url, nats_url)
    assert await schemas(database_url) == []


class Killer:
    """Runs replays that are killed where they are told to be."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def replay(self, name: str, place: str = NOWHERE, number: int = 1) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{name} {number} {place}\n".encode())
        return int(await asyncio.wait_for(self._process.stdout.readline(), EXIT_SECONDS))


@asynccontextmanager
async def killing(url: str) -> AsyncIterator[Killer]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.infra.killed"),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "MESSENGER_DATABASE_URL": url},
    )
    try:
        yield Killer(process)
    finally:
        await asyncio.wait_for(process.communicate(b""), EXIT_SECONDS)  # which closes its stdin


async def test_killed_at_each_place_and_started_again_it_goes_on_and_ends_right(
    database_url: str, nats_url: str, crowd: Crowd
) -> None:
    chance = random.Random(11)
    async with projecting(database_url, nats_url), killing(database_url) as killer:
        for place in PLACES:
            name = chance.choice(["messages", "unread", "users"])
            assert await killer.replay(name, place) == -signal.SIGKILL, place
            await crowd.talk(1)
            # What is live is whole, and whoever begins again comes to the end.
            assert (await verdict_of(database_url, name)).differing == 0, place
            assert await killer.replay(name) == 0, place
        await projected(database_url)
    await check_rows(database_url)
    assert await schemas(database_url) == []


async def test_killed_at_any_statement_again_and_again_it_ends_right(
    database_url: str, nats_url: str, crowd: Crowd
) -> None:
    """Each run goes on with what those before it left, however far they came."""
    chance, ends = random.Random(5), Counter[int]()
    async with projecting(database_url, nats_url), killing(database_url) as killer:
        for _ in range(STATEMENT_KILLS):
            name, number = chance.choice(NAMES), chance.randrange(1, STATEMENTS)
            ends[await killer.replay(name, "at a statement", number)] += 1
            await crowd.talk(1)
        # Some came through: they had sent fewer.
        assert set(ends) <= {-signal.SIGKILL, 0}
        assert ends[-signal.SIGKILL] > STATEMENT_KILLS / 2
        await projected(database_url)
        await check_rows(database_url)
        for name in NAMES:
            assert await killer.replay(name) == 0
        await projected(database_url)
    await check_rows(database_url)
    assert await schemas(database_url) == []


async def test_what_a_killed_one_left_in_the_middle_of_a_statement_ends_soon(
    database_url: str, crowd: Crowd
) -> None:
    """Its backend would write on, or hold its locks, and nobody could go on meanwhile."""
    async with killing(database_url) as killer:
        assert await killer.replay("users", LONG_STATEMENT) == -signal.SIGKILL
        assert await killer.replay("users") == 0
    assert await schemas(database_url) == []


async def test_two_at_once_take_turns(
    database_url: str, crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = BY_NAME["users"]
    async with keyring(database_url) as keys:
        quiet: Any = {"url": database_url, "keyring": keys, "progress": lambda *_: None}
        async with replay.built(users, **quiet):
            with monkeypatch.context() as patch:
                patch.setattr(rebuild, "TURN_TIMEOUT_MS", 100)
                message = "another process is at work in rebuild_users"
                with pytest.raises(Unavailable, match=message):
                    await replay.replay(users, **quiet)
            await replay.replay(BY_NAME["chats"], **quiet)
        await replay.replay(users, **quiet)


async def test_it_goes_on_where_it_was(
    database_url: str, crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild, "MAX_BATCH_EVENTS", 7)

    class BrokenOff(Exception):
        pass

    def break_off(position: int, _: int) -> None:
        if position >= 21:
            raise BrokenOff

    with pytest.raises(BrokenOff):
        await replayed(database_url, BY_NAME["delivery"], break_off)
    reached: list[int] = []
    await replayed(database_url, BY_NAME["delivery"], lambda position, _: reached.append(position))
    assert reached[0] == 28


async def test_broken_off_right_after_the_swap_the_next_one_begins_anew(
    database_url: str, nats_url: str, crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was swapped in is not in the rebuild's schema any more."""

    class BrokenOff(Exception):
        pass

    async def break_off(*_: Any, **__: Any) -> None:
        raise BrokenOff

    with monkeypatch.context() as killing:
        killing.setattr(copies, "forget_since", break_off)
        with pytest.raises(BrokenOff):
            await replayed(database_url, BY_NAME["messages"])
        with pytest.raises(BrokenOff):
            await up_to(database_url, 20)
    assert await schemas(database_url) == []
    await crowd.talk(3)
    await replayed(database_url, BY_NAME["messages"])
    assert (await up_to(database_url, 25)).position == 25
    async with relaying(database_url, nats_url), projecting(database_url, nats_url):
        await projected(database_url)
        await copied(database_url, nats_url)
    await check(database_url, nats_url)


async def test_a_bad_event_stops_a_rebuild_by_name(
    database_url: str, nats_url: str, crowd: Crowd
) -> None:
    """The same policy as live: never a silent skip."""
    async with keyring(database_url) as keys:
        outcome = await crowd.machine.appender.append(await named_too_long(keys))
    with pytest.raises(Poisoned, match=f"event {outcome.position} .user_registered.: value too"):
        await replayed(database_url, BY_NAME["users"])
    code, _, errors = await command(database_url, "replay", "users")
    assert code == 1
    assert f"messenger: event {outcome.position} (user_registered): value too long" in errors


# ------------------------------------------------------------------------------------- until


async def test_the_state_as_of_every_position_is_the_fold_up_to_it(
    database_url: str, crowd: Crowd
) -> None:
    async with keyring(database_url) as keys, connected(database_url) as connection:
        events = await opened_log(connection, keys)
        for until in (len(events), 1, 9, 23, 0):
            for projection in PROJECTIONS:
                past = await replay.as_of(
                    projection,
                    url=database_url,
                    keyring=keys,
                    until=until,
                    schema="past",
                    progress=lambda *_: None,
                )
                assert past == (until, [])
            found = await model.live_rows(connection, schema="past")
            model.assert_same(model.fold(events[:until]), found)
    assert await schemas(database_url) == []


async def test_a_longer_one_broken_off_does_not_lengthen_the_next(
    database_url: str, crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild, "MAX_BATCH_EVENTS", 7)

    class BrokenOff(Exception):
        pass

    def break_off(position: int, _: int) -> None:
        if position >= 14:
            raise BrokenOff

    with pytest.raises(BrokenOff):
        await up_to(database_url, 30, break_off)
    assert (await up_to(database_url, 10)).position == 10


async def test_until_a_time_is_until_the_last_event_by_then(
    database_url: str, crowd: Crowd
) -> None:
    async with keyring(database_url) as keys, connected(database_url) as connection:
        events = await opened_log(connection, keys)
        time = events[14].recorded_at
        before = time - timedelta(microseconds=1)
        for until, count in ((time, 15), (before, 14)):
            code, out, _ = await command(
                database_url, "replay", "chats", "--until", until.isoformat(), "--into", "past"
            )
            assert (code, out) == (0, f"chats: as of {count} in schema past\n")
            found = await model._rows(connection, "past", "chat_participants")
            assert found == model.fold(events[:count])["chat_participants"]


# ------------------------------------------------------------------------------------ verify

# Table: what changes a row, what takes one away, what adds one.
TAMPER: dict[str, tuple[str, str, str]] = {
    "users": (
        "UPDATE users SET display_name = 'Mallory' WHERE username = 'user_1'",
        "DELETE FROM users WHERE username = 'user_1'",
        """
            INSERT INTO users SELECT gen_random_uuid(), 'mallory', password_hash,
            display_name, avatar_url, status, last_seen, created_at, updated_at FROM users
            LIMIT 1
        """,
    ),
    "chats": (
        "UPDATE chats SET last_message_at = last_message_at - interval '1 microsecond'",
        "DELETE FROM chats",
        """
            INSERT INTO chats (id, type, name, created_at, updated_at) VALUES
            (gen_random_uuid(), 'group', 'x', now(), now())
        """,
    ),
    "chat_participants": (
        "UPDATE chat_participants SET role = 'admin' WHERE role = 'owner'",
        "DELETE FROM chat_participants WHERE role = 'owner'",
        """
            INSERT INTO chat_participants (chat_id, user_id, joined_at) SELECT id,
            gen_random_uuid(), now() FROM chats
        """,
    ),
    "messages": (
        "UPDATE messages SET content = content || '.' WHERE seq = 3",
        "DELETE FROM messages WHERE seq = 3",
        """
            INSERT INTO messages (id, chat_id, content, created_at, seq, position) SELECT
            gen_random_uuid(), chat_id, 'x', created_at, 1000, 1000 FROM messages LIMIT 1
        """,
    ),
    "attachments": (
        "UPDATE attachments SET ordinal = 1 - coalesce(ordinal, 0)",
        "DELETE FROM attachments WHERE ordinal IS NULL",
        """
            INSERT INTO attachments (id, message_id, file_name, file_type, file_size,
            storage_key, thumbnail_key, url, thumbnail_url, created_at, chat_id, sender_id,
            medium_key) SELECT gen_random_uuid(), message_id, file_name, file_type,
            file_size, storage_key, thumbnail_key, url, thumbnail_url, created_at, chat_id,
            sender_id, medium_key FROM attachments
        """,
    ),
    "message_places": (
        "UPDATE message_places SET seq = 1000 WHERE seq = 3",
        "DELETE FROM message_places WHERE seq = 3",
        "INSERT INTO message_places VALUES (gen_random_uuid(), gen_random_uuid(), now(), 1)",
    ),
    "chat_sequences": (
        "UPDATE chat_sequences SET last_seq = last_seq + 1",
        "DELETE FROM chat_sequences",
        "INSERT INTO chat_sequences VALUES (gen_random_uuid(), 1, gen_random_uuid())",
    ),
    "contacts": (
        "UPDATE contacts SET accepted_at = created_at",
        "DELETE FROM contacts",
        """
            INSERT INTO contacts (user_id, contact_id, status, requested_by, created_at) SELECT
            contact_id, gen_random_uuid(), 'pending', contact_id, created_at FROM contacts
        """,
    ),
    "message_reactions": (
        "UPDATE message_reactions SET created_at = created_at - interval '1 second'",
        "DELETE FROM message_reactions",
        """
            INSERT INTO message_reactions (message_id, user_id, emoji, created_at) SELECT
            message_id, user_id, '👎', created_at FROM message_reactions
        """,
    ),
    "message_search": (
        "UPDATE message_search SET words = words || 'more'",
        "DELETE FROM message_search",
        """
            INSERT INTO message_search (message_id, chat_id, position, words) SELECT
            gen_random_uuid(), chat_id, 1000, words FROM message_search LIMIT 1
        """,
    ),
    "message_delivery": (
        """
            UPDATE message_delivery SET read_at = read_at + interval '1 microsecond' WHERE
            position = (SELECT min(position) FROM message_delivery WHERE read_at IS NOT
            NULL)
        """,
        """
            DELETE FROM message_delivery WHERE position = (SELECT min(position) FROM
            message_delivery)
        """,
        """
            INSERT INTO message_delivery (message_id, user_id, created_at, chat_id,
            position) SELECT message_id, gen_random_uuid(), created_at, chat_id, position
            FROM message_delivery LIMIT 1
        """,
    ),
    "delivery_members": (
        "UPDATE delivery_members SET left_position = 1000",
        "DELETE FROM delivery_members",
        """
            INSERT INTO delivery_members SELECT chat_id, gen_random_uuid(), 1 FROM
            delivery_members LIMIT 1
        """,
    ),
    "unread_messages": (
        "UPDATE unread_messages SET created_at = created_at + interval '1 microsecond'",
        "DELETE FROM unread_messages",
        """
            INSERT INTO unread_messages (user_id, chat_id, message_id, created_at,
            position) VALUES (gen_random_uuid(), gen_random_uuid(), gen_random_uuid(),
            now(), 1)
        """,
    ),
    "unread_counts": (
        "UPDATE unread_counts SET count = count + 1",
        "DELETE FROM unread_counts",
        "INSERT INTO unread_counts VALUES (gen_random_uuid(), gen_random_uuid(), 1)",
    ),
    "unread_members": (
        "UPDATE unread_members SET joined_position = joined_position + 1",
        "DELETE FROM unread_members",
        """
            INSERT INTO unread_members SELECT chat_id, gen_random_uuid(), 1 FROM
            unread_members LIMIT 1
        """,
    ),
}


def test_every_table_of_a_read_model_is_tampered_with() -> None:
    assert set(TAMPER) == {
        name for projection in PROJECTIONS for name in daemons.table_names(projection)
    }


@pytest.mark.parametrize("table", TAMPER)
async def test_verify_finds_a_changed_a_missing_and_an_extra_row(
    database_url: str, nats_url: str, crowd: Crowd, table: str
) -> None:
    name = next(p.name for p in PROJECTIONS if table in daemons.table_names(p))
    async with projecting(database_url, nats_url):
        await projected(database_url)
    assert (await verdict_of(database_url, name)).differing == 0
    for kind, statement in zip(("changed", "missing", "extra"), TAMPER[table], strict=True):
        async with connected(database_url) as connection:
            changed = (await connection.execute(statement.encode())).rowcount
            assert changed > 0
        verdict = await verdict_of(database_url, name)
        assert verdict.differing > 0, kind
        assert {difference.table for difference in verdict.shown} == {table}
        shown = [_kind(difference) for difference in verdict.shown]
        assert kind in shown
        await replayed(database_url, BY_NAME[name])
        assert (await verdict_of(database_url, name)).differing == 0, "a replay mends it"


def _kind(difference: verify.Difference) -> str:
    if difference.live is None:
        return "missing"
    return "extra" if difference.rebuilt is None else "changed"


async def test_verify_exits_1_and_shows_both_rows(
    database_url: str, nats_url: str, crowd: Crowd
) -> None:
    async with projecting(database_url, nats_url):
        await projected(database_url)
    code, out, _ = await command(database_url, "verify")
    assert (code, len(out.splitlines())) == (0, len(NAMES))
    async with connected(database_url) as connection:
        await connection.execute("UPDATE users SET display_name = 'Mallory'")
    code, out, _ = await command(database_url, "verify", "users", "chats")
    assert code == 1
    live = next(line for line in out.splitlines() if line.startswith("    live"))
    rebuilt = next(line for line in out.splitlines() if line.startswith("    rebuilt"))
    assert msgspec.json.decode(live.split(maxsplit=1)[1])["display_name"] == "Mallory"
    assert msgspec.json.decode(rebuilt.split(maxsplit=1)[1])["display_name"] != "Mallory"


async def test_verify_is_clean_under_load_and_swaps(
    database_url: str, nats_url: str, crowd: Crowd
) -> None:
    """At one position, whatever moves on meanwhile."""

    async def talk() -> None:
        while True:
            await crowd.talk(3)

    async def swap() -> None:
        while True:
            await replayed(database_url, BY_NAME["messages"])

    async with projecting(database_url, nats_url), tasks(talk(), swap()):
        for _ in range(6):
            verdict = await verdict_of(database_url, "messages")
            assert verdict.differing == 0, verdict.shown
