"""Metrics over HTTP: a process's own page, and those of several put together."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from prometheus_client import Counter, Gauge
from prometheus_client.parser import text_string_to_metric_families

from api import upkeep
from infra import metrics, scraping
from infra.embedded.process import free_port
from infra.errors import Unavailable
from infra.metrics import Registry
from infra.scraping import MAX_CONNECTIONS, MAX_REQUEST_BYTES, Peer
from projections import BY_NAME
from tests.api.served import settings
from tests.infra.daemons import until

WAIT_SECONDS = 60.0


@asynccontextmanager
async def process(name: str, registry: Registry) -> AsyncIterator[Peer]:
    async def page() -> bytes:
        return metrics.text(registry)

    port = free_port()
    async with scraping.served(f"127.0.0.1:{port}", page):
        yield Peer(name, "127.0.0.1", port)


def counting(count: int, **labels: str) -> Registry:
    registry = metrics.registry()
    things = Counter("messenger_things", 'Of "all" kinds', list(labels), registry=registry)
    (things.labels(**labels) if labels else things).inc(count)
    Gauge("messenger_only_here", "Of one", registry=registry).set(count)
    return registry


def samples(page: bytes) -> dict[tuple[str, str], float]:
    """By name and process; a metric that is in two pieces is refused by the parser's users."""
    found: dict[tuple[str, str], float] = {}
    families = list(text_string_to_metric_families(page.decode()))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        for sample in family.samples:
            key = (sample.name, sample.labels.pop("process"))
            assert key not in found or sample.labels
            found[key] = sample.value
    return found


async def test_the_pages_of_several_processes_become_one(anyio_backend: str) -> None:
    odd = 'odd "\\\n# HELP }{ ,='
    async with (
        process("relay", counting(3)) as one,
        process("api-1", counting(5, kind=odd)) as other,
    ):
        gone = Peer("project-users", "127.0.0.1", free_port())
        page = await scraping.gathered([one, other, gone])
    found = samples(page)
    assert found["messenger_things_total", "relay"] == 3
    assert found["messenger_things_total", "api-1"] == 5
    up = {name: value for (metric, name), value in found.items() if metric == scraping.UP}
    assert up == {"relay": 1, "api-1": 1, "project-users": 0}
    labels = [
        sample.labels
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
        if sample.name == "messenger_things_total"
    ]
    assert labels == [{"process": "relay"}, {"process": "api-1", "kind": odd}]


async def test_one_that_does_not_answer_keeps_nobody_waiting_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scraping, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        stopped = Peer("stopped", "127.0.0.1", silent.getsockname()[1])
        async with process("relay", counting(3)) as one:

            async def is_told() -> bool:
                async with asyncio.timeout(WAIT_SECONDS):
                    found = samples(await scraping.gathered([stopped, one]))
                assert found[scraping.UP, "stopped"] == 0
                return found[scraping.UP, "relay"] == 1  # which had to be quick too

            await until(is_told, "who answers is told of")


async def test_a_process_answers_for_its_metrics_and_nothing_else() -> None:
    async with process("relay", counting(3)) as peer, httpx.AsyncClient() as client:
        url = f"http://{peer.host}:{peer.port}"
        page = await client.get(f"{url}/metrics?x=1")
        assert page.status_code == 200
        assert page.headers["content-type"] == scraping.METRICS_TYPE
        assert "messenger_things_total 3.0" in page.text
        assert "process_resident_memory_bytes" in page.text
        head = await client.head(f"{url}/metrics")
        assert (head.status_code, head.content) == (200, b"")
        assert (await client.get(f"{url}/")).status_code == 404
        assert (await client.post(f"{url}/metrics")).status_code == 404


@pytest.mark.parametrize("said", [b"", b"\r\n", b"x" * (2 * MAX_REQUEST_BYTES), b"\0\r\n\r\n"])
async def test_what_is_no_request_hurts_nobody(said: bytes) -> None:
    async with process("relay", counting(3)) as peer:
        reader, writer = await asyncio.open_connection(peer.host, peer.port)
        writer.write(said)
        writer.write_eof()
        try:
            answer = await reader.read()
        except ConnectionError:
            answer = b""
        assert not answer or answer.startswith(b"HTTP/1.1 404")
        writer.close()
        assert (await scraping.gathered([peer])).count(b"messenger_things_total{") == 1


async def test_connections_that_say_nothing_are_bounded() -> None:
    async with process("relay", counting(3)) as peer:
        idle = [await asyncio.open_connection(peer.host, peer.port) for _ in range(MAX_CONNECTIONS)]
        reader, writer = await asyncio.open_connection(peer.host, peer.port)
        async with asyncio.timeout(WAIT_SECONDS):
            assert await reader.read() == b""
        for one in [*(one for _, one in idle), writer]:
            one.close()
            await one.wait_closed()

        async def is_up() -> bool:
            return samples(await scraping.gathered([peer]))[scraping.UP, "relay"] == 1

        await until(is_up, "it has room again")


async def test_an_address_that_is_taken_is_named_in_one_line() -> None:
    async with process("relay", counting(3)) as peer:
        address = f"{peer.host}:{peer.port}"
        with pytest.raises(Unavailable, match=rf"^MESSENGER_METRICS_ADDRESS={address}: Address"):
            async with scraping.served(address, _nothing):
                pass
    with pytest.raises(Unavailable, match=r"^MESSENGER_METRICS_ADDRESS=fd:987: "):
        async with scraping.served("fd:987", _nothing):
            pass


async def test_a_tool_does_its_work_also_where_its_address_is_taken(
    database_url: str, nats_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with process("relay", counting(3)) as peer:
        given = settings(database_url, nats_url, metrics_address=f"{peer.host}:{peer.port}")
        await upkeep.run_replay(given, [BY_NAME["users"]], back=False, full_speed=True)
    said = capsys.readouterr()
    assert "users: rebuilt up to 0" in said.out
    assert said.err.startswith("metrics are not served: MESSENGER_METRICS_ADDRESS=")


async def test_a_tool_is_scraped_while_it_works(database_url: str, nats_url: str) -> None:
    port = free_port()
    given = settings(database_url, nats_url, metrics_address=f"127.0.0.1:{port}")
    async with upkeep.reporting(given) as reported:
        reported.reached("users", 7, 10)
        page = await scraping.gathered([Peer("replay", "127.0.0.1", port)])
    found = samples(page)
    assert found["messenger_replay_position", "replay"] == 7
    assert found["messenger_replay_target", "replay"] == 10


async def _nothing() -> bytes:
    return b""
