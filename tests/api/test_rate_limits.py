"""Rate limits as clients meet them; a clock that tests move says when something comes back."""

import asyncio
import re
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import httpx
import pytest

from api.app import DESCRIBED
from api.commands import MAX_BATCH_COMMANDS
from api.openapi import RATE_LIMIT_HEADERS, document
from api.rate_limits import limits
from commands import HANDLERS
from infra import settings as infra_settings
from infra.rate_limits import MAX_KEYS
from infra.settings import load
from tests.api import process
from tests.api.served import PASSWORD, TIMEOUT_SECONDS, Api, Json, bearer, good, problem, serving

EXEMPT = ("/health/live", "/health/ready", "/metrics", "/schema/openapi.json", "/schema")
HUGE = 1_000_000
NEVER = 0.001  # a second: as long as a test takes, nothing comes back
NANOSECONDS = 1_000_000_000

DEFAULTS = {
    "rate_limit_user_per_second": 50,
    "rate_limit_user_burst": 1_000,
    "rate_limit_address_per_second": 200,
    "rate_limit_address_burst": 4_000,
    "rate_limit_password_per_second": 5,
    "rate_limit_password_burst": 1_000,
}


def limited(database_url: str, nats_url: str, **limits: float) -> AbstractAsyncContextManager[Api]:
    """Limits that are not named are out of reach: `user_burst=3` and the like."""
    wide = dict.fromkeys(DEFAULTS, HUGE)
    named = {f"rate_limit_{name}": value for name, value in limits.items()}
    return serving(database_url, nats_url, **(wide | named))


class Clock:
    """The limits' own, which stands still until it is moved."""

    def __init__(self, api: Api) -> None:
        self._now_ns = NANOSECONDS
        api.parts.rate_limits._now_ns = lambda: self._now_ns

    def move(self, seconds: float) -> None:
        self._now_ns += round(seconds * NANOSECONDS)


def told(response: httpx.Response) -> tuple[int, ...]:
    """Limit, remaining and reset."""
    return tuple(int(response.headers[name]) for name in RATE_LIMIT_HEADERS)


def refused(response: httpx.Response, limit: str) -> int:
    """Refused by this limit; how long to wait."""
    assert f"by {limit}:" in problem(response, 429, "rate-limited")["detail"]
    seconds = int(response.headers["retry-after"])
    assert seconds >= 1
    assert told(response)[2] == seconds
    return seconds


def nothings(count: int) -> Json:
    """A batch of commands that cost nothing but their number."""
    return {"commands": [{"name": "nothing", "data": {}}] * count}


def registration(name: str) -> Json:
    return {"username": name, "password": PASSWORD}


async def refusals(api: Api) -> dict[str, float]:
    text = (await api.client.get("/metrics")).text
    found = re.findall(r'messenger_rate_limited_total\{limit="(\w+)"\} (\S+)', text)
    return {limit: float(count) for limit, count in found}


async def test_a_user_over_the_limit_is_refused_and_told_when_to_come_back(
    database_url: str, nats_url: str
) -> None:
    async with limited(database_url, nats_url, user_burst=3, user_per_second=0.5) as api:
        clock = Clock(api)
        ann = await api.person("ann")
        answers = [await ann.client.get("/v1/sessions") for _ in range(3)]
        assert [told(answer)[:2] for answer in answers] == [(3, 2), (3, 1), (3, 0)]
        assert [told(answer)[2] for answer in answers] == [2, 4, 6]
        seconds = refused(await ann.client.get("/v1/sessions"), "user")
        assert seconds == 2
        clock.move(seconds - 0.001)
        assert refused(await ann.client.get("/v1/sessions"), "user") == 1
        clock.move(0.001)
        good(await ann.client.get("/v1/sessions"))
        assert await refusals(api) == {"address": 0, "user": 2, "password": 0}


async def test_sessions_of_a_user_share_their_limit_and_other_users_have_their_own(
    database_url: str, nats_url: str
) -> None:
    async with limited(database_url, nats_url, user_burst=2, user_per_second=NEVER) as api:
        ann, bob = await api.person("ann"), await api.person("bob")
        elsewhere = await api.signed_in("ann")
        good(await ann.client.get("/v1/sessions"))
        good(await elsewhere.client.get("/v1/sessions"))
        refused(await ann.client.get("/v1/sessions"), "user")
        refused(await elsewhere.client.get("/v1/sessions"), "user")
        good(await bob.client.get("/v1/sessions"))


async def test_an_address_over_the_limit_is_refused_whoever_asks_and_whatever_for(
    database_url: str, nats_url: str
) -> None:
    async with limited(database_url, nats_url, address_burst=4, address_per_second=NEVER) as api:
        ann = await api.person("ann")
        good(await ann.client.get("/v1/sessions"))
        assert (await api.client.get("/nowhere")).status_code == 404
        refused(await ann.client.get("/v1/sessions"), "address")
        refused(await api.client.get("/nowhere"), "address")
        refused(await api.client.post("/v1/commands/register-user", content=b"{"), "address")
        assert (await api.client.head("/v1/status")).status_code == 429
        assert await refusals(api) == {"address": 4, "user": 0, "password": 0}


async def test_a_token_that_does_not_hold_counts_for_its_address_only(
    database_url: str, nats_url: str
) -> None:
    async with limited(database_url, nats_url, user_burst=2, user_per_second=NEVER) as api:
        ann = await api.person("ann")
        ended = await api.log_in("ann")
        gone = await api.client.delete("/v1/sessions/current", headers=bearer(ended))
        assert gone.status_code == 204
        for token in (bearer(ended), {"Authorization": "Bearer made.up"}):
            response = await api.client.get("/v1/sessions", headers=token)
            problem(response, 401, "unauthenticated")
            assert told(response)[0] == HUGE
        good(await ann.client.get("/v1/sessions"))


async def test_a_batch_costs_as_many_as_it_has_commands(database_url: str, nats_url: str) -> None:
    async with limited(database_url, nats_url, user_burst=10, user_per_second=NEVER) as api:
        ann = await api.person("ann")
        response = await ann.client.post("/v1/commands", json=nothings(6))
        assert len(good(response)["results"]) == 6
        assert told(response)[:2] == (10, 4)
        seconds = refused(await ann.client.post("/v1/commands", json=nothings(8)), "user")
        assert 4_990 < seconds <= 5_000
        good(await ann.client.post("/v1/commands", json=nothings(3)))


async def test_a_batch_that_waits_as_long_as_it_is_told_is_taken(
    database_url: str, nats_url: str
) -> None:
    async with limited(database_url, nats_url, user_burst=5, user_per_second=2) as api:
        clock = Clock(api)
        ann = await api.person("ann")
        good(await ann.client.post("/v1/commands", json=nothings(4)))
        seconds = refused(await ann.client.post("/v1/commands", json=nothings(5)), "user")
        assert seconds == 3
        clock.move(seconds)
        good(await ann.client.post("/v1/commands", json=nothings(5)))


async def test_a_user_over_the_limit_uses_up_nothing_of_others_at_the_address(
    database_url: str, nats_url: str
) -> None:
    limits = {
        "user_burst": 10,
        "user_per_second": NEVER,
        "address_burst": 100,
        "address_per_second": NEVER,
    }
    async with limited(database_url, nats_url, **limits) as api:
        ann = await api.person("ann")
        for _ in range(9):
            refused(await ann.client.post("/v1/commands", json=nothings(50)), "user")
        left = told(await api.client.get("/v1/status"))
        assert left[:2] == (100, 100 - 2 - 9 - 1)


async def test_a_batch_without_a_token_costs_its_address(database_url: str, nats_url: str) -> None:
    async with limited(database_url, nats_url, address_burst=10, address_per_second=NEVER) as api:
        good(await api.client.post("/v1/commands", json=nothings(9)))
        refused(await api.client.post("/v1/commands", json=nothings(9)), "address")


async def test_requests_with_a_password_have_a_lower_limit_by_address(
    database_url: str, nats_url: str
) -> None:
    limits = {"password_burst": 3, "password_per_second": NEVER}
    async with limited(database_url, nats_url, **limits) as api:
        ann = await api.person("ann")
        change = {"current_password": PASSWORD, "new_password": "another " + PASSWORD}
        response = await ann.send("change-password", **change)
        good(response)
        assert told(response)[:2] == (3, 0)
        refused(await ann.send("delete-account", password=PASSWORD), "password")
        refused(await ann.send("register-user", **registration("bob")), "password")
        refused(await api.client.post("/v1/sessions", json=registration("ann")), "password")
        good(await ann.client.get("/v1/sessions"))


async def test_registrations_in_a_batch_count_one_by_one(database_url: str, nats_url: str) -> None:
    limits = {"password_burst": 3, "password_per_second": NEVER}
    async with limited(database_url, nats_url, **limits) as api:
        commands = [{"name": "register-user", "data": registration(f"user{n}")} for n in range(5)]
        response = await api.client.post("/v1/commands", json={"commands": commands})
        results = good(response)["results"]
        assert [result.get("problem", {}).get("status") for result in results] == [
            *(None, None, None),
            *(429, 429),
        ]
        assert told(response)[:2] == (3, 0)
        assert await refusals(api) == {"address": 0, "user": 0, "password": 2}


async def test_health_metrics_and_the_document_are_never_limited(
    database_url: str, nats_url: str
) -> None:
    async with limited(database_url, nats_url, address_burst=1, address_per_second=NEVER) as api:
        await api.client.get("/v1/status")
        refused(await api.client.get("/v1/status"), "address")
        for path in EXEMPT:
            response = await api.client.get(path)
            assert response.status_code != 429
            assert not [name for name in response.headers if name.startswith("ratelimit")]


async def test_a_refused_request_is_answered_before_its_body_is_there(
    database_url: str, nats_url: str
) -> None:
    limits = {"address_burst": 2, "address_per_second": NEVER}
    async with limited(database_url, nats_url, **limits) as api:
        for _ in range(2):
            await api.client.get("/nowhere")
        head = (
            "POST /v1/commands HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            "Content-Length: 7000000\r\n\r\n{"
        )
        assert (await first_line(api.url, head)).startswith("HTTP/1.1 429 ")


async def test_a_refused_user_is_answered_before_the_body_is_there(
    database_url: str, nats_url: str
) -> None:
    async with limited(database_url, nats_url, user_burst=1, user_per_second=NEVER) as api:
        ann = await api.person("ann")
        good(await ann.client.get("/v1/sessions"))
        [authorization] = bearer(ann.session).values()
        head = (
            "POST /v1/commands HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Authorization: {authorization}\r\nContent-Length: 7000000\r\n\r\n{{"
        )
        assert (await first_line(api.url, head)).startswith("HTTP/1.1 429 ")


async def first_line(url: str, request: str) -> str:
    host, _, port = url.removeprefix("http://").partition(":")
    async with asyncio.timeout(TIMEOUT_SECONDS):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request.encode())
        line = await reader.readline()
        writer.close()
        await writer.wait_closed()
    return line.decode()


async def test_an_address_that_a_trusted_proxy_names_is_the_clients(
    database_url: str, nats_url: str
) -> None:
    limits = {"rate_limit_address_burst": 1, "rate_limit_address_per_second": NEVER}
    proxies = "127.0.0.0/8,10.0.0.0/8"
    async with serving(database_url, nats_url, **limits, trusted_proxies=proxies) as api:

        async def asks(forwarded: str) -> httpx.Response:
            headers = {"X-Forwarded-For": forwarded}
            return await api.client.get("/v1/status", headers=headers)

        good(await asks("192.0.2.1"))
        refused(await asks("192.0.2.1"), "address")
        good(await asks("192.0.2.2"))
        # What the client itself wrote stands before; what our proxies wrote, after.
        refused(await asks("198.51.100.7, 192.0.2.1, 10.1.2.3"), "address")


async def test_without_trusted_proxies_nobody_can_name_another_address(
    database_url: str, nats_url: str
) -> None:
    async with limited(database_url, nats_url, address_burst=1, address_per_second=NEVER) as api:
        forged = {"X-Forwarded-For": "192.0.2.1", "Forwarded": "for=192.0.2.1"}
        good(await api.client.get("/v1/status"))
        refused(await api.client.get("/v1/status", headers=forged), "address")


async def test_a_real_process_has_the_stated_defaults_and_takes_settings(
    database_url: str, nats_url: str
) -> None:
    settings = {"rate_limit_user_burst": "500", "rate_limit_user_per_second": "0.001"}
    async with (
        process.running(database_url, nats_url, **settings) as api,
        process.asking(api.url) as client,
    ):
        response = await client.post("/v1/commands/register-user", json=registration("ann"))
        assert told(response)[:2] == (1_000, 999)
        session = good(await client.post("/v1/sessions", json=registration("ann")), 201)
        assert told(await client.get("/v1/status"))[0] == 4_000
        headers = bearer(session)
        whole = await client.post("/v1/commands", json=nothings(500), headers=headers)
        assert len(good(whole)["results"]) == 500
        assert told(whole)[0] == 500
        again = await client.post("/v1/commands", json=nothings(500), headers=headers)
        assert 900 < refused(again, "user") <= 1_000


async def test_a_real_process_with_rate_limits_off_tells_and_refuses_nothing(
    database_url: str, nats_url: str
) -> None:
    settings = {"rate_limits": "off", "rate_limit_address_burst": "500"}
    async with (
        process.running(database_url, nats_url, **settings) as api,
        process.asking(api.url) as client,
    ):
        for _ in range(2):
            response = await client.post("/v1/commands", json=nothings(500))
            good(response)
            assert not [name for name in response.headers if name.startswith("ratelimit")]


def test_the_defaults_are_those_that_the_readme_states() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    loaded = load({}, needs=(), looks_for_running=False)
    for limit in limits(loaded):
        name = limit.name.upper()
        stated = f"{limit.burst:,} | {limit.per_second:g} | `{name}_BURST`, `{name}_PER_SECOND` |"
        assert stated in readme
    assert f"{MAX_KEYS:,} keys" in readme
    assert {name: getattr(loaded, name) for name in DEFAULTS} == DEFAULTS
    assert loaded.trusted_proxies is None


def test_the_largest_batch_fits_into_the_smallest_burst() -> None:
    assert infra_settings.WHOLE_BATCH_COMMANDS == MAX_BATCH_COMMANDS
    for name in ("USER", "ADDRESS"):
        with pytest.raises(infra_settings.SettingError, match="a whole number from 500 to"):
            load({f"MESSENGER_RATE_LIMIT_{name}_BURST": "499"}, needs=())


@pytest.mark.parametrize("wrong", ["*", "proxy.example", "10.0.0.1/8", "10.0.0.1,,10.0.0.2"])
def test_a_trusted_proxy_that_is_no_address_is_named(wrong: str) -> None:
    with pytest.raises(infra_settings.SettingError) as caught:
        load({"MESSENGER_TRUSTED_PROXIES": wrong}, needs=())
    assert str(caught.value).startswith(f"MESSENGER_TRUSTED_PROXIES={wrong} is not addresses or")


def test_every_limited_operation_is_described_as_one() -> None:
    paths = document(DESCRIBED)["paths"]
    for operation in DESCRIBED:
        described = paths[operation.path.replace(":str}", "}")][operation.method.lower()]
        is_limited = operation.path not in EXEMPT
        assert ("429" in described["responses"]) is is_limited
        for response in described["responses"].values():
            assert (set(RATE_LIMIT_HEADERS) <= set(response["headers"])) is is_limited
        if is_limited:
            assert "Retry-After" in described["responses"]["429"]["headers"]


def test_all_that_hashes_a_password_is_limited_as_such() -> None:
    found = {operation.name for operation in DESCRIBED if operation.rate_limit == "password"}
    assert found == {"log-in", *(handler.name for handler in HANDLERS if handler.has_password)}
    assert {"register-user", "change-password", "delete-account"} < found
