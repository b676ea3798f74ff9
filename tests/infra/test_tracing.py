"""Traces: nothing unless they are asked for, and nobody waits for who receives them."""

import asyncio
import subprocess
import sys
import time
from typing import Any

import pytest

from commands.register_user import RegisterUser
from infra import tracing as traces
from infra.bus import Bus
from infra.errors import Unavailable
from infra.executor import Request
from infra.projector import Projector
from infra.relay import Relay
from infra.tracing import Tracer, tracing
from projections import BY_NAME
from tests.api.served import settings
from tests.infra import machines
from tests.infra.collector import Collector, collecting
from tests.infra.daemons import (
    LOGGER,
    connected,
    copied,
    keyring,
    projected,
    tasks,
    written,
)
from tests.infra.machines import PASSWORD

IMPORTS = """
import sys, api.app, api.daemons, api.upkeep
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""


# What is sent has come by then, however busy the machine is.
WAIT_SECONDS = 30.0


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "CLOSE_SECONDS", WAIT_SECONDS)


def given(**changed: Any) -> Any:
    return settings("postgresql://nobody@127.0.0.1/none", "nats://127.0.0.1:9", **changed)


async def traced(collector: Collector, share: float, *, requests: int) -> int:
    """How many of the requests were traced."""
    async with tracing(
        given(otlp_endpoint=collector.url, trace_share=share), process="test"
    ) as tracer:
        assert tracer is not None
        for _ in range(requests):
            with tracer.span("request"), tracer.span("command"):
                pass
    return sum(span.name == "request" for span in collector.spans)


async def test_it_is_off_unless_a_setting_says_where_to() -> None:
    async with tracing(given(), process="test") as tracer:
        assert tracer is None


def test_where_it_is_off_nothing_of_it_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.usefixtures("patient")
async def test_a_share_of_the_requests_is_traced_whole() -> None:
    with collecting() as collector:
        assert await traced(collector, 0.2, requests=200) in range(10, 80)
        requests = {span.trace_id for span in collector.spans if span.name == "request"}
        commands = {span.trace_id for span in collector.spans if span.name == "command"}
    assert requests == commands
    with collecting() as collector:
        assert await traced(collector, 0.0, requests=20) == 0


@pytest.mark.usefixtures("patient")
async def test_an_event_says_to_which_trace_it_belongs_if_to_any(database_url: str) -> None:
    with collecting() as collector:
        settings = given(otlp_endpoint=collector.url)
        async with (
            tracing(settings, process="test") as tracer,
            machines.running(database_url) as machine,
        ):
            await machine.register("ann")
            machine.executor._tracer = tracer
            bob = RegisterUser(username="bob", password=PASSWORD)
            await machine.executor.execute(Request(bob, None, request_id="find-me"))
    [command] = [span for span in collector.spans if span.name == "command register-user"]
    assert command.attributes == {"messenger.request_id": "find-me", "messenger.position": 2}
    statement = "SELECT metadata ->> 'trace' FROM event_log ORDER BY position"
    async with connected(database_url) as connection:
        rows = await (await connection.execute(statement)).fetchall()
    [(nothing,), (trace,)] = rows
    assert nothing is None
    begin, _, flags = trace.rpartition("-")
    assert begin == f"00-{command.trace_id}-{command.span_id}"
    assert int(flags, 16) & 1, "it is sampled"


async def test_metadata_of_any_kind_stops_neither_relay_nor_projector(
    database_url: str, nats_url: str
) -> None:
    odd = (b"{}", b"[]", b'"trace"', b'{"trace": 5}', b'{"trace": null}', b'{"trace": "00-x"}')
    with collecting() as collector:
        async with (
            tracing(given(otlp_endpoint=collector.url), process="test") as tracer,
            machines.running(database_url) as machine,
            keyring(database_url) as keys,
            Bus(nats_url, name="test") as bus,
        ):
            for number, metadata in enumerate(odd):
                append = written(f"test-{number}", "test_event", b"{}")
                [event] = append.events
                changed = [event._replace(metadata=metadata)]
                await machine.executor.append(append._replace(events=changed))
            relay = Relay(database_url, bus, LOGGER, tracer=tracer)
            users = Projector(
                BY_NAME["users"],
                database_url=database_url,
                keyring=keys,
                bus=bus,
                logger=LOGGER,
                tracer=tracer,
            )
            async with tasks(relay.run(), users.run()):
                await copied(database_url, nats_url)
                await projected(database_url, ["users"])


async def test_nobody_waits_for_a_receiver_that_is_away() -> None:
    tracer = Tracer("http://127.0.0.1:9", share=1.0, process="test")
    began = time.monotonic()
    for _ in range(10_000):  # more than are kept
        with tracer.span("request"):
            pass
    assert time.monotonic() - began < WAIT_SECONDS
    # Less than the sending of what is kept would take.
    async with asyncio.timeout(traces.CLOSE_SECONDS + 8):
        await tracer.close()


async def test_where_opentelemetry_is_not_installed_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(Unavailable, match=r"^MESSENGER_OTLP_ENDPOINT needs what requirements-"):
        async with tracing(given(otlp_endpoint="http://127.0.0.1:9"), process="test"):
            pass
