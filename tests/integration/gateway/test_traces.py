"""Spans at the gateway's door: the official exporter's, and those of strangers; a small agent's land in its run."""

import gzip
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.rpc.status_pb2 import Status
from openai import OpenAI
from opentelemetry import propagate
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from accounts.models import ApiKey, Organization, Project
from gateway.limits import Limit, Measure
from gateway.routing import ProjectRoutes
from kernel import clock
from kernel.ids import uuid7
from telemetry import runs, spans
from telemetry.ingest import Ingester
from telemetry.models import Run, Span
from telemetry.records import BeginRecord, SpanRecord
from telemetry.spans import SpanRow
from tests.fakes.served_gateway import ServedGateway, Tenant, served_gateway
from tests.fakes.upstream import RUNS
from tests.unit.telemetry.test_otlp import as_json, request, span

PROTOBUF, JSON = "application/x-protobuf", "application/json"


def post(
    gateway: ServedGateway, tenant: Tenant, body: bytes, media_type: str = PROTOBUF, **headers: str
) -> httpx.Response:
    return httpx.post(
        f"{gateway.origin}/v1/traces",
        content=body,
        headers={"authorization": f"Bearer {tenant.key}", "content-type": media_type, **headers},
    )


def kept(gateway: ServedGateway, tenant: Tenant) -> list[SpanRecord]:
    return [
        record
        for record in gateway.records()
        if isinstance(record, SpanRecord) and record.project_id == tenant.project_id
    ]


def test_spans_are_on_the_disk_when_they_are_answered(gateway: ServedGateway, tenant: Tenant) -> None:
    made = request(span({"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "find"}))
    answer = post(gateway, tenant, made.SerializeToString())
    assert (answer.status_code, answer.headers["content-type"], answer.content) == (200, PROTOBUF, b"")
    packed = gzip.compress(as_json(made))
    answer = post(gateway, tenant, packed, f"{JSON}; charset=utf-8", **{"content-encoding": "gzip"})
    assert (answer.status_code, answer.headers["content-type"], answer.json()) == (200, JSON, {})
    first, second = kept(gateway, tenant)
    assert (first.kind, first.tool_name, first.service) == ("tool", "find", "desk")
    assert (first.trace_id, first.tool_name) == (second.trace_id, second.tool_name)
    metrics = httpx.get(f"{gateway.origin}/metrics").text
    assert "spans_total" in metrics


def test_spans_that_cannot_be_kept_are_counted_in_the_answer(gateway: ServedGateway, tenant: Tenant) -> None:
    answer = post(gateway, tenant, request(span(), span(trace_id=b"x")).SerializeToString())
    partial = ExportTraceServiceResponse.FromString(answer.content).partial_success
    assert (answer.status_code, partial.rejected_spans) == (200, 1)
    assert len(kept(gateway, tenant)) == 1


def test_what_cannot_be_read_is_refused_as_the_protocol_asks(
    gateway: ServedGateway, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = request(span(name="NAME")).SerializeToString()
    for body, media_type, headers, status, words in [
        (whole[:-3], PROTOBUF, {}, 400, "protobuf"),
        (whole.replace(b"NAME", b"\xff\xff\xff\xff"), PROTOBUF, {}, 400, "protobuf"),
        (b'{"resourceSpans": [', JSON, {}, 400, "not valid JSON"),
        (b'{"resourceSpans": 7}', JSON, {}, 400, "resourceSpans"),
        (whole, PROTOBUF, {"content-encoding": "gzip"}, 400, "not gzip"),
        (whole, "text/plain", {}, 415, "text/plain"),
        (b"\0" * (8 << 20) + b"\0", PROTOBUF, {}, 413, "larger"),
        (gzip.compress(b"\0" * (9 << 20)), PROTOBUF, {"content-encoding": "gzip"}, 413, "unfolds"),
        (whole, PROTOBUF, {"authorization": "Bearer rk_wrong"}, 401, "key"),
        (whole, JSON, {"authorization": "Bearer rk_wrong"}, 401, "key"),
    ]:  # fmt: skip
        answer = post(gateway, tenant, body, media_type, **headers)
        assert answer.status_code == status, answer.content
        if media_type == PROTOBUF:
            assert answer.headers["content-type"] == PROTOBUF
            message = Status.FromString(answer.content).message
        else:
            message = answer.json()["message"]
        assert words in message
    assert kept(gateway, tenant) == []


def test_a_flood_and_a_full_spool_say_when_to_come_again(
    gateway: ServedGateway, tenant: Tenant, tmp_path: Path
) -> None:
    limit = Limit(id=uuid7(), subject="project", measure=Measure.SIGNALS, amount=1, window_s=3600)
    gateway.set_routes(tenant, ProjectRoutes(), limits=[limit])
    body = request(span()).SerializeToString()
    assert post(gateway, tenant, body).status_code == 200
    refused = post(gateway, tenant, body)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    assert "limit" in Status.FromString(refused.content).message
    with served_gateway(tmp_path, max_spool_bytes=0) as full:
        refused = post(full, full.add_tenant(), body)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")


# A small agent, instrumented with the official SDK.


class Agent:
    """Plays the first recorded run against the gateway, with spans as an instrumentation would make them."""

    def __init__(self, gateway: ServedGateway, tenant: Tenant, *, base: str = "") -> None:
        self.tenant = tenant
        self.exporter = OTLPSpanExporter(
            f"{gateway.origin}{base}/v1/traces",
            headers={"authorization": f"Bearer {tenant.key}"},
            compression=Compression.Gzip,
        )
        self._provider = TracerProvider(shutdown_on_exit=False)
        self._provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self._tracer = self._provider.get_tracer("desk")
        self._client = OpenAI(base_url=f"{gateway.origin}/v1", api_key=tenant.key, max_retries=0)

    def work(self, *, propagates: bool, names_answers: bool) -> int:
        """One run; return how many spans it made."""
        traffic: Any = self._client.chat.completions
        count = 1
        with self._tracer.start_as_current_span(
            "invoke_agent desk",
            attributes={"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "desk"},
        ):
            for number, message in enumerate(RUNS[0]["traj"]):
                if message["role"] != "assistant":
                    continue
                count += 1
                with self._tracer.start_as_current_span(
                    "chat gpt-4o", attributes={"gen_ai.operation.name": "chat"}
                ) as chat:
                    headers: dict[str, str] = {}
                    if propagates:
                        propagate.inject(headers)
                    answer = traffic.create(
                        model="gpt-4o", messages=RUNS[0]["traj"][:number], extra_headers=headers
                    )
                    if names_answers:
                        chat.set_attribute("gen_ai.response.id", answer.id)
                for call in answer.choices[0].message.tool_calls or ():
                    count += 1
                    with self._tracer.start_as_current_span(
                        f"execute_tool {call.function.name}",
                        attributes={
                            "gen_ai.operation.name": "execute_tool",
                            "gen_ai.tool.name": call.function.name,
                            "gen_ai.tool.call.id": call.id,
                            "gen_ai.tool.call.arguments": call.function.arguments,
                        },
                    ):
                        pass
        return count

    def close(self) -> None:
        self._provider.shutdown()
        self._client.close()


@pytest.fixture
def joined(gateway: ServedGateway, tenant: Tenant, db: None) -> Callable[[], list[SpanRow]]:
    """What is in the spool, ingested, stitched and joined: the spans of the tenant's only run."""
    now = clock.now()
    organization = Organization.objects.create(name="Acme", created_at=now)
    project = Project.objects.create(
        id=tenant.project_id, organization=organization, name="desk", created_at=now
    )
    ApiKey.objects.create(
        id=tenant.key_id, project=project, name="agent", prefix="rk_test", digest=b"d" * 32, created_at=now
    )

    def work() -> list[SpanRow]:
        later = clock.now() + timedelta(minutes=1)
        Ingester(gateway.spool_folder).ingest_once(now=later)
        runs.stitch_pending(project_id=tenant.project_id, now=later)
        spans.join_pending(project_id=tenant.project_id, now=later)
        return spans.spans_of(tenant.project_id, Run.objects.get(project=tenant.project_id).id)

    return work


@pytest.mark.parametrize(("propagates", "names_answers"), [(True, True), (True, False), (False, True)])
def test_the_spans_of_an_agent_land_in_the_run_of_its_calls(
    gateway: ServedGateway,
    tenant: Tenant,
    joined: Callable[[], list[SpanRow]],
    propagates: bool,
    names_answers: bool,
) -> None:
    agent = Agent(gateway, tenant)
    count = agent.work(propagates=propagates, names_answers=names_answers)
    agent.close()
    found = joined()
    assert len(found) == count
    assert spans.unjoined(tenant.project_id) == []
    (whole,) = [row for row in found if row.kind == "agent"]
    assert (whole.agent_name, whole.parent_span_id) == ("desk", "")
    tools = [row for row in found if row.kind == "tool"]
    # This model repeats ids of tool calls within a run, for other tools.
    asked = [
        (index, call["function"]["name"], call["function"]["arguments"])
        for index, message in enumerate(m for m in RUNS[0]["traj"] if m["role"] == "assistant")
        for call in message.get("tool_calls") or ()
    ]
    assert asked
    assert [(row.step_index, row.tool_name, row.arguments) for row in tools] == asked
    assert {row.link for row in tools} == {"tool_call"}


def test_spans_sent_below_a_runs_path_join_that_run(
    gateway: ServedGateway, tenant: Tenant, joined: Callable[[], list[SpanRow]]
) -> None:
    with OpenAI(base_url=f"{gateway.origin}/r/job-7/v1", api_key=tenant.key) as client:
        messages: Any = RUNS[0]["traj"][:2]
        client.chat.completions.create(model="gpt-4o", messages=messages)
    provider = TracerProvider(shutdown_on_exit=False)
    exporter = OTLPSpanExporter(
        f"{gateway.origin}/r/job-7/v1/traces", headers={"authorization": f"Bearer {tenant.key}"}
    )
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("desk").start_as_current_span("tool"):
        pass
    provider.shutdown()
    assert [(row.name, row.link) for row in joined()] == [("tool", "named")]


def test_a_span_that_is_delivered_twice_is_one(
    gateway: ServedGateway, tenant: Tenant, joined: Callable[[], list[SpanRow]]
) -> None:
    agent = Agent(gateway, tenant)
    count = agent.work(propagates=True, names_answers=True)
    agent.close()
    body = as_json(request(span({"gen_ai.tool.call.result": "a\0b"}, name="a\0b")))
    for _ in range(2):
        assert post(gateway, tenant, body, JSON).status_code == 200
    assert len(joined()) == count
    assert len(joined()) == count
    (stray,) = spans.unjoined(tenant.project_id)
    assert (stray.name, stray.result) == ("a\ufffdb", "a\ufffdb")
    assert Span.objects.count() == count + 1


def test_clocks_that_are_hours_off_change_nothing(
    gateway: ServedGateway, tenant: Tenant, joined: Callable[[], list[SpanRow]]
) -> None:
    agent = Agent(gateway, tenant)
    agent.work(propagates=True, names_answers=True)
    agent.close()
    begin = next(
        record
        for record in gateway.records()
        if isinstance(record, BeginRecord) and record.project_id == tenant.project_id
    )
    hours = 3_600_000_000_000
    now_ns = clock.now().timestamp() * 1e9
    odd = [
        span(span_id=b"%08d" % number, trace_id=bytes.fromhex(begin.trace_id), name=f"odd-{number}",
             start_time_unix_nano=start, end_time_unix_nano=end)
        for number, (start, end) in enumerate(
            [(int(now_ns - 9 * hours), int(now_ns - 8 * hours)), (int(now_ns + 9 * hours), 0), (0, 0), (2**64 - 1, 1)]
        )
    ]  # fmt: skip
    assert post(gateway, tenant, request(*odd).SerializeToString()).content == b""
    assert {row.name for row in joined()} >= {f"odd-{number}" for number in range(4)}
