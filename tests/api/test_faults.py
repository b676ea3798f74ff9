"""The database goes away and comes back: 503 meanwhile, never a 500, nothing to restart."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from tests.api.served import Api, good, problem, serving
from tests.faults.cable import Cable, by_cable, target_of
from tests.infra.daemons import until


@pytest.fixture
async def cable(database_url: str) -> AsyncIterator[Cable]:
    async with Cable(lambda: target_of(database_url)).laid() as laid:
        yield laid


@pytest.fixture
async def api(cable: Cable, database_url: str, nats_url: str) -> AsyncIterator[Api]:
    async with serving(by_cable(database_url, cable.port), nats_url) as served:
        yield served


async def test_without_a_database_all_is_503_and_then_works_again(api: Api, cable: Cable) -> None:
    ann = await api.person("ann")
    await cable.cut()
    log_in = {"username": "ann", "password": "correct horse"}
    began = time.monotonic()
    responses = await asyncio.gather(
        ann.send("update-profile", display_name="Ann"),
        ann.look("/v1/users/me"),
        ann.look("/v1/unread", 1),
        ann.client.get("/v1/sessions"),
        ann.client.delete("/v1/sessions/current"),
        api.client.post("/v1/sessions", json=log_in),
        api.client.post("/v1/commands/register-user", json=log_in | {"username": "bob"}),
        api.client.get("/v1/status"),
        api.client.get("/health/ready"),
    )
    for response in responses:
        problem(response, 503, "unavailable")
        assert response.headers["retry-after"]
    assert time.monotonic() - began < 20
    good(await api.client.get("/health/live"))
    assert "messenger_database_up 0.0" in (await api.client.get("/metrics")).text
    cable.mend()

    async def works() -> bool:
        response = await ann.send("update-profile", display_name="Ann")
        return response.status_code == 200

    await until(works, "the API works again")
    assert good(await ann.client.get("/v1/sessions"))["items"]


async def test_a_cut_in_mid_work_costs_no_acknowledged_command(api: Api, cable: Cable) -> None:
    ann, bob = await api.person("ann"), await api.person("bob")
    created = await ann.do("create-group", name="Friends", member_ids=[bob.user_id])
    chat_id = created["chat_id"]
    positions: list[int] = []

    async def send(n: int) -> None:
        for m in range(15):
            response = await ann.send(
                "send-message", f"{n}-{m}", chat_id=chat_id, content=f"{n}-{m}"
            )
            if response.status_code == 200:
                positions.append(response.json()["position"])
            else:
                problem(response, 503, "unavailable")

    sending = [asyncio.create_task(send(n)) for n in range(8)]
    for _ in range(3):
        await asyncio.sleep(0.1)
        await cable.cut()
        cable.mend()
    await asyncio.gather(*sending)
    assert len(positions) == len(set(positions))
    assert max(positions, default=0) <= await _head(api)


async def _head(api: Api) -> int:
    """The log's head: as often as it takes, for the last cut may have left dead connections."""
    responses = []

    async def answers() -> bool:
        responses.append(await api.client.get("/v1/status"))
        return responses[-1].status_code == 200

    await until(answers, "the status answers")
    position: int = good(responses[-1])["position"]
    return position
