"""Noting a call, and what the thread makes of it: recorded exchanges, trace state, bounds, bytes of any kind."""

import gzip
import json
import logging
from dataclasses import replace
from uuid import UUID

import pytest

from telemetry import exchange, otel
from telemetry.records import BeginRecord, EndRecord
from tests.fakes.collector import GOLDEN, breaches, collecting, plain

BEGIN = BeginRecord(
    call_id=UUID(int=1),
    project_id=UUID(int=2),
    api_key_id=UUID(int=3),
    started_at=1_000_000,
    dialect="chat",
    method="POST",
    path="/v1/chat/completions",
    model_requested="gpt-4o",
)
END = EndRecord(call_id=BEGIN.call_id, outcome="complete", status_code=200, ended_at=3_000_000)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
DIALECTS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "responses",
    "/v1/embeddings": "embeddings",
}


def recorded() -> list[tuple[BeginRecord, EndRecord]]:
    """The recorded exchanges of a dialect, as records."""
    with gzip.open(GOLDEN.parent / "openai_recorded.jsonl.gz", "rt") as lines:
        exchanges = [json.loads(line) for line in lines]
    return [
        (
            replace(
                BEGIN,
                dialect=DIALECTS[spoken["path"]],
                path=spoken["path"],
                request=spoken["request_body"].encode(),
                stream=spoken["response_kind"] == "sse",
            ),
            replace(
                END,
                outcome="complete" if spoken["status"] == 200 else "upstream_error",
                status_code=spoken["status"],
                response=spoken["response_body"].encode(),
            ),
        )
        for spoken in exchanges
        if spoken["method"] == "POST" and spoken["path"] in DIALECTS
    ]


def test_recorded_exchanges_arrive_in_the_conventions_shape() -> None:
    calls = recorded()
    with collecting() as collector:
        tracing = otel.OtlpTracing(collector.endpoint, content=True)
        for begin, end in calls:
            tracing.observe(begin, end, "")
        tracing.close()
        spans = collector.spans()
    assert len(spans) == len(calls) > 190
    for (begin, end), span in zip(calls, spans, strict=True):
        told = plain(span.attributes)
        kind = "embeddings" if begin.dialect == "embeddings" else "inference"
        assert breaches(told, kind) == []
        asked = exchange.request_messages(begin.request, begin.dialect)
        answered = exchange.answer_message(end.response, begin.dialect)
        assert ("gen_ai.input.messages" in told) == bool(asked)
        assert ("gen_ai.output.messages" in told) == (answered is not None)
        assert ("error.type" in told) == (end.status_code != 200)


def test_the_callers_trace_state_goes_on() -> None:
    with collecting() as collector:
        tracing = otel.OtlpTracing(collector.endpoint)
        tracing.observe(BEGIN, END, TRACEPARENT, "acme=1,other=2")
        tracing.close()
        [span] = collector.spans()
    assert span.trace_state == "acme=1,other=2"
    assert f"00-{span.trace_id.hex()}-{span.parent_span_id.hex()}-01" == TRACEPARENT
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (1_000_000_000, 3_000_000_000)


@pytest.mark.parametrize("traceparent", ["", "00-nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_without_a_callers_trace_a_new_one_begins(traceparent: str) -> None:
    with collecting() as collector:
        tracing = otel.OtlpTracing(collector.endpoint)
        tracing.observe(BEGIN, END, traceparent)
        tracing.close()
        [span] = collector.spans()
    assert any(span.trace_id)
    assert not span.parent_span_id


def test_bytes_that_no_collector_takes_are_made_takeable(caplog: pytest.LogCaptureFixture) -> None:
    request = b'{"messages": [{"role": "user", "content": "\\ud800 secret", "tool_calls": [{"function": {"name": "f",'
    request += b' "arguments": "{\\"n\\": 99999999999999999999}"}}]}]}'
    with collecting() as collector:
        tracing = otel.OtlpTracing(collector.endpoint, content=True)
        tracing.observe(replace(BEGIN, request=request, model_requested="\ud800"), END, "")
        tracing.close()
        [span] = collector.spans()
    assert span.name == "chat ?"
    text, call = plain(span.attributes)["gen_ai.input.messages"][0]["parts"]
    assert (text["content"], call["arguments"]) == ("? secret", {"n": "99999999999999999999"})
    assert not caplog.records


def test_more_than_can_be_held_is_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(otel, "NOTING_INTERVAL_S", 60)  # the thread comes round when tracing is closed
    monkeypatch.setattr(otel, "MAX_NOTED_BYTES", 100)
    with collecting() as collector, caplog.at_level(logging.WARNING):
        tracing = otel.OtlpTracing(collector.endpoint)
        for size in (200, 1, 0):
            tracing.observe(replace(BEGIN, request=bytes(size)), END, "")
        tracing.close()
        assert len(collector.spans()) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "2 calls were not traced: more ended at once than can be held"
    ]
