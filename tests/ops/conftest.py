"""The API with an operators' page."""

from collections.abc import AsyncIterator

import pytest

from tests.api.fixtures import api
from tests.api.served import Api, serving
from tests.ops.operators import TOKEN

__all__ = ["api", "ops"]


@pytest.fixture
async def ops(database_url: str, nats_url: str) -> AsyncIterator[Api]:
    """Nothing moves the read models or the copy."""
    async with serving(database_url, nats_url, ops_token=TOKEN) as api:
        yield api
