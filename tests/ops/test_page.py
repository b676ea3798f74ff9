"""The operators' page in a real browser, on a real API: what is so is drawn, and nothing else done.

Where SCREENSHOTS names a directory, pictures of the page are put there, to be looked at.
"""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, Route, expect

from api.ops import page as ops_page
from infra.database import HOST_CHARACTERS
from infra.embedded.postgres import Postgres
from projections import PROJECTIONS
from tests.api.conversations import group
from tests.api.served import Api, Person, good, serving
from tests.infra.daemons import projecting, relaying
from tests.ops import browser as browsers
from tests.ops.browser import PHONE, WAIT_MS, WIDE, Watched, watched
from tests.ops.operators import IMPATIENCE_SECONDS, TOKEN, database_away, started

MESSAGES = "messages"
# How many pixels there are, with what has to be scrolled for sideways.
WIDTH = "document.documentElement.scrollWidth"
BIG = 9_876_543_210


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with browsers.browsing() as started:
        yield started


@asynccontextmanager
async def whole(database_url: str, nats_url: str, **changed: Any) -> AsyncIterator[Api]:
    """All but the projector of messages, which is a process of its own."""
    others = [one for one in PROJECTIONS if one.name != MESSAGES]
    async with (
        relaying(database_url, nats_url),
        projecting(database_url, nats_url, others),
        serving(database_url, nats_url, ops_token=TOKEN, **changed) as api,
    ):
        yield api


async def sign_in(page: Page, url: str, token: str = TOKEN) -> None:
    await page.goto(f"{url}/ops")
    await page.get_by_label("The operators' token").fill(token)
    await page.get_by_role("button", name="Sign in").click()


def state_of(page: Page, table: str, key: str) -> Any:
    return page.locator(f"#{table} tr[data-key='{key}'] .state").first


async def head_of(page: Page) -> int:
    return int((await page.locator("#head").inner_text()).replace(",", ""))


async def picture(page: Page, name: str) -> None:
    if directory := os.environ.get("SCREENSHOTS"):
        await page.screenshot(path=Path(directory) / f"{name}.png", full_page=True)


async def said(ann: Person, chat_id: str, count: int) -> int:
    """The last one's position."""
    commands = [
        {"name": "send-message", "data": {"chat_id": chat_id, "content": f"line {number}"}}
        for number in range(count)
    ]
    results = good(await ann.client.post("/v1/commands", json={"commands": commands}))["results"]
    return int(results[-1]["position"])


async def test_the_page_shows_what_is_so_live(
    browser: Browser, database_url: str, nats_url: str
) -> None:
    async with (
        whole(database_url, nats_url) as api,
        started(database_url, nats_url, "project", MESSAGES) as projector,
        watched(browser) as seen,
        watched(browser, size=PHONE, scheme="dark") as phone,
    ):
        ann, bob = [await api.person(name) for name in ("ann", "bob")]
        chat_id = await group(ann, bob)
        page = seen.page
        await sign_in(page, api.url)
        await expect(page.locator("#age")).to_have_text("live", timeout=WAIT_MS)
        await expect(state_of(page, "processes", f"projector {MESSAGES}")).to_have_text("alive")
        await _shows_the_head(seen, ann, chat_id)
        await sign_in(phone.page, api.url)
        await _shows_a_stopped_projector(seen, phone, projector, ann, chat_id)
        drawn = await page.locator("#rate-chart path.line").count()
        assert drawn >= 1
        assert await page.locator("#lag-chart path.line").count() >= len(PROJECTIONS)
        for one, (width, _) in ((seen, WIDE), (phone, PHONE)):
            await one.is_clean(api.url)
            assert await one.page.evaluate(WIDTH) <= width
        await _fits_a_phone_whatever_it_shows(phone.page)


async def _fits_a_phone_whatever_it_shows(page: Page) -> None:
    """Long names and large numbers, such as a real house has."""

    async def grow(route: Route) -> None:
        answer = await route.fetch()
        state = await answer.json()
        state["position"] = BIG
        for model in state["projections"]:
            model |= {"position": BIG, "lag_events": BIG, "lag_seconds": 98_765.4}
            model |= {"state": "rebuilding"}
        for process in state["processes"]:
            process |= {"process": f"4194303@{'h' * HOST_CHARACTERS}", "state": "silent"}
            process |= {"heard_seconds": 98_765.4, "connected_seconds": 9_876_543.2}
        await route.fulfill(response=answer, json=state)

    await page.route("**/ops/state", grow)
    await expect(page.locator("#head")).to_have_text(f"{BIG:,}", timeout=WAIT_MS)
    await picture(page, "phone-dark-big")
    assert await page.evaluate(WIDTH) <= PHONE[0]
    await page.unroute_all(behavior="wait")


async def _shows_the_head(seen: Watched, ann: Person, chat_id: str) -> None:
    page = seen.page
    before = await head_of(page)
    for _ in range(3):
        position = await said(ann, chat_id, 20)
        await expect(page.locator("#head")).to_have_text(f"{position:,}", timeout=WAIT_MS)
    assert await head_of(page) >= before + 60
    await expect(page.locator("#rate")).to_have_text(re.compile(r"^[0-9.,]+$"))
    await expect(state_of(page, "models", "relay")).to_have_text("live", timeout=WAIT_MS)
    await picture(page, "wide-light")


async def _shows_a_stopped_projector(
    seen: Watched, phone: Watched, projector: asyncio.subprocess.Process, ann: Person, chat_id: str
) -> None:
    page, role = seen.page, f"projector {MESSAGES}"
    await expect(state_of(page, "models", MESSAGES)).to_have_text("live", timeout=WAIT_MS)
    projector.send_signal(signal.SIGSTOP)
    await said(ann, chat_id, 100)
    for shown in (page, phone.page):
        await expect(state_of(shown, "models", MESSAGES)).to_have_text("behind", timeout=WAIT_MS)
        await expect(state_of(shown, "processes", role)).to_have_text("silent", timeout=WAIT_MS)
        problems = shown.locator("#problem-list")
        await expect(problems).to_contain_text(f"{role} ({projector.pid}@", timeout=WAIT_MS)
    await expect(state_of(page, "models", "chats")).to_have_text("live")
    await picture(page, "wide-light-stopped")
    await picture(phone.page, "phone-dark-stopped")
    assert await phone.page.evaluate(WIDTH) <= PHONE[0]
    projector.send_signal(signal.SIGCONT)
    await expect(state_of(page, "models", MESSAGES)).to_have_text("live", timeout=WAIT_MS)
    await expect(state_of(page, "processes", role)).to_have_text("alive", timeout=WAIT_MS)


async def test_what_is_away_is_shown_as_away_and_comes_back_by_itself(
    browser: Browser,
    database_url: str,
    nats_url: str,
    postgres: Postgres,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ops_page, "PATIENCE_SECONDS", IMPATIENCE_SECONDS)
    async with watched(browser, size=WIDE, scheme="dark") as seen:
        page = seen.page
        async with serving(database_url, nats_url, ops_token=TOKEN) as api:
            await sign_in(page, api.url)
            await expect(page.locator("#age")).to_have_text("live", timeout=WAIT_MS)
            await seen.is_clean(api.url)
            async with database_away(postgres.url, database_url):
                away = page.locator("#problem-list")
                await expect(away).to_contain_text("PostgreSQL does not answer", timeout=WAIT_MS)
                await expect(page.locator("body")).to_have_class("is-stale")
            await expect(page.locator("#age")).to_have_text("live", timeout=WAIT_MS)
            await expect(page.locator("body")).not_to_have_class("is-stale")
            await page.context.route("**/ops/state", lambda route: route.abort())
            await expect(page.locator("#verdict")).to_have_text("The API is away", timeout=WAIT_MS)
            await expect(page.locator("body")).to_have_class("is-stale")
            await expect(page.locator("#age")).to_contain_text("ago")
            await picture(page, "wide-dark-away")
            await page.context.unroute("**/ops/state")
            await expect(page.locator("#age")).to_have_text("live", timeout=WAIT_MS)


async def test_only_who_has_the_token_gets_in_and_who_signs_out_is_out(
    browser: Browser, database_url: str, nats_url: str
) -> None:
    async with (
        serving(database_url, nats_url, ops_token=TOKEN) as api,
        watched(browser, size=PHONE) as seen,
    ):
        page = seen.page
        await sign_in(page, api.url, token="not the operators'")
        problem = page.locator("#sign-in-problem")
        await expect(problem).to_have_text("This is not the operators' token.")
        await picture(page, "phone-light-sign-in")
        await expect(page.locator("#board")).to_be_hidden()
        await sign_in(page, api.url)
        await expect(page.locator("#board")).to_be_visible()
        # A script of the page could not read it: nor can one that got in.
        assert await page.evaluate("document.cookie") == ""
        await page.reload()
        await expect(page.locator("#board")).to_be_visible()
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.locator("#sign-in")).to_be_visible()
        await page.reload()
        await expect(page.locator("#sign-in")).to_be_visible()
        assert await page.context.cookies() == []
        assert all(TOKEN not in one for one in seen.requested)


def test_without_a_browser_a_developer_is_told_and_the_gate_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="there is no chromium here"):
        browsers.path()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="there is no chromium here"):
        browsers.path()
