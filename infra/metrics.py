"""What a process counts about itself, for Prometheus.

Each machine has a class of counters here; a process makes those of the machines that it has, in one
registry of its own. A machine that is given none counts for nobody. Where a path is hot it counts
once a batch, not once an event. A counter has all label sets that are known beforehand from the
start, at 0 (`begin`). `infra/production/metrics.md` says what each name means.
"""

from collections.abc import Callable, Iterable
from itertools import product

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.process_collector import ProcessCollector

from infra.errors import ImageBroken, ImageTooLarge, MessengerError, NotAnImage, Unavailable

# When each series began: as many lines again, which nobody asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]

SECONDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)

Registry = CollectorRegistry


def registry() -> Registry:
    """With what every process has: processor time, memory, descriptors, when it began."""
    made = CollectorRegistry()
    ProcessCollector(registry=made)
    return made


def text(registry: Registry) -> bytes:
    return generate_latest(registry)


def begin(counter: Counter, *labels: Iterable[str]) -> None:
    """Prometheus sees a series grow only from what it scraped before: without a 0 there, `increase()`
    misses the first event."""
    for values in product(*labels):
        counter.labels(*values)


class BusMetrics:
    def __init__(self, registry: Registry | None = None) -> None:
        self.up = Gauge(
            "messenger_bus_up", "Whether this process is connected to NATS", registry=registry
        )
        self.reconnects = Counter(
            "messenger_bus_reconnects", "Times that NATS was there again", registry=registry
        )
        self.lost_hints = Counter(
            "messenger_bus_publish_failures",
            "Hints that did not go out, as NATS was away",
            registry=registry,
        )


class AppendMetrics:
    """The first of a batch waits longest: its wait bounds that of all."""

    def __init__(self, registry: Registry | None = None) -> None:
        self.batch_commands = Histogram(
            "messenger_append_batch_commands",
            "Commands in a batch",
            buckets=COUNTS,
            registry=registry,
        )
        self.wait_seconds = Histogram(
            "messenger_append_wait_seconds",
            "How long the first command of a batch waited to be sent off",
            buckets=SECONDS,
            registry=registry,
        )
        self.commit_seconds = Histogram(
            "messenger_append_commit_seconds",
            "How long the database took for a batch",
            buckets=SECONDS,
            registry=registry,
        )
        self.verdicts = Counter(
            "messenger_append_verdicts",
            "Commands written, or not, by what the log said",
            ("verdict",),
            registry=registry,
        )
        self.events = Counter(
            "messenger_append_events", "Events that this process has written", registry=registry
        )
        self.interruptions = Counter(
            "messenger_append_interruptions",
            "Times that the database was away as a batch was to be written",
            registry=registry,
        )


class RelayMetrics:
    def __init__(self, registry: Registry | None = None) -> None:
        self.leads = Gauge(
            "messenger_relay_leads",
            "Whether this relay is the one that copies",
            registry=registry,
        )
        self.sent_position = Gauge(
            "messenger_relay_sent_position",
            "The last event that this relay knows to be in JetStream",
            registry=registry,
        )
        self.window_events = Histogram(
            "messenger_relay_window_events",
            "Events sent at once",
            buckets=COUNTS,
            registry=registry,
        )
        self.window_seconds = Histogram(
            "messenger_relay_window_seconds",
            "How long reading a window and sending it took, until JetStream had it",
            buckets=SECONDS,
            registry=registry,
        )
        self.interruptions = Counter(
            "messenger_relay_interruptions",
            "Times that NATS or the database was away, or the copy not as it was left",
            registry=registry,
        )
        self.copies_begun = Counter(
            "messenger_relay_copies_begun",
            "Times that a copy was made from the beginning",
            registry=registry,
        )


# Where a projector reads events.
LOG, JETSTREAM = SOURCES = ("log", "jetstream")
REASONS = ("fenced", "poisoned", "interrupted")


class ProjectorMetrics:
    """Of all the projections that a process keeps up to date."""

    def __init__(self, registry: Registry | None = None) -> None:
        labels = ("projection",)
        self.position = Gauge(
            "messenger_projector_position",
            "The last event that this projector has applied",
            labels,
            registry=registry,
        )
        self.batch_events = Histogram(
            "messenger_projector_batch_events",
            "Events in a batch",
            labels,
            buckets=COUNTS,
            registry=registry,
        )
        self.commit_seconds = Histogram(
            "messenger_projector_commit_seconds",
            "How long planning a batch and writing it took",
            labels,
            buckets=SECONDS,
            registry=registry,
        )
        self.events = Counter(
            "messenger_projector_events",
            "Events applied, by where they were read",
            ("projection", "source"),
            registry=registry,
        )
        self.interruptions = Counter(
            "messenger_projector_interruptions",
            "Times that it had to begin anew, by reason: fenced, poisoned, interrupted",
            ("projection", "reason"),
            registry=registry,
        )
        self.buffered = Gauge(
            "messenger_projector_buffered_events",
            "Events received from JetStream that wait to be applied",
            labels,
            registry=registry,
        )

    def begin(self, projection: str) -> None:
        begin(self.events, [projection], SOURCES)
        begin(self.interruptions, [projection], REASONS)


class ReplayMetrics:
    """Of `messenger replay` and `messenger verify`."""

    def __init__(self, registry: Registry | None = None) -> None:
        labels = ("projection",)
        self._position = Gauge(
            "messenger_replay_position",
            "The last event that the rebuild has applied",
            labels,
            registry=registry,
        )
        self._target = Gauge(
            "messenger_replay_target", "Where the rebuild aims at", labels, registry=registry
        )

    def reached(self, projection: str, position: int, up_to: int) -> None:
        self._position.labels(projection).set(position)
        self._target.labels(projection).set(up_to)


WORKS = ("objects", "rounds")


class UpkeepMetrics:
    """Of `messenger maintain`."""

    def __init__(self, registry: Registry | None = None) -> None:
        self.removals_position = Gauge(
            "messenger_removals_position",
            "The last event after which all objects that it ended are removed",
            registry=registry,
        )
        self.removals_lag_events = Gauge(
            "messenger_removals_lag_events",
            "Events that were not looked at yet for objects to remove",
            registry=registry,
        )
        self.removals_outstanding = Gauge(
            "messenger_removals_outstanding",
            "Events whose objects are being removed, or could not be yet",
            registry=registry,
        )
        self.failures = Counter(
            "messenger_upkeep_failures",
            "Rounds that could not do all, by work: objects, rounds",
            ("work",),
            registry=registry,
        )
        begin(self.failures, WORKS)
        self.partitions_ahead = Gauge(
            "messenger_partitions_ahead",
            "Months after this one whose partitions of messages are there",
            registry=registry,
        )
        self.database_bytes = Gauge(
            "messenger_database_bytes", "Size of the whole database", registry=registry
        )
        self.round_at = Gauge(
            "messenger_upkeep_round_timestamp_seconds",
            "When the last whole round ended",
            registry=registry,
        )


IMAGE_ERRORS = (NotAnImage, ImageTooLarge, ImageBroken, Unavailable, MessengerError)
OUTCOMES = ("done", "interrupted", *(error.__name__ for error in IMAGE_ERRORS))


class ImageMetrics:
    """Of the workers that an API process has."""

    def __init__(self, registry: Registry | None = None) -> None:
        self.seconds = Histogram(
            "messenger_image_seconds",
            "How long an image took, with its wait for a worker",
            buckets=SECONDS,
            registry=registry,
        )
        self.outcomes = Counter(
            "messenger_images",
            "Images by outcome: done, or the name of the refusal",
            ("outcome",),
            registry=registry,
        )
        begin(self.outcomes, OUTCOMES)
        self.workers_started = Counter(
            "messenger_image_workers_started",
            "Workers started; each does up to 500 images",
            registry=registry,
        )


class QueueMetrics:
    """How full what is bounded is."""

    def __init__(self, registry: Registry | None = None) -> None:
        self._length = Gauge(
            "messenger_queue_length", "What waits in a queue", ("queue",), registry=registry
        )
        self._limit = Gauge(
            "messenger_queue_limit",
            "Beyond so many a queue refuses",
            ("queue",),
            registry=registry,
        )

    def watch(self, queue: str, length: Callable[[], float], limit: float | None = None) -> None:
        """The length is asked for at each scrape."""
        self._length.labels(queue).set_function(length)
        if limit is not None:
            self._limit.labels(queue).set(limit)
