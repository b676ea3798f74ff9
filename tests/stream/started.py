"""People on the stream: each with a client that has started, without a catch-up."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from tests.api.served import Api, Person
from tests.stream.client import Client, connected


def token(person: Person) -> str:
    access_token: str = person.session["access_token"]
    return access_token


@asynccontextmanager
async def started(api: Api, *people: Person) -> AsyncIterator[list[Client]]:
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(connected(api.url, token(person))) for person in people
        ]
        for client in clients:
            await client.start()
        yield clients
