"""Commands over HTTP: answers, idempotency keys, the batch, and everything malformed."""

import json
from collections.abc import AsyncIterator
from uuid import uuid4

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commands import HANDLERS
from tests.api.served import PASSWORD, Api, Json, Person, good, problem, serving
from tests.infra.daemons import written

NAMES = [handler.name for handler in HANDLERS]


async def group(owner: Person, *members: Person) -> str:
    created = await owner.do(
        "create-group", name="Friends", member_ids=[member.user_id for member in members]
    )
    chat_id: str = created["chat_id"]
    return chat_id


async def post(person: Person, name: str, body: bytes, **headers: str) -> httpx.Response:
    given = {"content-type": "application/json"} | headers
    return await person.client.post(f"/v1/commands/{name}", content=body, headers=given)


async def test_a_command_answers_its_position_in_body_and_header(api: Api) -> None:
    ann, bob = await api.person("ann"), await api.person("bob")
    response = await ann.send("send-message", chat_id=await group(ann, bob), content="hi")
    answer = good(response)
    assert answer["position"] == 4
    assert set(answer) == {"position", "message_id", "created_at"}
    assert answer["created_at"].endswith("Z")
    assert response.headers["log-position"] == "4"
    assert "idempotency-replayed" not in response.headers
    assert response.headers["cache-control"] == "no-store"


async def test_a_command_with_nothing_to_answer_answers_its_position(api: Api) -> None:
    ann = await api.person("ann")
    assert await ann.do("update-profile", display_name="Ann") == {"position": 2}
    assert await ann.do("update-profile", display_name="Ann") == {"position": 2}


async def test_the_same_key_answers_the_same_from_any_process(
    database_url: str, nats_url: str
) -> None:
    async with (
        serving(database_url, nats_url) as one,
        serving(database_url, nats_url) as other,
    ):
        ann, bob = await one.person("ann"), await one.person("bob")
        chat_id = await group(ann, bob)
        elsewhere = await other.signed_in("ann")
        first = await ann.send("send-message", "key 1", chat_id=chat_id, content="hi")
        again = await elsewhere.send("send-message", "key 1", chat_id=chat_id, content="hi")
        assert good(again) == good(first)
        assert again.headers["idempotency-replayed"] == "true"
        changed = await elsewhere.send("send-message", "key 1", chat_id=chat_id, content="ho")
        problem(changed, 422, "idempotency-key-reused")
        theirs = await bob.send("send-message", "key 1", chat_id=chat_id, content="ho")
        assert good(theirs)["position"] > good(first)["position"]


async def test_a_create_command_sent_again_answers_as_the_first_time(api: Api) -> None:
    ann, bob = await api.person("ann"), await api.person("bob")
    chat_id = await group(ann, bob)
    message = {"chat_id": chat_id, "message_id": str(uuid4())}
    first = await ann.do("send-message", **message, content="hi")
    await ann.do("send-message", chat_id=chat_id, content="meanwhile")
    assert await ann.do("send-message", **message, content="hi") == first
    keyed = await ann.send("send-message", "key", **message, content="hi")
    assert good(keyed) == first
    problem(await ann.send("send-message", **message, content="ho"), 409, "conflict")


async def test_a_key_has_1_to_128_printable_characters(api: Api) -> None:
    ann = await api.person("ann")
    for key in ("", "x" * 129, "caf\u00e9", "tab\tkey"):
        headers = [(b"Idempotency-Key", key.encode("latin-1"))]
        response = await ann.client.post("/v1/commands/update-profile", json={}, headers=headers)
        assert problem(response, 400, "invalid")["errors"][0]["field"] == "Idempotency-Key"


BODIES_MALFORMED = {
    "empty": b"",
    "cut off": b'{"chat_id":',
    "not UTF-8": b'{"content":"\xff"}',
    "an array": b"[]",
    "null": b"null",
    "a text": b'"text"',
    "NaN": b'{"content":NaN}',
    "deep arrays": b"[" * 8_000,
    "deep objects": b'{"a":' * 3_000,
    "two values": b"{}{}",
    "a lone surrogate": b'{"content":"\\ud800"}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "a raw NUL": b'{"content":"\0"}',
    "XML": b"<xml/>",
}


PATHS_WITH_BODY = (
    "/v1/commands/send-message",
    "/v1/commands/register-user",
    "/v1/commands",
    "/v1/sessions",
    "/v1/sessions/refresh",
)


async def test_what_is_no_json_object_is_malformed(api: Api) -> None:
    ann = await api.person("ann")
    for what, body in BODIES_MALFORMED.items():
        for path in PATHS_WITH_BODY:
            response = await ann.client.post(path, content=body)
            assert response.status_code == 400, (what, path)
            problem(response, 400, "malformed")


CHAT = '"chat_id":"00000000-0000-0000-0000-000000000000"'
BODIES_INVALID = {
    "chat_id": '{"content":"a"}',
    "content": f'{{{CHAT},"content":5}}',
    "extra": f'{{{CHAT},"content":"a","extra":1}}',
    "message_id": f'{{{CHAT},"content":"a","message_id":"x"}}',
    "metadata.formatting.bold[0][1]": (
        f'{{{CHAT},"content":"a","metadata":{{"formatting":{{"bold":[[0,"x"]]}}}}}}'
    ),
    "metadata.formatting.purple": (
        f'{{{CHAT},"content":"a","metadata":{{"formatting":{{"purple":[]}}}}}}'
    ),
    "metadata.formatting.italic": (
        f'{{{CHAT},"content":"a","metadata":{{"formatting":{{"italic":[[0,{"9" * 400}]]}}}}}}'
    ),
}


TEXTS_WITH_NUL: tuple[tuple[str, Json, str], ...] = (
    ("update-profile", {"display_name": "a\0b"}, "display_name"),
    ("create-group", {"name": "\0", "member_ids": [str(uuid4())]}, "name"),
    ("send-message", {"chat_id": str(uuid4()), "content": "\0"}, "content"),
    ("change-password", {"current_password": "a\0", "new_password": "b" * 8}, "current_password"),
)


async def test_a_wrong_shape_is_invalid_and_names_the_field(api: Api) -> None:
    ann = await api.person("ann")
    for field, body in BODIES_INVALID.items():
        response = await post(ann, "send-message", body.encode())
        assert problem(response, 400, "invalid")["errors"][0]["field"].startswith(field)


async def test_nul_is_refused_in_every_text(api: Api) -> None:
    ann = await api.person("ann")
    for name, data, field in TEXTS_WITH_NUL:
        refused = problem(await ann.send(name, **data), 400, "invalid")
        assert refused["errors"][0]["field"] == field


async def test_a_backslash_before_u0000_is_no_nul(api: Api) -> None:
    ann = await api.person("ann")
    await ann.do("update-profile", display_name="\\u0000")


async def test_a_body_that_is_too_large_is_refused_before_it_is_read(api: Api) -> None:
    ann = await api.person("ann")

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(1_000):
            yield b" " * 100_000

    for path in ("/v1/commands/send-message", "/v1/commands", "/v1/sessions"):
        problem(await ann.client.post(path, content=b" " * 8_000_001), 413, "too-large")
    try:
        response = await ann.client.post("/v1/commands/send-message", content=endless())
    except httpx.WriteError:
        return  # it hung up while we were still at it: as good
    problem(response, 413, "too-large")


async def test_only_json_is_taken(api: Api) -> None:
    ann = await api.person("ann")
    body = b'{"display_name":"Ann"}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        response = await post(ann, "update-profile", body, **{"content-type": kind})
        problem(response, 415, "unsupported-media")
    for kind in ("application/json; charset=utf-8", "APPLICATION/JSON", "application/x+json"):
        good(await post(ann, "update-profile", body, **{"content-type": kind}))
    good(await ann.client.post("/v1/commands/update-profile", content=body))


async def test_every_command_but_registration_needs_a_token(api: Api) -> None:
    for name in NAMES:
        response = await api.client.post(f"/v1/commands/{name}", content=b"?")
        if name == "register-user":
            problem(response, 400, "malformed")
        else:
            problem(response, 401, "unauthenticated")
            assert response.headers["www-authenticate"] == "Bearer"


async def test_what_the_caller_may_not_know_of_is_not_found(api: Api) -> None:
    ann, bob, eve = [await api.person(name) for name in ("ann", "bob", "eve")]
    chat_id = await group(ann, bob)
    for chat in (chat_id, str(uuid4())):
        problem(await eve.send("send-message", chat_id=chat, content="hi"), 404, "not-found")
        problem(await eve.send("mark-read", chat_id=chat), 404, "not-found")
        problem(
            await eve.send("add-members", chat_id=chat, user_ids=[eve.user_id]), 404, "not-found"
        )
    problem(await ann.send("no-such-command"), 404, "not-found")


async def test_a_taken_username_and_slug_say_so(api: Api) -> None:
    ann, bob = await api.person("ann"), await api.person("bob")
    taken = await api.client.post(
        "/v1/commands/register-user", json={"username": "ann", "password": PASSWORD}
    )
    problem(taken, 409, "username-taken")
    fields = {"name": "Friends", "member_ids": [bob.user_id], "slug": "friends"}
    await ann.do("create-group", **fields)
    problem(await ann.send("create-group", **fields), 409, "slug-taken")


# The batch


async def batch(client: httpx.AsyncClient, *items: object) -> list[Json]:
    response = await client.post("/v1/commands", json={"commands": items})
    results: list[Json] = good(response)["results"]
    positions = [result["position"] for result in results if "position" in result]
    if positions:
        assert response.headers["log-position"] == str(max(positions))
    return results


async def test_a_batch_runs_each_on_its_own_in_order(api: Api) -> None:
    ann, bob = await api.person("ann"), await api.person("bob")
    chat_id = str(uuid4())
    create = {"name": "F", "member_ids": [bob.user_id], "chat_id": chat_id}
    results = await batch(
        ann.client,
        {"name": "send-message", "data": {"chat_id": chat_id, "content": "too early"}},
        {"name": "create-group", "data": create},
        {"name": "send-message", "data": {"chat_id": chat_id, "content": "hi"}},
        {"name": "fly", "data": {}},
        {"name": "send-message", "data": []},
        {"name": "send-message"},
        {"name": "send-message", "data": {"chat_id": chat_id}},
        {"name": "send-message", "data": {"chat_id": chat_id, "content": "a\0b"}},
        17,
        {"name": "send-message", "data": {"chat_id": chat_id, "content": "ho"}},
    )
    codes = [result.get("problem", {}).get("code") for result in results]
    assert codes == [
        "not-found",
        None,
        None,
        "not-found",
        "malformed",
        "invalid",
        "invalid",
        "invalid",
        "malformed",
        None,
    ]
    positions = [result["position"] for result in results if "position" in result]
    assert positions == [3, 4, 5]


async def test_a_batch_item_has_its_own_key(api: Api) -> None:
    ann = await api.person("ann")
    item = {"name": "update-profile", "idempotency_key": "k", "data": {"display_name": "A"}}
    other = item | {"data": {"display_name": "B"}}
    unprintable = item | {"idempotency_key": "\n"}
    first, again, reused, refused = await batch(ann.client, item, item, other, unprintable)
    assert again == first | {"idempotency_replayed": True}
    assert reused["problem"]["code"] == "idempotency-key-reused"
    assert refused["problem"]["errors"][0]["field"] == "idempotency_key"


async def test_without_a_token_a_batch_registers_and_no_more(api: Api) -> None:
    registration = {"name": "register-user", "data": {"username": "ann", "password": PASSWORD}}
    results = await batch(
        api.client, registration, {"name": "update-profile", "data": {"display_name": "A"}}
    )
    assert results[0]["position"] == 1
    assert results[1]["problem"]["code"] == "unauthenticated"
    broken = await api.client.post(
        "/v1/commands",
        json={"commands": [registration]},
        headers={"Authorization": "Bearer broken"},
    )
    problem(broken, 401, "unauthenticated")


async def test_a_batch_has_1_to_500_commands(api: Api) -> None:
    item = {"name": "update-profile", "data": {}}
    for count in (0, 501):
        response = await api.client.post("/v1/commands", json={"commands": [item] * count})
        assert problem(response, 400, "invalid")["errors"][0]["field"] == "commands"


async def test_a_whole_batch_of_500_is_carried_out(api: Api) -> None:
    ann, bob = await api.person("ann"), await api.person("bob")
    chat_id = await group(ann, bob)
    items = [
        {"name": "send-message", "data": {"chat_id": chat_id, "content": f"{n}"}}
        for n in range(500)
    ]
    results = await batch(ann.client, *items)
    assert [result["position"] for result in results] == list(range(4, 504))


@pytest.mark.parametrize(
    ("type_name", "version"), [("group_updated", 1), ("group_updated", 99), ("group_painted", 1)]
)
async def test_what_this_code_can_not_read_makes_commands_wait_where_it_counts_and_only_there(
    api: Api, capsys: pytest.CaptureFixture[str], type_name: str, version: int
) -> None:
    """Newer code beside it may have written it, and can answer; or this one after an update."""
    ann, bob = await api.person("ann"), await api.person("bob")
    chat_id, other_id = await group(ann, bob), await group(bob, ann)
    await api.parts.appender.append(written(f"chat-{chat_id}", type_name, b"[]", version))
    refused = await ann.send("update-group", chat_id=chat_id, name="Foes")
    problem(refused, 503, "unavailable")
    assert refused.headers["retry-after"]
    assert type_name in capsys.readouterr().err
    items = [
        {"name": "update-group", "data": {"chat_id": chat_id, "name": "Foes"}},
        {"name": "send-message", "data": {"chat_id": other_id, "content": "hi"}},
    ]
    refused_too, sent = await batch(ann.client, *items)
    assert (refused_too["problem"]["code"], sent["position"]) == ("unavailable", 6)


# Anything at all


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec="utf-8"), max_size=20)
    | st.uuids().map(str),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
FIELDS = sorted({field for handler in HANDLERS for field in handler.command.__struct_fields__})
NEAR_MISSES = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), JSON, max_size=5)
BODIES = st.binary(max_size=40) | (NEAR_MISSES | JSON).map(
    lambda value: json.dumps(value).encode("utf-8", "surrogatepass")
)


@pytest.mark.fuzz
@given(name=st.sampled_from(NAMES), body=BODIES)
async def test_no_body_breaks_a_command(hammered: Person, name: str, body: bytes) -> None:
    response = await post(hammered, name, body)
    assert response.status_code in (200, 400, 403, 404, 409), response.text
    if response.status_code != 200:
        problem(response, response.status_code, response.json()["code"])


@pytest.fixture
async def hammered(api: Api) -> Person:
    return await api.person("ann")
