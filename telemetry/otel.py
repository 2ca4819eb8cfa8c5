"""Calls as OpenTelemetry spans and metrics, sent by OTLP/HTTP when an endpoint is set.

A call that has ended is only noted by the gateway's event loop; a thread turns it into a span and measurements, and
threads of the SDK send them. A collector that is away or slow costs a call nothing: what cannot be sent is dropped.
No prompt and no answer leaves unless the operator asks for it, and a credential never does. What things are called
is `telemetry.semconv`'s business."""

import logging
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import Counter, Histogram, Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from telemetry import semconv
from telemetry.records import BeginRecord, EndRecord

log = logging.getLogger(__name__)

NOTING_INTERVAL_S = 0.1
"""How often the thread takes what the event loop has noted."""
MAX_NOTED_CALLS = 10_000
MAX_NOTED_BYTES = 64 << 20
"""Of requests and answers that are held until the thread takes them. What comes beyond is not traced."""
CLOSING_TIMEOUT_S = 5.0

_PROPAGATOR = TraceContextTextMapPropagator()


class Tracing:
    """Observes nothing: what a gateway without an endpoint uses."""

    def observe(self, begin: BeginRecord, end: EndRecord, traceparent: str, tracestate: str = "") -> None:
        """A call has ended. `traceparent` and `tracestate` are the caller's (W3C Trace Context), or empty. Takes
        a microsecond and never raises."""

    def close(self) -> None:
        """Send what is queued, for a few seconds at most."""


class OtlpTracing(Tracing):
    """Sends spans and metrics to an OTLP/HTTP collector."""

    def __init__(
        self, endpoint: str, *, content: bool = False, interval_s: float = 5.0, timeout_s: float = 5.0
    ) -> None:
        """`endpoint` is the collector's base URL, e.g. `http://collector:4318`; with `content`, spans carry prompts
        and answers."""
        base = endpoint.rstrip("/")
        resource = Resource.create({"service.name": "ratchet-gateway"})
        self._spans = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._spans.add_span_processor(
            BatchSpanProcessor(
                OTLPSpanExporter(f"{base}/v1/traces", timeout=timeout_s),
                schedule_delay_millis=interval_s * 1000,
                # With content, a collector's limit on a message (20 MB by default) and our memory count.
                max_queue_size=512 if content else 4096,
                max_export_batch_size=64 if content else 512,
            )
        )
        reader = PeriodicExportingMetricReader(
            OTLPMetricExporter(f"{base}/v1/metrics", timeout=timeout_s),
            export_interval_millis=interval_s * 1000,
        )
        self._metrics = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        self._tracer = self._spans.get_tracer("ratchet.gateway", schema_url=semconv.SCHEMA_URL)
        meter = self._metrics.get_meter("ratchet.gateway", schema_url=semconv.SCHEMA_URL)
        self._instruments = {
            metric.name: _instrument(meter, metric) for group in semconv.METRICS.values() for metric in group
        }
        self._content = content
        self._noted: list[tuple[BeginRecord, EndRecord, dict[str, str]]] = []
        self._noted_bytes = 0
        self._untraced = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="otel", daemon=True)
        self._thread.start()

    def observe(self, begin: BeginRecord, end: EndRecord, traceparent: str, tracestate: str = "") -> None:
        size = len(begin.request) + len(end.response)
        with self._lock:
            fits = self._noted_bytes + size <= MAX_NOTED_BYTES and len(self._noted) < MAX_NOTED_CALLS
            if fits or not self._noted:
                self._noted.append((begin, end, {"traceparent": traceparent, "tracestate": tracestate}))
                self._noted_bytes += size
            else:
                self._untraced += 1

    def close(self) -> None:
        self._closing.set()
        self._thread.join(CLOSING_TIMEOUT_S)
        self._spans.shutdown()
        self._metrics.shutdown(timeout_millis=CLOSING_TIMEOUT_S * 1000)

    def _work(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._closing.wait(NOTING_INTERVAL_S)
            with self._lock:
                noted, self._noted, self._noted_bytes = self._noted, [], 0
                untraced, self._untraced = self._untraced, 0
            if untraced:
                log.warning("%d calls were not traced: more ended at once than can be held", untraced)
            for begin, end, context in noted:
                try:
                    self._trace(begin, end, context)
                except Exception:
                    # Not what failed: an error's text may quote a prompt.
                    log.error("call %s could not be traced", begin.call_id)
                time.sleep(0)  # lets the event loop have the interpreter

    def _trace(self, begin: BeginRecord, end: EndRecord, context: dict[str, str]) -> None:
        attributes = semconv.attributes_of(begin, end, content=self._content)
        span = self._tracer.start_span(
            semconv.span_name(attributes),
            context=_PROPAGATOR.extract(context),
            kind=trace.SpanKind.CLIENT,
            attributes=attributes,
            start_time=begin.started_at * 1000,
        )
        if "error.type" in attributes:
            span.set_status(trace.StatusCode.ERROR)
        span.end(end_time=end.ended_at * 1000)
        for metric, value, labels in semconv.measurements(begin, end, attributes):
            instrument = self._instruments[metric.name]
            if isinstance(instrument, Histogram):
                instrument.record(value, labels)
            else:
                instrument.add(value, labels)


def connect(endpoint: str, *, content: bool = False) -> Tracing:
    """Tracing to `endpoint`; for an empty one, and with a log line for one that is no URL, tracing that does
    nothing."""
    if not endpoint:
        return Tracing()
    if urlsplit(endpoint).scheme not in {"http", "https"}:
        log.error("OTEL_EXPORTER_OTLP_ENDPOINT is not an http(s) URL: nothing is exported")
        return Tracing()
    return OtlpTracing(endpoint, content=content)


def _instrument(meter: Meter, metric: semconv.Metric) -> Counter | Histogram:
    described: dict[str, Any] = {"unit": metric.unit, "description": metric.description}
    if not metric.boundaries:
        return meter.create_counter(metric.name, **described)
    return meter.create_histogram(
        metric.name, explicit_bucket_boundaries_advisory=metric.boundaries, **described
    )
