"""Traces for OpenTelemetry: a request, its command, the append, and how the events go on from there.

Off unless MESSENGER_OTLP_ENDPOINT says where to; then nothing of it is even imported. An event of a
traced command has the command's span in its metadata (`trace`, as W3C's traceparent has it), and what
relay and projectors do with the event becomes part of the same trace. Spans say ids, names, positions
and codes, nothing that people wrote. They leave in a thread of their own; what can't be sent is lost.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from threading import Thread
from typing import TYPE_CHECKING

from infra.errors import Unavailable
from infra.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.trace import Span

# Of one batch; it took as long for the others.
MAX_FOLLOWED = 32
SEND_DELAY_MS = 1_000
SEND_TIMEOUT_SECONDS = 5
CLOSE_SECONDS = 2.0
POLL_SECONDS = 0.02
PARENT = "traceparent"

Attributes = Mapping[str, str | int]


class Tracer:
    """Raises ImportError where OpenTelemetry is not installed."""

    def __init__(self, endpoint: str, *, share: float, process: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._propagator = TraceContextTextMapPropagator()
        self._provider = TracerProvider(
            resource=Resource.create(
                {
                    "service.name": "messenger",
                    "service.instance.id": f"{process} {os.getpid()}",
                    "messenger.process": process,
                }
            ),
            sampler=ParentBased(TraceIdRatioBased(share)),
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(
            endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=SEND_TIMEOUT_SECONDS
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter, schedule_delay_millis=SEND_DELAY_MS)
        )
        self._tracer = self._provider.get_tracer("messenger")

    @contextmanager
    def span(self, name: str, attributes: Attributes | None = None) -> Iterator["Span"]:
        """Below the one that is current; errors are not told, their texts may be personal."""
        with self._tracer.start_as_current_span(
            name,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield span

    def current(self) -> str | None:
        """The current span, for who comes later; None if there is none that is recorded."""
        from opentelemetry import trace

        if not trace.get_current_span().is_recording():
            return None
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return carrier.get(PARENT)

    def follow(
        self, name: str, parents: Iterable[str], *, seconds: float, attributes: Attributes
    ) -> None:
        """What was just done for all of them, and took so long."""
        ended_ns = time.time_ns()
        began_ns = ended_ns - int(seconds * 1e9)
        for parent in parents:
            context = self._propagator.extract({PARENT: parent})
            span = self._tracer.start_span(
                name, context=context, start_time=began_ns, attributes=attributes
            )
            span.end(ended_ns)

    async def close(self) -> None:
        """Sends what is left, and waits CLOSE_SECONDS for it."""
        closing = Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        deadline = time.monotonic() + CLOSE_SECONDS
        while closing.is_alive() and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)


@asynccontextmanager
async def tracing(settings: Settings, *, process: str) -> AsyncIterator[Tracer | None]:
    """None where it is off. Raises Unavailable where OpenTelemetry is not installed."""
    if settings.otlp_endpoint is None:
        yield None
        return
    try:
        tracer = Tracer(settings.otlp_endpoint, share=settings.trace_share, process=process)
    except ImportError as error:
        raise Unavailable(
            f"MESSENGER_OTLP_ENDPOINT needs what requirements-tracing.txt names: {error}"
        ) from None
    try:
        yield tracer
    finally:
        await tracer.close()
