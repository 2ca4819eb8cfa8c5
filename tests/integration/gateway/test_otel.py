"""Spans and metrics reach a collector, carry no content, and cost nothing when the collector is away."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from openai import OpenAI
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.semconv.schemas import Schemas

from telemetry import otel
from tests.fakes.served_gateway import free_port, served_gateway
from tests.fakes.upstream import FakeUpstream
from tests.integration.gateway.conftest import OPENING


class Collector:
    """An OTLP/HTTP receiver that keeps what it gets."""

    def __init__(self) -> None:
        self.received: list[tuple[str, bytes]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.received.append((self.path, body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever, daemon=True)
    thread.start()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()
    thread.join()


def test_a_call_becomes_a_span_and_measurements(
    collector: Collector, upstream: FakeUpstream, tmp_path: Path
) -> None:
    trace_id, parent_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with served_gateway(tmp_path, tracing=otel.connect(collector.endpoint)) as gateway:
        tenant = gateway.add_tenant(upstream=f"{upstream.origin}/v1", credential="sk-secret")
        with OpenAI(base_url=f"{gateway.origin}/v1", api_key=tenant.key) as client:
            headers = {"traceparent": f"00-{trace_id}-{parent_id}-01"}
            answer = client.chat.completions.with_raw_response.create(
                model="gpt-4o", messages=OPENING, extra_headers=headers
            )
    spans = [
        span
        for path, body in collector.received
        if path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert [(span.name, span.trace_id.hex(), span.parent_span_id.hex()) for span in spans] == [
        ("chat gpt-4o", trace_id, parent_id)
    ]
    attributes = {item.key: item.value for item in spans[0].attributes}
    assert attributes["gen_ai.conversation.id"].string_value == answer.headers["x-ratchet-run-id"]
    assert attributes["gen_ai.usage.input_tokens"].int_value > 1000
    assert set(attributes) <= set(otel.ATTRIBUTES)
    metrics = {
        metric.name
        for path, body in collector.received
        if path == "/v1/metrics"
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert {otel.OPERATION_DURATION, otel.TOKEN_USAGE} <= metrics
    everything = b"".join(body for _, body in collector.received)
    for secret in [b"Airline Agent Policy", b"user ID", tenant.key.encode(), b"sk-secret"]:
        assert secret not in everything


def test_a_collector_that_is_away_costs_nothing(upstream: FakeUpstream, tmp_path: Path) -> None:
    tracing = otel.OtlpTracing(f"http://127.0.0.1:{free_port()}", interval_s=0.05, timeout_s=0.2)
    with served_gateway(tmp_path, tracing=tracing) as gateway:
        tenant = gateway.add_tenant(upstream=f"{upstream.origin}/v1")
        with OpenAI(base_url=f"{gateway.origin}/v1", api_key=tenant.key, timeout=1) as client:
            for _ in range(20):
                assert client.chat.completions.create(model="gpt-4o", messages=OPENING).id


def test_an_endpoint_that_is_no_url_is_left_alone() -> None:
    assert type(otel.connect("collector:4318")) is type(otel.connect("")) is otel.Tracing


def test_the_names_are_those_of_the_conventions() -> None:
    known = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_")}
    assert {name for name in otel.ATTRIBUTES if name.startswith("gen_ai.")} <= known
    assert {otel.OPERATION_DURATION, otel.TOKEN_USAGE} <= {
        value for value in vars(gen_ai_metrics).values() if isinstance(value, str)
    }
    newest = max(
        Schemas, key=lambda schema: [int(part) for part in schema.value.rsplit("/", 1)[1].split(".")]
    )
    assert newest.value.endswith(f"/{otel.SEMANTIC_CONVENTIONS}")
