"""Uploads as they go wrong: bad forms, broken connections, a store that is away, crashes between
two steps; and what `messenger maintain` makes of what they leave. Against a real object store."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import PIL.Image
import psutil
import pytest
from hypothesis import given as hypothesis_given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from minio import Minio

from api import multipart
from api.erasure import run_report
from api.maintaining import maintain
from api.parts import MAX_UPLOADS_OF_A_USER
from api.slots import Slots
from domain.refusals import Refusal
from infra import objects as objects_module
from infra import removals, spool
from infra.embedded import s3
from infra.embedded.s3 import S3
from infra.errors import LogError, Unavailable
from infra.objects import Objects
from infra.removals import Removals
from infra.settings import Settings
from tests.acceptance.client import new_id, picture
from tests.api.served import (
    PASSWORD,
    TIMEOUT_SECONDS,
    Api,
    Json,
    Person,
    good,
    problem,
    serving_all,
    settings,
    stored_in,
)
from tests.infra import machines
from tests.infra.daemons import (
    LOGGER,
    connected,
    keyring,
    projected,
    relaying,
    tasks,
    until,
    written,
)
from tests.infra.machines import SECRET_TEXT, fetch
from tests.infra.pictures import encoded
from tests.infra.rendering import workers

LIMIT = 10 * 1024 * 1024
BOUNDARY = "b0undary"
# Each takes an image apart, or nearly.
EXAMPLES = max(10, hypothesis_settings().max_examples // 3)
NEW_FOLDERS = 150  # of a thousand, thirty fail if nothing is asked again
# Where, how much of it goes, and what comes there. Drawn before the test begins: Hypothesis ends a
# draw that leads nowhere with an exception that ends the event loop's task too.
EDITS = st.lists(
    st.tuples(st.integers(0, 10_000), st.integers(0, 30), st.binary(max_size=20)),
    min_size=1,
    max_size=6,
)
FORM = f"multipart/form-data; boundary={BOUNDARY}"

UNFINISHED = """
    SELECT keys
    FROM unfinished_uploads
"""

ATTACHMENTS = """
    SELECT id::text
    FROM attachments
    ORDER BY created_at
"""

# Uploads as an API process does, and is killed once all is stored and nothing says so yet.
DIES_BEFORE_THE_EVENT = """
import asyncio, os, signal, sys
from pathlib import Path
from commands.upload_attachment import UploadAttachment
from infra.executor import Executor
from api.parts import opened
from infra.settings import load

execute = Executor.execute

async def dying(self, request):
    if isinstance(request.command, UploadAttachment) and request.command.image:
        os.kill(os.getpid(), signal.SIGKILL)
    return await execute(self, request)

async def main(source, actor, chat_id, message_id):
    Executor.execute = dying
    async with opened(load(os.environ)) as parts:
        await parts.uploads.attachment(
            Path(source), actor=actor, chat_id=chat_id, message_id=message_id, file_name="x"
        )

asyncio.run(main(*sys.argv[1:]))
"""

HOLDS_A_SPOOL = """
import asyncio, sys
from infra.spool import spooling

async def main():
    async with spooling() as directory:
        (directory / "file").write_bytes(b"half an upload")
        print(directory, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


SKIP = """
    INSERT INTO skipped_events (projection, position, type, reason, why, skipped_at)
    VALUES ('messages', %s, 'message_deleted', 'broken', 'a test', now())
"""


class Scene(NamedTuple):
    """Ann and Ben in a group."""

    api: Api
    ann: Person
    ben: Person
    chat_id: str
    database_url: str

    @property
    def settings(self) -> Settings:
        return self.api.parts.settings

    async def upload(self, message_id: str = "", image: bytes = b"") -> Json:
        return good(await self.try_upload(message_id, image), 201)

    async def try_upload(self, message_id: str = "", image: bytes = b"") -> httpx.Response:
        fields = {"chat_id": self.chat_id, "message_id": message_id or new_id()}
        files = {"file": ("cat.png", image or picture())}
        return await self.ann.client.post("/v1/attachments", data=fields, files=files)

    async def show(self) -> tuple[Json, str]:
        """A message with an image, and the image."""
        message_id = new_id()
        image = await self.upload(message_id)
        await self.ann.do(
            "send-message",
            chat_id=self.chat_id,
            content="",
            message_id=message_id,
            attachment_ids=[image["attachment_id"]],
        )
        return image, message_id

    async def post(self, body: Any, content_type: str = FORM) -> httpx.Response:
        headers = {"content-type": content_type}
        return await self.ann.client.post("/v1/attachments", content=body, headers=headers)

    async def stored(self) -> list[str]:
        async with Objects(self.settings) as objects:
            return await objects.below("", 1_000)

    async def rows(self, statement: str) -> list[Any]:
        await projected(self.database_url)
        async with connected(self.database_url) as connection:
            return [row[0] for row in await fetch(connection, statement.encode())]


@asynccontextmanager
async def scene(
    database_url: str, nats_url: str, server: S3, bucket: str = "messenger"
) -> AsyncIterator[Scene]:
    changed = stored_in(server) | {"s3_bucket": bucket}
    async with serving_all(database_url, nats_url, **changed) as api:
        ann, ben = await api.person("ann"), await api.person("ben")
        group = await ann.do("create-group", name="Friends", member_ids=[ben.user_id])
        yield Scene(api, ann, ben, group["chat_id"], database_url)


@pytest.fixture
async def at(database_url: str, nats_url: str, s3_server: S3) -> AsyncIterator[Scene]:
    """With a bucket of its own."""
    bucket = f"b{new_id()}"
    host = s3_server.endpoint.removeprefix("http://")
    keys = {"access_key": s3_server.access_key, "secret_key": s3_server.secret_key}
    Minio(host, **keys, secure=False, region="us-east-1").make_bucket(bucket)
    async with scene(database_url, nats_url, s3_server, bucket) as at:
        yield at


@asynccontextmanager
async def removing(at: Scene, **seconds: float) -> AsyncIterator[Removals]:
    """As a process of `messenger maintain` does it."""
    given = {"unsent_seconds": 86_400.0} | seconds
    async with (
        machines.running(at.database_url) as machine,
        keyring(at.database_url) as keys,
        Objects(at.settings) as objects,
    ):
        yield Removals(machine.pool, machine.executor, keys, objects, LOGGER, **given)


def part(name: str, value: bytes, *, more: str = "") -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + value + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def whole(file: bytes = b"", **fields: str) -> list[bytes]:
    given = {"chat_id": new_id(), "message_id": new_id()} | fields
    texts = [part(name, value.encode()) for name, value in given.items()]
    return [part("file", file or picture(), more='; filename="cat.png"'), *texts]


# ---------------------------------------------------------------------------------- the form


NO_FORMS: tuple[tuple[bytes, str, int, str], ...] = (
    (b"{}", "application/json", 415, "unsupported-media"),
    (b"", "", 415, "unsupported-media"),
    (form(*whole()), "multipart/mixed; boundary=x", 415, "unsupported-media"),
    (form(*whole()), "multipart/form-data", 400, "malformed"),
    (form(*whole()), "multipart/form-data; boundary=other", 400, "malformed"),
    (form(*whole())[:-20], FORM, 400, "malformed"),
    (b"", FORM, 400, "malformed"),
    (form(), FORM, 400, "invalid"),
    (form(*whole()[:2]), FORM, 400, "invalid"),
    (form(*whole()[1:]), FORM, 400, "invalid"),
    (form(*whole(more="x")), FORM, 400, "invalid"),
    (form(*whole()[:2], *whole()[1:2]), FORM, 400, "invalid"),
    (form(*whole(chat_id="not an id")), FORM, 400, "invalid"),
    (form(*whole(message_id="x" * 2_000)), FORM, 400, "invalid"),
    (form(*whole()[:2], part("message_id", b"\xff")), FORM, 400, "invalid"),
    (form(part("file", b"x", more='; filename="a\0b"'), *whole()[1:]), FORM, 400, "invalid"),
    (form(part("file", b"x", more="; x=" + "y" * 9_000)), FORM, 400, "malformed"),
    (form(*whole(bytes(LIMIT + 1))), FORM, 413, "too-large"),
    (bytes(LIMIT + 100_000), FORM, 413, "too-large"),
    (form(*whole()), FORM, 404, "not-found"),
)


async def test_images_are_worked_on_while_no_command_is_and_come_to_their_end_all_the_same(
    at: Scene,
) -> None:
    await at.upload()
    [worker] = workers()
    image = encoded(PIL.Image.effect_noise((2_000, 1_000), 60), "JPEG")
    with at.api.parts.executor.under_way:
        uploading = asyncio.create_task(at.upload(image=image))
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while worker.status() != psutil.STATUS_STOPPED:
                await asyncio.sleep(0.001)
        assert (await uploading)["width"] == 2_000
    assert worker.status() != psutil.STATUS_STOPPED


async def test_what_is_no_such_form_is_refused(at: Scene) -> None:
    for body, content_type, status, code in NO_FORMS:
        problem(await at.post(body, content_type), status, code)
        assert list(at.api.parts.spool.iterdir()) == []
    assert await at.stored() == []
    await at.upload()


async def test_more_than_the_limit_is_refused_however_it_comes(at: Scene) -> None:
    """Without a length, and before all of it was read."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield part("file", b"", more='; filename="x"')[:-2]
        for _ in range(400):
            sent += 1
            yield bytes(256 * 1024)

    problem(await at.post(endless()), 413, "too-large")
    assert list(at.api.parts.spool.iterdir()) == []


async def test_a_form_that_does_not_arrive_in_time_is_refused(
    at: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multipart, "READ_SECONDS", 0.2)

    async def slow() -> AsyncIterator[bytes]:
        yield whole()[0]
        await asyncio.sleep(1.0)
        yield form(*whole()[1:])

    problem(await at.post(slow()), 400, "malformed")
    assert list(at.api.parts.spool.iterdir()) == []


@pytest.mark.fuzz
@hypothesis_settings(max_examples=EXAMPLES)
@hypothesis_given(edits=EDITS)
async def test_no_mutation_of_a_form_is_ever_an_internal_error(
    at: Scene, edits: list[tuple[int, int, bytes]]
) -> None:
    body = bytearray(form(*whole(picture(size=(2, 2)), chat_id=at.chat_id)))
    for place, removed, added in edits:
        place %= len(body)
        body[place : place + removed] = added
        body = body or bytearray(b"-")
    response = await at.post(bytes(body))
    assert response.status_code in (201, 400, 404, 409, 413, 415), response.text
    assert list(at.api.parts.spool.iterdir()) == []


NAMES = (
    ("cat.png", "cat.png"),
    ("C:\\fakepath\\cat.png", "cat.png"),
    ("../../etc/passwd", "passwd"),
    ("Ferien 休暇 🏖.png", "Ferien 休暇 🏖.png"),
    ("tab\there\u202egnp.exe", "tabheregnp.exe"),
    ("x" * 300, "x" * 255),
    ("/", "image"),
    (" ", "image"),
)


async def test_a_file_keeps_its_name_and_no_path(at: Scene) -> None:
    for given, kept in NAMES:
        more = f'; filename="{given}"'.replace("\\", "\\\\")
        body = form(part("file", picture(), more=more), *whole(chat_id=at.chat_id)[1:])
        assert good(await at.post(body), 201)["file_name"] == kept


# ------------------------------------------------------------------------------- how many


def test_places_are_given_up_to_a_users_limit_and_up_to_that_of_all() -> None:
    slots = Slots(total=3, each=2)
    with slots.taken("ann"), slots.taken("ann"):
        assert refused(slots, "ann") == "rate-limited"
        with slots.taken("ben"):
            assert refused(slots, "ben") == "unavailable"
        assert refused(slots, "ben") is None
    assert refused(slots, "ann") is None


def refused(slots: Slots, holder: str) -> str | None:
    try:
        with slots.taken(holder):
            return None
    except Refusal as refusal:
        return refusal.code


async def test_who_uploads_too_much_at_once_is_told_to_come_again(at: Scene) -> None:
    stop = asyncio.Event()

    async def waiting() -> AsyncIterator[bytes]:
        yield whole()[0]
        await stop.wait()
        yield form(*whole(chat_id=at.chat_id)[1:])

    async with httpx.AsyncClient(
        base_url=at.api.url, headers=at.ann.client.headers, timeout=TIMEOUT_SECONDS
    ) as client:
        send = [
            asyncio.create_task(
                client.post("/v1/attachments", content=waiting(), headers={"content-type": FORM})
            )
            for _ in range(MAX_UPLOADS_OF_A_USER)
        ]
        await until(lambda: spooled(at, MAX_UPLOADS_OF_A_USER), "all are under way")
        refusal = await at.try_upload()
        problem(refusal, 429, "rate-limited")
        assert int(refusal.headers["retry-after"]) > 0
        await at.ann.do("send-message", chat_id=at.chat_id, content="meanwhile")
        stop.set()
        assert {one.status_code for one in await asyncio.gather(*send)} == {201}
    await at.upload()


async def spooled(at: Scene, number: int) -> bool:
    return len(list(at.api.parts.spool.iterdir())) == number


# --------------------------------------------------------------------------- broken half-way


async def test_an_upload_that_dies_half_way_leaves_nothing(at: Scene) -> None:
    url = httpx.URL(at.api.url)
    body = form(*whole(chat_id=at.chat_id))
    _, writer = await asyncio.open_connection(url.host, url.port)
    head = (
        f"POST /v1/attachments HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\n"
        f"Authorization: {at.ann.client.headers['authorization']}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body[: len(body) // 2])
    await until(lambda: spooled(at, 1), "half of it has arrived")
    writer.close()
    await until(lambda: spooled(at, 0), "it is gone")
    assert await at.stored() == []
    assert await at.rows(UNFINISHED) == []


async def test_what_a_killed_process_had_spooled_is_cleared_by_the_next() -> None:
    async with spool.spooling() as alive:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", HOLDS_A_SPOOL, stdout=PIPE
        )
        assert process.stdout is not None
        directory = Path((await process.stdout.readline()).decode().strip())
        spool.clear_left()
        assert is_there(directory), "its process lives"
        process.kill()
        await process.wait()
        assert is_there(directory / "file")
        async with spool.spooling():
            assert not is_there(directory)
        assert is_there(alive)
    assert not is_there(alive)


def is_there(path: Path) -> bool:
    return path.exists()


async def test_a_crash_between_store_and_log_leaves_what_maintenance_removes(
    at: Scene, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(picture())
    kept, _ = await at.show()
    before = await at.stored()
    await dies_before_the_event(at, source)
    assert len(await at.stored()) == len(before) + 3
    assert len(await at.rows(UNFINISHED)) == 1
    async with removing(at, unfinished_seconds=3_600.0) as young:
        await young.once()
    assert len(await at.stored()) == len(before) + 3, "it may still be under way"
    async with removing(at, unfinished_seconds=0.0) as old:
        await old.once()
    assert await at.stored() == before
    assert await at.rows(UNFINISHED) == []
    assert await got(kept["url"]) == 200


async def dies_before_the_event(at: Scene, source: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", DIES_BEFORE_THE_EVENT, str(source), at.ann.user_id, at.chat_id),
        new_id(),
        env=environment(at),
        stderr=PIPE,
    )
    _, said = await process.communicate()
    assert process.returncode == -signal.SIGKILL, said.decode()


async def test_an_upload_that_the_log_knows_is_kept_though_it_was_never_finished(
    at: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer was lost, the event is there: only the log can tell."""
    monkeypatch.setattr("infra.uploads.FINISH", "SELECT %s")
    image, _ = await at.show()
    avatar = await at.ann.client.put("/v1/users/me/avatar", files={"file": ("x", picture())})
    assert len(await at.rows(UNFINISHED)) == 2
    async with removing(at, unfinished_seconds=0.0) as removals:
        await removals.once()
    assert await at.rows(UNFINISHED) == []
    for url in (image["url"], good(avatar)["avatar_url"]):
        assert await got(url) == 200


async def got(url: str) -> int:
    """Without any sign of who asks."""
    async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS) as client:
        return (await client.get(url)).status_code


def environment(at: Scene) -> dict[str, str]:
    given = at.settings
    names = ("database_url", "nats_url", "s3_endpoint", "s3_access_key", "s3_secret_key")
    return {
        **os.environ,
        "MESSENGER_ENV": "test",
        "MESSENGER_BCRYPT_ROUNDS": "4",
        "MESSENGER_SECRET": SECRET_TEXT,
        "MESSENGER_S3_BUCKET": given.s3_bucket,
        **{f"MESSENGER_{name.upper()}": getattr(given, name) for name in names},
    }


# ------------------------------------------------------------------------------- maintenance


async def test_what_is_not_sent_in_time_is_removed_whoever_looks_and_how_often(
    at: Scene,
) -> None:
    sent, _ = await at.show()
    unsent = await at.upload()
    async with removing(at) as young:
        await young.once()
    assert len(await at.stored()) == 6
    async with removing(at, unsent_seconds=0.0) as one, removing(at, unsent_seconds=0.0) as two:
        await asyncio.gather(one.once(), two.once())
        await one.once()
    assert await at.rows(ATTACHMENTS) == [sent["attachment_id"]]
    assert len(await at.stored()) == 3
    assert [await got(sent[name]) for name in ("url", "thumbnail_url")] == [200, 200]
    assert await got(unsent["url"]) == 404
    path = f"/v1/attachments/{unsent['attachment_id']}"
    problem(await at.ann.look(path), 404, "not-found")


async def test_the_command_does_it_once_or_until_it_is_stopped(at: Scene) -> None:
    _, message_id = await at.show()
    await at.upload()
    command = (sys.executable, "-m", "api.cli", "maintain")
    environ = environment(at) | {"MESSENGER_ATTACHMENT_UNSENT_SECONDS": "0"}
    once = await asyncio.create_subprocess_exec(*command, "--once", env=environ, stderr=PIPE)
    _, said = await once.communicate()
    assert (once.returncode, said.decode()) == (0, "")
    assert len(await at.stored()) == 3
    process = await asyncio.create_subprocess_exec(*command, env=environ, stderr=PIPE)
    await at.ann.do("delete-message", message_id=message_id)
    await until(lambda: is_empty(at), "the message's objects are gone")
    process.terminate()
    _, said = await process.communicate()
    assert (process.returncode, said.decode()) == (0, "")


async def test_what_can_not_be_read_holds_removals_up_until_a_read_model_skips_it(
    at: Scene,
) -> None:
    """Newer code may know what it ends; an operator who skips it says that it ends nothing."""
    _, message_id = await at.show()
    broken = written(f"message-{new_id()}", "message_deleted", b"{}")
    position = (await at.api.parts.appender.append(broken)).position
    await at.ann.do("delete-message", message_id=message_id)
    async with removing(at) as removals:
        with pytest.raises(LogError, match=rf"^event {position} \(message_deleted\) can't be read"):
            await removals.once()
        assert len(await at.stored()) == 3
        async with connected(at.database_url) as connection:
            await connection.execute(SKIP, (position,))
        await removals.once()
    assert await is_empty(at)


async def is_empty(at: Scene) -> bool:
    return await at.stored() == []


async def test_an_erased_accounts_objects_are_reported_until_they_are_gone(
    at: Scene, nats_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await at.show()
    await at.upload()
    await at.ann.client.put("/v1/users/me/avatar", files={"file": ("x", picture())})
    async with relaying(at.database_url, nats_url):
        await at.ann.do("delete-account", password=PASSWORD, erase_messages=True)
        await projected(at.database_url)
        assert await run_report(at.settings, at.ann.user_id) == 1
        said = capsys.readouterr().out
        assert "can be read: object store: avatars, object store: images sent" in said
        await maintain(at.settings, once=True)
        assert await at.stored() == []
        assert await run_report(at.settings, at.ann.user_id) == 0


async def test_an_erased_account_leaves_nothing_of_an_upload_that_broke_off(
    at: Scene, nats_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    source.write_bytes(picture())
    await dies_before_the_event(at, source)
    assert len(await at.stored()) == 3
    async with relaying(at.database_url, nats_url):
        await at.ann.do("delete-account", password=PASSWORD, erase_messages=True)
        await projected(at.database_url)
        assert await run_report(at.settings, at.ann.user_id) == 1
        assert "can be read: object store: uploads that broke off" in capsys.readouterr().out
        await maintain(at.settings, once=True)
        assert await at.stored() == []
        assert await run_report(at.settings, at.ann.user_id) == 0


# ----------------------------------------------------------------------- the store is away


async def test_without_the_store_uploads_wait_and_everything_else_goes_on(
    database_url: str, nats_url: str, tmp_path: Path
) -> None:
    async with s3.running(tmp_path) as server, scene(database_url, nats_url, server) as at:
        image, message_id = await at.show()
        _, doomed = await at.show()
        await server.stop()
        refusal = await at.try_upload()
        problem(refusal, 503, "unavailable")
        assert int(refusal.headers["retry-after"]) > 0
        avatar = await at.ann.client.put("/v1/users/me/avatar", files={"file": ("x", picture())})
        problem(avatar, 503, "unavailable")
        await at.ann.do("send-message", chat_id=at.chat_id, content="meanwhile")
        deleted = await at.ann.do("delete-message", message_id=doomed)
        seen = await at.ben.see(f"/v1/messages/{message_id}", deleted["position"])
        assert [one["attachment_id"] for one in seen["attachments"]] == [image["attachment_id"]]
        async with removing(at, unfinished_seconds=0.0) as removals:
            with pytest.raises(Unavailable):
                await removals.once()
            async with tasks(removals.run()):
                await server.start()
                await until(lambda: holds(at, 3), "what was deleted meanwhile is gone")
                assert await got(seen["attachments"][0]["url"]) == 200
                await at.upload()
        assert await at.rows(UNFINISHED) == []


async def holds(at: Scene, number: int) -> bool:
    try:
        return len(await at.stored()) == number
    except Unavailable:
        return False


async def test_a_store_that_hangs_is_not_waited_for_without_end(
    at: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.objects.ANSWER_SECONDS", 0.3)
    over = asyncio.Event()

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    hung = settings(at.database_url, "nats://127.0.0.1:9", s3_endpoint=f"http://127.0.0.1:{port}")
    async with asyncio.timeout(TIMEOUT_SECONDS), Objects(hung) as objects:
        with pytest.raises(Unavailable, match="does not answer"):
            await objects.below("", 1)
    over.set()
    server.close()


async def test_objects_of_one_new_folder_are_put_at_once(at: Scene) -> None:
    """rclone answers 500 to one of them now and then, as two make the folder."""
    folders = [f"at-once-{n}" for n in range(NEW_FOLDERS)]
    async with Objects(at.settings) as objects:
        for folder in folders:
            keys = [f"{folder}/below/{n}" for n in range(4)]
            await asyncio.gather(*(objects.put(key, Path(__file__), "text/plain") for key in keys))
        found = await objects.below("at-once-", 5 * NEW_FOLDERS)
        await objects.remove(found)
    assert sorted(found) == sorted(f"{folder}/below/{n}" for folder in folders for n in range(4))


@pytest.mark.parametrize("status", objects_module.ASK_AGAIN_STATUSES)
async def test_a_store_that_refuses_for_the_moment_is_asked_again_a_few_times(
    at: Scene, status: int
) -> None:
    asked = []

    async def refusing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            if line == b"\r\n":
                asked.append(status)
                writer.write(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status)
        writer.close()

    server = await asyncio.start_server(refusing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    busy = settings(at.database_url, "nats://127.0.0.1:9", s3_endpoint=f"http://127.0.0.1:{port}")
    async with asyncio.timeout(TIMEOUT_SECONDS), Objects(busy) as objects:
        with pytest.raises(Unavailable, match="the object store answers with an error"):
            await objects.below("", 1)
    server.close()
    assert len(asked) == 1 + objects_module.ASKED_AGAIN


async def test_a_bucket_that_is_not_there_is_named_as_the_reason(at: Scene, s3_server: S3) -> None:
    changed = stored_in(s3_server) | {"s3_bucket": "no-such-bucket"}
    async with Objects(settings(at.database_url, "nats://127.0.0.1:9", **changed)) as objects:
        with pytest.raises(Unavailable, match="bucket"):
            await objects.put("key", Path(__file__), "text/plain")


async def test_an_address_is_refused_by_the_store_once_it_has_expired(at: Scene) -> None:
    await at.upload()
    key = (await at.stored())[0]
    async with Objects(at.settings, signed_seconds=1) as objects:
        signed = objects.signed(key)
        # A second may be over before it could be used, where the machine is busy.
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while await got(signed.url) != 200:
                signed = objects.signed(key)
        await asyncio.sleep(2.1)
        assert await got(signed.url) in (400, 403)


async def test_clients_are_sent_to_the_stores_public_address(at: Scene) -> None:
    public = settings(at.database_url, "nats://127.0.0.1:9", s3_public_endpoint="https://cdn.test")
    async with Objects(public) as objects:
        assert objects.plain_url("a/b") == "https://cdn.test/messenger/a/b"
        assert objects.signed("a/b").url.startswith("https://cdn.test/messenger/a/b?X-Amz-")


# ---------------------------------------------------------------------------------- its SQL


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (removals.UPLOADS_OF_MESSAGES, "event_log_uploads_of_message"),
        (removals.UPLOADS_OF_SENDERS, "event_log_uploads_of_sender"),
    ],
)
async def test_the_uploads_of_a_message_or_sender_are_found_by_index(
    database_url: str, statement: str, index: str
) -> None:
    async with connected(database_url) as connection:
        await connection.execute("SET enable_seqscan = off")
        plan = await connection.execute(b"EXPLAIN " + statement.encode(), (["one"],))
        assert f"Index Scan using {index}" in str(await plan.fetchall()) or index in str(plan)
