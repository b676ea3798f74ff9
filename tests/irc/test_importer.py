"""Imports into real databases: complete, in order, once, whatever interrupts them."""

import asyncio
import io
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, LiteralString

import bcrypt
import msgspec
import psycopg
import pytest
from psycopg import sql
from rich.console import Console

from api.irc import LockedPasswords, Report, run
from api.irc.accounts import UNUSED_PASSWORD
from api.irc.parse import Nick
from api.irc.plan import BRIDGE, Day
from api.irc.usernames import BRIDGE_USERNAME, user_id, usernames
from commands.create_group import CreateGroup
from commands.register_user import RegisterUser
from domain.chat import Chat
from domain.ids import UserId, chat_stream, user_stream
from domain.user import User
from infra import database
from infra.appender import Appender
from infra.errors import Stopped
from infra.executor import Executor
from infra.keyring import Keyring, Secret
from tests.infra.machines import BCRYPT_ROUNDS, POOL_SIZE, QUEUE_LIMIT, Machine
from tests.irc.sample import CORPUS, EVENING, LATER, line_count, spoken

SAMPLE = [EVENING, LATER]
# Three of the corpus: joins and leaves, nicks with brackets, more than 300 people.
CORPUS_FILES = ["2004-11-15_03", "2005-06-12.train-c", "2007-06-17.train-a"]
ROOT = Path(__file__).parents[2]
SECRET_TEXT = "a secret of the tests, long enough"
SECRET = Secret(SECRET_TEXT.encode())
WAIT_SECONDS = 120.0
POLL_SECONDS = 0.01
LOCK = 4711

SENT = """
    SELECT data ->> 'chat_id', data ->> 'sender_id', count(*)
    FROM event_log
    WHERE type = 'message_sent'
    GROUP BY 1, 2
"""

# What a chat's members saw happen, in its order; ids of system messages are random.
STORY = """
    SELECT
        type,
        recorded_at,
        CASE WHEN type = 'message_sent' THEN data ->> 'message_id' END,
        data ->> 'sender_id',
        data ->> 'kind',
        coalesce(data ->> 'user_id', data ->> 'user_ids'),
        data ->> 'name',
        data ->> 'reply_to_id',
        data ->> 'formatting'
    FROM event_log
    WHERE data ->> 'chat_id' = %s
        AND type <> 'messages_read'
    ORDER BY position
"""

# Marks are positions, which depend on what was registered when: as messages they do not.
MARKS = """
    SELECT
        data ->> 'user_id',
        (
            SELECT count(*)
            FROM event_log AS sent
            WHERE sent.type = 'message_sent'
                AND sent.data ->> 'chat_id' = %(chat)s
                AND sent.position <= max((marked.data ->> 'read_up_to')::bigint)
        )
    FROM event_log AS marked
    WHERE data ->> 'chat_id' = %(chat)s
        AND type = 'messages_read'
    GROUP BY 1
    ORDER BY 1
"""

HEAD = """
    SELECT position
    FROM log_head
"""

# Whoever writes this event waits for who holds the lock.
GATE: LiteralString = """
    CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0 AS $$
    BEGIN
        PERFORM pg_advisory_xact_lock({lock});
        RETURN NEW;
    END
    $$;
    CREATE TRIGGER gate
    BEFORE INSERT ON event_log
    FOR EACH ROW WHEN (NEW.position = {position})
    EXECUTE FUNCTION gate();
"""

CLOSE = """
    SELECT pg_advisory_lock(%s)
"""

WAITING = """
    SELECT count(*)
    FROM pg_locks AS l
    JOIN pg_database AS d ON d.oid = l.database
    WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted
"""


@pytest.fixture
def other_database_url(
    fresh_database: Callable[[], AbstractContextManager[str]],
) -> Iterator[str]:
    """For an import that nothing interrupts."""
    with fresh_database() as url:
        yield url


@asynccontextmanager
async def importing(url: str) -> AsyncIterator[Machine]:
    async with (
        database.pool(url, name="test", size=POOL_SIZE) as pool,
        Appender(url, queue_limit=QUEUE_LIMIT) as appender,
    ):
        executor = Executor(
            pool=pool,
            appender=appender,
            keyring=Keyring(SECRET, pool),
            secret=SECRET,
            passwords=LockedPasswords(rounds=BCRYPT_ROUNDS),
        )
        yield Machine(executor, appender, pool)


async def imported(url: str, *logs: Path, replies: tuple[Path, ...] = ()) -> Report:
    async with importing(url) as machine:
        return await run(
            list(logs),
            list(replies),
            executor=machine.executor,
            console=Console(file=io.StringIO()),
        )


def rows(url: str, statement: Any, values: Any = ()) -> list[Any]:
    with psycopg.connect(url) as connection:
        return connection.execute(statement, values).fetchall()


def head(url: str) -> int:
    return int(rows(url, HEAD)[0][0])


def day(path: Path) -> Day:
    return Day(path.name.removesuffix(".raw.txt"), datetime.fromisoformat(path.name[:10]).date())


def sent_counts(url: str) -> Counter[tuple[str, str]]:
    return Counter({(chat, sender): count for chat, sender, count in rows(url, SENT)})


def expected_counts(*logs: Path) -> Counter[tuple[str, str]]:
    return Counter(
        {
            (day(log).chat_id, user_id(Nick(nick.decode("utf-8", "surrogateescape")))): count
            for log in logs
            for nick, count in spoken(log).items()
        }
    )


def story(url: str, log: Path) -> list[Any]:
    return rows(url, STORY, (day(log).chat_id,))


def marks(url: str, log: Path) -> list[Any]:
    return rows(url, MARKS, {"chat": day(log).chat_id})


def notes(report: Report, directory: Path) -> list[dict[str, Any]]:
    file = directory / "report.jsonl"
    report.write(file)
    return [msgspec.json.decode(line) for line in file.read_bytes().splitlines()]


def long_log(directory: Path, *, lines: int = 2_000, name: str = "2011-02-03") -> Path:
    """A day on which people come, go, and answer each other."""
    log, text = directory / f"{name}.raw.txt", []
    for number in range(lines):
        who = f"who{number % 23}"
        match number % 40:
            case 7:
                text.append(f"=== {who} is now known as {who}|away")
            case 9:
                text.append(f"=== {who} [~u@h]  has left #tea []")
            case 11:
                text.append(f"=== {who} [~u@h]  has joined #tea")
            case _:
                text.append(f"[{number // 100:02}:{number % 60:02}] <{who}> line {number}")
    log.write_text("\n".join(text) + "\n")
    links = "".join(f"{number} {number + 3} -\n" for number in range(0, lines - 3, 2))
    (directory / f"{name}.annotation.txt").write_text(links)
    return log


# Complete


async def test_messages_by_chat_and_sender_are_those_of_the_files(database_url: str) -> None:
    report = await imported(database_url, *SAMPLE)
    assert sent_counts(database_url) == expected_counts(*SAMPLE)
    assert report.total().lines == sum(map(line_count, SAMPLE))
    assert report.faults == []


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the corpus is not part of the project")
async def test_the_same_holds_for_the_corpus(database_url: str) -> None:
    logs = [CORPUS / f"{name}.raw.txt" for name in CORPUS_FILES]
    report = await imported(database_url, *logs)
    assert sent_counts(database_url) == expected_counts(*logs)
    assert report.total().lines == sum(map(line_count, logs))
    assert report.faults == []


async def test_every_line_is_counted_once_and_explained_unless_taken(
    database_url: str, tmp_path: Path
) -> None:
    report = await imported(database_url, *SAMPLE)
    for count in [*report.counts, report.total()]:
        kinds = (count.taken, count.changed, count.unchanged, count.refused)
        assert sum(kinds) == count.lines
    written = notes(report, tmp_path)
    lines = [(note["file"], note["line"]) for note in written if "line" in note]
    assert len(set(lines)) == len(lines)
    (total,) = [note for note in written if note["file"] == "total"]
    explained = [note for note in written if note["file"].endswith(".raw.txt") and "line" in note]
    assert Counter(note["outcome"] for note in explained) == {
        kind: total[kind] for kind in ("changed", "unchanged", "refused")
    }
    assert all(note["reason"] for note in explained)


async def test_names_group_and_times_are_those_of_the_log(database_url: str) -> None:
    await imported(database_url, *SAMPLE)
    async with importing(database_url) as machine:
        chat: Chat = await machine.executor.state(chat_stream(day(EVENING).chat_id))
        user: User = await machine.executor.state(user_stream(user_id(Nick("|Leaf-|"))))
    assert (chat.name, chat.slug, chat.owner_id) == (
        "#tea 2010-01-04: Tea",
        "irc-2010-01-04_21",
        BRIDGE,
    )
    assert user.registration is not None
    assert (user.registration.username, user.display_name) == ("irc__7cLeaf_2d_7c", "|Leaf-|")
    times = [at for _, at, *_ in story(database_url, EVENING)]
    assert times == sorted(times)
    assert min(times) == datetime(2010, 1, 4, 21, 7, 0, 1_000, tzinfo=UTC)
    assert max(times).date() == datetime(2010, 1, 5, tzinfo=UTC).date()


# In order


async def test_a_chat_has_its_messages_in_the_order_of_lines(
    database_url: str, tmp_path: Path
) -> None:
    log = long_log(tmp_path)
    await imported(database_url, log)
    found = [row[2] for row in story(database_url, log) if row[0] == "message_sent"]
    lines = log.read_text().splitlines()
    expected = [number for number, line in enumerate(lines, 1) if line.startswith("[")]
    assert found == [day(log).message_id(number) for number in expected]


async def test_a_reply_names_the_message_it_answers(database_url: str, tmp_path: Path) -> None:
    log = long_log(tmp_path)
    await imported(database_url, log)
    links = {
        day(log).message_id(number + 3 + 1): day(log).message_id(number + 1)
        for number in range(0, 1_997, 2)
    }
    lines = log.read_text().splitlines()
    messages = {day(log).message_id(n) for n, line in enumerate(lines, 1) if line[0] == "["}
    expected = {one: other for one, other in links.items() if {one, other} <= messages}
    found = {row[2]: row[7] for row in story(database_url, log) if row[7]}
    assert found == expected


async def test_whoever_is_in_has_read_all_at_the_end(database_url: str) -> None:
    await imported(database_url, LATER)
    total = spoken(LATER).total()
    readers = [BRIDGE, *(user_id(Nick(nick)) for nick in ("kettle", "Kettle", "mug"))]
    assert marks(database_url, LATER) == [(reader, total) for reader in sorted(readers)]


# Once


async def test_a_second_run_finds_all_there_and_changes_nothing(database_url: str) -> None:
    first = await imported(database_url, *SAMPLE)
    before = head(database_url)
    second = await imported(database_url, *SAMPLE)
    assert head(database_url) == before
    assert first.total().already == 0
    assert second.total().already == second.total().taken + second.total().changed
    for name in ("lines", "taken", "changed", "unchanged", "refused", "replies"):
        assert getattr(second.total(), name) == getattr(first.total(), name)


@pytest.mark.parametrize("after", [1, 60, 400, 1_100])
async def test_an_import_that_was_cancelled_goes_on(
    database_url: str, other_database_url: str, tmp_path: Path, after: int
) -> None:
    log = long_log(tmp_path)
    async with importing(database_url) as machine:
        work = asyncio.create_task(
            run([log], [], executor=machine.executor, console=Console(file=io.StringIO()))
        )
        while machine.appender.commands < after:
            await asyncio.sleep(0)
        work.cancel()
        await asyncio.wait({work}, timeout=WAIT_SECONDS)
        assert work.cancelled()
    await assert_goes_on_as_if_nothing_had_happened(database_url, other_database_url, log)


@pytest.mark.parametrize("after", [100, 900])
async def test_an_import_that_was_killed_goes_on(
    database_url: str, other_database_url: str, nats_url: str, tmp_path: Path, after: int
) -> None:
    log = long_log(tmp_path)
    with closed(database_url, after) as is_there:
        process = await started(database_url, nats_url, tmp_path, log)
        async with asyncio.timeout(WAIT_SECONDS):
            while not is_there():
                await asyncio.sleep(POLL_SECONDS)
        process.send_signal(signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL
    await assert_goes_on_as_if_nothing_had_happened(database_url, other_database_url, log)


@contextmanager
def closed(url: str, after: int) -> Iterator[Callable[[], bool]]:
    """Nobody comes past this position; tells whether somebody is there. However long we are held
    up ourselves, an import is under way then."""
    values = {"lock": sql.Literal(LOCK), "position": sql.Literal(after + 1)}
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL(GATE).format(**values))
        connection.execute(CLOSE, (LOCK,))
        yield lambda: connection.execute(WAITING).fetchall() != [(0,)]


async def assert_goes_on_as_if_nothing_had_happened(url: str, other_url: str, log: Path) -> None:
    report = await imported(url, log)
    await imported(other_url, log)
    assert head(url) == head(other_url)
    assert story(url, log) == story(other_url, log)
    assert marks(url, log) == marks(other_url, log)
    assert report.total().refused == 0


async def test_a_log_that_grew_brings_in_what_is_new(database_url: str, tmp_path: Path) -> None:
    log = long_log(tmp_path, lines=100)
    await imported(database_url, log)
    whole = long_log(tmp_path, lines=300)
    report = await imported(database_url, whole)
    assert sent_counts(database_url) == expected_counts(whole)
    assert 0 < report.total().already < report.total().taken


# What stands in the way


async def test_a_file_that_can_not_be_imported_costs_no_other(
    database_url: str, tmp_path: Path
) -> None:
    line = b"[09:00] <a> x\n"
    contents = {
        "2010-01-01.raw.txt": b"",
        "2010-01-02.raw.txt": bytes(range(256)) * 10,
        "2010-13-03.raw.txt": line,
        "notes.txt": line,
        "2010-01-04_21.raw.txt": line,
        "2010-01-09.annotation.txt": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "2010-01-05.raw.txt").mkdir()
    logs = [name for name in contents if "annotation" not in name]
    bad = [tmp_path / name for name in (*logs, "2010-01-05.raw.txt", "2010-01-06.raw.txt")]
    stray = tmp_path / "2010-01-09.annotation.txt"
    report = await imported(database_url, EVENING, *bad, replies=(stray,))
    reasons = {Path(fault.file).name: fault.reason for fault in report.faults}
    assert reasons == {
        "2010-01-01.raw.txt": "it is empty",
        "2010-01-02.raw.txt": "it is not an IRC log: no line of it is a message or the like",
        "2010-13-03.raw.txt": "there is no day 2010-13-03",
        "notes.txt": "its name is not that of a day, like 2004-11-15.raw.txt",
        "2010-01-06.raw.txt": "no such file or directory",
        "2010-01-05.raw.txt": "is a directory",
        "2010-01-04_21.raw.txt": "another file for irc-2010-01-04_21 is given too",
        "2010-01-09.annotation.txt": "it is the annotation of none of the logs",
    }
    assert sent_counts(database_url) == expected_counts(EVENING)


async def test_a_nick_whose_username_is_taken_gets_another(
    database_url: str, tmp_path: Path
) -> None:
    async with importing(database_url) as machine:
        await machine.run(RegisterUser(username="kettle", password="correct horse"))
    for _ in range(2):
        report = await imported(database_url, LATER)
        told = [note for note in notes(report, tmp_path) if "kettle: " in note.get("reason", "")]
        assert [note["reason"] for note in told] == [
            "kettle: the username is irc_kettle, as kettle is somebody else's"
        ]
    async with importing(database_url) as machine:
        user: User = await machine.executor.state(user_stream(user_id(Nick("kettle"))))
    assert user.registration is not None
    assert user.registration.username == usernames(Nick("kettle"))[1]
    assert sent_counts(database_url) == expected_counts(LATER)


async def test_a_group_whose_slug_is_taken_is_refused_line_by_line(database_url: str) -> None:
    async with importing(database_url) as machine:
        anna, ben = await machine.people(2)
        await machine.run(CreateGroup(name="x", member_ids=[ben], slug=day(LATER).slug), anna)
    report = await imported(database_url, *SAMPLE)
    later = report.counts[1]
    assert (later.refused, later.lines) == (line_count(LATER), line_count(LATER))
    assert sent_counts(database_url) == expected_counts(EVENING)


async def test_without_the_bridge_nothing_is_imported(database_url: str) -> None:
    async with importing(database_url) as machine:
        await machine.register(BRIDGE_USERNAME)
    with pytest.raises(Stopped, match=BRIDGE_USERNAME):
        await imported(database_url, LATER)


async def test_nobody_can_log_in_to_an_imported_account(database_url: str) -> None:
    await imported(database_url, LATER)
    async with importing(database_url) as machine:
        users = [BRIDGE, user_id(Nick("mug"))]
        states: list[User] = [
            await machine.executor.state(user_stream(UserId(user))) for user in users
        ]
    for user in states:
        assert user.password_hash is not None
        assert not bcrypt.checkpw(UNUSED_PASSWORD.encode(), user.password_hash.encode())


# What is shown


async def test_the_report_is_plain_lines_where_there_is_no_terminal(
    database_url: str, tmp_path: Path
) -> None:
    report = await imported(database_url, *SAMPLE, tmp_path / "\x1b[2Jabsent")
    out = io.StringIO()
    report.print(Console(file=out, width=80))
    text = out.getvalue()
    assert "\x1b" not in text
    assert f"{EVENING.name}:15: changed: NUL characters are taken out\n" in text
    assert "not imported: " in text


async def test_the_command_answers_1_if_a_file_was_not_imported(
    database_url: str, nats_url: str, tmp_path: Path
) -> None:
    process = await started(database_url, nats_url, tmp_path, LATER)
    out, _ = await process.communicate()
    assert (process.returncode, b"Traceback" in out) == (0, False)
    process = await started(database_url, nats_url, tmp_path, LATER, tmp_path / "absent")
    out, _ = await process.communicate()
    assert (process.returncode, b"Traceback" in out) == (1, False)
    assert b"absent" in out


async def started(
    url: str, nats_url: str, directory: Path, *logs: Path
) -> asyncio.subprocess.Process:
    environ = {
        **os.environ,
        "MESSENGER_ENV": "test",
        "MESSENGER_BCRYPT_ROUNDS": "4",
        "MESSENGER_DATABASE_URL": url,
        "MESSENGER_NATS_URL": nats_url,
        "MESSENGER_DATA_DIR": str(directory),
        "MESSENGER_SECRET": SECRET_TEXT,
    }
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "api.cli", "import", "irc", *map(str, logs)),
        cwd=ROOT,
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
