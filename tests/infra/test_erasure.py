"""Keys that are destroyed stay so, in every process; and copies of read models forget with them."""

import asyncio
import os
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from psycopg import sql

from commands.delete_account import DeleteAccount
from commands.register_user import RegisterUser
from commands.request_contact import RequestContact
from commands.send_message import SendMessage
from commands.update_profile import UpdateProfile
from domain.chat import GroupUpdated, MemberLeft
from domain.contact import ContactRemoved, Standing
from domain.event import Recorded
from domain.ids import UserId, chat_stream, contact_stream, user_stream
from domain.refusals import Conflict, NotFound, UsernameTaken
from domain.user import AccountDeleted
from infra import clock, codec, copies, erasure, keyring, replay, verify
from infra.bus import Bus
from infra.database import Connection
from infra.embedded import postgres
from infra.erasure import Erasure
from infra.errors import Unavailable
from infra.keyring import KeyId, Keyring
from infra.sessions import EndedSessions, Sessions
from infra.tokens import Tokens
from projections import BY_NAME, PROJECTIONS
from tests.infra import daemons, machines
from tests.infra.daemons import LOGGER, connected, projected, projecting
from tests.infra.machines import PASSWORD, SECRET, Machine, answer, fetch, new_user_id

READABLE = "Zaphira Quux"
SAID = "xylophone"
RACES = 40
README = Path(__file__).parent.parent.parent / "README.md"

KEY_COUNT = """
    SELECT count(*)
    FROM user_keys
    WHERE user_id = %s
"""

CLAIMED = """
    SELECT scope, value
    FROM unique_values
    WHERE value LIKE %s
"""

MANY_CLAIMS = """
    INSERT INTO unique_values (scope, value, holder)
    SELECT 'contact', gen_random_uuid() || '/' || gen_random_uuid(), 'contact'
    FROM generate_series(1, 20000)
"""

TABLES = """
    SELECT n.nspname, c.relname
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND NOT starts_with(n.nspname, 'pg_') AND n.nspname <> 'information_schema'
"""


class Office(NamedTuple):
    """A machine that can end accounts."""

    machine: Machine
    erasure: Erasure
    keyring: Keyring

    async def delete(self, user_id: UserId, *, erase_messages: bool = False) -> None:
        command = DeleteAccount(password=PASSWORD, erase_messages=erase_messages)
        await self.machine.run(command, user_id)
        await self.erasure.finish(user_id)


@asynccontextmanager
async def office(url: str, nats_url: str) -> AsyncIterator[Office]:
    """Its sweep runs only where a test calls it."""
    async with AsyncExitStack() as stack:
        machine = await stack.enter_async_context(machines.running(url))
        bus = await stack.enter_async_context(Bus(nats_url, name="test erasure"))
        ended = EndedSessions(url, machine.pool, bus, access_token_seconds=60)
        await stack.enter_async_context(ended)
        sessions = Sessions(machine.pool, Tokens(SECRET), ended, refresh_token_seconds=60)
        keys = Keyring(SECRET, machine.pool)
        yield Office(machine, Erasure(machine.pool, machine.executor, keys, sessions, LOGGER), keys)


async def dumped(connection: Connection) -> str:
    """All that the database has to say, in lower case."""
    said = []
    for schema, table in await fetch(connection, TABLES):
        rows = await fetch(
            connection,
            sql.SQL("SELECT t::text FROM {} AS t").format(sql.Identifier(schema, table)),
        )
        said += [row[0] or "" for row in rows]
    return "\n".join(said).lower()


async def made(keys: Keyring) -> KeyId:
    user_id = new_user_id()
    await keys.create([user_id])
    return KeyId(user_id, "profile")


@asynccontextmanager
async def keyrings(url: str) -> AsyncIterator[tuple[Keyring, Keyring]]:
    async with daemons.keyring(url) as one, daemons.keyring(url) as two:
        yield one, two


async def test_a_key_destroyed_in_one_process_is_not_used_in_another_after_the_lease(
    database_url: str,
) -> None:
    async with keyrings(database_url) as (one, two):
        key_id = await made(one)
        await two.load([key_id])
        assert two.cipher(key_id) is not None
        await one.destroy(key_id.user_id, ["profile"])
        await asyncio.sleep(keyring.LEASE_SECONDS)
        with pytest.raises(Unavailable):
            two.cipher(key_id)
        await two.load([key_id])
        assert two.cipher(key_id) is None
        content = KeyId(key_id.user_id, "content")
        await two.load([content])
        assert two.cipher(content) is not None


async def test_what_is_fetched_while_it_is_destroyed_is_not_kept(database_url: str) -> None:
    async with keyrings(database_url) as (one, two):
        key_ids = [await made(one) for _ in range(RACES)]
        await asyncio.sleep(keyring.LOOK_SECONDS)
        for key_id in key_ids:
            await asyncio.gather(
                two.load([key_id]), one.destroy(key_id.user_id, ["profile"]), two.load([key_id])
            )
        await asyncio.sleep(keyring.LOOK_SECONDS)
        await two.load(key_ids)
        assert [two.cipher(key_id) for key_id in key_ids] == [None] * RACES


async def test_a_destroyed_key_is_never_made_again(database_url: str) -> None:
    async with keyrings(database_url) as (one, two), connected(database_url) as connection:
        user_id = (await made(one)).user_id
        await one.destroy(user_id, ["profile", "content"])
        await two.create([user_id])
        assert await fetch(connection, KEY_COUNT, user_id) == [(0,)]


async def test_nor_when_it_is_made_while_it_is_destroyed(database_url: str) -> None:
    async with keyrings(database_url) as (one, two), connected(database_url) as connection:
        for _ in range(RACES):
            user_id = new_user_id()
            await one.create([user_id])
            await asyncio.gather(
                *(keys.create([user_id]) for keys in (one, two)),
                one.destroy(user_id, ["profile", "content"]),
                two.create([user_id]),
            )
            assert await fetch(connection, KEY_COUNT, user_id) == [(0,)]


async def test_erasures_are_heard_in_any_order_of_their_ends(database_url: str) -> None:
    async with keyrings(database_url) as (one, two):
        key_ids = [await made(one) for _ in range(RACES)]
        await two.load(key_ids)
        erased = [one.destroy(key_id.user_id, ["profile"]) for key_id in key_ids]
        looks = [_look_again(two) for _ in range(RACES)]
        await asyncio.gather(*(work for pair in zip(erased, looks, strict=True) for work in pair))
        await asyncio.sleep(keyring.LOOK_SECONDS)
        await two.load(key_ids)
        assert [two.cipher(key_id) for key_id in key_ids] == [None] * RACES


async def _look_again(keys: Keyring) -> None:
    keys._looked_at = float("-inf")
    await keys.look()


async def test_the_id_of_a_deleted_user_is_taken_for_ever(database_url: str, nats_url: str) -> None:
    async with office(database_url, nats_url) as here, machines.running(database_url) as other:
        user_id = await here.machine.register("ann")
        await here.delete(user_id, erase_messages=True)
        for machine in (here.machine, other):
            again = RegisterUser(username="ben", password=PASSWORD, user_id=user_id)
            with pytest.raises(Conflict):
                await machine.run(again)
            with pytest.raises(UsernameTaken):
                await machine.register("ann")
        async with connected(database_url) as connection:
            assert await fetch(connection, KEY_COUNT, user_id) == [(0,)]


async def test_a_process_that_knew_the_user_refuses_what_comes_late_and_forgets_them(
    database_url: str, nats_url: str
) -> None:
    async with office(database_url, nats_url) as here, machines.running(database_url) as other:
        ann, ben = await other.people(2)
        chat_id = await other.group(ann, ben)
        sent = await other.run(SendMessage(chat_id=chat_id, content=SAID), ann)
        await here.delete(ann, erase_messages=True)
        assert other.executor.states[user_stream(ann)].state.registration is not None
        with pytest.raises(NotFound):
            await other.run(SendMessage(chat_id=chat_id, content=SAID), ann)
        with pytest.raises(NotFound):
            await other.run(UpdateProfile(display_name="x"), ann)
        assert "registration=None" in repr(other.executor.states[user_stream(ann)].state)
        assert f"message-{answer(sent)['message_id']}" not in other.executor.states


async def test_keys_that_come_back_with_a_backup_open_nothing_and_are_destroyed_again(
    database_url: str, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.erasure.YOUNG_SECONDS", 0.0)
    async with (
        office(database_url, nats_url) as here,
        connected(database_url) as connection,
        daemons.keyring(database_url) as fresh,
    ):
        user_id = await here.machine.register("ann")
        await connection.execute("CREATE TABLE backup AS SELECT * FROM user_keys")
        await here.delete(user_id, erase_messages=True)
        await connection.execute("INSERT INTO user_keys SELECT * FROM backup")
        key_id = KeyId(user_id, "profile")
        await fresh.load([key_id])
        assert fresh.cipher(key_id) is None
        assert await here.erasure.sweep() == 1
        assert await fetch(connection, KEY_COUNT, user_id) == [(0,)]


async def test_the_sweep_finishes_what_was_only_begun_and_leaves_the_rest_alone(
    database_url: str, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with office(database_url, nats_url) as here, connected(database_url) as connection:
        ann, ben, cid = await here.machine.people(3)
        await here.machine.group(ann, ben)
        await here.machine.run(DeleteAccount(password=PASSWORD), ann)
        await here.delete(cid)
        monkeypatch.setattr("infra.erasure.YOUNG_SECONDS", 600.0)
        assert await here.erasure.sweep() == 0, "it is young"
        monkeypatch.setattr("infra.erasure.YOUNG_SECONDS", 0.0)
        assert await here.erasure.sweep() == 1
        assert await here.erasure.sweep() == 0
        assert await fetch(connection, KEY_COUNT, ann) == [(1,)]
        assert await fetch(connection, KEY_COUNT, ben) == [(2,)]
        claims = await fetch(
            connection, "SELECT value FROM unique_values WHERE scope = 'membership'"
        )
        assert [value[:36] for (value,) in claims] == [ben]


async def test_what_can_not_be_read_of_a_group_or_contact_holds_no_erasure_up_and_is_left_later(
    database_url: str, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newer code may have written it; here the same code is taught to read it."""
    monkeypatch.setattr("infra.erasure.YOUNG_SECONDS", 0.0)
    async with office(database_url, nats_url) as here, connected(database_url) as connection:
        ann, ben = await here.machine.people(2)
        newer, usual = [await here.machine.group(ben, ann) for _ in range(2)]
        await here.machine.run(RequestContact(user_id=ben), ann)
        updated = codec.encode(
            GroupUpdated(chat_id=newer, by=ben, name="New", slug="new", avatar_url=None),
            here.keyring,
        )
        removed = codec.encode(
            ContactRemoved(user_id=ben, contact_id=ann, standing=Standing()), here.keyring
        )
        for newest in (
            daemons.written(chat_stream(newer), "group_updated", updated, version=99),
            daemons.written(contact_stream(ann, ben), "contact_removed", removed, version=99),
        ):
            await here.machine.appender.append(newest)
        await here.delete(ann)
        assert await fetch(connection, KEY_COUNT, ann) == [(1,)]
        assert await claims_of(connection, ann) == {("membership", newer), ("contact", ben)}
        assert await here.erasure.sweep() == 0
        for name in ("group_updated", "contact_removed"):
            monkeypatch.setitem(codec._BY_NAME, (name, 99), codec._BY_NAME[name, 1])
        assert await here.erasure.sweep() == 1
        assert await here.erasure.sweep() == 0
        assert await claims_of(connection, ann) == set()
        assert {
            event.stream for event in await machines.events(here.machine, [MemberLeft.type])
        } == {chat_stream(chat_id) for chat_id in (newer, usual)}


async def claims_of(connection: Connection, user_id: UserId) -> set[tuple[str, str]]:
    rows = await fetch(connection, CLAIMED, f"{user_id}/%")
    return {(scope, value.partition("/")[2]) for scope, value in rows}


async def test_a_claim_with_nothing_behind_it_does_not_hold_the_end_up(
    database_url: str, nats_url: str
) -> None:
    async with office(database_url, nats_url) as here, connected(database_url) as connection:
        ann = await here.machine.register("ann")
        await connection.execute(
            "INSERT INTO unique_values VALUES ('membership', %s, 'chat-x')",
            (f"{ann}/{new_user_id()}",),
        )
        await here.delete(ann)
        rest = await fetch(connection, "SELECT scope FROM unique_values WHERE scope <> 'username'")
        assert rest == []


async def test_no_copy_of_a_read_model_keeps_what_was_erased(
    database_url: str, nats_url: str
) -> None:
    async with (
        office(database_url, nats_url) as here,
        connected(database_url) as connection,
        daemons.keyring(database_url) as keys,
    ):
        machine = here.machine
        ann = await machine.register("zebulon", display_name=READABLE)
        ben = await machine.register("ben")
        chat_id = await machine.group(ann, ben)
        sent = await machine.run(SendMessage(chat_id=chat_id, content=SAID), ann)
        quiet: Any = {"url": database_url, "keyring": keys, "progress": lambda *_: None}
        async with projecting(database_url, nats_url):
            await projected(database_url)
        for projection in PROJECTIONS:
            await replay.replay(projection, **quiet)
            await replay.as_of(projection, **quiet, until=sent.position, schema="then")
        before = await dumped(connection)
        assert [before.count(text.lower()) > 2 for text in (READABLE, SAID)] == [True, True]
        await here.delete(ann, erase_messages=True)
        async with projecting(database_url, nats_url):
            await projected(database_url)
        after = await dumped(connection)
        assert [text for text in ("zebulon", READABLE.lower(), "xyloph") if text in after] == []
        assert await copies.schemas(connection, BY_NAME["users"]) == ["retired_users", "then"]
        # Swapped in again, they are as if they had followed the log to the deletion.
        for projection in PROJECTIONS:
            await replay.back(projection, **quiet)
            assert (await verify.verify(projection, **quiet)).differing == 0
        assert SAID not in await dumped(connection)


async def test_tables_put_aside_that_can_not_forget_keep_a_deletion_from_being_done(
    database_url: str, nats_url: str
) -> None:
    """Of another version, that lacks a table or a column of this one's."""
    async with office(database_url, nats_url) as here, connected(database_url) as connection:
        ann = await here.machine.register("zebulon", display_name=READABLE)
        deletion = Recorded(2, clock.now(), AccountDeleted(user_id=ann, erase_messages=True))
        async with daemons.keyring(database_url) as keys:
            for name in ("users", "messages"):
                await replay.replay(
                    BY_NAME[name], url=database_url, keyring=keys, progress=lambda *_: None
                )
        await connection.execute("ALTER TABLE retired_users.users DROP COLUMN status")
        with pytest.raises(Unavailable, match="replay users --drop-retired"):
            await copies.forget(connection, deletion)
        await replay.drop_retired(BY_NAME["users"], connection)
        await connection.execute("DROP TABLE retired_messages.attachments")
        with pytest.raises(Unavailable, match="a replay is in the way"):
            await copies.forget(connection, deletion)
        await replay.drop_retired(BY_NAME["messages"], connection)
        await copies.forget(connection, deletion)


async def test_tables_put_aside_before_they_reached_the_deletion_forget_too(
    database_url: str, nats_url: str
) -> None:
    """The live ones stand still while the account is deleted; then a replay puts them aside."""
    async with (
        office(database_url, nats_url) as here,
        connected(database_url) as connection,
        daemons.keyring(database_url) as keys,
    ):
        ann = await here.machine.register("zebulon", display_name=READABLE)
        async with projecting(database_url, nats_url):
            await projected(database_url)
        await here.delete(ann)
        assert READABLE.lower() in await dumped(connection)
        for projection in PROJECTIONS:
            await replay.replay(
                projection, url=database_url, keyring=keys, progress=lambda *_: None
            )
        assert READABLE.lower() not in await dumped(connection)


async def test_a_restored_log_opens_nothing_without_the_keys(
    database_url: str, nats_url: str
) -> None:
    async with office(database_url, nats_url) as here, connected(database_url) as connection:
        ann = await here.machine.register("zebulon", display_name=READABLE)
        ben = await here.machine.register("ben")
        rows = await fetch(
            connection, "SELECT type, schema_version, data::text FROM event_log ORDER BY position"
        )
        await here.delete(ann)
        async with daemons.keyring(database_url) as keys:
            names = []
            for row in rows:
                event: Any = codec.decode(*row)
                await keys.load(codec.key_ids([event]))
                codec.open_sealed(event, keys)
                names.append((event.user_id, event.username))
        assert names == [(ann, None), (ben, "ben")]


def shell_commands() -> list[str]:
    """What README says about backing up, to be run as it stands there."""
    section = README.read_text().partition("## Backing up")[2]
    block = section.partition("```sh\n")[2].partition("```")[0]
    return [command for command in block.replace("\\\n", "").splitlines() if command[:2] == "pg"]


async def run(command: str, directory: Path, **environ: str) -> None:
    path = f"{postgres._programs()}:{os.environ['PATH']}"
    process = await asyncio.create_subprocess_shell(
        command, cwd=directory, env={**os.environ, **environ, "PATH": path}, stderr=PIPE
    )
    _, said = await process.communicate()
    assert process.returncode == 0, said.decode()


async def test_a_backup_restored_as_the_readme_says_resurrects_nobody(
    database_url: str, empty_database_url: str, nats_url: str, tmp_path: Path
) -> None:
    """Even with keys from before the deletion, if the log knows of it."""
    urls = {
        "MESSENGER_DATABASE_URL": database_url,
        "RESTORED_DATABASE_URL": empty_database_url,
    }
    back_up_log, back_up_keys, restore_log, restore_keys = shell_commands()
    async with office(database_url, nats_url) as here:
        ann = await here.machine.register("zebulon", display_name=READABLE)
        ben = await here.machine.register("ben", display_name="Ben of the Keys")
        chat_id = await here.machine.group(ann, ben)
        await here.machine.run(SendMessage(chat_id=chat_id, content=SAID), ann)
        async with projecting(database_url, nats_url):
            await projected(database_url)
        await run(back_up_keys, tmp_path, **urls)
        await here.delete(ann, erase_messages=True)
        await run(back_up_log, tmp_path, **urls)
    await run(restore_log, tmp_path, **urls)
    async with connected(empty_database_url) as connection:
        said = await dumped(connection)
        assert [text for text in (READABLE, SAID, "Ben of the Keys") if text.lower() in said] == []
        await run(restore_keys, tmp_path, **urls)
        async with office(empty_database_url, nats_url) as there, there.erasure:

            async def is_erased() -> bool:
                return await fetch(connection, KEY_COUNT, ann) == [(0,)]

            await daemons.until(is_erased, "the keys that came back are destroyed again")
        async with daemons.keyring(empty_database_url) as keys:
            for projection in PROJECTIONS:
                await replay.replay(
                    projection, url=empty_database_url, keyring=keys, progress=lambda *_: None
                )
        said = await dumped(connection)
        assert [text for text in (READABLE, SAID) if text.lower() in said] == []
        assert "ben of the keys" in said


async def test_what_the_sweep_and_the_settling_read_is_found_by_indexes(
    database_url: str, nats_url: str
) -> None:
    async with office(database_url, nats_url) as here, connected(database_url) as connection:
        ann = await here.machine.register("ann")
        await connection.execute(MANY_CLAIMS)
        await connection.execute("ANALYZE unique_values")
        arguments: Any = {"scope": "contact", "after": f"{ann}/", "beyond": f"{ann}0", "limit": 50}
        plan = await explained(connection, erasure.CLAIMS, arguments)
        assert "unique_values_pkey" in plan, plan
        assert "Seq Scan" not in plan, plan
        await connection.execute("SET enable_seqscan = off")  # the log is too short to need it
        plan = await explained(connection, erasure.SWEPT, {"young": 3, "after": 0, "limit": 10})
        assert "event_log_deletions" in plan, plan


async def explained(connection: Connection, statement: str, arguments: Any) -> str:
    cursor = await connection.execute(f"EXPLAIN {statement}".encode(), arguments)
    return "\n".join(line for (line,) in await cursor.fetchall())
