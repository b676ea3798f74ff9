"""What browsers are told, and which pages may open the stream."""

from collections.abc import AsyncIterator

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from tests.api.served import Api, good, problem, serving
from tests.stream.client import connected

OURS = "https://chat.example"
OTHER = "https://evil.example"
# All that a page could do with an answer, if it were made to show it.
SECURITY = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@pytest.fixture
async def shared(database_url: str, nats_url: str) -> AsyncIterator[Api]:
    """Pages of one other origin may use it. Nothing moves the read models."""
    async with serving(database_url, nats_url, allowed_origins=OURS, read_wait_seconds=0.1) as api:
        yield api


def cors(response: httpx.Response) -> dict[str, str]:
    return {
        name.removeprefix("access-control-"): value
        for name, value in response.headers.items()
        if name.startswith("access-control-")
    }


async def test_every_answer_says_that_it_is_no_page(api: Api) -> None:
    for path in ("/health/live", "/v1/users/me", "/nowhere", "/schema/openapi.json", "/metrics"):
        response = await api.client.get(path)
        assert {name: response.headers.get(name) for name in SECURITY} == SECURITY, path
    response = await api.client.options("/v1/users/me")
    assert response.headers["x-content-type-options"] == "nosniff"


async def test_a_page_has_a_policy_of_its_own_and_the_rest_all_the_same(api: Api) -> None:
    response = await api.client.get("/schema")
    policies = response.headers.get_list("content-security-policy")
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"]
    assert response.headers.get_list("x-content-type-options") == ["nosniff"]


async def test_tls_is_asked_for_again_only_by_who_came_by_it(
    database_url: str, nats_url: str
) -> None:
    async with serving(database_url, nats_url, trusted_proxies="127.0.0.1") as api:
        plain = await api.client.get("/health/live")
        assert "strict-transport-security" not in plain.headers
        behind = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.1"}
        secure = await api.client.get("/health/live", headers=behind)
        assert secure.headers["strict-transport-security"] == "max-age=31536000"


async def test_by_itself_it_shares_with_no_other_origin(api: Api) -> None:
    response = await api.client.get("/health/live", headers={"Origin": OTHER})
    assert cors(response) == {}
    asked = {"Origin": OTHER, "Access-Control-Request-Method": "POST"}
    assert cors(await api.client.options("/v1/sessions", headers=asked)) == {}


async def test_pages_of_an_allowed_origin_may_use_it_and_no_others(shared: Api) -> None:
    ann = await shared.person("ann")
    for method, path in (("GET", "/v1/users/me"), ("GET", "/v1/nowhere"), ("POST", "/v1/sessions")):
        response = await ann.client.request(method, path, headers={"Origin": OURS})
        told = cors(response)
        assert told.pop("expose-headers").count("Log-Position") == 1
        assert told == {"allow-origin": OURS}
        assert response.headers["vary"] == "Origin"
        for origin in (OTHER, "null", OURS + ".evil.example", OURS.replace("https", "http")):
            response = await ann.client.request(method, path, headers={"Origin": origin})
            assert cors(response) == {}
            assert response.headers["vary"] == "Origin"
    assert cors(await ann.client.get("/v1/users/me")) == {}


async def test_a_browser_is_told_beforehand_what_it_may_send(shared: Api) -> None:
    asked = {
        "Origin": OURS,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,idempotency-key",
    }
    response = await shared.client.options("/v1/commands/send-message", headers=asked)
    assert response.status_code == 204
    told = cors(response)
    assert told["allow-origin"] == OURS
    assert told["max-age"] == "600"
    assert "allow-credentials" not in told
    allowed = told["allow-headers"].lower().split(", ")
    assert set(asked["Access-Control-Request-Headers"].split(",")) <= set(allowed)
    assert {"GET", "POST", "PUT", "DELETE"} <= set(told["allow-methods"].split(", "))
    refused = await shared.client.options(
        "/v1/commands/send-message", headers=asked | {"Origin": OTHER}
    )
    assert cors(refused) == {}


async def test_the_stream_opens_for_our_own_pages_allowed_ones_and_who_is_no_page(
    shared: Api,
) -> None:
    ann = await shared.person("ann")
    token = ann.session["access_token"]
    for origin in (None, OURS, OURS.upper(), shared.url):
        async with connected(shared.url, token, origin=origin) as client:
            assert (await client.start())["op"] == "ready"


@pytest.mark.parametrize("origin", [OTHER, "null", "http://127.0.0.1", "https://[", ""])
async def test_the_stream_opens_for_pages_of_no_other_origin(shared: Api, origin: str) -> None:
    """Not even with a token that they got hold of."""
    ann = await shared.person("ann")
    with pytest.raises(InvalidStatus) as caught:
        async with connected(shared.url, ann.session["access_token"], origin=origin):
            pass
    denied = caught.value.response
    assert denied.status_code == 403
    assert b'"code":"forbidden"' in (denied.body or b"")


async def test_the_page_that_describes_the_api_is_no_way_in(api: Api) -> None:
    response = await api.client.get("/schema", headers={"Origin": OTHER})
    assert cors(response) == {}
    assert good(await api.client.get("/schema/openapi.json"))["openapi"].startswith("3.1")
    problem(await api.client.get("/v1/stream"), 400, "malformed")
