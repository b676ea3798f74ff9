"""Who sees the operators' page, and what a stranger gets."""

import asyncio
import re
import time
from http.cookies import Morsel, SimpleCookie
from typing import Any

import httpx
import pytest

from api.http import Inbound
from api.ops import access
from api.ops.access import COOKIE, SESSION_SECONDS, WRONG_TOKENS, Operators
from api.ops.page import FILES, STATIC, Watched
from infra import clock
from infra.housekeeping import SESSION_KEPT_SECONDS
from infra.overview import Observer
from infra.settings import SettingError, load, table
from projections import NAMES
from tests.api.served import Api, bearer, good, problem, serving
from tests.infra.daemons import connected
from tests.ops.operators import BEARER, IMPATIENCE_SECONDS, TOKEN, TOLD_SECONDS

PATHS = ("/ops", "/ops/state", "/ops/session", "/ops/ops.js")
WRONG = "1d1f5b7c9e3a8642"
STRONG = "b1946ac92492d2347c6235b4d2611184"


def cookie_of(response: httpx.Response) -> "Morsel[str]":
    return SimpleCookie(response.headers["set-cookie"])[COOKIE]


async def signed_in(api: Api) -> dict[str, str]:
    """Headers with the session's cookie."""
    answer = await api.client.post("/ops/session", json={"token": TOKEN})
    api.client.cookies.clear()
    return {"Cookie": f"{COOKIE}={cookie_of(answer).value}"}


async def is_signed_in(api: Api, headers: dict[str, str]) -> bool:
    answer = good(await api.client.get("/ops/session", headers=headers))
    return bool(answer["signed_in"])


async def test_without_a_token_set_there_is_no_page(api: Api) -> None:
    for path in PATHS:
        problem(await api.client.get(path, headers=BEARER), 404, "not-found")
    problem(await api.client.post("/ops/session", json={"token": TOKEN}), 404, "not-found")


async def test_the_state_is_for_who_has_the_token_and_nobody_else(ops: Api) -> None:
    ann = await ops.person("ann")
    for headers in (
        {},
        bearer(ann.session),
        {"Authorization": f"Bearer {WRONG}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": "Bearer x"},
        {"Authorization": "Bearer \u00e9".encode("latin-1")},
        {"Authorization": f"Basic {TOKEN}"},
        {"Cookie": f"{COOKIE}={TOKEN}"},
    ):
        refused = await ops.client.get("/ops/state", headers=headers)  # type: ignore[arg-type]
        problem(refused, 401, "unauthenticated")
    problem(await ops.client.get(f"/ops/state?token={TOKEN}"), 401, "unauthenticated")
    assert good(await ops.client.get("/ops/state", headers=BEARER))["position"] == 1


async def test_the_operators_token_opens_nothing_else(ops: Api) -> None:
    problem(await ops.client.get("/v1/users/me", headers=BEARER), 401, "unauthenticated")


async def test_a_browser_signs_in_with_the_token_and_out_again(ops: Api) -> None:
    assert not await is_signed_in(ops, {})
    refused = await ops.client.post("/ops/session", json={"token": WRONG})
    problem(refused, 401, "unauthenticated")
    assert "set-cookie" not in refused.headers
    opened = await ops.client.post("/ops/session", json={"token": TOKEN})
    assert (opened.status_code, opened.content) == (204, b"")
    cookie = cookie_of(opened)
    assert TOKEN not in cookie.value
    assert cookie["httponly"]
    assert (cookie["samesite"], cookie["path"], cookie["secure"]) == ("Strict", "/ops", "")
    assert int(cookie["max-age"]) == SESSION_SECONDS
    # The client keeps cookies, as a browser does.
    assert await is_signed_in(ops, {})
    assert good(await ops.client.get("/ops/state"))["position"] == 0
    ended = await ops.client.delete("/ops/session")
    assert (ended.status_code, cookie_of(ended)["max-age"]) == (204, "0")
    problem(await ops.client.get("/ops/state"), 401, "unauthenticated")


async def test_what_is_no_sign_in_is_refused(ops: Api) -> None:
    headers = {"Content-Type": "application/json"}
    for body in (
        "",
        "{}",
        "[]",
        '{"token": 1}',
        '{"token": "x", "more": 1}',
        '{"token": "\\ud800"}',
    ):
        refused = await ops.client.post("/ops/session", content=body, headers=headers)
        assert refused.status_code in (400, 401), refused.text


async def test_a_form_of_another_site_signs_nobody_in(ops: Api) -> None:
    refused = await ops.client.post("/ops/session", data={"token": TOKEN})
    problem(refused, 415, "unsupported-media")


async def test_a_cookie_that_is_not_ours_or_over_is_none(ops: Api) -> None:
    headers = await signed_in(ops)
    assert await is_signed_in(ops, headers)
    value = headers["Cookie"].partition("=")[2]
    session_id, expires_at, signature = value.split(".")
    said = f"{session_id}.{expires_at}"
    for changed in (
        f"{session_id}.{int(expires_at) + 1}.{signature}",
        f"{clock.new_id()}.{expires_at}.{signature}",
        f"{said}.{signature[:-1]}",
        f"{said}.{'0' * len(signature)}",
        f"{said}.",
        f"{expires_at}.{signature}",
        f".{signature}",
        signature,
        f"{session_id}.-{expires_at}.{signature}",
        "\u00b2.\u00b2.\u00e9",
        "x" * 5_000,
    ):
        bad = {"Cookie": f"{COOKIE}={changed}".encode("latin-1")}
        assert not await is_signed_in(ops, bad), changed  # type: ignore[arg-type]


async def test_who_signs_out_is_out_on_every_process(
    ops: Api, database_url: str, nats_url: str
) -> None:
    async with serving(database_url, nats_url, ops_token=TOKEN) as other:
        copied, kept = await signed_in(ops), await signed_in(other)
        for api in (ops, other):
            assert await is_signed_in(api, copied)
        ended = await ops.client.delete("/ops/session", headers=copied)
        assert ended.status_code == 204
        problem(await ops.client.get("/ops/state", headers=copied), 401, "unauthenticated")
        assert not await is_signed_in(ops, copied)
        async with asyncio.timeout(TOLD_SECONDS):  # it looks again after STATE_SECONDS
            while (await other.client.get("/ops/state", headers=copied)).status_code == 200:
                await asyncio.sleep(0.05)
        assert not await is_signed_in(other, copied)
        assert await is_signed_in(ops, kept)
    async with serving(database_url, nats_url, ops_token=TOKEN) as later:
        assert not await is_signed_in(later, copied)
        assert await is_signed_in(later, kept)


async def test_an_end_that_nobody_would_know_of_is_none(
    ops: Api, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "END_SECONDS", IMPATIENCE_SECONDS)
    session = await signed_in(ops)
    async with connected(database_url) as connection, connection.transaction():
        await connection.execute("LOCK TABLE sessions IN EXCLUSIVE MODE")
        refused = await ops.client.delete("/ops/session", headers=session)
        problem(refused, 503, "unavailable")
        assert "set-cookie" not in refused.headers
    assert await is_signed_in(ops, session)


async def test_an_end_is_kept_for_as_long_as_the_session_would_have_lived(ops: Api) -> None:
    assert SESSION_SECONDS < SESSION_KEPT_SECONDS
    good_until = await signed_in(ops)
    await ops.client.delete("/ops/session", headers=good_until)
    now = time.time()
    operators = Operators(TOKEN, ops.parts.tokens, is_limited=True, now=lambda: now)
    async with ops.parts.pool.connection() as connection:
        await operators.learn(connection)
        assert len(operators._ended) == 1
        now += SESSION_SECONDS
        await operators.learn(connection)
    assert operators._ended == {}


async def nothing() -> Any:
    raise AssertionError("nobody reads a body")


async def test_a_session_ends_in_time_and_with_the_token(ops: Api) -> None:
    now = 1_000_000.0

    def operators(token: str) -> Operators:
        return Operators(token, ops.parts.tokens, is_limited=True, now=lambda: now)

    [(_, given)] = operators(TOKEN).session({"scheme": "http"})
    headers = [(b"cookie", given.partition(b";")[0])]
    asked = Inbound({"headers": headers}, nothing)  # type: ignore[typeddict-item]
    assert operators(TOKEN).has_session(asked)
    assert not operators(WRONG).has_session(asked)
    now += SESSION_SECONDS - 1
    assert operators(TOKEN).has_session(asked)
    now += 1
    assert not operators(TOKEN).has_session(asked)


async def test_behind_tls_the_cookie_goes_by_tls_alone(database_url: str, nats_url: str) -> None:
    changed = {"trusted_proxies": "127.0.0.1", "ops_token": TOKEN}
    async with serving(database_url, nats_url, **changed) as api:
        behind = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.1"}
        opened = await api.client.post("/ops/session", json={"token": TOKEN}, headers=behind)
        assert cookie_of(opened)["secure"]


async def test_wrong_tokens_of_an_address_are_limited_and_sessions_go_on(ops: Api) -> None:
    session = await signed_in(ops)
    for number in range(WRONG_TOKENS.burst):
        if number % 2:
            refused = await ops.client.post("/ops/session", json={"token": WRONG})
        else:
            wrong = {"Authorization": f"Bearer {WRONG}"}
            refused = await ops.client.get("/ops/state", headers=wrong)
        problem(refused, 401, "unauthenticated")
    for headers in (BEARER, {"Authorization": f"Bearer {WRONG}"}):
        limited = await ops.client.get("/ops/state", headers=headers)
        problem(limited, 429, "rate-limited")
        assert 1 <= int(limited.headers["retry-after"]) <= 10
    limited = await ops.client.post("/ops/session", json={"token": TOKEN})
    problem(limited, 429, "rate-limited")
    assert "set-cookie" not in limited.headers
    good(await ops.client.get("/ops/state", headers=session))


async def test_right_tokens_are_not_limited(ops: Api) -> None:
    for _ in range(WRONG_TOKENS.burst + 2):
        good(await ops.client.get("/ops/state", headers=BEARER))


async def test_the_page_runs_and_draws_nothing_but_its_own(ops: Api) -> None:
    for file in FILES:
        response = await ops.client.get(file.path)
        assert response.content == (STATIC / file.name).read_bytes()
        assert response.headers["content-type"] == file.content_type.decode()
        [policy] = response.headers.get_list("content-security-policy")
        rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
        assert rules["default-src"] == rules["form-action"] == rules["frame-ancestors"] == "'none'"
        assert set(rules.values()) == {"'none'", "'self'"}
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cache-control"] == "no-store"
    page = (await ops.client.get("/ops")).text
    assert not re.search(r"""\son\w+=|\sstyle=|<style|<script>|javascript:""", page)
    for file in STATIC.iterdir():
        found = set(re.findall(r"https?://[^\"' )]+", file.read_text()))
        assert found <= {"http://www.w3.org/2000/svg"}, file


async def test_however_many_watch_the_servers_are_asked_once(ops: Api) -> None:
    now = 0.0
    observer = Observer(ops.parts.bus, NAMES)
    operators = Operators(TOKEN, ops.parts.tokens, is_limited=True)
    watched = Watched(observer, ops.parts.pool, operators, now=lambda: now)
    answers = await asyncio.gather(*(watched.state() for _ in range(50)))
    assert len(set(answers)) == 1
    assert watched.looks == 1
    now += 1.0
    await asyncio.gather(*(watched.state() for _ in range(50)))
    assert watched.looks == 2


def test_production_refuses_a_token_that_can_be_guessed() -> None:
    environ = {"MESSENGER_ENV": "production", "MESSENGER_SECRET": STRONG[::-1]}
    for weak in (TOKEN, "a" * 40, "the-operators-password-is-long-enough-here"):
        with pytest.raises(
            SettingError, match="MESSENGER_OPS_TOKEN is one for development"
        ) as told:
            load({**environ, "MESSENGER_OPS_TOKEN": weak}, needs=())
        assert weak not in str(told.value)
    loaded = load({**environ, "MESSENGER_OPS_TOKEN": STRONG}, needs=())
    assert loaded.ops_token == STRONG
    assert STRONG not in repr(table(loaded))
    with pytest.raises(SettingError, match="MESSENGER_OPS_TOKEN is not 16 to 256"):
        load({"MESSENGER_OPS_TOKEN": "short"}, needs=())


def test_an_operators_token_is_not_the_key_that_signs() -> None:
    with pytest.raises(SettingError, match="MESSENGER_OPS_TOKEN is the same as MESSENGER_SECRET"):
        load({"MESSENGER_SECRET": STRONG, "MESSENGER_OPS_TOKEN": STRONG}, needs=())
