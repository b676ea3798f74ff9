"""One API for each test that asks for it, on a database of the test's own."""

from collections.abc import AsyncIterator

import pytest

from tests.api.served import Api, Person, serving, serving_all


@pytest.fixture
async def api(database_url: str, nats_url: str) -> AsyncIterator[Api]:
    """Commands and sessions; nothing moves the read models, so nobody waits for them."""
    async with serving(database_url, nats_url, read_wait_seconds=0.5) as served:
        yield served


@pytest.fixture
async def whole_api(database_url: str, nats_url: str) -> AsyncIterator[Api]:
    """With projectors."""
    async with serving_all(database_url, nats_url) as served:
        yield served


@pytest.fixture
async def people(whole_api: Api) -> tuple[Person, Person, Person]:
    """Three who do not know each other."""
    ann, bob, eve = [await whole_api.person(name) for name in ("ann", "bob", "eve")]
    return ann, bob, eve
