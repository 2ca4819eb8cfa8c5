"""Calls as OpenTelemetry spans and metrics, sent by OTLP/HTTP when an endpoint is set.

Never content: no prompt, no answer, no credential. Everything is queued and sent by threads of the SDK, which
drop what they cannot send; a collector that is away or slow costs a call nothing. The names are in one table
each, below; the rest of Ratchet uses its own."""

import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from telemetry.records import BeginRecord, EndRecord

log = logging.getLogger(__name__)

SEMANTIC_CONVENTIONS = "1.44.0"
"""Version of the OpenTelemetry semantic conventions that the names follow; `gen_ai.*` is in development
there."""

OPERATION_NAMES = {"chat": "chat"}
"""Dialect -> `gen_ai.operation.name`."""

ATTRIBUTES: dict[str, Callable[[BeginRecord, EndRecord], Any]] = {
    "gen_ai.operation.name": lambda begin, end: OPERATION_NAMES.get(begin.dialect),
    "gen_ai.provider.name": lambda begin, end: "ratchet" if begin.model_version_id else "openai",
    "gen_ai.conversation.id": lambda begin, end: begin.run_hint,
    "gen_ai.request.model": lambda begin, end: begin.model_requested,
    "gen_ai.request.stream": lambda begin, end: begin.stream or None,
    "gen_ai.response.id": lambda begin, end: end.response_id,
    "gen_ai.response.model": lambda begin, end: begin.model_served,
    "gen_ai.response.finish_reasons": lambda begin, end: [end.finish_reason] if end.finish_reason else None,
    "gen_ai.response.time_to_first_chunk": lambda begin, end: _seconds(begin.started_at, end.first_byte_at),
    "gen_ai.usage.input_tokens": lambda begin, end: end.prompt_tokens,
    "gen_ai.usage.output_tokens": lambda begin, end: end.completion_tokens,
    "http.request.method": lambda begin, end: begin.method,
    "http.response.status_code": lambda begin, end: end.status_code,
    "url.path": lambda begin, end: begin.path,
    "error.type": lambda begin, end: None if end.outcome == "complete" else end.outcome,
    "ratchet.call.id": lambda begin, end: begin.call_id,
    "ratchet.project.id": lambda begin, end: begin.project_id,
    "ratchet.model_version.id": lambda begin, end: begin.model_version_id,
    "ratchet.is_canary": lambda begin, end: begin.is_canary if begin.model_version_id else None,
}
"""Span attribute -> where it comes from; what is absent or empty is left out."""

METRIC_ATTRIBUTES = (
    "gen_ai.operation.name",
    "gen_ai.provider.name",
    "gen_ai.request.model",
    "gen_ai.response.model",
    "error.type",
)
OPERATION_DURATION = "gen_ai.client.operation.duration"
TOKEN_USAGE = "gen_ai.client.token.usage"

_PROPAGATOR = TraceContextTextMapPropagator()


class Tracing:
    """Observes nothing: what a gateway without an endpoint uses."""

    def observe(self, begin: BeginRecord, end: EndRecord, traceparent: str) -> None:
        """A call has ended. `traceparent` is the caller's (W3C Trace Context), or empty."""

    def close(self) -> None:
        """Send what is queued, for a few seconds at most."""


class OtlpTracing(Tracing):
    """Sends spans and metrics to an OTLP/HTTP collector."""

    def __init__(self, endpoint: str, *, interval_s: float = 5.0, timeout_s: float = 5.0) -> None:
        """`endpoint` is the collector's base URL, e.g. `http://collector:4318`."""
        base = endpoint.rstrip("/")
        resource = Resource.create({"service.name": "ratchet-gateway"})
        self._spans = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._spans.add_span_processor(
            BatchSpanProcessor(
                OTLPSpanExporter(f"{base}/v1/traces", timeout=timeout_s),
                schedule_delay_millis=interval_s * 1000,
            )
        )
        reader = PeriodicExportingMetricReader(
            OTLPMetricExporter(f"{base}/v1/metrics", timeout=timeout_s),
            export_interval_millis=interval_s * 1000,
        )
        self._metrics = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        schema = f"https://opentelemetry.io/schemas/{SEMANTIC_CONVENTIONS}"
        self._tracer = self._spans.get_tracer("ratchet.gateway", schema_url=schema)
        meter = self._metrics.get_meter("ratchet.gateway", schema_url=schema)
        self._duration = meter.create_histogram(
            OPERATION_DURATION, unit="s", description="Duration of a call."
        )
        self._tokens = meter.create_histogram(TOKEN_USAGE, unit="{token}", description="Tokens of a call.")

    def observe(self, begin: BeginRecord, end: EndRecord, traceparent: str) -> None:
        try:
            self._observe(begin, end, traceparent)
        except Exception:
            log.exception("a call could not be traced")

    def _observe(self, begin: BeginRecord, end: EndRecord, traceparent: str) -> None:
        attributes = _attributes(begin, end)
        operation = attributes.get("gen_ai.operation.name")
        name = f"{operation} {begin.model_requested}" if operation else f"{begin.method} {begin.path}"
        parent = _PROPAGATOR.extract({"traceparent": traceparent}) if traceparent else None
        span = self._tracer.start_span(
            name,
            context=parent,
            kind=trace.SpanKind.CLIENT,
            attributes=attributes,
            start_time=begin.started_at * 1000,
        )
        if "error.type" in attributes:
            span.set_status(trace.StatusCode.ERROR)
        span.end(end_time=end.ended_at * 1000)
        labels = {name: attributes[name] for name in METRIC_ATTRIBUTES if name in attributes}
        self._duration.record((end.ended_at - begin.started_at) / 1e6, labels)
        for token_type, count in [("input", end.prompt_tokens), ("output", end.completion_tokens)]:
            if count is not None:
                self._tokens.record(count, {**labels, "gen_ai.token.type": token_type})

    def close(self) -> None:
        self._spans.shutdown()
        self._metrics.shutdown(timeout_millis=5_000)


def connect(endpoint: str) -> Tracing:
    """Tracing to `endpoint`; for an empty one, and with a log line for one that is no URL, tracing that does
    nothing."""
    if not endpoint:
        return Tracing()
    if urlsplit(endpoint).scheme not in {"http", "https"}:
        log.error("OTEL_EXPORTER_OTLP_ENDPOINT is not an http(s) URL: nothing is exported")
        return Tracing()
    return OtlpTracing(endpoint)


def _attributes(begin: BeginRecord, end: EndRecord) -> dict[str, Any]:
    values = {name: read(begin, end) for name, read in ATTRIBUTES.items()}
    return {
        name: value if isinstance(value, str | bool | int | float | list) else str(value)
        for name, value in values.items()
        if value is not None and value != ""
    }


def _seconds(start_us: int, end_us: int | None) -> float | None:
    return None if end_us is None else (end_us - start_us) / 1e6
