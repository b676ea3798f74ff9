"""Skips move house: no read model of the new one has what it lacked in the old one."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest

from api import moving
from commands.send_message import SendMessage
from domain.ids import ChatId
from infra import skips
from infra.embedded.s3 import S3
from infra.errors import BadExport, LogError
from infra.moving import importing, lines
from infra.settings import Settings
from infra.skips import Skip
from projections import NAMES
from tests import model
from tests.infra.daemons import (
    connected,
    failures,
    named_too_long,
    projected,
    relaying,
    until,
    written,
)
from tests.infra.test_skips import BREAK
from tests.moving.houses import (
    OTHER_SECRET_TEXT,
    chained,
    exported,
    house,
    keyring,
    projecting,
    unchained,
    writing,
)

FreshDatabase = Callable[[], AbstractContextManager[str]]
Bodies = list[dict[str, Any]]

CONTENTS = ("one", "poison", "three", "poison", "five", "poison")
# The last so many events come into the new house one by one, its daemons being up to date.
ONE_BY_ONE = 5


class Skipping(NamedTuple):
    """A house whose users lack a name that is too long, and whose messages lack three."""

    settings: Settings
    path: Path
    digests: dict[str, str]
    rows: dict[str, Any]
    skips: list[Skip]
    head: int


async def skip_all(url: str, name: str, positions: list[int]) -> None:
    async with connected(url) as connection:
        for position in positions:

            async def stands(position: int = position) -> bool:
                return (await failures(connection)).get(name, (0,))[0] == position

            await until(stands, f"{name} stands still at {position}")
            await skips.record(connection, name, position, why=f"ann said so of {position}")
    await projected(url, [name])


async def all_skips(url: str) -> list[Skip]:
    async with connected(url) as connection:
        return [skip for name in NAMES for skip in await skips.of(connection, name)]


@pytest.fixture(scope="module")
async def old(
    fresh_database: FreshDatabase,
    nats_url_of_module: str,
    s3_server: S3,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Skipping]:
    with fresh_database() as url:
        at = house(url, s3_server, bucket="messenger")
        yield await lived_in(at, nats_url_of_module, tmp_path_factory.mktemp("old") / "old.jsonl")


async def lived_in(at: Settings, nats_url: str, path: Path) -> Skipping:
    url = at.database_url
    async with writing(at) as machine:
        people = await machine.people(2)
        chat: ChatId = await machine.group(*people)
        nameless = await machine.appender.append(await named_too_long(keyring(at, machine)))
        poison = []
        for content in CONTENTS:
            done = await machine.run(SendMessage(chat_id=chat, content=content), people[0])
            if content == "poison":
                poison.append(done.position)
    async with connected(url) as connection:
        await connection.execute(BREAK)
    async with projecting(at, nats_url):
        await skip_all(url, "users", [nameless.position])
        await skip_all(url, "messages", poison)
        await projected(url)
    async with connected(url) as connection:
        rows = await model.live_rows(connection)
    assert len(rows["messages"]) == len(CONTENTS) - len(poison)
    digests = await exported(at, path)
    return Skipping(at, path, digests, rows, await all_skips(url), poison[-1])


@pytest.fixture
async def new(fresh_database: FreshDatabase, s3_server: S3) -> AsyncIterator[Settings]:
    """Its messages take any content."""
    with fresh_database() as url:
        yield house(url, s3_server, bucket="messenger", secret=OTHER_SECRET_TEXT)


async def check_same(old: Skipping, new: Settings, path: Path) -> None:
    assert await exported(new, path) == old.digests
    assert await all_skips(new.database_url) == old.skips
    async with connected(new.database_url) as connection:
        model.assert_same(old.rows, await model.live_rows(connection))

        async def nothing_fails() -> bool:
            return await failures(connection) == {}

        # A projector takes it back once it has gone on.
        await until(nothing_fails, "no projector stands still")


async def test_what_was_skipped_is_skipped_in_the_new_house_though_it_could_be_applied(
    old: Skipping, new: Settings, nats_url: str, tmp_path: Path
) -> None:
    await moving.run_import(new, old.path)
    async with projecting(new, nats_url):
        await projected(new.database_url)
    await check_same(old, new, tmp_path / "new.jsonl")


async def test_projectors_that_ran_before_the_import_began_skip_too(
    old: Skipping, new: Settings, nats_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They read while the log was empty, when there were no skips; and then its copy."""
    write, url = importing._Batches._write, new.database_url

    async def slow(self: Any, batch: list[lines.Numbered]) -> None:
        await write(self, batch)
        last = batch[-1].line
        if isinstance(last, lines.LoggedEvent) and last.position > old.head - ONE_BY_ONE:
            await projected(url, head=last.position)

    monkeypatch.setattr(importing._Batches, "_write", slow)
    monkeypatch.setattr(importing, "BATCH_LINES", 1)
    async with relaying(url, nats_url), projecting(new, nats_url):
        await until(lambda: all_begun(url), "all projectors have begun")
        await moving.run_import(new, old.path)
        await projected(url)
    await check_same(old, new, tmp_path / "new.jsonl")


async def all_begun(url: str) -> bool:
    query = "SELECT count(*) FROM projection_checkpoints"
    async with connected(url) as connection:
        return await (await connection.execute(query)).fetchone() == (len(NAMES),)


async def test_skips_of_a_read_model_that_is_no_more_stay_behind(old: Skipping) -> None:
    forget = "INSERT INTO skipped_events SELECT 'gone', 1, 'x', 'x', 'x', now()"
    async with connected(old.settings.database_url) as connection:
        await connection.execute(forget)
    again = old.path.with_name("again.jsonl")
    assert await exported(old.settings, again) == old.digests


def first_skip(bodies: Bodies) -> int:
    return next(number for number, body in enumerate(bodies) if body["line"] == "skipped")


def changed(**fields: Any) -> Callable[[Bodies], Bodies]:
    return lambda skipped: [{**skipped[0], **fields}, *skipped[1:]]


@pytest.mark.parametrize(
    ("forge", "line", "told"),
    [
        (changed(projection="nobody"), 0, "this code knows no projection 'nobody'"),
        (changed(position=0), 0, "messages skips 0 but the log ends at"),
        (changed(position=1_000), 0, "messages skips 1000 but the log ends at"),
        (changed(position=-1), 0, "Expected `int` >= 0"),
        (changed(skipped_at="yesterday"), 0, "Invalid RFC3339"),
        (changed(why=None), 0, "Expected `str`, got `null`"),
        (lambda skipped: [skipped[0], *skipped], 1, "a second time"),
        (lambda skipped: skipped[::-1], 1, "a second time, or after users"),
        (
            lambda skipped: [*skipped[:3], {**skipped[0], "projection": "users", "type": "x"}],
            3,
            "as another type than",
        ),
    ],
)
def test_a_skip_that_can_not_be_is_refused_by_its_line(
    old: Skipping, tmp_path: Path, forge: Callable[[Bodies], Bodies], line: int, told: str
) -> None:
    bodies = unchained(old.path.read_bytes())
    first, last = first_skip(bodies), first_skip(bodies) + len(old.skips)
    path = tmp_path / "forged.jsonl"
    path.write_bytes(chained([*bodies[:first], *forge(bodies[first:last]), *bodies[last:]]))
    with pytest.raises(BadExport, match=f"^line {first + line + 1} of forged.jsonl: .*{told}"):
        list(lines.read(path))


async def test_a_skip_of_another_event_is_refused_where_the_event_is_and_nothing_is_imported(
    old: Skipping, new: Settings, tmp_path: Path
) -> None:
    bodies = unchained(old.path.read_bytes())
    skipped = bodies[first_skip(bodies)]
    skipped["type"] = "message_edited"
    events = [body["line"] == "event" for body in bodies]
    number = events.index(True) + skipped["position"]
    path = tmp_path / "forged.jsonl"
    path.write_bytes(chained(bodies))
    told = f"^line {number} of forged.jsonl: message_sent at .*, where message_edited was skipped"
    with pytest.raises(BadExport, match=told):
        await moving.run_import(new, path)
    assert await all_skips(new.database_url) == []
    async with writing(new) as machine:  # it takes what comes
        await machine.register("eve")


def test_more_skips_than_an_operator_can_make_are_refused(
    old: Skipping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_SKIPS", 2)
    with pytest.raises(BadExport, match="messages skips more than 2 events"):
        list(lines.read(old.path))


async def test_what_nothing_can_read_moves_as_it_stands_once_it_is_skipped(
    fresh_database: FreshDatabase, s3_server: S3, new: Settings, nats_url: str, tmp_path: Path
) -> None:
    path, before = tmp_path / "old.jsonl", tmp_path / "before.jsonl"
    with fresh_database() as url:
        at = house(url, s3_server, bucket="messenger")
        async with writing(at) as machine:
            people = await machine.people(2)
            chat: ChatId = await machine.group(*people)
            broken = written(f"message-{uuid4()}", "reaction_added", b'{"emoji": 1}')
            position = (await machine.appender.append(broken)).position
            await machine.run(SendMessage(chat_id=chat, content="after it"), people[0])
        with pytest.raises(LogError, match=rf"event {position} \(reaction_added\) can't be read"):
            await moving.run_export(at, before)
        async with projecting(at, nats_url):
            await skip_all(url, "reactions", [position])
            await projected(url)
        digests = await exported(at, path)
    await moving.run_import(new, path)
    async with projecting(new, nats_url):
        await projected(new.database_url)
    assert await exported(new, tmp_path / "new.jsonl") == digests


def test_nothing_is_unread_but_what_is_skipped(old: Skipping, tmp_path: Path) -> None:
    bodies = unchained(old.path.read_bytes())
    number = next(number for number, body in enumerate(bodies) if body["line"] == "event")
    bodies[number]["is_unread"] = True
    forged = tmp_path / "forged.jsonl"
    forged.write_bytes(chained(bodies))
    with pytest.raises(BadExport, match=r"is unread, but nothing skips it"):
        list(lines.read(forged))
