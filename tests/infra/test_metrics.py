"""What the machines count, compared with what happened."""

import asyncio
from contextlib import suppress
from functools import partial
from pathlib import Path

from commands.send_message import SendMessage
from domain.ids import UserId
from infra import event_log, metrics
from infra.appender import Appender
from infra.bus import Bus
from infra.embedded.nats import Nats
from infra.embedded.process import while_running
from infra.errors import NotAnImage
from infra.images.pool import Images
from infra.metrics import (
    AppendMetrics,
    BusMetrics,
    ImageMetrics,
    ProjectorMetrics,
    Registry,
    RelayMetrics,
    ReplayMetrics,
)
from infra.projector import Projector
from infra.relay import Relay
from infra.replay import replay
from projections import BY_NAME
from tests.infra import machines
from tests.infra.daemons import LOGGER, connected, copied, keyring, projected, tasks, until, written
from tests.infra.machines import Machine
from tests.infra.pictures import encoded, quarters

MESSAGES = 30


def seen(registry: Registry, name: str, **labels: str) -> float:
    value = registry.get_sample_value(name, labels)
    assert value is not None, (name, labels)
    return value


async def talk(machine: Machine, people: list[UserId], *, messages: int = MESSAGES) -> None:
    chat_id = await machine.group(*people)
    sends = [SendMessage(chat_id=chat_id, content=f"message {n}") for n in range(messages)]
    await asyncio.gather(
        *(machine.run(send, people[n % len(people)]) for n, send in enumerate(sends))
    )


async def head_of(url: str) -> int:
    async with connected(url) as connection:
        return (await event_log.head(connection)).position


async def test_the_appender_counts_what_it_wrote_and_how_it_went(database_url: str) -> None:
    registry = metrics.registry()
    async with Appender(database_url, queue_limit=100, metrics=AppendMetrics(registry)) as appender:
        events = [written(f"test-{n}", "test_event", b"{}") for n in range(20)]
        await asyncio.gather(*(appender.append(one) for one in events))
        await appender.append(events[0]._replace(guards={events[0].events[0].stream: 0}))
    assert seen(registry, "messenger_append_events_total") == 20 == await head_of(database_url)
    verdict = partial(seen, registry, "messenger_append_verdicts_total")
    assert (verdict(verdict="appended"), verdict(verdict="conflict")) == (20, 1)
    assert seen(registry, "messenger_append_batch_commands_sum") == appender.commands == 21
    for name in ("batch_commands", "wait_seconds", "commit_seconds"):
        assert seen(registry, f"messenger_append_{name}_count") == appender.batches
    assert seen(registry, "messenger_append_commit_seconds_sum") > 0


async def test_relay_and_projector_count_every_event_once(database_url: str, nats_url: str) -> None:
    relaying, projecting = metrics.registry(), metrics.registry()
    async with machines.running(database_url) as machine, keyring(database_url) as keys:
        people = await machine.people(3)
        await talk(machine, people)
        async with (
            Bus(nats_url, name="relay", metrics=BusMetrics(relaying)) as relay_bus,
            Bus(nats_url, name="projector", metrics=BusMetrics(projecting)) as bus,
        ):
            relay = Relay(database_url, relay_bus, LOGGER, RelayMetrics(relaying))
            async with tasks(relay.run()):
                await copied(database_url, nats_url)
                projector = Projector(
                    BY_NAME["messages"],
                    database_url=database_url,
                    keyring=keys,
                    bus=bus,
                    logger=LOGGER,
                    metrics=ProjectorMetrics(projecting),
                )
                async with tasks(projector.run()):
                    await projected(database_url, ["messages"])

                    async def follows() -> bool:
                        await talk(machine, people, messages=1)
                        source = {"projection": "messages", "source": "jetstream"}
                        return bool(
                            projecting.get_sample_value("messenger_projector_events_total", source)
                        )

                    await until(follows, "it takes events from JetStream")
                    await projected(database_url, ["messages"])
                    await copied(database_url, nats_url)
                    assert seen(relaying, "messenger_relay_leads") == 1
                    await check_counts(relaying, projecting, await head_of(database_url))
            assert seen(relaying, "messenger_relay_leads") == 0


async def check_counts(relaying: Registry, projecting: Registry, head: int) -> None:
    name = "messages"

    async def all_counted() -> bool:
        sent = seen(relaying, "messenger_relay_window_events_sum")
        return sent == head == seen(projecting, "messenger_projector_position", projection=name)

    await until(all_counted, "both have counted all events")
    assert seen(relaying, "messenger_relay_sent_position") == head
    assert seen(relaying, "messenger_relay_copies_begun_total") == 1
    assert seen(relaying, "messenger_bus_up") == 1
    applied = partial(seen, projecting, "messenger_projector_events_total", projection=name)
    assert applied(source="log") + applied(source="jetstream") == head
    assert applied(source="jetstream") > 0
    assert seen(projecting, "messenger_projector_batch_events_sum", projection=name) == head


async def test_the_bus_counts_what_it_lost_and_when_it_was_there_again(tmp_path: Path) -> None:
    registry = metrics.registry()
    server = Nats(tmp_path)
    async with (
        while_running(server),
        Bus(server.url, name="test", metrics=BusMetrics(registry)) as bus,
    ):
        assert seen(registry, "messenger_bus_up") == 1
        bus.hint("messenger.head")
        await server.stop()
        await until(partial(_is, bus, False), "the bus knows that NATS is away")
        bus.hint("messenger.head")
        assert seen(registry, "messenger_bus_up") == 0
        assert seen(registry, "messenger_bus_publish_failures_total") == 1
        await server.start()
        await until(partial(_is, bus, True), "the bus is back")

        async def counted() -> bool:
            return seen(registry, "messenger_bus_reconnects_total") == 1

        await until(counted, "it is counted")


async def _is(bus: Bus, connected: bool) -> bool:
    return bus.connected is connected


async def test_a_replay_tells_how_far_it_is(database_url: str) -> None:
    registry = metrics.registry()
    reported = ReplayMetrics(registry)
    async with machines.running(database_url) as machine, keyring(database_url) as keys:
        await machine.people(3)
        await replay(
            BY_NAME["users"],
            url=database_url,
            keyring=keys,
            progress=partial(reported.reached, "users"),
        )
    for name in ("position", "target"):
        assert seen(registry, f"messenger_replay_{name}", projection="users") == 3


async def test_images_are_counted_by_what_became_of_them(tmp_path: Path) -> None:
    registry = metrics.registry()
    made = tmp_path / "made"
    made.mkdir()
    async with Images(workers=1, metrics=ImageMetrics(registry)) as images:
        for data in (encoded(quarters(40, 20), "PNG"), b"no image at all"):
            source = tmp_path / "source"
            source.write_bytes(data)
            with suppress(NotAnImage):
                await images.render(source, made, ["thumbnail"])
    outcomes = partial(seen, registry, "messenger_images_total")
    assert (outcomes(outcome="done"), outcomes(outcome="NotAnImage")) == (1, 1)
    assert seen(registry, "messenger_image_seconds_count") == 2
    assert seen(registry, "messenger_image_workers_started_total") == 1
