"""What an API process counts besides its machines (infra.metrics), in Prometheus' text form.

Requests go by route template, never by path, so the number of series is bounded by the code.
Label sets are looked up once and kept: a message sent passes here. Those of counters are all there
from the start; requests by route and status are not, as each would be 16 lines: problems count them.
"""

import asyncio
from collections.abc import Iterable

from prometheus_client import Counter, Histogram

from api.look import Look
from api.problems import REFUSALS
from commands import HANDLERS
from infra import metrics
from infra.event_log import Head
from infra.metrics import ImageMetrics, Making, QueueMetrics, begin

BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# What we close with, what browsers do, and a connection that is just gone.
CLOSING_CODES = frozenset({1000, 1001, 1005, 1006, 1012, 1013, 4001, 4003, 4008, 4009})
OTHER = "other"
CODES = sorted({refusal.code for refusal in REFUSALS})
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """One registry a process, none shared with the library's global one."""

    def __init__(self) -> None:
        self.registry = metrics.registry()
        self.images = ImageMetrics(self.registry)
        self.queues = QueueMetrics(self.registry)
        self.stream = StreamMetrics(self.registry)
        make = Making(self.registry)
        self._requests = make.seconds(
            "messenger_http_request_seconds",
            "HTTP requests by route and status",
            *("method", "route", "status"),
            buckets=BUCKETS_SECONDS,
        )
        self._commands = make.counter(
            "messenger_commands",
            "Commands by name and outcome: done, replayed, or the code of the problem",
            "name",
            "outcome",
        )
        self._problems = make.counter(
            "messenger_problems",
            "Requests and commands that were answered with a problem, by its code",
            "code",
        )
        self._rate_limited = make.counter(
            "messenger_rate_limited",
            "Requests and commands of batches refused, by the limit that they met",
            "limit",
        )
        begin(self._commands, [handler.name for handler in HANDLERS], ["done", "replayed", *CODES])
        begin(self._problems, CODES)
        self.asking: asyncio.Task[bytes] | None = None  # the page that is on its way
        self.at_log = Look[Head]()
        self.at_relay = Look[None]()
        self.relayed: int | None = None  # as JetStream said when it last answered
        self._request_series: dict[tuple[str, str, int], Histogram] = {}
        self._command_series: dict[tuple[str, str], Counter] = {}
        self._gauges = {name: make.gauge(name, text) for name, text in _GAUGES.items()}
        self._projection_gauges = {
            name: make.gauge(name, text, "projection") for name, text in _PROJECTION_GAUGES.items()
        }
        self._failures = make.gauge(
            "messenger_projection_failed",
            "1 for a projection that stands still, with the event that it can't apply",
            "projection",
            "position",
            "type",
            "reason",
        )

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        key = (method, route, status)
        series = self._request_series.get(key)
        if series is None:
            # Anybody may make methods up: they are one series.
            known = method if method in METHODS else OTHER
            series = self._requests.labels(known, route, str(status))
            if known == method:
                self._request_series[key] = series
        series.observe(seconds)

    def command(self, name: str, outcome: str) -> None:
        key = (name, outcome)
        series = self._command_series.get(key)
        if series is None:
            series = self._command_series[key] = self._commands.labels(name, outcome)
        series.inc()

    def problem(self, code: str) -> None:
        self._problems.labels(code).inc()

    def begin_limits(self, limits: Iterable[str]) -> None:
        begin(self._rate_limited, limits)

    def rate_limited(self, limit: str) -> None:
        self._rate_limited.labels(limit).inc()

    def show(self, name: str, value: float) -> None:
        self._gauges[name].set(value)

    def show_projection(self, name: str, projection: str, value: float) -> None:
        self._projection_gauges[name].labels(projection).set(value)

    def show_failures(self, failures: Iterable[tuple[str, str, str, str]]) -> None:
        """At most one a projection, whatever failed before."""
        self._failures.clear()
        for labels in failures:
            self._failures.labels(*labels).set(1)

    def text(self) -> bytes:
        return metrics.text(self.registry)


class StreamMetrics:
    def __init__(self, registry: metrics.Registry | None = None) -> None:
        make = Making(registry)
        self.starts = make.counter(
            "messenger_stream_starts",
            "Streams started: resumed, or fresh (the client reads its state)",
            "outcome",
        )
        begin(self.starts, ("resumed", "fresh"))
        self.catch_up_seconds = make.seconds(
            "messenger_stream_catch_up_seconds",
            "From a start that resumes until all that was missed is written",
        )
        self._closed = make.counter(
            "messenger_stream_closed", "Streams ended, by closing code, whoever ended them", "code"
        )
        begin(self._closed, [*map(str, sorted(CLOSING_CODES)), OTHER])
        self.interruptions = make.counter(
            "messenger_stream_interruptions",
            "Times that the gateway had to wait for the database, or began anew",
        )
        self.batch_events = make.counts(
            "messenger_stream_batch_events", "Events that the gateway routed together"
        )
        self.route_seconds = make.seconds(
            "messenger_stream_route_seconds",
            "From a batch's arrival until all of it was written to streams",
        )

    def end(self, code: int) -> None:
        """Clients may send any code: those that mean nothing to us are one series."""
        self._closed.labels(str(code) if code in CLOSING_CODES else OTHER).inc()


_GAUGES = {
    "messenger_log_position": "The log's head",
    "messenger_log_epoch": "The log's epoch",
    "messenger_relay_position": "The last event in JetStream",
    "messenger_relay_lag_events": "Events that are not in JetStream yet, as far as is known",
    "messenger_relay_lag_seconds": "Age of the first event that is not in JetStream yet",
    "messenger_append_queue": "Commands that wait to be written by this process",
    "messenger_append_batches": "Batches that this process has written",
    "messenger_append_commands": "Commands in the batches that this process has written",
    "messenger_database_up": "Whether the database answered this scrape",
    "messenger_stream_sockets": "Open streams of this process",
    "messenger_stream_sockets_limit": "Beyond so many streams this process refuses",
    "messenger_stream_position": "The last event that this process brought to its streams",
    "messenger_stream_rooms": "Chats that somebody connected to this process is in",
}

_PROJECTION_GAUGES = {
    "messenger_projection_position": "The projection's checkpoint",
    "messenger_projection_lag_events": "Events that the projection has before it",
    "messenger_projection_lag_seconds": "Age of the first event that the projection lacks",
    "messenger_projection_skipped_events": "Events that the projection does without, by order",
    "messenger_projection_rebuilding": "Whether a replay is under way beside it",
}
