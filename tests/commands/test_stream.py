"""What gateways command, and no client: record-deliveries and settle-presence."""

import pytest

from commands import BY_TYPE, HANDLERS, INTERNAL
from commands.command import Decision
from commands.record_deliveries import RecordDeliveries
from commands.settle_presence import SettlePresence
from domain.ids import GatewayId, gateway_stream
from domain.receipt import DeliveriesRecorded, DeliveryMark
from domain.user import Status, StatusChanged
from tests.commands.history import (
    ANNA,
    BEN,
    CARL,
    CHAT,
    NOBODY,
    OTHER_CHAT,
    deleted,
    given,
    group,
    people,
    sent,
    uuid,
)

GATEWAY = GatewayId(uuid(4, 1))
OTHER_GATEWAY = GatewayId(uuid(4, 2))


def test_no_client_commands_what_only_the_shell_may() -> None:
    assert {handler.name for handler in INTERNAL} == {
        "settle-deletion",
        "upload-attachment",
        "remove-attachment",
        "settle-presence",
        "record-deliveries",
    }
    assert not {handler.name for handler in INTERNAL} & {handler.name for handler in HANDLERS}


# record-deliveries


def mark(user: str, up_to: int, after: int = 0) -> DeliveryMark:
    return DeliveryMark(user_id=user, after=after, up_to=up_to)  # type: ignore[arg-type]


def test_the_marks_of_a_flush_are_one_event_a_chat() -> None:
    marks = {CHAT: [mark(BEN, 5), mark(CARL, 6, after=5)], OTHER_CHAT: [mark(BEN, 9)]}
    history = given(*people(ANNA, BEN, CARL), group(BEN, CARL), sent(1, ANNA))
    command = RecordDeliveries(gateway_id=GATEWAY, marks=marks)
    assert history.when(command, by=None) == Decision(
        [
            DeliveriesRecorded(gateway_id=GATEWAY, chat_id=CHAT, marks=marks[CHAT]),
            DeliveriesRecorded(gateway_id=GATEWAY, chat_id=OTHER_CHAT, marks=marks[OTHER_CHAT]),
        ]
    )


def test_without_marks_nothing_is_recorded() -> None:
    assert given().when(RecordDeliveries(gateway_id=GATEWAY, marks={}), by=None) == Decision([])


def test_a_gateway_waits_for_nobody_but_itself() -> None:
    """Of all streams its append guards its own alone, whoever else writes to the chat."""
    command = RecordDeliveries(gateway_id=GATEWAY, marks={CHAT: [mark(BEN, 5)]})
    history = given(*people(ANNA, BEN), group(BEN), sent(1, ANNA))
    assert history.used(command, by=ANNA) == {gateway_stream(GATEWAY): 0}
    history.record(*history.when(command, by=None).events)
    history.record(DeliveriesRecorded(gateway_id=OTHER_GATEWAY, chat_id=CHAT, marks=[]))
    assert history.used(command, by=ANNA) == {gateway_stream(GATEWAY): 1}
    assert history.when(command, by=None).events


def test_a_gateway_needs_no_user_to_record() -> None:
    assert not BY_TYPE[RecordDeliveries].needs_actor


# settle-presence

ONLINE, GONE = SettlePresence(is_connected=True), SettlePresence(is_connected=False)


@pytest.mark.parametrize(
    ("status", "settle", "becomes"),
    [
        ("offline", ONLINE, "online"),
        ("offline", GONE, None),
        ("online", ONLINE, None),
        ("online", GONE, "offline"),
        ("away", ONLINE, None),
        ("away", GONE, "offline"),
    ],
)
def test_open_connections_say_what_is_seen_of_a_user(
    status: Status, settle: SettlePresence, becomes: Status | None
) -> None:
    history = given(*people(ANNA), StatusChanged(user_id=ANNA, status=status))
    changes = [StatusChanged(user_id=ANNA, status=becomes)] if becomes else []
    assert history.when(settle, by=ANNA) == Decision(changes)


def test_settled_twice_is_settled_once() -> None:
    history = given(*people(ANNA))
    for settle in (ONLINE, GONE):
        history.record(*history.when(settle, by=ANNA).events)
        assert history.when(settle, by=ANNA) == Decision([])


@pytest.mark.parametrize("settle", [ONLINE, GONE])
def test_who_is_no_user_any_more_has_no_presence(settle: SettlePresence) -> None:
    online = StatusChanged(user_id=ANNA, status="online")
    assert given(*people(ANNA), online, deleted(ANNA)).when(settle, by=ANNA) == Decision([])
    assert given().when(settle, by=NOBODY) == Decision([])
