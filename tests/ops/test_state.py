"""What operators are told is so: positions, lags, and what became of each process."""

import signal
from contextlib import AsyncExitStack

import pytest

from api.ops import page
from infra import history
from infra import processes as of
from infra.embedded.postgres import Postgres
from infra.moving import importing
from infra.processes import MAX_PROCESSES, Process, Processes, Sighting
from projections import BY_NAME, NAMES, PROJECTIONS
from tests.api.served import Api, serving
from tests.infra.daemons import (
    connected,
    copied,
    keyring,
    named_too_long,
    projected,
    projecting,
    relaying,
)
from tests.ops.operators import (
    IMPATIENCE_SECONDS,
    TOKEN,
    database_away,
    model_of,
    process_of,
    started,
    state,
    told,
)

ROLES = ("api", "relay", "maintain")
ONE, OTHER = "1@here", "2@here"


async def test_positions_and_lags_are_those_of_the_log(
    ops: Api, database_url: str, nats_url: str
) -> None:
    await ops.register("ann")
    await ops.register("bob")
    behind = await state(ops)
    assert (behind["position"], behind["epoch"], behind["database"]["is_up"]) == (2, 1, True)
    assert (behind["relay"]["position"], behind["relay"]["lag_events"]) == (0, 2)
    assert behind["relay"]["lag_seconds"] > 0
    assert [one["name"] for one in behind["projections"]] == list(NAMES)
    assert {one["lag_events"] for one in behind["projections"]} == {2}
    assert behind["upkeep"] == {"removals_lag_events": 2, "unfinished_uploads": 0}
    assert behind["database"]["size_bytes"] > 1_000_000
    async with relaying(database_url, nats_url), projecting(database_url, nats_url):
        await copied(database_url, nats_url)
        await projected(database_url)
        alive = ("api", "relay", *(f"projector {name}" for name in NAMES))
        seen = await told(
            ops,
            lambda seen: (
                seen["relay"]["position"] == 2
                and {process_of(seen, role)["state"] for role in alive} == {"alive"}
            ),
            "it has caught up, and all are there",
        )
        assert (seen["relay"]["state"], seen["relay"]["lag_events"]) == ("live", 0)
        live = {"position": 2, "lag_events": 0, "lag_seconds": 0.0, "state": "live"}
        nothing = {"failure": None, "skipped_events": 0}
        assert seen["projections"] == [{"name": name} | live | nothing for name in NAMES]
        assert [one for one in seen["problems"] if "maintain" not in one] == []


async def test_a_stopped_a_killed_and_a_missing_process_are_told_apart(
    ops: Api, database_url: str, nats_url: str
) -> None:
    async with AsyncExitStack() as stack:
        users, relay = [
            await stack.enter_async_context(started(database_url, nats_url, *arguments))
            for arguments in (["project", "users"], ["relay"])
        ]
        roles = ("projector users", "relay")
        seen = await told(
            ops,
            lambda seen: all(process_of(seen, role)["state"] == "alive" for role in roles),
            "both are alive",
        )
        for role, process in zip(roles, (users, relay), strict=True):
            assert process_of(seen, role)["process"].startswith(f"{process.pid}@")
        users.send_signal(signal.SIGSTOP)
        relay.kill()
        seen = await told(
            ops,
            lambda seen: (
                process_of(seen, "projector users")["state"] == "silent"
                and process_of(seen, "relay")["state"] == "gone"
                and process_of(seen, "maintain")["state"] == "missing"
            ),
            "one is silent, one gone, one was never there",
        )
        problems = "\n".join(seen["problems"])
        assert f"projector users ({users.pid}@" in problems
        for role in ("relay", "maintain", "projector messages"):
            assert f"{role} is not running" in problems
        users.send_signal(signal.SIGCONT)
        await told(
            ops,
            lambda seen: process_of(seen, "projector users")["state"] == "alive",
            "it goes on",
        )


async def test_an_event_that_can_not_be_applied_is_told_with_the_process_that_tries(
    ops: Api, database_url: str, nats_url: str
) -> None:
    async with (
        projecting(database_url, nats_url, PROJECTIONS),
        keyring(database_url) as keys,
    ):
        await ops.parts.appender.append(await named_too_long(keys))
        seen = await told(
            ops, lambda seen: model_of(seen, "users")["state"] == "failed", "users stands still"
        )
        failure = model_of(seen, "users")["failure"]
        assert (failure["position"], failure["type"]) == (1, "user_registered")
        assert "users stands still: failed at 1 (user_registered)" in "\n".join(seen["problems"])
        seen = await told(
            ops,
            lambda seen: (
                process_of(seen, "projector users")["state"] == "failed"
                and process_of(seen, "projector chats")["state"] == "alive"
            ),
            "its process is told to fail, and no other",
        )


async def test_an_import_that_is_not_finished_is_a_problem(ops: Api, database_url: str) -> None:
    async with connected(database_url) as connection:
        await connection.execute(importing.BEGIN)
    assert history.HALF_IMPORT in (await state(ops))["problems"]


async def test_without_nats_the_relay_is_away_and_the_rest_is_told(database_url: str) -> None:
    async with serving(database_url, "nats://127.0.0.1:9", ops_token=TOKEN) as api:
        await api.register("ann")
        seen = await state(api)
        assert seen["position"] == 1
        assert (seen["relay"]["state"], seen["relay"]["position"]) == ("away", None)
        assert "NATS does not answer" in seen["problems"]
        assert len(seen["projections"]) == len(NAMES)


async def test_without_postgresql_it_still_answers_and_comes_back(
    ops: Api, database_url: str, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    await told(ops, lambda seen: process_of(seen, "api")["state"] == "alive", "the API is seen")
    monkeypatch.setattr(page, "PATIENCE_SECONDS", IMPATIENCE_SECONDS)
    async with database_away(postgres.url, database_url):
        seen = await told(ops, lambda seen: not seen["database"]["is_up"], "it is away")
        assert (seen["position"], seen["projections"], seen["upkeep"]) == (None, [], None)
        assert seen["problems"][0].startswith("PostgreSQL does not answer: ")
        assert {one["state"] for one in seen["processes"]} == {"unknown"}
    await told(ops, lambda seen: seen["database"]["is_up"], "it is back")
    # It connects again by itself too, a moment later.
    await told(ops, lambda seen: process_of(seen, "api")["state"] == "alive", "the API is seen")


async def test_a_postgresql_that_hangs_keeps_nobody_waiting(
    ops: Api, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "PATIENCE_SECONDS", IMPATIENCE_SECONDS)
    async with connected(database_url) as connection, connection.transaction():
        await connection.execute("LOCK TABLE log_head IN ACCESS EXCLUSIVE MODE")
        seen = await state(ops)
        assert seen["problems"] == ["PostgreSQL does not answer: no answer in time"]
    await told(ops, lambda seen: seen["database"]["is_up"], "it answers again")


async def test_an_epoch_that_jetstream_knows_and_the_log_does_not_is_told(
    ops: Api, database_url: str, nats_url: str
) -> None:
    await ops.register("ann")
    async with relaying(database_url, nats_url):
        await copied(database_url, nats_url)
    async with connected(database_url) as connection:
        # As a restored backup is: without the last events.
        await connection.execute("UPDATE log_head SET position = 0")
    seen = await told(ops, lambda seen: seen["relay"]["state"] == "stopped", "it went back")
    assert "messenger log new-epoch" in seen["problems"][0]


# What is seen from look to look


def look(*connected: tuple[str, float], retried_seconds: float | None = None) -> Sighting:
    """`retried_seconds` since `users`, which stands still, was tried again."""
    retried = {} if retried_seconds is None else {"users": retried_seconds}
    return Sighting([(f"messenger {name}", 1.0, heard) for name, heard in connected], retried)


def states(found: list[Process], role: str) -> dict[str | None, str]:
    return {one.process: one.state for one in found if one.role == role}


def test_a_pause_between_connections_is_no_end() -> None:
    processes, relay = Processes(ROLES), (f"relay {ONE}", 0.1)
    assert states(processes.look(look(relay), 0.0), "relay") == {ONE: "alive"}
    assert states(processes.look(look(), of.GONE_SECONDS), "relay") == {ONE: "alive"}
    assert states(processes.look(look(), of.GONE_SECONDS + 0.1), "relay") == {ONE: "gone"}
    assert states(processes.look(look(relay), 5.0), "relay") == {ONE: "alive"}


def test_who_is_gone_is_shown_for_a_while_beside_who_came() -> None:
    processes = Processes(ROLES)
    processes.look(look((f"api {ONE}", 0.1)), 0.0)
    found = processes.look(look((f"api {OTHER}", 0.1)), 4.0)
    assert states(found, "api") == {ONE: "gone", OTHER: "alive"}
    found = processes.look(look((f"api {OTHER}", 0.1)), of.REMEMBERED_SECONDS + 0.1)
    assert states(found, "api") == {OTHER: "alive"}


def test_nobody_is_missed_before_there_was_time_to_see_them() -> None:
    processes = Processes(ROLES)
    assert states(processes.look(look(), 0.0), "relay") == {None: "unknown"}
    assert states(processes.look(look(), 2.0), "relay") == {None: "unknown"}
    assert states(processes.look(look(), 4.0), "relay") == {None: "missing"}
    # After a time in which nobody looked, it begins anew.
    assert states(processes.look(look(), 100.0), "relay") == {None: "unknown"}


def test_after_an_outage_nobody_is_missed_before_all_had_time_to_come_back() -> None:
    processes = Processes(ROLES)
    processes.look(look((f"relay {ONE}", 0.1)), 0.0)
    assert states(processes.unknown(), "relay") == {ONE: "unknown"}
    for now in (60.0, 67.9):
        found = processes.look(look(), now)
        assert states(found, "relay") == {ONE: "unknown"}
        assert states(found, "api") == {None: "unknown"}
    found = processes.look(look(), 68.1)
    assert states(found, "relay") == {ONE: "gone"}
    assert states(found, "api") == {None: "missing"}


def test_a_projector_that_tries_again_and_again_is_not_taken_for_gone() -> None:
    """Between two attempts only its connection for keys is there."""
    role = "projector users"
    processes, keys = Processes(("projector users",)), (f"keys {ONE}", 0.1)
    assert states(processes.look(look(keys, retried_seconds=1.0), 0.0), role) == {None: "failed"}
    both = (keys, (f"{role} {ONE}", 0.1))
    assert states(processes.look(look(*both, retried_seconds=1.0), 1.0), role) == {ONE: "failed"}
    assert states(processes.look(look(keys, retried_seconds=1.0), 6.0), role) == {ONE: "failed"}
    stopped = look(keys, retried_seconds=of.RETRIED_SECONDS)
    assert states(processes.look(stopped, 7.0), role) == {ONE: "silent"}
    killed = look(retried_seconds=of.RETRIED_SECONDS)
    assert states(processes.look(killed, 8.0), role) == {ONE: "gone"}


def test_what_is_remembered_is_bounded() -> None:
    processes = Processes(ROLES)
    for number in range(3 * MAX_PROCESSES):
        found = processes.look(look((f"api {number}@here", 0.1)), number / 1_000)
    assert len(found) <= MAX_PROCESSES + len(ROLES)
    assert f"{number}@here" in states(found, "api")


def test_names_of_others_and_names_that_are_not_readable_are_left_out() -> None:
    processes = Processes(("api",))
    rows = ((f"api {ONE}", 0.1), ("api x@here", 0.1), (f"nobody {ONE}", 0.1), ("api 1", 0.1))
    assert [one.role for one in processes.look(look(*rows), 0.0)] == ["api"]


def test_every_projection_has_a_role() -> None:
    for name in BY_NAME:
        assert of.NAME.fullmatch(f"messenger projector {name} {ONE}")
