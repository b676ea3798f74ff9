"""Health, status, metrics, and what is common to all responses."""

import asyncio

import httpx
import pytest

from api import scrape
from api.problems import REFUSALS
from commands import HANDLERS
from infra import scraping, skips
from infra.bus import Bus
from infra.embedded.process import free_port
from infra.moving import importing
from infra.projector import RECORD_FAILURE
from projections import NAMES
from tests.api.served import Api, good, problem, serving
from tests.infra.daemons import connected, copied, projected, relaying, until

PUBLIC = ("/health/live", "/health/ready", "/metrics", "/v1/status", "/schema/openapi.json")


async def test_a_fresh_system_is_live_and_ready(whole_api: Api) -> None:
    assert good(await whole_api.client.get("/health/live")) == {"status": "live"}
    assert good(await whole_api.client.get("/health/ready")) == {"status": "ready"}


async def test_status_tells_positions_and_lags(
    whole_api: Api, database_url: str, nats_url: str
) -> None:
    await whole_api.register("ann")
    async with relaying(database_url, nats_url):
        await copied(database_url, nats_url)
    await projected(database_url)
    response = await whole_api.client.get("/v1/status")
    live = {"position": 1, "lag_events": 0, "lag_seconds": 0.0, "state": "live"}
    assert good(response) == {
        "position": 1,
        "relay": {"position": 1},
        "projections": [{"name": name} | live for name in NAMES],
    }
    assert response.headers["log-position"] == "1"


async def test_a_projection_that_lags_makes_the_api_unfit(database_url: str, nats_url: str) -> None:
    async with serving(database_url, nats_url, ready_lag_seconds=-1.0) as api:
        await api.register("ann")
        shown = good(await api.client.get("/v1/status"))
        assert [item["lag_events"] for item in shown["projections"]] == [1] * len(NAMES)
        assert all(0 <= item["lag_seconds"] < 30 for item in shown["projections"])
        refused = problem(await api.client.get("/health/ready"), 503, "unavailable")
        assert all(name in refused["detail"] for name in NAMES)
        good(await api.client.get("/health/live"))


async def stand_still(database_url: str) -> None:
    async with connected(database_url) as connection:
        await connection.execute("INSERT INTO projection_checkpoints VALUES ('users', 0, now())")
        row = ("users", 1, "user_registered", 'it is "odd"', "2026-01-01T00:00:00Z")
        await connection.execute(RECORD_FAILURE, row)


async def test_a_projection_that_stands_still_is_shown_with_the_event_and_the_reason(
    api: Api, database_url: str
) -> None:
    await api.register("ann")
    await stand_still(database_url)
    shown = {item["name"]: item for item in good(await api.client.get("/v1/status"))["projections"]}
    assert shown["users"]["state"] == "failed"
    failure = {"position": 1, "type": "user_registered", "reason": 'it is "odd"'}
    assert shown["users"]["failure"] == failure
    assert [name for name, item in shown.items() if "failure" in item] == ["users"]
    text = (await api.client.get("/metrics")).text
    labels = 'position="1",projection="users",reason="it is \\"odd\\"",type="user_registered"'
    assert f"messenger_projection_failed{{{labels}}} 1.0" in text
    assert text.count("messenger_projection_failed{") == 1


async def test_what_stands_still_is_told_at_once_and_makes_the_api_unfit_when_it_lags(
    database_url: str, nats_url: str
) -> None:
    told = 's behind (failed at 1 (user_registered): it is "odd")'
    async with serving(database_url, nats_url) as api:
        await api.register("ann")
        await stand_still(database_url)
        [warning] = good(await api.client.get("/health/ready"))["warnings"]
        assert warning.startswith("the projection users is ")
        assert warning.endswith(told)
    async with serving(database_url, nats_url, ready_lag_seconds=-1.0) as api:
        refused = problem(await api.client.get("/health/ready"), 503, "unavailable")
        assert told in refused["detail"]


async def test_a_skip_ends_the_failure_and_is_counted(api: Api, database_url: str) -> None:
    await api.register("ann")
    await stand_still(database_url)
    good(await api.client.get("/v1/status"))
    async with connected(database_url) as connection:
        await skips.record(connection, "users", 1, why="a test")
    [users, *_] = good(await api.client.get("/v1/status"))["projections"]
    assert (users["position"], users["state"], users["skipped_events"]) == (1, "live", 1)
    assert "failure" not in users
    text = (await api.client.get("/metrics")).text
    assert 'messenger_projection_skipped_events{projection="users"} 1.0' in text
    assert "messenger_projection_failed{" not in text


async def test_what_stops_the_relay_is_told_while_all_else_goes_on(
    whole_api: Api, database_url: str, nats_url: str
) -> None:
    await whole_api.register("ann")
    async with relaying(database_url, nats_url):
        await copied(database_url, nats_url)
    async with Bus(nats_url, name="stranger") as bus:
        await bus.jetstream.publish("event.test.x.test_event", b"{}")
    [warning] = good(await whole_api.client.get("/health/ready"))["warnings"]
    assert warning.startswith("EVENT_LOG_1 ends at 2 but the log at 1")
    await whole_api.register("bob")
    [warning] = good(await whole_api.client.get("/health/ready"))["warnings"]
    assert warning.startswith("EVENT_LOG_1 holds another event at 2 than the log: somebody else")


async def test_an_import_that_is_not_finished_is_told_as_nothing_can_be_written(
    api: Api, database_url: str
) -> None:
    async with connected(database_url) as connection:
        await connection.execute(importing.BEGIN)
        [warning] = good(await api.client.get("/health/ready"))["warnings"]
        assert warning == "nothing can be written: the import into this log is not finished"
        await connection.execute("UPDATE imports SET finished_at = clock_timestamp()")
    assert good(await api.client.get("/health/ready")) == {"status": "ready"}


async def test_without_nats_the_api_serves_but_is_not_ready(database_url: str) -> None:
    async with serving(database_url, "nats://127.0.0.1:9") as api:
        await api.person("ann")
        refused = problem(await api.client.get("/health/ready"), 503, "unavailable")
        assert "NATS" in refused["detail"]
        assert good(await api.client.get("/v1/status"))["relay"] == {"position": None}
        assert "messenger_bus_up 0.0" in (await api.client.get("/metrics")).text


async def test_metrics_count_requests_by_route_and_commands_by_outcome(api: Api) -> None:
    ann = await api.person("ann")
    for _ in range(2):
        await ann.send("update-profile", "key", display_name="Ann")
    await ann.send("change-password", current_password="wrong pass", new_password="x" * 8)
    await ann.client.request("PROPFIND", "/v1/no-such-path")
    text = (await api.client.get("/metrics")).text
    for line in (
        'messenger_commands_total{name="update-profile",outcome="done"} 1.0',
        'messenger_commands_total{name="update-profile",outcome="replayed"} 1.0',
        'messenger_commands_total{name="change-password",outcome="wrong-credentials"} 1.0',
        "messenger_log_position 2.0",
        "messenger_append_commands 3.0",
        'messenger_projection_lag_events{projection="users"} 2.0',
        'route="unmatched",status="404"',
        'method="other"',
    ):
        assert line in text
    assert "no-such-path" not in text
    assert ann.user_id not in text


async def test_counters_are_there_before_their_first_event(api: Api) -> None:
    """Prometheus sees an increase from 0 to 1, none from nothing to 1."""
    text = (await api.client.get("/metrics")).text
    for series in (
        *(f'messenger_problems_total{{code="{refusal.code}"}}' for refusal in REFUSALS),
        *(f'messenger_rate_limited_total{{limit="{name}"}}' for name in ("address", "user")),
        *(
            f'messenger_commands_total{{name="{handler.name}",outcome="{outcome}"}}'
            for handler in HANDLERS
            for outcome in ("done", "replayed", "internal", "not-found")
        ),
        'messenger_stream_starts_total{outcome="fresh"}',
        'messenger_stream_closed_total{code="4008"}',
        'messenger_stream_closed_total{code="other"}',
        'messenger_images_total{outcome="NotAnImage"}',
        'messenger_append_verdicts_total{verdict="conflict"}',
    ):
        assert f"\n{series} 0.0\n" in text, series


async def test_a_postgresql_that_hangs_keeps_no_scrape_waiting(
    api: Api, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await api.register("ann")

    async def page() -> str:
        return (await api.client.get("/metrics")).text

    async def is_up() -> bool:
        return "messenger_database_up 1.0" in await page()

    await until(is_up, "it answers")
    async with connected(database_url) as connection, connection.transaction():
        await connection.execute("LOCK TABLE log_head IN ACCESS EXCLUSIVE MODE")
        with monkeypatch.context() as patch:
            patch.setattr(scrape, "PATIENCE_SECONDS", 0.3)
            for _ in range(2):
                text = await page()
                look = api.parts.metrics.at_log._task
                assert look
                assert not look.done(), "the page waited for all that the look may take"
                for line in ("messenger_database_up 0.0", "messenger_log_position 1.0"):
                    assert line in text
    await until(is_up, "it answers again")


async def test_however_many_ask_for_metrics_each_process_is_asked_once(
    database_url: str, nats_url: str
) -> None:
    asked = 0
    asking = 30

    async def all_ask() -> bool:
        return len(api.server.server_state.tasks) >= asking

    async def page() -> bytes:
        nonlocal asked
        asked += 1
        await until(all_ask, "all ask")
        return (
            b"# HELP messenger_things Of all\n# TYPE messenger_things gauge\nmessenger_things 7.0\n"
        )

    address = f"127.0.0.1:{free_port()}"
    async with (
        scraping.served(address, page),
        serving(database_url, nats_url, metrics_peers=f"other={address}") as api,
    ):
        pages = await asyncio.gather(*(api.client.get("/metrics") for _ in range(asking)))
        assert {page.status_code for page in pages} == {200}
        assert all('messenger_things{process="other"} 7.0' in page.text for page in pages)
        assert asked == 1
        asking = 1
        assert (await api.client.get("/metrics")).text == pages[0].text
        assert asked == 2


async def test_every_response_has_a_request_id(api: Api) -> None:
    for path in (*PUBLIC, "/nothing", "/v1/users/me", "/schema"):
        own = await api.client.get(path, headers={"Request-Id": "my.request_1-2"})
        assert own.headers["request-id"] == "my.request_1-2"
        for bad in ("", "a b", "x" * 129, "caf\u00e9", "a/b"):
            headers = [(b"Request-Id", bad.encode("latin-1"))]
            made = await api.client.get(path, headers=headers)
            assert len(made.headers["request-id"]) == 36
        assert own.headers["cache-control"] == "no-store"


async def test_the_request_id_is_in_the_event(api: Api, database_url: str) -> None:
    await api.client.post(
        "/v1/commands/register-user",
        json={"username": "ann", "password": "correct horse"},
        headers={"Request-Id": "find-me"},
    )
    async with connected(database_url) as connection:
        [[correlation]] = await (
            await connection.execute("SELECT metadata ->> 'correlation_id' FROM event_log")
        ).fetchall()
    assert correlation == "find-me"


async def test_what_is_no_http_is_a_problem_too(api: Api) -> None:
    problem(await api.client.request("BREW", "/health/live"), 400, "malformed")


async def test_what_is_not_there_or_not_allowed_is_a_problem(api: Api) -> None:
    client = api.client
    for path in ("/", "/v1", "/v2/users/me", "/v1/commands/no-such", "/v1/%00", "/v1/%ff"):
        problem(await client.get(path), 404, "not-found")
    for method, path, allowed in (
        ("PUT", "/v1/sessions", {"GET", "HEAD", "POST", "OPTIONS"}),
        ("GET", "/v1/commands/send-message", {"POST", "OPTIONS"}),
        ("POST", "/v1/users/me", {"GET", "HEAD", "OPTIONS"}),
        ("TRACE", "/health/live", {"GET", "HEAD", "OPTIONS"}),
    ):
        response = await client.request(method, path)
        problem(response, 405, "method-not-allowed")
        assert listed(response) == allowed
        options = await client.options(path)
        assert (options.status_code, options.content) == (204, b"")
        assert listed(options) == allowed


def listed(response: httpx.Response) -> set[str]:
    return set(response.headers["allow"].split(", "))


async def test_head_answers_as_get_without_a_body(api: Api) -> None:
    for path in PUBLIC:
        head, get = await api.client.head(path), await api.client.get(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["content-type"] == get.headers["content-type"]


async def test_what_breaks_inside_is_said_without_a_word_about_how(
    api: Api, capsys: object
) -> None:
    ann = await api.person("ann")
    api.parts.executor.execute = None  # type: ignore[method-assign,assignment]
    response = await ann.client.post(
        "/v1/commands/update-profile", json={}, headers={"Request-Id": "broken-1"}
    )
    refused = problem(response, 500, "internal")
    assert "broken-1" in refused["detail"]
    assert "NoneType" not in response.text
    said = capsys.readouterr().err  # type: ignore[attr-defined]
    assert "internal_error" in said
    assert "broken-1" in said
    assert "NoneType" in said
