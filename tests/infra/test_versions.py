"""Two versions of a projection's code side by side: built, switched to, and back, without loss.

The second is the code of today with another `reactions`: its rows have one column more. It runs
as it would, in processes of its own.
"""

import asyncio
import shutil
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from commands.add_reaction import AddReaction
from commands.remove_reaction import RemoveReaction
from domain.ids import MessageId
from infra import checkpoints, replay, verify
from infra.checkpoints import Checkpoint
from infra.database import Connection
from infra.errors import Unavailable
from infra.projector import Projector
from projections import BY_NAME
from tests.api import process
from tests.infra.daemons import check_rows, connected, keyring, projected, projecting, until
from tests.infra.test_replay import Crowd, crowd, machine

ROOT = Path(__file__).parents[2]
PACKAGES = ("api", "commands", "domain", "infra", "migrations", "projections")
EXIT_SECONDS = 60.0
REACTIONS = BY_NAME["reactions"]
EMOJI = ("👍", "🎉", "👀", "🚀")

# By file: what becomes what in the second version. Its rows say at which position they began.
SECOND = {
    "infra/tables.py": {
        '    Column("emoji", sa.String(32), primary_key=True),\n': (
            '    Column("emoji", sa.String(32), primary_key=True),\n'
            '    _required("position", sa.BigInteger),\n'
        )
    },
    "projections/reactions.py": {
        "(message_id, user_id, emoji, created_at)": "(message_id, user_id, emoji, created_at, position)",
        "SELECT message_id, user_id, emoji, created_at": (
            "SELECT message_id, user_id, emoji, created_at, position"
        ),
        "created_at timestamptz\n": "created_at timestamptz,\n        position bigint\n",
        "for _, at, event in events": "for position, at, event in events",
        '"created_at": at}': '"created_at": at, "position": position}',
        "plan=plan,": "plan=plan,\n    version=2,",
    },
}

ROWS = """
    SELECT message_id::text, emoji
    FROM message_reactions
    ORDER BY position
"""

IN_LOG = """
    SELECT data ->> 'message_id', data ->> 'emoji'
    FROM event_log AS added
    WHERE type = 'reaction_added' AND NOT EXISTS (
        SELECT
        FROM event_log AS removed
        WHERE removed.type = 'reaction_removed'
            AND removed.position > added.position
            AND removed.data::jsonb = added.data::jsonb
    )
    ORDER BY position
"""

RETIRED = """
    SELECT nspname
    FROM pg_namespace
    WHERE nspname ~ '^(aside|rebuild|retired)_'
    ORDER BY nspname
"""

__all__ = ["crowd", "machine"]


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """The code of the second version."""
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name, changes in SECOND.items():
        text = (tmp_path / name).read_text()
        for old, new in changes.items():
            assert text.count(old) == 1, f"{name} has {old!r} no more"
            text = text.replace(old, new)
        (tmp_path / name).write_text(text)
    return tmp_path


async def _said(code: Path, urls: tuple[str, str], *arguments: str) -> str:
    """By `messenger …` of some code, which has to succeed."""
    running = await _begun(code, urls, *arguments)
    out, errors = await asyncio.wait_for(running.communicate(), EXIT_SECONDS)
    assert running.returncode == 0, errors.decode()
    return out.decode()


async def _begun(code: Path, urls: tuple[str, str], *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "api.cli", *arguments),
        env={**process.environ(*urls), "PYTHONPATH": str(code)},
        cwd=code,
        stdout=PIPE,
        stderr=PIPE,
    )


@asynccontextmanager
async def _projecting(code: Path, urls: tuple[str, str]) -> AsyncIterator[None]:
    running = await _begun(code, urls, "project", "reactions")
    try:
        yield
        assert running.returncode is None, "it stands by, and does not end"
    finally:
        if running.returncode is None:
            running.terminate()
        await asyncio.wait_for(running.communicate(), EXIT_SECONDS)


async def _react(crowd: Crowd, emoji: str) -> None:
    """One comes, one comes and goes."""
    message_id, (ann, ben, *_) = MessageId(await crowd.send()), crowd.people
    await crowd.machine.run(AddReaction(message_id=message_id, emoji=emoji), ann)
    for command in (AddReaction, RemoveReaction):
        await crowd.machine.run(command(message_id=message_id, emoji=emoji), ben)


async def _version(connection: Connection) -> int:
    live = await checkpoints.live(connection, "reactions")
    assert live is not None
    return live.version


async def _check_second(connection: Connection) -> None:
    """Each row is where its event is in the log."""
    rows = await (await connection.execute(ROWS)).fetchall()
    assert rows == await (await connection.execute(IN_LOG)).fetchall()


async def test_two_versions_are_built_side_by_side_switched_and_switched_back_without_loss(
    database_url: str, nats_url: str, crowd: Crowd, second: Path
) -> None:
    urls = (database_url, nats_url)
    async with (
        connected(database_url) as connection,
        projecting(*urls),
        _projecting(second, urls),
        keyring(database_url) as keys,
    ):
        said = await _said(second, urls, "replay", "reactions", "--build-only")
        assert said.startswith("reactions: built up to ")
        assert "in schema rebuild_reactions_2" in said
        await _react(crowd, EMOJI[0])  # the first goes on, the second's daemon stands by
        await projected(database_url)
        assert await _version(connection) == 1
        assert await check_rows(database_url) > 0

        said = await _said(second, urls, "replay", "reactions")
        assert "swapped in" in said
        assert await _version(connection) == 2
        await _react(crowd, EMOJI[1])
        await projected(database_url)
        await _check_second(connection)

        await replay.back(REACTIONS, url=database_url, keyring=keys, progress=lambda *_: None)
        assert await _version(connection) == 1
        await _react(crowd, EMOJI[2])
        await projected(database_url)
        assert await check_rows(database_url) > 0

        said = await _said(second, urls, "replay", "reactions", "--back")
        assert said.startswith("reactions: back up to ")
        await _react(crowd, EMOJI[3])
        await projected(database_url)
        await _check_second(connection)
        assert await _schemas(connection) == ["retired_reactions"]
        await replay.drop_retired(REACTIONS, connection)
        assert await _schemas(connection) == []


async def _schemas(connection: Connection) -> list[str]:
    return [name for (name,) in await (await connection.execute(RETIRED)).fetchall()]


async def test_code_of_another_version_leaves_the_tables_alone(
    database_url: str, nats_url: str, crowd: Crowd
) -> None:
    """Its daemons stand by, it verifies nothing, and has nothing to go back to."""
    other = REACTIONS._replace(version=2)
    async with projecting(database_url, nats_url):
        await projected(database_url)
    async with connected(database_url) as connection, keyring(database_url) as keys:
        quiet = {"url": database_url, "keyring": keys, "progress": lambda *_: None}
        before = await checkpoints.live(connection, "reactions")
        async with projecting(database_url, nats_url, [other]) as (projector,):
            await _react(crowd, EMOJI[0])
            await until(lambda: _stands_by(projector), "it stands by")
        assert await checkpoints.live(connection, "reactions") == before
        with pytest.raises(Unavailable, match="are of version 1, this code is of 2"):
            await verify.verify(other, **quiet)
        nothing = "there is nothing to go back to: no schema retired_reactions_2; no replay"
        with pytest.raises(Unavailable, match=nothing):
            await replay.back(other, **quiet)
        await replay.replay(other, **quiet)
        with pytest.raises(Unavailable, match="_2, but retired_reactions for code of that version"):
            await replay.back(other, **quiet)
        head = Checkpoint((await replay.replay(other, **quiet)).position, 2)
        assert await checkpoints.live(connection, "reactions") == head
        assert await _schemas(connection) == ["retired_reactions", "retired_reactions_2"]


async def _stands_by(projector: Projector) -> bool:
    return "are of version 1, this code is of 2" in projector._stands_by


async def test_what_can_not_be_taken_back_is_said_with_what_to_do(database_url: str) -> None:
    anew = "`messenger replay reactions` makes the tables anew from the log"
    async with connected(database_url) as connection, keyring(database_url) as keys:
        quiet = {"url": database_url, "keyring": keys, "progress": lambda *_: None}
        await replay.replay(REACTIONS, **quiet)
        await connection.execute("ALTER TABLE retired_reactions.message_reactions DROP created_at")
        lacks = "retired_reactions lacks message_reactions.created_at, which this code needs"
        with pytest.raises(Unavailable, match=f"^{lacks}: {anew}$"):
            await replay.back(REACTIONS, **quiet)
        await replay.drop_retired(REACTIONS, connection)
        dropped = "no replay has put these tables aside, or they were dropped since; "
        with pytest.raises(Unavailable, match=f"^there is nothing .*; {dropped}{anew}$"):
            await replay.back(REACTIONS, **quiet)
        await replay.replay(REACTIONS, **quiet)
        await replay.back(REACTIONS, **quiet)


async def test_a_replay_is_taken_back(database_url: str, nats_url: str, crowd: Crowd) -> None:
    """What is live and what was put aside, of one version, change places as often as one likes."""
    async with projecting(database_url, nats_url), keyring(database_url) as keys:
        quiet = {"url": database_url, "keyring": keys, "progress": lambda *_: None}
        await projected(database_url)
        for name in ("messages", "unread"):
            await replay.replay(BY_NAME[name], **quiet)
            for _ in range(3):
                await crowd.talk(2)
                swap = await replay.back(BY_NAME[name], **quiet)
                assert swap.retired == f"retired_{name}"
                assert (await verify.verify(BY_NAME[name], **quiet)).differing == 0
        await projected(database_url)
    await check_rows(database_url)


async def test_a_build_that_follows_is_at_the_head_until_the_switch(
    database_url: str, nats_url: str, crowd: Crowd
) -> None:
    running = await _begun(
        ROOT, (database_url, nats_url), "replay", "unread", "chats", "--build-only", "--follow"
    )
    try:
        async with connected(database_url) as connection:
            await until(lambda: _is_built(connection), "both are built")
            await crowd.talk(3)
            await until(lambda: _is_built(connection), "both have followed")
    finally:
        running.terminate()
        await asyncio.wait_for(running.communicate(), EXIT_SECONDS)
    async with keyring(database_url) as keys:
        for name in ("unread", "chats", "users"):
            built: set[int] = set()
            await replay.replay(
                BY_NAME[name], url=database_url, keyring=keys, progress=partial(_note, built)
            )
            assert bool(built) == (name == "users"), "nothing was left to build"


BUILT = """
    SELECT to_regclass('rebuild_unread.projection_checkpoints') IS NOT NULL
        AND to_regclass('rebuild_chats.projection_checkpoints') IS NOT NULL
"""

BEHIND = """
    SELECT count(*)
    FROM log_head AS h
    JOIN (
        SELECT position
        FROM rebuild_unread.projection_checkpoints
        UNION ALL
        SELECT position
        FROM rebuild_chats.projection_checkpoints
    ) AS built ON built.position = h.position
"""


def _note(built: set[int], position: int, _: int) -> None:
    built.add(position)


async def _is_built(connection: Connection) -> bool:
    is_there = await (await connection.execute(BUILT)).fetchone()
    return is_there == (True,) and await (await connection.execute(BEHIND)).fetchone() == (2,)
