"""The embedded servers: real ones, which keep their data and never outlive us."""

import asyncio
import contextlib
import os
import random
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import nats as nats_client
import psycopg
import pytest
import urllib3
from minio import Minio

from infra.embedded import nats, postgres, s3
from infra.embedded.process import LOOPBACK, Log, Server, StartError, free_port, spawn

GONE_TIMEOUT_SECONDS = 60.0
POLL_SECONDS = 0.02
STARTS_AND_DIES = """
import asyncio, os, signal, sys
from pathlib import Path
from infra.embedded import nats, postgres, s3

async def main(directory):
    async with postgres.running(directory) as a, nats.running(directory) as b, \\
            s3.running(directory) as c:
        print(a.pid, b.pid, c.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main(Path(sys.argv[1])))
"""


async def value(url: str, query: str) -> object:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        cursor = await connection.execute(query.encode())
        row = await cursor.fetchone() if cursor.description else None
        return row and row[0]


def is_alive(pid: int) -> bool:
    """A process that has ended and waits for its parent to hear of it is not alive."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


async def until_gone(*pids: int) -> None:
    async with asyncio.timeout(GONE_TIMEOUT_SECONDS):
        while any(is_alive(pid) for pid in pids):
            await asyncio.sleep(POLL_SECONDS)


@contextlib.asynccontextmanager
async def started(server: Server) -> AsyncIterator[None]:
    try:
        await server.start()
        yield
    finally:
        await server.stop()


async def test_postgresql_is_durable_and_asks_for_a_password(tmp_path: Path) -> None:
    async with postgres.running(tmp_path) as server:
        assert await value(server.url, "SHOW fsync") == "on"
        assert await value(server.url, "SHOW synchronous_commit") == "on"
        assert await value(server.url, "SELECT lower('ÄÉ')") == "äé"
        assert (
            await value(server.url, "SELECT rolsuper FROM pg_roles WHERE rolname = 'messenger'")
            is False
        )
        wrong = server.url.replace("messenger:", "messenger:x")
        with pytest.raises(psycopg.OperationalError, match="password"):
            await value(wrong, "SELECT 1")


async def test_postgresql_killed_comes_back_on_its_port_with_its_data(tmp_path: Path) -> None:
    async with postgres.running(tmp_path) as server:
        url, pid = server.url, server.pid
        await value(url, "CREATE TABLE kept AS SELECT 7 AS n")
        await server.kill()
        await server.start()
        assert (server.url, await value(url, "SELECT n FROM kept")) == (url, 7)
        assert server.pid != pid
    async with postgres.running(tmp_path) as server:
        assert await value(server.url, "SELECT n FROM kept") == 7


async def test_postgresql_runs_where_only_we_may_pass(tmp_path: Path) -> None:
    closed = tmp_path / "closed" / ("long-" * 30)
    closed.mkdir(parents=True)
    closed.parent.chmod(0o700)
    async with postgres.running(closed) as server:
        assert await value(server.url, "SELECT 1") == 1


async def test_an_interrupted_first_start_leaves_nothing_that_hinders_the_next(
    tmp_path: Path,
) -> None:
    server = postgres.Postgres(tmp_path, is_durable=False)
    starting = asyncio.create_task(server.start())
    while not (tmp_path / "postgres.partial").exists():
        await asyncio.sleep(POLL_SECONDS)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert not (tmp_path / "postgres").exists()
    async with postgres.running(tmp_path, is_durable=False) as again:
        assert await value(again.url, "SELECT 1") == 1


async def test_a_second_postgresql_on_a_directory_is_refused_and_the_first_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "ORPHAN_TIMEOUT_SECONDS", 0.2)
    async with postgres.running(tmp_path, is_durable=False) as first:
        with pytest.raises(StartError, match=f"in use by process .*{first.pid}"):
            await postgres.Postgres(tmp_path).start()
        assert await value(first.url, "SELECT 1") == 1


@pytest.mark.parametrize("holds", [["true"], ["sleep", "60"]], ids=["ended, unheard of", "another"])
async def test_a_lock_that_was_left_holds_nothing_up_whoever_has_its_number_today(
    tmp_path: Path, holds: list[str]
) -> None:
    async with postgres.running(tmp_path) as server:
        await value(server.url, "CREATE TABLE kept AS SELECT 7 AS n")
    with locked(tmp_path / "postgres", holds):
        async with postgres.running(tmp_path) as server:
            assert await value(server.url, "SELECT n FROM kept") == 7


@contextlib.contextmanager
def locked(data: Path, holder: list[str]) -> Iterator[None]:
    """By a process that is not PostgreSQL, but of its user."""
    user = data.stat().st_uid if os.geteuid() == 0 else None
    with subprocess.Popen(holder, user=user, cwd="/") as process:
        (data / "postmaster.pid").write_text(f"{process.pid}\n")
        yield
        process.kill()


async def test_a_lost_password_is_named(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    with pytest.raises(StartError, match="password is missing"):
        await postgres.Postgres(tmp_path).start()


async def test_another_versions_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("9\n")
    (tmp_path / "postgres.password").write_text("x")
    with pytest.raises(StartError, match="is of version 9, this is 18"):
        await postgres.Postgres(tmp_path).start()


async def test_a_server_that_does_not_start_says_why_in_one_line(tmp_path: Path) -> None:
    async with postgres.running(tmp_path, is_durable=False):
        pass
    (tmp_path / "postgres" / "pg_hba.conf").write_text("nonsense\n")
    with pytest.raises(StartError) as caught:
        await postgres.Postgres(tmp_path).start()
    assert "could not load" in str(caught.value)
    assert "postgres.log" in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_nats_keeps_its_stream_when_killed_and_starts_empty_when_wiped(
    tmp_path: Path,
) -> None:
    server = nats.Nats(tmp_path)
    async with started(server):
        url = server.url
        assert await messages_in(url, add=True) == 1
        await server.kill()
        await server.start()
        assert (server.url, await messages_in(url)) == (url, 1)
        await server.stop()
        for path in sorted((tmp_path / "nats").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (tmp_path / "nats").rmdir()
        await server.start()
        assert await messages_in(url) == 0


async def test_nats_asks_for_a_password(tmp_path: Path) -> None:
    async with nats.running(tmp_path) as server:
        assert await messages_in(server.url) == 0
        for said in (b"{}", b'{"user":"messenger","pass":"wrong"}', b'{"auth_token":"messenger"}'):
            reader, writer = await asyncio.open_connection(LOOPBACK, server.port)
            writer.write(b"CONNECT " + said + b"\r\nPING\r\n")
            assert (await reader.readline()).startswith(b"INFO ")
            assert await reader.readline() == b"-ERR 'Authorization Violation'\r\n"
            writer.close()
            await writer.wait_closed()
        assert stat.S_IMODE((tmp_path / "nats.password").stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "nats").stat().st_mode) == 0o700


async def messages_in(url: str, *, add: bool = False) -> int:
    client = await nats_client.connect(url)
    try:
        stream = client.jetstream()
        await stream.add_stream(name="kept", subjects=["kept"])
        if add:
            await stream.publish("kept", b"x")
        return (await stream.stream_info("kept")).state.messages
    finally:
        await client.close()


async def test_s3_serves_signed_urls_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(b"picture")
    async with s3.running(tmp_path) as server:
        status, body = await asyncio.to_thread(put_and_get, server, tmp_path / "picture")
        assert (status, body) == (200, b"picture")
        assert await asyncio.to_thread(status_of, f"{server.endpoint}/messenger/a/b") >= 400


def put_and_get(server: s3.S3, path: Path) -> tuple[int, bytes]:
    address = server.endpoint.removeprefix("http://")
    pool = urllib3.PoolManager()
    client = Minio(
        address,
        server.access_key,
        server.secret_key,
        secure=False,
        http_client=pool,
        region="us-east-1",
    )
    client.fput_object("messenger", "a/b", str(path))
    answer = pool.request("GET", client.presigned_get_object("messenger", "a/b"))
    pool.clear()
    return answer.status, answer.data


def status_of(url: str) -> int:
    with urllib3.PoolManager() as pool:
        return pool.request("GET", url).status


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's leash is Linux's")
async def test_servers_end_with_a_killed_parent_and_the_next_ones_start(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STARTS_AND_DIES, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == -signal.SIGKILL
    async with postgres.running(tmp_path) as server:
        assert await value(server.url, "SELECT 1") == 1
        await until_gone(*map(int, output.split()))


async def test_a_child_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    log = Log(tmp_path / "logs" / "child.log")
    shell = "trap '' TERM; sleep 60 & echo $! ; wait; wait"
    child = await spawn(["/bin/sh", "-c", shell], log=log, environ=os.environ)
    async with asyncio.timeout(GONE_TIMEOUT_SECONDS):
        while not log.tail():
            await asyncio.sleep(POLL_SECONDS)
    await child.stop(signal.SIGTERM, timeout_seconds=0.2)
    assert await child.wait() == -signal.SIGKILL
    await until_gone(child.pid, int(log.tail()))


async def test_a_log_that_grew_too_large_is_put_aside_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.embedded.process.LOG_BYTES_MAX", 10)
    log = Log(tmp_path / "child.log")
    log.path.write_text("more than ten bytes\n")
    os.close(log.open())
    assert (tmp_path / "child.log.1").read_text() == "more than ten bytes\n"
    assert log.path.read_text() == ""


def test_a_free_port_is_none_that_an_outgoing_connection_could_be_given() -> None:
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert LOOPBACK == "127.0.0.1"
    assert all(15_000 <= free_port() < low for _ in range(20))


def test_processes_with_the_same_seed_go_for_ports_of_their_own() -> None:
    """Tests have one: Hypothesis gives each example the same."""
    picked = []
    for _ in range(2):
        random.seed(7)
        picked.append([free_port() for _ in range(5)])
    assert picked[0] != picked[1]
