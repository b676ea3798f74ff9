"""A real browser on a page: what it did besides what was asked of it, and where it is found.

Chromium is on PATH (`.ci/browser` puts it there) or where the variable CHROMIUM says. Without one
these tests are skipped, with the reason; where CI is set they fail.
"""

import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

import pytest
from playwright.async_api import (
    Browser,
    ConsoleMessage,
    Page,
    Request,
    async_playwright,
    expect,
)

NAMES = ("chromium", "chromium-browser", "google-chrome")
# As root and in a container there is neither a sandbox nor much shared memory.
ARGUMENTS = ("--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu")
WAIT_MS = 40_000
WIDE = (1280, 900)
PHONE = (375, 812)

# Whatever is expected of a page: 5 s else.
expect.set_options(timeout=WAIT_MS)

# Before any script of the page: what its policy stops is told here alone.
TELL_VIOLATIONS = """
    window.violations = [];
    document.addEventListener("securitypolicyviolation", (violation) => {
        window.violations.push(`${violation.violatedDirective} ${violation.blockedURI}`);
    });
"""


class Watched(NamedTuple):
    """A page and what went on in it."""

    page: Page
    complaints: list[str]
    requested: list[str]

    async def is_clean(self, url: str) -> None:
        """No complaint, no breach of the policy, nothing asked of anybody else."""
        assert self.complaints == []
        assert await self.page.evaluate("window.violations") == []
        assert {urlsplit(one).netloc for one in self.requested} == {urlsplit(url).netloc}
        assert all("token" not in one for one in self.requested)


def found(names: Sequence[str] = NAMES) -> str | None:
    given = [os.environ["CHROMIUM"]] if os.environ.get("CHROMIUM") else []
    return next((path for name in (*given, *names) if (path := shutil.which(name))), None)


def path() -> str:
    known = found()
    if known is None:
        told = "there is no chromium here: .ci/browser installs it, or CHROMIUM says where it is"
        if os.environ.get("CI"):
            pytest.fail(told)
        pytest.skip(told)
    return known


@asynccontextmanager
async def browsing() -> AsyncIterator[Browser]:
    executable = path()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=executable, args=list(ARGUMENTS), timeout=WAIT_MS
        )
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def watched(
    browser: Browser,
    *,
    size: tuple[int, int] = WIDE,
    scheme: Literal["light", "dark"] = "light",
) -> AsyncIterator[Watched]:
    """A page with cookies of its own."""
    width, height = size
    context = await browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme
    )
    context.set_default_timeout(WAIT_MS)
    try:
        page = await context.new_page()
        await page.add_init_script(TELL_VIOLATIONS)
        seen = Watched(page, [], [])

        def on_console(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                seen.complaints.append(message.text)

        def on_request(request: Request) -> None:
            seen.requested.append(request.url)

        page.on("console", on_console)
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        page.on("request", on_request)
        yield seen
    finally:
        await context.close()
