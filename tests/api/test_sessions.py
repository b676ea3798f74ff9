"""Sessions: log in, refresh with rotation, list, end everywhere at once, throttling."""

import asyncio
import time
from collections.abc import AsyncIterator

import httpx
import jwt
import pytest

from infra import login_limits
from tests.api import served
from tests.api.served import (
    ENDED_WITHIN_SECONDS,
    PASSWORD,
    TIMEOUT_SECONDS,
    Api,
    Json,
    bearer,
    good,
    problem,
    serving,
)
from tests.infra.daemons import connected
from tests.infra.machines import SECRET

STORED = """
    SELECT
        encode(refresh_hash, 'hex'),
        ended_at IS NOT NULL
    FROM sessions
    WHERE id = %s
"""

# As if the windows had begun so much earlier.
TEN_MINUTES_LATER = """
    UPDATE login_failures
    SET window_ends_at = window_ends_at - interval '10 minutes'
"""


@pytest.fixture
async def processes(database_url: str, nats_url: str) -> AsyncIterator[tuple[Api, Api]]:
    """Two API processes on one database."""
    async with serving(database_url, nats_url) as one, serving(database_url, nats_url) as two:
        yield one, two


async def sessions(api: Api, session: Json) -> httpx.Response:
    return await api.client.get("/v1/sessions", headers=bearer(session))


async def refresh(api: Api, token: str) -> httpx.Response:
    return await api.client.post("/v1/sessions/refresh", json={"refresh_token": token})


async def attempt(api: Api, username: str, password: str) -> httpx.Response:
    body = {"username": username, "password": password}
    return await api.client.post("/v1/sessions", json=body)


async def refused_within(api: Api, session: Json, seconds: float) -> None:
    await served.refused_within(api.client, "/v1/sessions", bearer(session), seconds)


async def test_a_login_answers_as_the_contract_says(api: Api) -> None:
    user_id = (await api.register("ann"))["user_id"]
    session = await api.log_in("ann", device_name="phone")
    assert set(session) == {
        "session_id",
        "user_id",
        "access_token",
        "expires_in",
        "refresh_token",
    }
    assert (session["user_id"], session["expires_in"]) == (user_id, 900)
    [listed] = good(await sessions(api, session))["items"]
    assert listed["session_id"] == session["session_id"]
    assert (listed["device_name"], listed["current"]) == ("phone", True)
    assert listed["created_at"].endswith("Z")


async def test_wrong_credentials_say_nothing_about_which(api: Api) -> None:
    await api.register("ann")
    wrong = problem(await attempt(api, "ann", "something else"), 401, "wrong-credentials")
    unknown = problem(await attempt(api, "bob", PASSWORD), 401, "wrong-credentials")
    assert wrong == unknown
    for username, password in (("Ann", PASSWORD), ("ann", ""), ("", ""), ("ann", "x" * 999)):
        problem(await attempt(api, username, password), 401, "wrong-credentials")


async def test_a_login_is_refused_as_a_command_is(api: Api) -> None:
    await api.register("ann")
    right = {"username": "ann", "password": PASSWORD}
    for body in (
        {"username": "ann"},
        right | {"device_name": "x" * 101},
        right | {"device_name": "a\0"},
        right | {"more": 1},
        right | {"password": 5},
    ):
        problem(await api.client.post("/v1/sessions", json=body), 400, "invalid")


async def test_broken_tokens_are_refused(api: Api) -> None:
    await api.register("ann")
    session = await api.log_in("ann")
    token = session["access_token"]
    now = int(time.time())
    claims = jwt.decode(token, options={"verify_signature": False})
    key = SECRET.derive("access tokens")
    for broken in (
        "",
        "Bearer",
        f"Basic {token}",
        token,
        f"Bearer {token[:-2]}",
        f"Bearer {token}x",
        "Bearer " + "x" * 5_000,
        "Bearer \xff",
        f"Bearer {session['refresh_token']}",
        f"Bearer {jwt.encode(claims | {'exp': now - 1}, key)}",
        f"Bearer {jwt.encode(claims, b'another key of thirty-two bytes!')}",
        f"Bearer {jwt.encode({'sub': claims['sub'], 'exp': now + 9}, key)}",
        f"Bearer {jwt.encode(claims, '', algorithm='none')}",
    ):
        headers = [(b"Authorization", broken.encode("latin-1"))]
        response = await api.client.get("/v1/sessions", headers=headers)
        problem(response, 401, "unauthenticated")
        assert response.headers["www-authenticate"] == "Bearer"


async def test_an_access_token_ends_by_itself(database_url: str, nats_url: str) -> None:
    async with serving(database_url, nats_url, access_token_seconds=1) as api:
        await api.register("ann")
        session = await api.log_in("ann")
        # Those of a second may be over before anybody could use them, where the machine is busy.
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while (await sessions(api, session)).status_code != 200:
                session = await api.log_in("ann")
        await refused_within(api, session, 2.5)
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while (await sessions(api, session)).status_code != 200:
                session = good(await refresh(api, session["refresh_token"]))


async def test_a_refresh_token_rotates_and_an_old_one_ends_the_session(
    processes: tuple[Api, Api],
) -> None:
    one, two = processes
    await one.register("ann")
    first = await one.log_in("ann")
    second = good(await refresh(two, first["refresh_token"]))
    assert set(second) == set(first)
    assert second["session_id"] == first["session_id"]
    assert second["refresh_token"] != first["refresh_token"]
    third = good(await refresh(one, second["refresh_token"]))
    good(await sessions(two, third))
    problem(await refresh(one, first["refresh_token"]), 401, "unauthenticated")
    problem(await refresh(one, third["refresh_token"]), 401, "unauthenticated")
    await refused_within(one, third, 0)
    await refused_within(two, third, ENDED_WITHIN_SECONDS)


async def test_a_made_up_refresh_token_ends_nothing(api: Api) -> None:
    await api.register("ann")
    session = await api.log_in("ann")
    session_id, random, tag = session["refresh_token"].split(".")
    for made_up in (
        f"{session_id}.{random[::-1]}.{tag}",
        f"{session_id}.{random}.{tag[::-1]}",
        session_id,
        session["access_token"],
        "",
    ):
        problem(await refresh(api, made_up), 401, "unauthenticated")
    good(await refresh(api, session["refresh_token"]))


async def test_of_two_refreshes_at_once_exactly_one_wins(processes: tuple[Api, Api]) -> None:
    one, two = processes
    await one.register("ann")
    session = await one.log_in("ann")
    answers = await asyncio.gather(
        *(refresh(api, session["refresh_token"]) for api in (one, two, one, two))
    )
    assert sorted(answer.status_code for answer in answers) == [200, 401, 401, 401]
    await refused_within(two, session, ENDED_WITHIN_SECONDS)


async def test_a_refresh_token_expires(database_url: str, nats_url: str) -> None:
    async with serving(database_url, nats_url, refresh_token_seconds=1) as api:
        await api.register("ann")
        session = await api.log_in("ann")
        await asyncio.sleep(1.1)
        assert good(await sessions(api, session))["items"] == []
        problem(await refresh(api, session["refresh_token"]), 401, "unauthenticated")


async def test_an_ended_session_stops_within_a_second_in_every_process(
    processes: tuple[Api, Api],
) -> None:
    one, two = processes
    await one.register("ann")
    kept, ended = await one.log_in("ann"), await two.log_in("ann")
    good(await sessions(one, ended))
    path = f"/v1/sessions/{ended['session_id']}"
    assert (await two.client.delete(path, headers=bearer(kept))).status_code == 204
    await refused_within(two, ended, 0)
    await refused_within(one, ended, ENDED_WITHIN_SECONDS)
    [listed] = good(await sessions(one, kept))["items"]
    assert listed["session_id"] == kept["session_id"]
    problem(await one.client.delete(path, headers=bearer(kept)), 404, "not-found")


async def test_an_ended_session_stops_within_a_second_without_nats(database_url: str) -> None:
    nowhere = "nats://127.0.0.1:9"
    async with serving(database_url, nowhere) as one, serving(database_url, nowhere) as two:
        await one.register("ann")
        session = await one.log_in("ann")
        good(await sessions(two, session))
        ended = await one.client.delete("/v1/sessions/current", headers=bearer(session))
        assert ended.status_code == 204
        assert ended.content == b""
        await refused_within(two, session, ENDED_WITHIN_SECONDS)


async def test_nobody_ends_or_sees_another_ones_session(api: Api) -> None:
    await api.register("ann")
    await api.register("bob")
    ann, bob = await api.log_in("ann"), await api.log_in("bob")
    path = f"/v1/sessions/{ann['session_id']}"
    problem(await api.client.delete(path, headers=bearer(bob)), 404, "not-found")
    problem(await api.client.delete("/v1/sessions/x", headers=bearer(bob)), 404, "not-found")
    assert len(good(await sessions(api, bob))["items"]) == 1
    good(await sessions(api, ann))


async def test_a_new_password_ends_the_other_sessions(api: Api) -> None:
    ann = await api.person("ann")
    other = await api.log_in("ann")
    change = {"current_password": PASSWORD, "new_password": "battery staple"}
    good(await ann.send("change-password", "once", **change))
    await refused_within(api, other, 0)
    good(await sessions(api, ann.session))
    problem(await attempt(api, "ann", PASSWORD), 401, "wrong-credentials")
    late = await api.log_in("ann", "battery staple")
    again = await ann.send("change-password", "once", **change)
    assert again.headers["idempotency-replayed"] == "true"
    await refused_within(api, late, 0)
    problem(await ann.send("change-password", **change), 403, "wrong-credentials")


async def test_wrong_passwords_are_throttled_by_account(processes: tuple[Api, Api]) -> None:
    one, two = processes
    await one.register("ann")
    await one.register("bob")
    for n in range(10):
        problem(await attempt(processes[n % 2], "ann", "wrong"), 401, "wrong-credentials")
    for api in processes:
        response = await attempt(api, "ann", PASSWORD)
        problem(response, 429, "rate-limited")
        assert 1 <= int(response.headers["retry-after"]) <= 900
    await two.log_in("bob")


async def test_attempts_made_at_once_do_not_slip_past_the_count(api: Api) -> None:
    await api.register("ann")
    answers = await asyncio.gather(*(attempt(api, "ann", "wrong") for _ in range(40)))
    assert sum(answer.status_code == 401 for answer in answers) == 10
    assert sum(answer.status_code == 429 for answer in answers) == 30


async def test_a_login_that_succeeds_begins_the_count_anew(api: Api) -> None:
    await api.register("ann")
    for _ in range(3):
        for _ in range(9):
            problem(await attempt(api, "ann", "wrong"), 401, "wrong-credentials")
        await api.log_in("ann")


async def test_wrong_passwords_are_throttled_by_address(database_url: str, nats_url: str) -> None:
    async with serving(database_url, nats_url, login_failures_per_address=5) as api:
        await api.register("ann")
        for n in range(5):
            problem(await attempt(api, f"nobody{n}", "wrong"), 401, "wrong-credentials")
        problem(await attempt(api, "ann", PASSWORD), 429, "rate-limited")


async def test_wrong_passwords_in_commands_are_throttled_too(
    database_url: str, nats_url: str
) -> None:
    async with serving(database_url, nats_url, login_failures_per_account=3) as api:
        ann = await api.person("ann")
        new = {"new_password": "12345678"}
        wrong = [
            await ann.send("change-password", current_password="wrong", **new),
            await ann.send("delete-account", password="wrong"),
            await ann.send("delete-account", password="wrong again"),
        ]
        for answer in wrong:
            problem(answer, 403, "wrong-credentials")
        answer = await ann.send("change-password", current_password=PASSWORD, **new)
        problem(answer, 429, "rate-limited")
        assert int(answer.headers["retry-after"]) >= 1


async def test_the_throttle_opens_when_its_window_ends(database_url: str, nats_url: str) -> None:
    async with serving(
        database_url, nats_url, login_failures_per_account=2, login_window_seconds=600
    ) as api:
        await api.register("ann")
        for _ in range(2):
            problem(await attempt(api, "ann", "wrong"), 401, "wrong-credentials")
        problem(await attempt(api, "ann", PASSWORD), 429, "rate-limited")
        async with connected(database_url) as connection:
            await connection.execute(TEN_MINUTES_LATER)
        await api.log_in("ann")


async def test_with_rate_limits_off_nothing_is_counted(database_url: str, nats_url: str) -> None:
    async with serving(database_url, nats_url, rate_limits=False) as api:
        await api.register("ann")
        for _ in range(12):
            problem(await attempt(api, "ann", "wrong"), 401, "wrong-credentials")
        await api.log_in("ann")


async def test_many_logins_at_once_from_one_address_all_succeed(api: Api) -> None:
    await asyncio.gather(*(api.register(f"user{n}") for n in range(30)))
    await asyncio.gather(*(api.log_in(f"user{n}") for n in range(30) for _ in range(2)))


async def test_no_token_and_no_name_is_stored_readably(api: Api, database_url: str) -> None:
    await api.register("ann")
    session = await api.log_in("ann")
    await attempt(api, "ann", "wrong")
    async with connected(database_url) as connection:
        [row] = await (await connection.execute(STORED, (session["session_id"],))).fetchall()
        assert row[0] not in session["refresh_token"]
        keys = await (await connection.execute("SELECT key FROM login_failures")).fetchall()
    assert len(keys) == 2
    assert all(b"ann" not in key and b"127" not in key for (key,) in keys)


async def test_a_user_has_a_bounded_number_of_sessions(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.sessions.MAX_SESSIONS_OF_USER", 3)
    await api.register("ann")
    opened = [await api.log_in("ann") for _ in range(5)]
    assert len(good(await sessions(api, opened[-1]))["items"]) == 3
    await refused_within(api, opened[0], 0)


def test_an_ipv6_subscriber_counts_as_one_address() -> None:
    one, other = login_limits.network("2001:db8::1"), login_limits.network("2001:db8::2:3")
    assert one == other == "2001:db8::/64"
    assert login_limits.network("2001:db8:0:1::1") != one
    assert login_limits.network("10.1.2.3") == "10.1.2.3"
    assert login_limits.network("::ffff:10.1.2.3") == "10.1.2.3"
    assert login_limits.network("unknown") == "unknown"
