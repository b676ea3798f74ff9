"""What an operator sees of a running system: one `messenger up` with two API processes, scraped."""

import json
import os
import re
import signal
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from domain.message import MessageSent
from infra import metrics
from infra.metrics import ReplayMetrics
from projections import BY_NAME, NAMES
from tests.faults.test_up import READY_TIMEOUT_SECONDS, Running, until
from tests.infra.collector import Collector, Span, collecting

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc"),
]

ROOT = Path(__file__).parents[2]
PRODUCTION = ROOT / "infra" / "production"
ANSWER_TIMEOUT_SECONDS = 60.0
POLL_SECONDS = 0.02
MESSAGES = 40
STOPPED = "project-unread"

Labels = frozenset[tuple[str, str]]


class Page(NamedTuple):
    """A scrape: values by metric and labels; and what there is, as queries and people name it."""

    values: dict[str, dict[Labels, float]]
    names: set[str]
    listed: set[str]

    def of(self, metric: str, /, **labels: str) -> dict[str, float]:
        """By process, of the series that have these labels."""
        wanted, found = frozenset(labels.items()), {}
        for has, value in self.values[metric].items():
            if wanted <= has:
                found[dict(has)["process"]] = found.get(dict(has)["process"], 0) + value
        return found


# What a metric is called in queries, by its type.
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}


def scrape(url: str) -> Page:
    return page_of(text(url))


def page_of(said: str) -> Page:
    values: defaultdict[str, dict[Labels, float]] = defaultdict(dict)
    names: set[str] = set()
    listed: set[str] = set()
    for family in text_string_to_metric_families(said):
        suffixes = SUFFIXES[family.type]
        assert f"{family.name}{suffixes[0]}" not in names, f"{family.name} is in two pieces"
        names |= {family.name + suffix for suffix in suffixes}
        listed.add(family.name + ("_total" if family.type == "counter" else ""))
        for sample in family.samples:
            values[sample.name][frozenset(sample.labels.items())] = sample.value
    return Page(values, names, listed)


class System(NamedTuple):
    """A running one, and somebody in it."""

    up: Running
    run: Any
    token: str
    chat_id: str

    def page(self) -> Page:
        return scrape(f"{self.run['api_url']}/metrics")

    def send(self, content: str) -> int:
        sent = post(
            self.run,
            "/v1/commands/send-message",
            {"chat_id": self.chat_id, "content": content},
            self.token,
        )
        return int(sent["position"])

    def settled(self, position: int) -> None:
        until(lambda: all(at >= position for at in self.positions()))

    def positions(self) -> list[int]:
        """Those of nobody while a server is too slow to tell."""
        url = f"{self.run['api_url']}/v1/status"
        try:
            with urllib.request.urlopen(url, timeout=ANSWER_TIMEOUT_SECONDS) as response:
                status = json.load(response)
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
            return [-1]
        relayed = status["relay"]["position"] or 0
        return [relayed, *(item["position"] for item in status["projections"])]

    def head(self) -> int:
        with psycopg.connect(self.run["database_url"]) as connection:
            row = connection.execute("SELECT max(position) FROM event_log").fetchone()
        assert row is not None
        return int(row[0])


def post(run: Any, path: str, body: dict[str, Any], token: str = "") -> Any:
    request = urllib.request.Request(
        f"{run['api_url']}{path}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"}
        | ({"Authorization": f"Bearer {token}"} if token else {}),
    )
    with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_SECONDS) as response:
        return json.load(response)


def soon(check: Callable[[], None]) -> None:
    """What is counted is counted once it was done, and a page does not wait for slow servers: the
    check is repeated while it fails, and fails if that does not end."""
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    while True:
        try:
            return check()
        except AssertionError:
            if time.monotonic() > deadline:
                raise
        time.sleep(POLL_SECONDS)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[System]:
    directory = tmp_path_factory.mktemp("seen")
    environ = TESTING | {"OTLP_ENDPOINT": collector.url}
    up = Running(directory, "--port", "0", "--workers", "2", **environ)
    try:
        run = up.until_ready()
        people = []
        for name in ("ann", "bob"):
            account = {"username": name, "password": "correct horse"}
            people.append(post(run, "/v1/commands/register-user", account)["user_id"])
        token = post(run, "/v1/sessions", account)["access_token"]
        group = {"name": "Friends", "member_ids": people[:1]}
        chat_id = post(run, "/v1/commands/create-group", group, token)["chat_id"]
        begun = System(up, run, token, chat_id)
        # Nobody waits for maintain, which says 0 before its first round.
        round_at = "messenger_upkeep_round_timestamp_seconds"
        until(lambda: begun.page().of(round_at).get("maintain", 0.0) > 0)
        yield begun
    finally:
        code, errors = up.stopped_by(signal.SIGTERM)
    assert code == 0, errors


TESTING = {"ENV": "test", "BCRYPT_ROUNDS": "4", "LOG_LEVEL": "debug"}


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def processes() -> set[str]:
    return {"relay", "maintain", "api-1", "api-2", *(f"project-{name}" for name in NAMES)}


def test_whichever_api_process_answers_all_processes_are_on_the_page(system: System) -> None:
    def all_are_there() -> None:
        page = system.page()
        assert page.of("messenger_process_up") == dict.fromkeys(processes(), 1)
        assert set(page.of("process_start_time_seconds")) == processes()
        assert set(page.of("messenger_bus_up")) == processes()

    for _ in range(6):
        soon(all_are_there)


def test_each_process_has_a_page_of_its_own_which_run_json_names(system: System) -> None:
    assert set(system.run["metrics"]) == processes()
    for name, address in system.run["metrics"].items():
        page = text(f"http://{address}/metrics")
        assert "process_cpu_seconds_total" in page
        assert ("messenger_http_request_seconds" in page) == name.startswith("api-")
        assert ("messenger_projector_position" in page) == name.startswith("project-")


def test_the_numbers_are_the_truth(system: System) -> None:
    system.settled(system.head())
    before = quiet(system)
    for number in range(MESSAGES):
        last = system.send(f"message {number}")
    system.settled(last)
    soon(lambda: numbers_are_the_truth(before, system.page(), system.head()))


def numbers_are_the_truth(before: Page, page: Page, head: int) -> None:
    assert page.of("messenger_log_position") == {"api-1": head, "api-2": head}
    assert page.of("messenger_relay_lag_events") == {"api-1": 0, "api-2": 0}
    assert page.of("messenger_relay_sent_position") == {"relay": head}
    assert page.of("messenger_relay_leads") == {"relay": 1}
    for name in NAMES:
        assert page.of("messenger_projector_position")[f"project-{name}"] == head
        assert page.of("messenger_projection_lag_events", projection=name)["api-1"] == 0
        applied = page.of("messenger_projector_events_total", projection=name)
        assert applied == {f"project-{name}": head}
    sent = [now - then for now, then in zip(sent_of(page), sent_of(before), strict=True)]
    assert sent == [MESSAGES, MESSAGES]
    assert sum(page.of("messenger_append_events_total").values()) == head
    assert page.of("messenger_partitions_ahead") == {"maintain": 3}


def sent_of(page: Page) -> tuple[float, float]:
    """Commands that sent a message, and the requests that they came with."""
    commands = {"name": "send-message", "outcome": "done"}
    requests = {"route": "/v1/commands/send-message", "status": "200"}
    return (
        sum(page.of("messenger_commands_total", **commands).values()),
        sum(page.of("messenger_http_request_seconds_count", **requests).values()),
    )


def quiet(system: System) -> Page:
    """Once every request is counted that was answered."""
    page = system.page()

    def all_are_counted() -> None:
        nonlocal page
        page = system.page()
        commands, requests = sent_of(page)
        assert commands == requests

    soon(all_are_counted)
    return page


def grown(before: Page, after: Page, metric: str, /, **labels: str) -> float:
    return sum(after.of(metric, **labels).values()) - sum(before.of(metric, **labels).values())


def test_a_projector_that_stands_still_is_seen_to_lag_and_to_be_silent(system: System) -> None:
    name = STOPPED.removeprefix("project-")
    system.settled(system.head())
    own = f"http://{system.run['metrics']['api-1']}/metrics"

    def lag(what: str) -> float:
        found = re.search(
            rf'^messenger_projection_lag_{what}{{projection="{name}"}} (\S+)$',
            text(own),
            re.MULTILINE,
        )
        assert found
        return float(found[1])

    def it_alone_is_silent() -> None:
        page = system.page()
        up = page.of("messenger_process_up")
        assert [process for process, is_up in up.items() if not is_up] == [STOPPED]
        assert STOPPED not in page.of("messenger_projector_position")

    with stopped(system.run["pids"][STOPPED]):
        for number in range(5):
            system.send(f"unseen {number}")
        until(lambda: lag("events") == 5)
        younger = lag("seconds")
        began = time.monotonic()
        soon(it_alone_is_silent)

        def grows() -> bool:
            waited = time.monotonic() - began
            return lag("seconds") - younger >= 0.9 * waited

        until(grows)
    system.settled(system.head())
    until(lambda: lag("events") == lag("seconds") == 0)
    until(lambda: system.page().of("messenger_process_up")[STOPPED] == 1)


def text(url: str) -> str:
    with urllib.request.urlopen(url, timeout=ANSWER_TIMEOUT_SECONDS) as response:
        return str(response.read().decode())


def test_refusals_are_counted_by_the_problems_code(system: System) -> None:
    before = system.page()
    for path in ("/v1/users/me", "/v1/nothing"):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{system.run['api_url']}{path}", timeout=ANSWER_TIMEOUT_SECONDS)

    def both_are_counted() -> None:
        after = system.page()
        for code in ("unauthenticated", "not-found"):
            assert grown(before, after, "messenger_problems_total", code=code) == 1

    soon(both_are_counted)


# --------------------------------------------------------------------------------- the logs


def lines(up: Running, log: str) -> list[dict[str, Any]]:
    said = (up.directory / "logs" / f"{log}.log").read_text().splitlines()
    return [json.loads(line) for line in said]


def told(up: Running, request_id: str, *logs: str, count: int) -> list[dict[str, Any]]:
    """What logs say of a request, once there is as much; they say it after all was done."""

    def found() -> list[dict[str, Any]]:
        said = [line for log in logs for line in lines(up, log)]
        return [line for line in said if line.get("request_id") == request_id]

    until(lambda: len(found()) >= count)
    return found()


def test_a_request_is_found_again_by_its_id_in_the_logs_of_all_who_had_to_do_with_it(
    system: System,
) -> None:
    request_id = "find-me-4711"
    position = sent_as(system, "X-Request-Id", request_id)
    served = told(system.up, request_id, "api-1", "api-2", count=2)
    assert {line["event"] for line in served} == {"command", "request"}
    [command] = [line for line in served if line["event"] == "command"]
    assert (command["command"], command["outcome"]) == ("send-message", "done")
    assert command["position"] == position
    for name in ("messages", "unread", "search"):
        [applied] = told(system.up, request_id, f"project-{name}", count=1)
        assert (applied["event"], applied["position"]) == ("event_applied", position)
        assert (applied["type"], applied["projection"]) == ("message_sent", name)


def sent_as(system: System, header: str, request_id: str, content: str = "a confidence") -> int:
    """The position of a message whose request has this id."""
    request = urllib.request.Request(
        f"{system.run['api_url']}/v1/commands/send-message",
        json.dumps({"chat_id": system.chat_id, "content": content}).encode(),
        {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {system.token}",
            header: request_id,
        },
    )
    with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_SECONDS) as response:
        assert response.headers["request-id"] == request_id
        return int(json.load(response)["position"])


# What people wrote, are called or keep to themselves.
PERSONAL = ("message 7", "unseen", "a confidence", "correct horse", "bob", "clandestine")


def said_by(system: System, log: str) -> str:
    """All of it, as soon as there is anything; maintain has nothing to say."""
    file = system.up.directory / "logs" / f"{log}.log"
    until(lambda: bool(file.read_text()) or log == "maintain")
    return file.read_text()


def test_no_log_tells_what_people_wrote_or_are_called(system: System) -> None:
    query = f"{system.run['api_url']}/v1/search/messages?q=clandestine"
    headers = {"Authorization": f"Bearer {system.token}", "X-Request-Id": "look-for-it"}
    urllib.request.urlopen(
        urllib.request.Request(query, headers=headers), timeout=ANSWER_TIMEOUT_SECONDS
    ).close()
    told(system.up, "look-for-it", "api-1", "api-2", count=1)
    for request_id, content in (("untold-1", "message 7"), ("untold-2", "unseen 3")):
        sent_as(system, "X-Request-Id", request_id, content)
        told(system.up, request_id, "api-1", "api-2", count=2)
        for name in ("messages", "unread", "search"):
            told(system.up, request_id, f"project-{name}", count=1)
    for log in processes():
        said = said_by(system, log)
        for personal in PERSONAL:
            assert personal not in said, log
        assert system.token not in said


# ------------------------------------------------------------------------------- the traces

TOLD = {
    f"project {name}" for name, projection in BY_NAME.items() if MessageSent in projection.handles
}


REQUEST, COMMAND = "POST /v1/commands/send-message", "command send-message"


def traced(collector: Collector, request_id: str) -> dict[str, Span]:
    """The spans of what became of a request, once all of them are there."""

    def spans() -> dict[str, Span]:
        came = list(collector.spans)
        ids = {
            span.trace_id
            for span in came
            if span.attributes.get("messenger.request_id") == request_id
        }
        return {span.name: span for span in came if span.trace_id in ids}

    until(lambda: set(spans()) >= {REQUEST, COMMAND, "append", "relay", *TOLD})
    return spans()


def test_a_trace_has_all_that_became_of_a_request(system: System, collector: Collector) -> None:
    position = sent_as(system, "Request-Id", "trace-me")
    found = traced(collector, "trace-me")
    assert set(found) == {REQUEST, COMMAND, "append", "relay", *TOLD}
    assert found[REQUEST].parent_id == ""
    assert found[REQUEST].attributes["http.response.status_code"] == 200
    assert found[COMMAND].parent_id == found[REQUEST].span_id
    assert found[COMMAND].attributes["messenger.position"] == position
    for name in {"append", "relay", *TOLD}:
        assert found[name].parent_id == found[COMMAND].span_id
    for name in TOLD:
        assert found[name].attributes["messenger.last_position"] >= position
        assert found[name].ended_ns > found["append"].began_ns
    assert found["relay"].process == "relay"
    assert len({found[REQUEST].process, *(found[name].process for name in TOLD)}) == 2
    assert collector.refused == []


def test_no_trace_tells_what_people_wrote_or_are_called(
    system: System, collector: Collector
) -> None:
    sent_as(system, "Request-Id", "untraced", "message 7")
    traced(collector, "untraced")
    for span in list(collector.spans):
        assert not [one for one in PERSONAL if one in str(span)]


# ------------------------------------------------------------------- dashboard and alert rules

RULES = [
    rule
    for group in yaml.safe_load((PRODUCTION / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARD = json.loads((PRODUCTION / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
FUNCTIONS = {
    *("absent", "changes", "count", "delta", "histogram_quantile", "increase", "max", "rate"),
    *("resets", "sum", "time", "topk", "vector"),
}
WORDS = {"and", "or", "on", "by"}
# Prometheus' own, and what it says of whom it scrapes.
GIVEN_NAMES, GIVEN_LABELS = {"up"}, {"instance", "job", "le", "process"}

TEXT = re.compile(r'"[^"]*"')
MATCHERS = re.compile(r"(\w+)\{([^}]*)\}")
GROUPING = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")
RANGE = re.compile(r"\[(?:\d+[smhd]|\$__rate_interval)\]")
WORD = re.compile(r"\b[a-zA-Z_]\w*\b(\s*\()?")


class Query(NamedTuple):
    """What a PromQL expression speaks of."""

    metrics: set[str]
    functions: set[str]
    labels: set[str]


def query(expression: str) -> Query:
    bare = RANGE.sub("", TEXT.sub("", expression))
    labels = {
        re.split(r"[=!~]", one)[0].strip()
        for _, inside in MATCHERS.findall(bare)
        for one in inside.split(",")
    }
    labels |= {
        one.strip() for inside in GROUPING.findall(bare) for one in inside.split(",") if one.strip()
    }
    bare = GROUPING.sub("", MATCHERS.sub(r"\1", bare))
    words = {(found[0].rstrip("( \n"), bool(found[1])) for found in WORD.finditer(bare)}
    return Query(
        {word for word, is_called in words if not is_called and word not in WORDS},
        {word for word, is_called in words if is_called and word not in WORDS},
        labels,
    )


def expressions() -> list[str]:
    of_panels = [target["expr"] for panel in PANELS for target in panel["targets"]]
    return [rule["expr"] for rule in RULES] + of_panels


def known_labels(page: Page) -> set[str]:
    """Of the metrics that have series, and of those that have none as long as all is well."""
    seen = {label for series in page.values.values() for labels in series for label, _ in labels}
    return seen | GIVEN_LABELS | {"position", "type", "reason", "limit", "outcome"}


def test_what_a_query_speaks_of_is_found() -> None:
    found = query(
        'sum by (le, a) (rate(x_bucket{b=~"c d|{e}",f!="g"}[5m])) > 1 and on () max(y) == 0'
    )
    assert found == Query({"x_bucket", "y"}, {"sum", "rate", "max"}, {"le", "a", "b", "f"})


def test_dashboard_and_alerts_ask_for_what_there_is(system: System) -> None:
    page = system.page()
    of_replay = metrics.registry()
    ReplayMetrics(of_replay)
    names = page.names | page_of(metrics.text(of_replay).decode()).names | GIVEN_NAMES
    labels = known_labels(page)
    for expression in expressions():
        asked = query(expression)
        assert asked.metrics <= names, expression
        assert asked.metrics
        assert asked.functions <= FUNCTIONS, expression
        assert asked.labels <= labels, expression
        for opening, closing in ("()", "{}", "[]"):
            assert expression.count(opening) == expression.count(closing), expression


COUNTERS = re.compile(r"\b(\w+_total)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)(=~|!=|=)"([^"]*)"')
MATCHES: dict[str, Callable[[str, str], bool]] = {
    "=": lambda has, wanted: has == wanted,
    "!=": lambda has, wanted: has != wanted,
    "=~": lambda has, wanted: bool(re.fullmatch(wanted, has)),
}


def counted(page: Page, metric: str, matchers: str) -> list[dict[str, str]]:
    """The series of a selector."""
    wanted = [one for one in MATCHER.findall(matchers) if one[0] not in GIVEN_LABELS]
    return [
        labels
        for labels in (dict(series) for series in page.values[metric])
        if all(MATCHES[how](labels[label], value) for label, how, value in wanted)
    ]


def test_what_alerts_and_panels_count_is_there_before_its_first_event(system: System) -> None:
    page = system.page()
    selectors = {found for one in expressions() for found in COUNTERS.findall(one)}
    assert len(selectors) > 5
    for metric, matchers in selectors:
        assert counted(page, metric, matchers), (metric, matchers)
    for name in NAMES:
        process = f"project-{name}"
        for reason in ("fenced", "poisoned", "interrupted"):
            of = {"projection": name, "reason": reason}
            assert process in page.of("messenger_projector_interruptions_total", **of)
        for source in ("log", "jetstream"):
            of = {"projection": name, "source": source}
            assert process in page.of("messenger_projector_events_total", **of)
    for work in ("objects", "rounds"):
        assert "maintain" in page.of("messenger_upkeep_failures_total", work=work)


def test_every_metric_is_in_the_list_and_every_listed_one_is_there(system: System) -> None:
    of_replay = metrics.registry()
    ReplayMetrics(of_replay)
    there = system.page().listed | page_of(metrics.text(of_replay).decode()).listed
    table = (PRODUCTION / "metrics.md").read_text().partition("| name |")[2]
    first_columns = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    listed = [name for column in first_columns for name in re.findall(r"`(\w+)`", column)]
    assert sorted(listed) == sorted(name for name in there if name.startswith("messenger_"))


def test_alert_rules_have_the_form_that_prometheus_takes() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"Messenger[A-Za-z]+", rule["alert"])
        assert re.fullmatch(r"[1-9]\d*[smh]", rule.get("for", "1m"))
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert set(rule["annotations"]) == {"summary", "description"}
        told = "".join(rule["annotations"].values())
        by_query = query(rule["expr"]).labels | {"process", "instance", "queue"}
        assert set(re.findall(r"\$labels\.(\w+)", told)) <= by_query, rule["alert"]


def test_panels_are_each_in_a_place_of_their_own() -> None:
    places = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & places
        assert max(x for x, _ in cells) < 24
        places |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
