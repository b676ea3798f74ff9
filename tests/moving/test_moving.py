"""A log moves into another house with all that belongs to it, and nothing that was erased."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from api import moving
from commands.create_group import CreateGroup
from commands.delete_account import DeleteAccount
from commands.register_user import RegisterUser
from commands.send_message import SendMessage
from domain.refusals import Refusal
from infra import history
from infra.bus import Bus
from infra.embedded.s3 import S3
from infra.errors import BadExport, LogError, MessengerError, Stopped, Unavailable
from infra.moving import export, importing, lines
from infra.objects import Objects
from infra.settings import Settings
from tests import model
from tests.acceptance.client import new_id, picture
from tests.api.served import (
    PASSWORD,
    Api,
    Json,
    Person,
    good,
    problem,
    serving,
    serving_all,
)
from tests.commands.history import chat_id, message_id, user_id
from tests.infra import daemons
from tests.infra.daemons import check_log, connected, projected
from tests.infra.machines import Machine, fetch, new_user_id
from tests.moving.houses import (
    OTHER_SECRET_TEXT,
    chained,
    digests,
    exported,
    house,
    keyring,
    note_skip,
    projecting,
    unchained,
    writing,
)
from tests.projections.test_histories import MORTALS, PEOPLE, Sent, sent

FreshDatabase = Callable[[], AbstractContextManager[str]]

# Each is some 1 s of work.
EXAMPLES = max(5, hypothesis_settings().max_examples // 5)
SMALL_BATCH = 7
COMMAND_SECONDS = 150.0

# Imports with small batches, and is killed when a step is about to be taken for the nth time.
WRITTEN = """
    SELECT
        (SELECT count(*) FROM imports),
        (SELECT count(*) FROM command_keys),
        (SELECT count(*) FROM unique_values)
"""

DIES = """
import asyncio, os, signal, sys
from pathlib import Path
from api import moving
from infra.moving import importing
from infra.settings import STORES, load

path, point, countdown = sys.argv[1], sys.argv[2], int(sys.argv[3])
step = getattr(importing._Batches, point)

async def dying(self, *given):
    global countdown
    countdown -= 1
    if countdown == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return await step(self, *given)

importing.BATCH_LINES = 7
setattr(importing._Batches, point, dying)
asyncio.run(moving.run_import(load(os.environ, needs=STORES), Path(path)))
"""


class Old(NamedTuple):
    """A house that was lived in, and what was exported of it."""

    settings: Settings
    path: Path
    digests: dict[str, str]
    chat_id: str
    image: Json
    rows: dict[str, Any]
    keyed: Json
    session: Json


async def lived_in(api: Api) -> tuple[str, Json, Json]:
    """The chat, an image that is in it, and what a command with a key was answered."""
    people = [await api.person(name) for name in ("ann", "ben", "cleo", "dan")]
    ann, ben, cleo, dan = people
    group = await ann.do(
        "create-group", name="Friends", member_ids=[one.user_id for one in people[1:]]
    )
    chat = group["chat_id"]
    for colour in ((1, 2, 3), (200, 2, 3)):
        await upload_avatar(ann, "/v1/users/me/avatar", colour)
        await upload_avatar(ann, f"/v1/chats/{chat}/avatar", colour)
    await upload_avatar(dan, "/v1/users/me/avatar", (7, 7, 7))
    said = await ben.do("send-message", chat_id=chat, content="I said it \u0001 \\u0000 'so'")
    await ben.do("edit-message", message_id=said["message_id"], content="I say it better")
    await ann.do("add-reaction", message_id=said["message_id"], emoji="👍")
    image, _ = await show(ben, chat)
    _, deleted = await show(ann, chat)
    await ann.do("delete-message", message_id=deleted)
    await upload(ann, chat, new_id())  # never sent
    for one in (cleo, dan):
        await show(one, chat)
        await one.do("send-message", chat_id=chat, content=f"{one.username} was here")
    keyed = good(await ben.send("send-message", "key one", chat_id=chat, content="once"))
    await ann.do("mark-read", chat_id=chat)
    await asyncio.gather(
        cleo.do("delete-account", password=PASSWORD),
        dan.do("delete-account", password=PASSWORD, erase_messages=True),
    )
    return chat, image, keyed


async def upload(by: Person, chat: str, message: str) -> Json:
    fields = {"chat_id": chat, "message_id": message}
    files = {"file": ("cat.png", picture())}
    return good(await by.client.post("/v1/attachments", data=fields, files=files), 201)


async def show(by: Person, chat: str) -> tuple[Json, str]:
    """A message with an image."""
    message = new_id()
    image = await upload(by, chat, message)
    ids = [image["attachment_id"]]
    await by.do("send-message", chat_id=chat, content="", message_id=message, attachment_ids=ids)
    return image, message


async def upload_avatar(by: Person, path: str, colour: tuple[int, int, int]) -> None:
    response = await by.client.put(path, files={"file": ("me.png", picture(colour=colour))})
    assert response.status_code < 300, response.text


@pytest.fixture(scope="module")
async def old(
    fresh_database: FreshDatabase,
    nats_url_of_module: str,
    s3_server: S3,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Old]:
    """It is not written to any more."""
    with fresh_database() as url:
        at = house(url, s3_server, nats_url=nats_url_of_module)
        async with serving_all(url, nats_url_of_module, **s3_of(at)) as api:
            chat, image, keyed = await lived_in(api)
            session = (await api.signed_in("ann")).session
            await projected(url)
        await note_skip(url)
        path = tmp_path_factory.mktemp("old") / "old.jsonl"
        made = await exported(at, path)
        async with connected(url) as connection:
            rows = await model.live_rows(connection)
        yield Old(at, path, made, chat, image, rows, keyed, session)


@pytest.fixture
def new(fresh_database: FreshDatabase, nats_url: str, s3_server: S3) -> Any:
    with fresh_database() as url:
        yield house(url, s3_server, nats_url=nats_url, secret=OTHER_SECRET_TEXT)


def s3_of(at: Settings) -> dict[str, Any]:
    names = ("s3_endpoint", "s3_access_key", "s3_secret_key", "s3_bucket", "secret")
    return {name: getattr(at, name) for name in names}


async def test_exported_imported_and_exported_again_everything_is_equal(
    old: Old, new: Settings, nats_url: str, tmp_path: Path
) -> None:
    await moving.run_import(new, old.path)
    assert await exported(new, tmp_path / "new.jsonl") == old.digests
    # Two avatars; three images in three sizes: one sent, one never sent, and one of the account
    # whose messages stay.
    assert len(old.digests) == 1 + 2 + 3 * 3
    async with projecting(new, nats_url), serving(new.database_url, nats_url, **s3_of(new)) as api:
        await projected(new.database_url)
        async with connected(new.database_url) as connection:
            model.assert_same(old.rows, await model.live_rows(connection))
        await look_around(api, old)


async def look_around(api: Api, old: Old) -> None:
    """People sign in as they did, and find what they left."""
    refresh = {"refresh_token": old.session["refresh_token"]}
    problem(await api.client.post("/v1/sessions/refresh", json=refresh), 401, "unauthenticated")
    ann, ben = await api.signed_in("ann"), await api.signed_in("ben")
    shown = await ben.see(f"/v1/attachments/{old.image['attachment_id']}")
    async with httpx.AsyncClient() as client:
        assert (await client.get(shown["url"])).content
    # What a key was answered, it is answered for ever; and only for what was sent then.
    again = await ben.send("send-message", "key one", chat_id=old.chat_id, content="once")
    assert good(again) == old.keyed
    assert again.headers["idempotency-replayed"] == "true"
    other = await ben.send("send-message", "key one", chat_id=old.chat_id, content="twice")
    problem(other, 422, "idempotency-key-reused")
    # The names of the deleted are theirs.
    for name in ("dan", "cleo", "ann"):
        account = {"username": name, "password": PASSWORD}
        refused = await api.client.post("/v1/commands/register-user", json=account)
        problem(refused, 409, "username-taken")
    problem(
        await api.client.post("/v1/sessions", json=account | {"username": "dan"}),
        401,
        "wrong-credentials",
    )
    messages = await ann.see(f"/v1/chats/{old.chat_id}/messages")
    said = [message["content"] for message in messages["items"]]
    assert "cleo was here" in said
    assert "dan was here" not in said
    assert "I say it better" in said
    await ann.do("send-message", chat_id=old.chat_id, content="at home")


async def test_what_was_erased_is_nowhere_in_an_export(old: Old) -> None:
    text = old.path.read_bytes()
    assert b"dan was here" not in text
    assert b'"dan"' not in text
    assert b'"cleo"' not in text
    assert b"cleo was here" in text
    assert old.path.stat().st_mode & 0o077 == 0


async def test_killed_at_any_step_the_import_goes_on_and_ends_right(
    old: Old, new: Settings, tmp_path: Path
) -> None:
    for point, time in (
        ("_sealed", 2),
        ("_add_events", 3),
        ("_put", 2),
        ("_write", 3),
    ):
        await killed(new, old.path, point, time)
        await check_prefix(new, old)
    said = await messenger(new, "import", "jsonl", str(old.path))
    assert "the log is at position" in said
    path = tmp_path / "new.jsonl"
    assert "of epoch 1, 11 objects" in await messenger(new, "export", str(path))
    assert digests(path) == old.digests
    # And once more it changes nothing.
    await moving.run_import(new, old.path)
    assert await exported(new, tmp_path / "again.jsonl") == old.digests


async def killed(at: Settings, path: Path, point: str, time: int) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", DIES, str(path), point, str(time)),
        env=environ(at),
        stdout=PIPE,
        stderr=PIPE,
    )
    _, said = await asyncio.wait_for(process.communicate(), COMMAND_SECONDS)
    assert process.returncode == -signal.SIGKILL, said.decode()


async def messenger(at: Settings, *arguments: str) -> str:
    """What the command says, as a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "api.cli", *arguments), env=environ(at), stdout=PIPE, stderr=PIPE
    )
    said, error = await asyncio.wait_for(process.communicate(), COMMAND_SECONDS)
    assert process.returncode == 0, error.decode()
    return said.decode()


def environ(at: Settings) -> dict[str, str]:
    names = ("database_url", "s3_endpoint", "s3_access_key", "s3_secret_key", "s3_bucket", "secret")
    return {
        **os.environ,
        **{f"MESSENGER_{name.upper()}": str(getattr(at, name)) for name in names},
    }


async def check_prefix(at: Settings, old: Old) -> None:
    """What is there is a beginning of the log, and nobody else can write."""
    wanted = [line for line in unchained(old.path.read_bytes()) if line["line"] == "event"]
    async with connected(at.database_url) as connection:
        rows = await daemons.log(connection)
    check_log(rows, len(rows))
    assert [event_id for _, event_id, *_ in rows] == [
        line["event_id"] for line in wanted[: len(rows)]
    ]
    async with writing(at) as machine:
        with pytest.raises(Unavailable, match="is being imported"):
            await machine.register("eve")


async def test_only_the_same_export_goes_on(old: Old, new: Settings, tmp_path: Path) -> None:
    await killed(new, old.path, "_write", 4)
    other = tmp_path / "other.jsonl"
    bodies = unchained(old.path.read_bytes())
    bodies[1]["value" if bodies[1]["line"] == "unique" else "key"] = "AAAA"
    other.write_bytes(chained(bodies))
    lines.objects_directory(other).symlink_to(lines.objects_directory(old.path))
    with pytest.raises(BadExport, match=r"^line \d+ of other.jsonl is not that of the export"):
        await moving.run_import(new, other)
    # Nor does what is there go on elsewhere: keys are in whose events are not.
    with pytest.raises(Unavailable, match="not finished"):
        await moving.run_export(new, tmp_path / "half.jsonl")
    # Nor is it of another epoch before it is whole: what is imported goes on under its own.
    async with connected(new.database_url) as connection:
        with pytest.raises(Unavailable, match="not finished"):
            await history.new_epoch(Bus("nats://nowhere:4222", name="test"), connection)


async def test_a_log_with_events_takes_no_export(old: Old, new: Settings) -> None:
    async with writing(new) as machine:
        await machine.register("eve")
    with pytest.raises(Stopped, match="the log has 1 events"):
        await moving.run_import(new, old.path)
    async with writing(new) as machine:
        await machine.register("another")


async def test_two_imports_at_once_are_one(old: Old, new: Settings, tmp_path: Path) -> None:
    ends = await asyncio.gather(
        *(moving.run_import(new, old.path) for _ in range(3)), return_exceptions=True
    )
    assert ends.count(None) >= 1
    assert {str(end) for end in ends if end is not None} <= {"another import is under way"}
    assert await exported(new, tmp_path / "new.jsonl") == old.digests


async def test_an_object_that_is_not_as_it_was_is_refused_before_anything_is_written(
    old: Old, new: Settings
) -> None:
    directory = lines.objects_directory(old.path)
    file = next(path for path in sorted(directory.rglob("*")) if path.is_file())
    data = file.read_bytes()
    for changed, reason in (
        (data[:-1] + b"?", "was altered"),
        (data[:-1], "bytes"),
        (None, "not there"),
    ):
        file.unlink()
        if changed is not None:
            file.write_bytes(changed)
        with pytest.raises(BadExport, match=rf"^line \d+ of old.jsonl: .*{reason}"):
            await moving.run_import(new, old.path)
        file.write_bytes(data)
        async with daemons.connected(new.database_url) as connection:
            assert await fetch(connection, WRITTEN) == [(0, 0, 0)]
    await moving.run_import(new, old.path)


async def test_what_is_there_already_is_not_written_over(old: Old) -> None:
    with pytest.raises(Unavailable, match="is there already"):
        await moving.run_export(old.settings, old.path)
    assert digests(old.path) == old.digests


async def test_an_account_that_is_erased_meanwhile_is_not_exported_by_half(
    database_url: str, s3_server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = house(database_url, s3_server, bucket="messenger")
    pages: list[Any] = []
    write_events = export._Writing._write_events

    async with writing(at) as machine:
        await live(machine, [])

        async def erasing(self: Any, *given: Any) -> None:
            await write_events(self, *given)
            pages.append(given)
            if len(pages) == 2:
                await machine.run(DeleteAccount(password=PASSWORD, erase_messages=True), user_id(2))
                await keyring(at, machine).destroy(user_id(2), ["profile", "content"])

        monkeypatch.setattr(export._Writing, "_write_events", erasing)
        monkeypatch.setattr(export, "PAGE_EVENTS", 3)
        await moving.run_export(at, tmp_path / "out.jsonl")
    text = (tmp_path / "out.jsonl").read_bytes()
    assert b'"user_1"' in text
    assert b'"user_2"' not in text
    assert b"account_deleted" in text
    assert os.listdir(tmp_path) == ["out.jsonl"]


async def test_accounts_that_are_erased_all_the_time_let_no_export_be_made(
    database_url: str, s3_server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = house(database_url, s3_server, bucket="messenger")
    async with writing(at) as machine:
        await live(machine, [])
        ends = export._Writing._last_erased

        async def erasing(self: Any) -> int:
            await keyring(at, machine).destroy(new_user_id(), ["profile"])
            return await ends(self)

        monkeypatch.setattr(export._Writing, "_last_erased", erasing)
        with pytest.raises(Unavailable, match="accounts are erased faster"):
            await moving.run_export(at, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


async def test_the_object_that_the_store_lost_is_named_and_the_rest_exported(
    old: Old, new: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = next(name for name in sorted(old.digests) if name.endswith("_medium.png"))
    async with Objects(old.settings) as objects:
        await objects.remove([key])
        try:
            made = await exported(old.settings, tmp_path / "less.jsonl")
        finally:
            await objects.put(key, lines.objects_directory(old.path) / key, "image/png")
    assert set(old.digests) - set(made) == {key}
    assert f"the object store lacks 1:\n  {key}\n" in capsys.readouterr().err
    await moving.run_import(new, tmp_path / "less.jsonl")
    assert await exported(new, tmp_path / "new.jsonl") == made


async def test_a_field_that_was_tampered_with_stops_the_export(
    database_url: str, s3_server: S3, tmp_path: Path
) -> None:
    at = house(database_url, s3_server, bucket="messenger")
    async with writing(at) as machine:
        await machine.register("ann")
        data = b'{"user_id":"%s","display_name":"%s","avatar_url":null}'
        async with machine.pool.connection() as connection:
            [(sealed, who)] = await fetch(
                connection, "SELECT data ->> 'display_name', data ->> 'user_id' FROM event_log"
            )
        stream = f"user-{who}"
        moved = data % (who.encode(), sealed.encode())
        await machine.appender.append(daemons.written(stream, "profile_updated", moved))
    with pytest.raises(LogError, match="at position 2 was tampered with"):
        await moving.run_export(at, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


# ------------------------------------------------------------------------- any history


@pytest.mark.timeout(240 + 10 * EXAMPLES)
@hypothesis_settings(max_examples=EXAMPLES)
@given(
    history=st.lists(sent, min_size=5, max_size=40),
    deletions=st.dictionaries(st.sampled_from(MORTALS), st.tuples(st.booleans(), st.booleans())),
    batch=st.integers(1, 60),
)
def test_any_history_moves(
    fresh_database: FreshDatabase,
    s3_server: S3,
    tmp_path_factory: pytest.TempPathFactory,
    history: list[Sent],
    deletions: dict[Any, tuple[bool, bool]],
    batch: int,
) -> None:
    """Accounts that end may be erased already, or be about to be."""
    directory = tmp_path_factory.mktemp("moving")
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(importing, "BATCH_LINES", batch)
        urls = [stack.enter_context(fresh_database()) for _ in range(2)]
        one = house(urls[0], s3_server, bucket="messenger")
        two = house(urls[1], s3_server, bucket="messenger", secret=OTHER_SECRET_TEXT)
        asyncio.run(live_and_move(one, two, directory, history, deletions))


async def live_and_move(
    one: Settings,
    two: Settings,
    directory: Path,
    history: list[Sent],
    deletions: dict[Any, tuple[bool, bool]],
) -> None:
    async with writing(one) as machine:
        await live(machine, history)
        for who, (erases_messages, is_erased) in deletions.items():
            await try_to(
                machine, DeleteAccount(password=PASSWORD, erase_messages=erases_messages), who
            )
            if is_erased:
                purposes: Any = ["profile", "content"] if erases_messages else ["profile"]
                await keyring(one, machine).destroy(who, purposes)
    made = await exported(one, directory / "one.jsonl")
    await moving.run_import(two, directory / "one.jsonl")
    assert await exported(two, directory / "two.jsonl") == made
    async with connected(two.database_url) as connection:
        rows = await daemons.log(connection)
        check_log(rows, len(rows))


async def live(machine: Machine, history: list[Sent]) -> None:
    for number in range(1, PEOPLE + 1):
        register = RegisterUser(
            username=f"user_{number}", password=PASSWORD, user_id=user_id(number)
        )
        await machine.run(register)
    everybody = [user_id(number) for number in range(2, PEOPLE + 1)]
    group = CreateGroup(name="one", member_ids=everybody, chat_id=chat_id(1))
    await machine.run(group, user_id(1))
    send = SendMessage(chat_id=chat_id(1), content="one", message_id=message_id(1))
    await machine.run(send, user_id(2), key="a key")
    for command, by, _ in history:
        await try_to(machine, command, by)


async def try_to(machine: Machine, command: Any, by: Any) -> None:
    with suppress(Refusal):
        await machine.run(command, by)


# ------------------------------------------------------------------------ bad files


class Small(NamedTuple):
    """An export of a few lines of every kind but objects."""

    text: bytes
    path: Path


@pytest.fixture
async def small(anyio_backend: str, database_url: str, s3_server: S3, tmp_path: Path) -> Small:
    at = house(database_url, s3_server, bucket="messenger")
    async with writing(at) as machine:
        await live(machine, [])
        await machine.run(DeleteAccount(password=PASSWORD), user_id(3))
        await keyring(at, machine).destroy(user_id(3), ["profile"])
    await note_skip(database_url)
    path = tmp_path / "small.jsonl"
    await moving.run_export(at, path)
    text = path.read_bytes()
    kinds = {line["line"] for line in unchained(text)}
    assert kinds == {"export", "secret", "erased", "unique", "command", "skipped", "event", "end"}
    return Small(text, path)


def read(path: Path, text: bytes) -> list[lines.Numbered]:
    path.write_bytes(text)
    return list(lines.read(path))


def test_a_file_that_was_cut_is_refused_wherever_it_was(small: Small) -> None:
    whole = small.text.splitlines(keepends=True)
    for count in range(len(whole)):
        with pytest.raises(BadExport, match=f"^line {count + 1} of small.jsonl"):
            read(small.path, b"".join(whole[:count]))
        for cut in (1, len(whole[count]) // 2, len(whole[count]) - 1):
            with pytest.raises(BadExport, match=f"^line {count + 1} of small.jsonl"):
                read(small.path, b"".join(whole[:count]) + whole[count][:cut])
    assert len(read(small.path, small.text)) == len(whole)


@pytest.mark.fuzz
@given(data=st.data())
def test_a_file_that_was_altered_is_refused_where_it_was(small: Small, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(small.text) - 1))
    length = data.draw(st.integers(0, 3))
    other = data.draw(st.binary(max_size=4))
    altered = small.text[:place] + other + small.text[place + length :]
    if altered == small.text:
        return
    number = small.text[:place].count(b"\n") + 1
    with pytest.raises(BadExport) as refused:
        read(small.path, altered)
    named = int(str(refused.value).split()[1])
    assert named in (number, number + 1), refused.value


@pytest.mark.fuzz
@given(data=st.data())
def test_lines_that_were_moved_left_out_or_doubled_are_refused(
    small: Small, data: st.DataObject
) -> None:
    whole = small.text.splitlines(keepends=True)
    some = data.draw(st.lists(st.sampled_from(whole), max_size=len(whole) + 1))
    if some != whole:
        with pytest.raises(BadExport):
            read(small.path, b"".join(some))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "line 1 of x is missing"),
        (b"\n", "it does not end with a digest"),
        (b"{}\n", "it does not end with a digest"),
        (b"\0\xff", "it is cut"),
        (chained([b"{}"]), "this is no export"),
        (chained([b"[1]}"]), "this is no export"),
        (chained([b'{"\xff":1}']), "this is no export"),
        (chained([b'{"line":"export","version":2,"new":1}']), "format version 2, known is 1"),
        (chained([b'{"line":"end","lines":1}']), "this is no export"),
        (chained([b'{"line":"export","version":1,"epoch":0,"head":0}']), "Expected `int` >= 1"),
        (chained([b"[" * 5_000 + b"}"]), "this is no export"),
    ],
)
def test_what_is_no_export_is_refused_in_one_line(tmp_path: Path, text: bytes, reason: str) -> None:
    with pytest.raises(BadExport, match=reason) as refused:
        read(tmp_path / "x", text)
    assert "\n" not in str(refused.value)


def test_a_line_without_an_end_is_not_read_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1_000)
    with pytest.raises(BadExport, match="line 1 of x: it is too long"):
        read(tmp_path / "x", b"x" * 5_000)


# ---------------------------------------------------------------- forged files

values = st.sampled_from(
    [None, True, 0, 1, -1, 2**31, 2**63, 1.5, "", "x", "a\0b", "\udc80x"[1:], [], {}, [1], {"a": 1}]
)


class Forgery(NamedTuple):
    line: int
    field: int
    value: Any
    how: str


forgeries = st.builds(
    Forgery,
    line=st.integers(0, 200),
    field=st.integers(0, 12),
    value=values,
    how=st.sampled_from(
        ["change", "change inside", "drop field", "add field", "drop", "double", "swap"]
    ),
)


def forged(bodies: list[dict[str, Any]], forgery: Forgery) -> list[dict[str, Any]]:
    number = forgery.line % len(bodies)
    line = dict(bodies[number])
    inside = "data" if forgery.how == "change inside" and "data" in line else None
    target = dict(line[inside]) if inside else line
    name = sorted(target)[forgery.field % len(target)]
    match forgery.how:
        case "drop":
            return bodies[:number] + bodies[number + 1 :]
        case "double":
            return [*bodies[:number], line, *bodies[number:]]
        case "swap":
            return bodies[:number] + bodies[number + 1 : number + 2] + [line] + bodies[number + 2 :]
        case "drop field":
            del target[name]
        case "add field":
            target["another"] = forgery.value
        case _:
            target[name] = forgery.value
    if inside:
        line[inside] = target
    return [*bodies[:number], line, *bodies[number + 1 :]]


@pytest.mark.fuzz
@pytest.mark.timeout(240 + 10 * EXAMPLES)
@hypothesis_settings(max_examples=3 * EXAMPLES)
@given(some=st.lists(forgeries, min_size=1, max_size=2))
def test_a_forged_file_never_crashes_the_import_and_never_leaves_half_an_event(
    small: Small, fresh_database: FreshDatabase, s3_server: S3, some: list[Forgery]
) -> None:
    """Its digests are right: only what the lines say is wrong."""
    bodies = unchained(small.text)
    for forgery in some:
        bodies = forged(bodies, forgery)
    path = small.path.with_name("forged.jsonl")
    path.write_bytes(chained(bodies))
    try:
        list(lines.read(path))
    except BadExport:
        return
    with fresh_database() as url:
        asyncio.run(import_forged(house(url, s3_server, bucket="messenger"), path, bodies))


async def import_forged(at: Settings, path: Path, bodies: list[dict[str, Any]]) -> None:
    wanted = [line["event_id"] for line in bodies if line["line"] == "event"]
    refused = None
    try:
        await moving.run_import(at, path)
    except MessengerError as error:
        refused = str(error)
    assert refused is None or refused.startswith("line ")
    async with connected(at.database_url) as connection:
        rows = await daemons.log(connection)
    check_log(rows, len(rows))
    assert [event_id for _, event_id, *_ in rows] == wanted[: len(rows)]
    assert refused is not None or len(rows) == len(wanted)
