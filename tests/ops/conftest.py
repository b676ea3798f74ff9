"""The API with an operators' page."""

from collections.abc import AsyncIterator

import pytest

from api.ops import page
from infra import overview
from tests.api.fixtures import api
from tests.api.served import Api, serving
from tests.ops.operators import TOKEN, WAIT_SECONDS

__all__ = ["api", "ops"]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is busy with other things is not away. Tests of impatience say so."""
    monkeypatch.setattr(page, "PATIENCE_SECONDS", WAIT_SECONDS)
    monkeypatch.setattr(overview, "BUS_TIMEOUT_SECONDS", WAIT_SECONDS)
    monkeypatch.setattr(overview, "DATABASE_TIMEOUT_SECONDS", WAIT_SECONDS)


@pytest.fixture
async def ops(database_url: str, nats_url: str) -> AsyncIterator[Api]:
    """Nothing moves the read models or the copy."""
    async with serving(database_url, nats_url, ops_token=TOKEN) as api:
        yield api
