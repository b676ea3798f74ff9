"""What the OpenAPI document says is what the API does: schemathesis tries to find where not.

It runs against a real process with a signed-in user who has a chat and a message, so that
queries find something. Excluded: `positive_data_acceptance`, for some rules are beyond JSON
Schema (a password's bytes, ranges within a content); the operation that would end the session
it runs in; and for the batch, that wrong items are refused as a whole (each has its own problem).
"""

import asyncio
import sys
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import httpx
import pytest

from infra.embedded.s3 import S3
from tests.api import process
from tests.api.served import PASSWORD, Json, bearer, good, stored_in
from tests.infra.daemons import projecting, until

MAX_EXAMPLES = 10
RUN_SECONDS = 400.0
PROGRAM = Path(sys.executable).with_name("st")
BASE = (
    "run",
    "--phases=examples,coverage,fuzzing",
    f"--max-examples={MAX_EXAMPLES}",
    "--seed=1",
    "--no-shrink",
    "--continue-on-failure",
    "--suppress-health-check=all",
    "--warnings=off",
)


@pytest.mark.timeout(60 + 2 * RUN_SECONDS)
async def test_the_api_does_what_its_document_says(
    database_url: str, nats_url: str, s3_server: S3, tmp_path: Path
) -> None:
    store = stored_in(s3_server)
    async with (
        projecting(database_url, nats_url),
        process.running(database_url, nats_url, rate_limits="off", **store) as api,
        process.asking(api.url) as client,
    ):
        session = await _populate(client, tmp_path)
        authorization = f"Authorization: {bearer(session)['Authorization']}"
        given = (f"{api.url}/schema/openapi.json", "-H", authorization)
        await _run(
            tmp_path,
            *given,
            "--exclude-checks=positive_data_acceptance",
            "--exclude-operation-id=end-current-session",
            "--exclude-operation-id=commands",
        )
        await _run(
            tmp_path,
            *given,
            "--exclude-checks=positive_data_acceptance,negative_data_rejection",
            "--include-operation-id=commands",
        )
        good(await client.get("/v1/users/me", headers=bearer(session)))


async def _run(directory: Path, *arguments: str) -> None:
    running = await asyncio.create_subprocess_exec(
        str(PROGRAM), *BASE, *arguments, cwd=directory, stdout=PIPE, stderr=STDOUT
    )
    said, _ = await asyncio.wait_for(running.communicate(), RUN_SECONDS)
    assert running.returncode == 0, said.decode()


async def _populate(client: httpx.AsyncClient, directory: Path) -> Json:
    """A user with a chat, a message and another session; their ids are for schemathesis."""
    ids: list[str] = []
    for username in ("ann", "bob"):
        registration = {"username": username, "password": PASSWORD}
        response = await client.post("/v1/commands/register-user", json=registration)
        ids.append(good(response)["user_id"])
    log_in = {"username": "ann", "password": PASSWORD}
    session, other = [good(await client.post("/v1/sessions", json=log_in), 201) for _ in range(2)]
    client.headers.update(bearer(session))
    group = {"name": "Friends", "member_ids": ids[1:]}
    chat = good(await client.post("/v1/commands/create-group", json=group))
    message = {"chat_id": chat["chat_id"], "content": "hi"}
    sent = good(await client.post("/v1/commands/send-message", json=message))
    known = {
        "path.chat_id": chat["chat_id"],
        "path.message_id": sent["message_id"],
        "path.user_id": ids[1],
        "path.session_id": other["session_id"],
    }
    lines = [f'"{name}" = "{value}"' for name, value in known.items()]
    (directory / "schemathesis.toml").write_text("\n".join(["[parameters]", *lines]))

    async def is_shown() -> bool:
        return (await client.get(f"/v1/messages/{sent['message_id']}")).status_code == 200

    await until(is_shown, "the message is shown")
    return session
