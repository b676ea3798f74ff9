"""What a process counts about itself, for Prometheus.

Each machine has a class of counters here; a process makes those of the machines that it has, in one
registry of its own. A machine that is given none counts for nobody. Where a path is hot it counts
once a batch, not once an event. A counter has all label sets that are known beforehand from the
start, at 0 (`begin`). `infra/production/metrics.md` says what each name means.
"""

from collections.abc import Callable, Iterable, Sequence
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


class Making:
    """Metrics of one registry; `labels` are the names of theirs."""

    def __init__(self, registry: Registry | None) -> None:
        self._registry = registry

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self._registry)

    def seconds(
        self, name: str, text: str, *labels: str, buckets: Sequence[float] = SECONDS
    ) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self._registry)

    def counts(self, name: str, text: str, *labels: str) -> Histogram:
        return self.seconds(name, text, *labels, buckets=COUNTS)


def begin(counter: Counter, *labels: Iterable[str]) -> None:
    """Prometheus sees a series grow only from what it scraped before: without a 0 there, `increase()`
    misses the first event."""
    for values in product(*labels):
        counter.labels(*values)


class BusMetrics:
    def __init__(self, registry: Registry | None = None) -> None:
        make = Making(registry)
        self.up = make.gauge("messenger_bus_up", "Whether this process is connected to NATS")
        self.reconnects = make.counter(
            "messenger_bus_reconnects", "Times that NATS was there again"
        )
        self.lost_hints = make.counter(
            "messenger_bus_publish_failures", "Hints that did not go out, as NATS was away"
        )


class AppendMetrics:
    """The first of a batch waits longest: its wait bounds that of all."""

    def __init__(self, registry: Registry | None = None) -> None:
        make = Making(registry)
        self.batch_commands = make.counts("messenger_append_batch_commands", "Commands in a batch")
        self.wait_seconds = make.seconds(
            "messenger_append_wait_seconds",
            "How long the first command of a batch waited to be sent off",
        )
        self.commit_seconds = make.seconds(
            "messenger_append_commit_seconds", "How long the database took for a batch"
        )
        self.verdicts = make.counter(
            "messenger_append_verdicts", "Commands written, or not, by what the log said", "verdict"
        )
        self.events = make.counter(
            "messenger_append_events", "Events that this process has written"
        )
        self.interruptions = make.counter(
            "messenger_append_interruptions",
            "Times that the database was away as a batch was to be written",
        )


class RelayMetrics:
    def __init__(self, registry: Registry | None = None) -> None:
        make = Making(registry)
        self.leads = make.gauge(
            "messenger_relay_leads", "Whether this relay is the one that copies"
        )
        self.sent_position = make.gauge(
            "messenger_relay_sent_position",
            "The last event that this relay knows to be in JetStream",
        )
        self.window_events = make.counts("messenger_relay_window_events", "Events sent at once")
        self.window_seconds = make.seconds(
            "messenger_relay_window_seconds",
            "How long reading a window and sending it took, until JetStream had it",
        )
        self.interruptions = make.counter(
            "messenger_relay_interruptions",
            "Times that NATS or the database was away, or the copy not as it was left",
        )
        self.copies_begun = make.counter(
            "messenger_relay_copies_begun", "Times that a copy was made from the beginning"
        )


# Where a projector reads events.
LOG, JETSTREAM = SOURCES = ("log", "jetstream")
REASONS = ("fenced", "poisoned", "interrupted")


class ProjectorMetrics:
    """Of all the projections that a process keeps up to date."""

    def __init__(self, registry: Registry | None = None) -> None:
        make = Making(registry)
        self.position = make.gauge(
            "messenger_projector_position",
            "The last event that this projector has applied",
            "projection",
        )
        self.batch_events = make.counts(
            "messenger_projector_batch_events", "Events in a batch", "projection"
        )
        self.commit_seconds = make.seconds(
            "messenger_projector_commit_seconds",
            "How long planning a batch and writing it took",
            "projection",
        )
        self.events = make.counter(
            "messenger_projector_events",
            "Events applied, by where they were read",
            "projection",
            "source",
        )
        self.interruptions = make.counter(
            "messenger_projector_interruptions",
            "Times that it had to begin anew, by reason: fenced, poisoned, interrupted",
            "projection",
            "reason",
        )
        self.buffered = make.gauge(
            "messenger_projector_buffered_events",
            "Events received from JetStream that wait to be applied",
            "projection",
        )

    def begin(self, projection: str) -> None:
        begin(self.events, [projection], SOURCES)
        begin(self.interruptions, [projection], REASONS)


class ReplayMetrics:
    """Of `messenger replay` and `messenger verify`."""

    def __init__(self, registry: Registry | None = None) -> None:
        make = Making(registry)
        self._position = make.gauge(
            "messenger_replay_position", "The last event that the rebuild has applied", "projection"
        )
        self._target = make.gauge(
            "messenger_replay_target", "Where the rebuild aims at", "projection"
        )

    def reached(self, projection: str, position: int, up_to: int) -> None:
        self._position.labels(projection).set(position)
        self._target.labels(projection).set(up_to)


WORKS = ("objects", "rounds")


class UpkeepMetrics:
    """Of `messenger maintain`."""

    def __init__(self, registry: Registry | None = None) -> None:
        make = Making(registry)
        self.removals_position = make.gauge(
            "messenger_removals_position",
            "The last event after which all objects that it ended are removed",
        )
        self.removals_lag_events = make.gauge(
            "messenger_removals_lag_events",
            "Events that were not looked at yet for objects to remove",
        )
        self.removals_outstanding = make.gauge(
            "messenger_removals_outstanding",
            "Events whose objects are being removed, or could not be yet",
        )
        self.failures = make.counter(
            "messenger_upkeep_failures",
            "Rounds that could not do all, by work: objects, rounds",
            "work",
        )
        begin(self.failures, WORKS)
        self.partitions_ahead = make.gauge(
            "messenger_partitions_ahead",
            "Months after this one whose partitions of messages are there",
        )
        self.database_bytes = make.gauge("messenger_database_bytes", "Size of the whole database")
        self.round_at = make.gauge(
            "messenger_upkeep_round_timestamp_seconds", "When the last whole round ended"
        )


IMAGE_ERRORS = (NotAnImage, ImageTooLarge, ImageBroken, Unavailable, MessengerError)
OUTCOMES = ("done", "interrupted", *(error.__name__ for error in IMAGE_ERRORS))


class ImageMetrics:
    """Of the workers that an API process has."""

    def __init__(self, registry: Registry | None = None) -> None:
        make = Making(registry)
        self.seconds = make.seconds(
            "messenger_image_seconds", "How long an image took, with its wait for a worker"
        )
        self.outcomes = make.counter(
            "messenger_images", "Images by outcome: done, or the name of the refusal", "outcome"
        )
        begin(self.outcomes, OUTCOMES)
        self.workers_started = make.counter(
            "messenger_image_workers_started", "Workers started; each does up to 500 images"
        )
        self.stood_seconds = make.counter(
            "messenger_image_stood_seconds", "Time in which workers stood still for commands"
        )


class QueueMetrics:
    """How full what is bounded is."""

    def __init__(self, registry: Registry | None = None) -> None:
        make = Making(registry)
        self._length = make.gauge("messenger_queue_length", "What waits in a queue", "queue")
        self._limit = make.gauge("messenger_queue_limit", "Beyond so many a queue refuses", "queue")

    def watch(self, queue: str, length: Callable[[], float], limit: float | None = None) -> None:
        """The length is asked for at each scrape."""
        self._length.labels(queue).set_function(length)
        if limit is not None:
            self._limit.labels(queue).set(limit)
