"""Export requests in both encodings say the same, four conventions mean the same, and nothing hostile raises."""

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from telemetry import otlp, otlp_conventions
from telemetry.otlp_conventions import MAX_CONTENT_CHARACTERS, MAX_OTHERS, AgentSpan, SpanKind, read

TRACE, SPAN, PARENT = bytes(range(1, 17)), bytes(range(1, 9)), bytes(range(2, 10))


def any_value(value: Any) -> AnyValue:
    match value:
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case bytes():
            return AnyValue(bytes_value=value)
        case list():
            return AnyValue(array_value=ArrayValue(values=map(any_value, value)))
        case dict():
            return AnyValue(kvlist_value=KeyValueList(values=pairs(value)))
        case None:
            return AnyValue()
    return AnyValue(string_value=value)


def pairs(attributes: Mapping[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=any_value(value)) for key, value in attributes.items()]


def request(*spans: Span) -> ExportTraceServiceRequest:
    made = ExportTraceServiceRequest()
    resource = made.resource_spans.add()
    resource.resource.attributes.extend(pairs({"service.name": "desk"}))
    resource.scope_spans.add().spans.extend(spans)
    return made


def span(attributes: Mapping[str, Any] | None = None, **fields: Any) -> Span:
    given: dict[str, Any] = {
        "trace_id": TRACE,
        "span_id": SPAN,
        "parent_span_id": PARENT,
        "name": "execute_tool find",
        "start_time_unix_nano": 1_795_262_400_000_000_000,
        "end_time_unix_nano": 1_795_262_401_500_000_000,
    }
    return Span(**(given | fields), attributes=pairs(attributes or {}))


def as_json(message: ExportTraceServiceRequest) -> bytes:
    """OTLP's own mapping: protobuf's, but ids in hex and enumerations as numbers."""
    document = MessageToDict(message, use_integers_for_enums=True)
    for resource in document["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for fields in scope["spans"]:
                for name in ("traceId", "spanId", "parentSpanId"):
                    if name in fields:
                        fields[name] = base64.b64decode(fields[name]).hex().upper()
    return json.dumps(document).encode()


def parsed(*spans: Span, is_json: bool = False) -> otlp.Parsed:
    made = request(*spans)
    return otlp.parse(as_json(made) if is_json else made.SerializeToString(), is_json=is_json)


@pytest.mark.parametrize("is_json", [False, True])
def test_a_span_is_read_from_both_encodings(is_json: bool) -> None:
    attributes = {
        "text": "ä", "yes": True, "big": 2**62, "half": 0.5, "list": [1, "a", [False]], "map": {"a": {"b": 1}},
    }  # fmt: skip
    failed = {"code": 2, "message": "no such flight"}
    (found,) = parsed(span(attributes, status=failed), is_json=is_json).spans
    assert found == otlp.OtlpSpan(
        trace_id=TRACE.hex(),
        span_id=SPAN.hex(),
        parent_span_id=PARENT.hex(),
        name="execute_tool find",
        started_at=1_795_262_400_000_000,
        ended_at=1_795_262_401_500_000,
        attributes=attributes,
        service="desk",
        failure="no such flight",
    )


@pytest.mark.parametrize("is_json", [False, True])
def test_spans_without_valid_ids_are_refused_and_the_others_kept(is_json: bool) -> None:
    wrong = [span(trace_id=b""), span(trace_id=bytes(16)), span(trace_id=b"x" * 15), span(span_id=bytes(8))]
    found = parsed(*wrong, span(parent_span_id=b""), span(parent_span_id=b"x"), is_json=is_json)
    assert [kept.parent_span_id for kept in found.spans] == ["", ""]
    assert sorted(found.refused.values()) == [1, 3]
    answer = otlp.answer(found.refused, is_json=is_json)
    if is_json:
        assert json.loads(answer)["partialSuccess"]["rejectedSpans"] == "4"
    else:
        response = ExportTraceServiceResponse.FromString(answer)
        assert response.partial_success.rejected_spans == 4
        assert "trace id" in response.partial_success.error_message


def test_a_request_may_hold_so_many_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "MAX_SPANS", 3)
    found = parsed(*[span()] * 5)
    assert (len(found.spans), found.refused.total()) == (3, 2)


def test_what_is_answered_when_all_is_well_is_empty() -> None:
    assert otlp.answer({}, is_json=False) == b""
    assert json.loads(otlp.answer({}, is_json=True)) == {}
    assert Status.FromString(otlp.failure("no", is_json=False)).message == "no"


def test_ten_thousand_attributes_do_not_hide_those_that_matter() -> None:
    many = {f"key-{number}": number for number in range(10_000)} | {"gen_ai.tool.call.id": "call_1"}
    (found,) = parsed(span(many)).spans
    assert len(found.attributes) == otlp.MAX_ATTRIBUTES + 1
    said = read(found.attributes, failure="")
    assert (said.tool_call_id, len(said.others)) == ("call_1", MAX_OTHERS)


@pytest.mark.parametrize("is_json", [False, True])
def test_long_deep_and_odd_values_are_cut(is_json: bool) -> None:
    deep: Any = "bottom"
    for _ in range(20):
        deep = [deep]
    attributes = {
        "gen_ai.tool.call.arguments": "x" * 1_000_000, "deep": deep, "wide": list(range(10_000)), "gone": None,
        "nul": "a\0b", "": "nameless",
    }  # fmt: skip
    (found,) = parsed(span(attributes, name="n" * 1000), is_json=is_json).spans
    assert len(found.attributes["gen_ai.tool.call.arguments"]) == MAX_CONTENT_CHARACTERS
    assert len(found.attributes["wide"]) == otlp.MAX_ITEMS
    assert "bottom" not in str(found.attributes["deep"])
    assert (found.attributes["nul"], found.attributes["gone"], len(found.name)) == ("a\0b", None, 200)
    assert "" not in found.attributes


@pytest.mark.parametrize("cut", [1, 7, 40, 90])
def test_a_truncated_request_is_malformed(cut: int) -> None:
    whole = request(span({"a": "b"})).SerializeToString()
    with pytest.raises(otlp.Malformed):
        otlp.parse(whole[:-cut], is_json=False)
    with pytest.raises(otlp.Malformed):
        otlp.parse(as_json(request(span()))[:-cut], is_json=True)


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"null",
        b'{"resourceSpans": 1}',
        b'{"resourceSpans": "a"}',
        b"\xff\xfe",
        b'"\xff"',
        b"[" * 100_000,
    ],
)
def test_json_that_is_no_request_is_malformed(body: bytes) -> None:
    with pytest.raises(otlp.Malformed):
        otlp.parse(body, is_json=True)


def test_text_that_is_not_utf8_is_malformed_in_protobuf() -> None:
    whole = request(span(name="NAME")).SerializeToString()
    with pytest.raises(otlp.Malformed):
        otlp.parse(whole.replace(b"NAME", b"\xff\xfe\xfd\xfc"), is_json=False)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "resourceSpans", "scopeSpans", "spans", "resource", "attributes", "key", "value", "traceId",
                    "spanId", "status", "code", "startTimeUnixNano", "intValue", "arrayValue", "values",
                    "kvlistValue", "stringValue", "doubleValue", "bytesValue",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=40,
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)


def survives(body: bytes, *, is_json: bool) -> list[AgentSpan]:
    try:
        found = otlp.parse(body, is_json=is_json)
    except otlp.Malformed:
        return []
    otlp.answer(found.refused, is_json=is_json)
    return [read(span.attributes, failure=span.failure) for span in found.spans]


@given(st.binary(max_size=300))
def test_bytes_never_raise(body: bytes) -> None:
    survives(body, is_json=False)
    survives(body, is_json=True)


@given(st.dictionaries(st.sampled_from(["resourceSpans"]), JSON))
def test_json_of_any_shape_never_raises(document: Any) -> None:
    survives(json.dumps(document, allow_nan=False).encode() if _finite(document) else b"", is_json=True)


def _finite(document: Any) -> bool:
    try:
        json.dumps(document, allow_nan=False).encode()
    except ValueError:
        return False
    return True


@given(
    st.dictionaries(
        st.sampled_from(sorted(otlp_conventions.KNOWN)) | st.text(max_size=5), VALUES, max_size=8
    ),
    st.integers(0, 400),
    st.binary(max_size=8),
)
def test_values_of_any_type_under_any_name_never_raise(
    attributes: dict[str, Any], at: int, noise: bytes
) -> None:
    made = request(span(attributes))
    (said,) = survives(made.SerializeToString(), is_json=False)
    assert all(isinstance(getattr(said, name), str) for name in ("tool_name", "arguments", "result", "error"))
    json.dumps(said.others, allow_nan=False)
    survives(as_json(made), is_json=True)
    whole = made.SerializeToString()
    survives(whole[:at] + noise + whole[at + len(noise) :], is_json=False)


TOOL = {
    "genai": {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "find_flight",
        "gen_ai.tool.call.id": "call_1",
        "gen_ai.tool.call.arguments": '{"to": "JFK"}',
        "gen_ai.tool.call.result": "2 flights",
    },
    "openinference": {
        "openinference.span.kind": "TOOL",
        "tool.name": "find_flight",
        "tool_call.id": "call_1",
        "input.value": '{"to": "JFK"}',
        "output.value": "2 flights",
    },
}
MODEL = {
    "genai": {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "gpt",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.conversation.id": "thread-1",
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.input.messages": "secret",
    },
    "genai-1.36": {
        "gen_ai.operation.name": "chat",
        "gen_ai.system": "openai",
        "gen_ai.request.model": "gpt",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.conversation.id": "thread-1",
        "gen_ai.usage.prompt_tokens": 10,
        "gen_ai.usage.completion_tokens": 5,
        "gen_ai.prompt.0.content": "secret",
    },
}


@pytest.mark.parametrize("attributes", TOOL.values(), ids=TOOL)
def test_a_tool_is_a_tool_in_every_convention(attributes: dict[str, Any]) -> None:
    said = read(attributes, failure="error")
    assert said == AgentSpan(
        kind=SpanKind.TOOL,
        tool_name="find_flight",
        tool_call_id="call_1",
        arguments='{"to": "JFK"}',
        result="2 flights",
        error="error",
        others={},
    )


@pytest.mark.parametrize("attributes", MODEL.values(), ids=MODEL)
def test_a_model_call_is_one_in_every_version_and_its_prompt_is_not_kept_twice(
    attributes: dict[str, Any],
) -> None:
    said = read(attributes, failure="")
    assert (said.kind, said.model, said.response_id, said.conversation_id) == (
        SpanKind.INFERENCE,
        "gpt",
        "chatcmpl-1",
        "thread-1",
    )
    assert (said.prompt_tokens, said.completion_tokens) == (10, 5)
    assert "secret" not in str(said)


@pytest.mark.parametrize(
    ("attributes", "kind", "name"),
    [
        ({"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "desk"}, SpanKind.AGENT, "desk"),
        ({"gen_ai.operation.name": "invoke_workflow", "gen_ai.workflow.name": "w"}, SpanKind.AGENT, "w"),
        ({"openinference.span.kind": "AGENT", "agent.name": "desk"}, SpanKind.AGENT, "desk"),
        ({"openinference.span.kind": "CHAIN"}, SpanKind.OTHER, ""),
        ({"gen_ai.operation.name": 7}, SpanKind.OTHER, ""),
    ],
)
def test_agents_and_what_is_none(attributes: dict[str, Any], kind: SpanKind, name: str) -> None:
    said = read(attributes, failure="")
    assert (said.kind, said.agent_name) == (kind, name)


def test_other_attributes_are_kept_and_error_types_count_more_than_sentences() -> None:
    said = read({"order.id": 7, "error.type": "timeout", "note": "n" * 5000}, failure="it took too long")
    assert (said.error, said.others["order.id"], len(said.others["note"])) == ("timeout", 7, 1000)
