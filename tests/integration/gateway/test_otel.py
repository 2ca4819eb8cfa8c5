"""Spans and metrics reach a collector in the conventions' words, carry content only when asked, and cost nothing when
the collector is away."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from telemetry import otel
from tests.fakes.collector import Collector, breaches, collecting, metric_breaches, plain
from tests.fakes.served_gateway import free_port, served_gateway
from tests.fakes.upstream import RUNS, FakeUpstream
from tests.integration.gateway.conftest import OPENING

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TOOL = {
    "type": "function",
    "function": {
        "name": "think",
        "description": "Think.",
        "parameters": {"type": "object", "properties": {}},
    },
}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


def make_calls(
    collector: Collector, upstream: FakeUpstream, folder: Path, *, content: bool
) -> tuple[str, str]:
    """A whole recorded run, every second answer streamed, then a call that the provider refuses; the key used and the
    run's id."""
    run_id = ""
    with served_gateway(folder, tracing=otel.connect(collector.endpoint, content=content)) as gateway:
        tenant = gateway.add_tenant(upstream=f"{upstream.origin}/v1", credential="sk-secret")
        with OpenAI(base_url=f"{gateway.origin}/v1", api_key=tenant.key, max_retries=0) as client:
            traffic: Any = client.chat.completions
            for number, message in enumerate(RUNS[0]["traj"]):
                if message["role"] != "assistant":
                    continue
                answer = traffic.with_raw_response.create(
                    model="gpt-4o",
                    messages=RUNS[0]["traj"][:number],
                    tools=[TOOL],
                    stream=number % 4 == 0,
                    extra_headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"},
                )
                answer.http_response.read()
                run_id = answer.headers["x-ratchet-run-id"]
            with pytest.raises(BadRequestError):
                traffic.create(model="gpt-4o", messages=[{"role": "user", "content": "never recorded"}])
    return tenant.key, run_id


@pytest.mark.parametrize("content", [False, True])
def test_real_calls_are_told_in_the_conventions_words(
    collector: Collector, upstream: FakeUpstream, tmp_path: Path, content: bool
) -> None:
    key, run_id = make_calls(collector, upstream, tmp_path, content=content)
    spans = collector.spans()
    *run, refused = sorted(spans, key=lambda span: span.start_time_unix_nano)
    assert len(run) == sum(message["role"] == "assistant" for message in RUNS[0]["traj"])
    for span in spans:
        assert (span.name, span.kind) == ("chat gpt-4o", Span.SPAN_KIND_CLIENT)
        assert breaches(plain(span.attributes), "inference") == []
    for span in run:
        told = plain(span.attributes)
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
        assert told["gen_ai.conversation.id"] == run_id
        assert ("gen_ai.response.time_to_first_chunk" in told) == told.get("gen_ai.request.stream", False)
        assert ("gen_ai.input.messages" in told) == ("gen_ai.tool.definitions" in told) == content
        assert ("gen_ai.output.messages" in told) == content
    told = plain(refused.attributes)
    assert (told["error.type"], refused.status.code) == ("400", Status.STATUS_CODE_ERROR)
    metrics = collector.metrics()
    assert [breach for metric in metrics for breach in metric_breaches(metric)] == []
    assert {
        "gen_ai.client.inference.duration",
        "gen_ai.client.inference.time_to_first_chunk",
        "gen_ai.client.inference.usage.input_tokens",
        "gen_ai.client.inference.operation.output_tokens",
    } <= {metric.name for metric in metrics}
    everything = b"".join(body for _, body in collector.received)
    assert (b"Airline Agent Policy" in everything) == content
    for secret in [key.encode(), b"sk-secret"]:
        assert secret not in everything


def test_the_callers_trace_goes_on(collector: Collector, upstream: FakeUpstream, tmp_path: Path) -> None:
    """The upstream is told the caller's context as the caller told it; a caller that does not sample gets no span."""
    with served_gateway(tmp_path, tracing=otel.connect(collector.endpoint)) as gateway:
        tenant = gateway.add_tenant(upstream=f"{upstream.origin}/v1")
        with OpenAI(base_url=f"{gateway.origin}/v1", api_key=tenant.key) as client:
            for sampled in ("01", "00"):
                headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-{sampled}", "tracestate": "acme=1"}
                client.chat.completions.create(model="gpt-4o", messages=OPENING, extra_headers=headers)
                assert upstream.received[-1].header("traceparent") == headers["traceparent"]
                assert upstream.received[-1].header("tracestate") == "acme=1"
    assert [span.trace_id.hex() for span in collector.spans()] == [TRACE_ID]


def test_a_collector_that_is_away_costs_nothing(upstream: FakeUpstream, tmp_path: Path) -> None:
    tracing = otel.OtlpTracing(f"http://127.0.0.1:{free_port()}", interval_s=0.05, timeout_s=0.2)
    with served_gateway(tmp_path, tracing=tracing) as gateway:
        tenant = gateway.add_tenant(upstream=f"{upstream.origin}/v1")
        with OpenAI(base_url=f"{gateway.origin}/v1", api_key=tenant.key, timeout=1) as client:
            for _ in range(20):
                assert client.chat.completions.create(model="gpt-4o", messages=OPENING).id


def test_an_endpoint_that_is_no_url_is_left_alone() -> None:
    assert type(otel.connect("collector:4318")) is type(otel.connect("")) is otel.Tracing
