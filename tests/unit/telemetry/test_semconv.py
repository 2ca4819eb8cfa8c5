"""The table of names against the conventions, and records in their words: operations, errors, content."""

import json
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.semconv.attributes import error_attributes, http_attributes, url_attributes

from demo.recorded import completion, events, load_runs
from telemetry import otel_content, semconv
from telemetry.records import BeginRecord, EndRecord, Served
from tests.fakes.collector import GOLDEN, REGISTRY, SCHEMAS, breaches

CASES = json.loads((GOLDEN / "cases.json").read_text())
RUNS = load_runs()
STABLE = {
    value
    for module in (error_attributes, http_attributes, url_attributes)
    for value in vars(module).values()
    if isinstance(value, str)
}
KIND_OF_SPAN = {"chat": "inference", "text_completion": "inference", "embeddings": "embeddings"}
BEGIN = BeginRecord(
    call_id=UUID(int=1),
    project_id=UUID(int=2),
    api_key_id=UUID(int=3),
    started_at=1_000_000,
    dialect="chat",
    method="POST",
    path="/v1/chat/completions",
    model_requested="gpt-4o",
    model_served="gpt-4o-2024-11-20",
    stream=True,
    run_hint=UUID(int=4),
)
END = EndRecord(
    call_id=BEGIN.call_id,
    outcome="complete",
    status_code=200,
    response_id="chatcmpl-1",
    finish_reason="stop",
    prompt_tokens=120,
    completion_tokens=30,
    cached_tokens=100,
    reasoning_tokens=10,
    first_byte_at=1_250_000,
    ended_at=3_000_000,
)


def attributes(begin: BeginRecord = BEGIN, end: EndRecord = END, *, content: bool = False) -> dict[str, Any]:
    return semconv.attributes_of(begin, end, content=content)


def measured(begin: BeginRecord = BEGIN, end: EndRecord = END) -> dict[str, tuple[float, dict[str, Any]]]:
    return {
        metric.name: (value, labels)
        for metric, value, labels in semconv.measurements(begin, end, attributes(begin, end))
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['schema']}: {case['says']}")
def test_the_schemas_accept_and_reject(case: dict[str, Any]) -> None:
    assert len(list(SCHEMAS[case["schema"]].iter_errors(case["document"]))) == case.get("errors", 0)


def test_the_table_is_of_the_revision_that_the_registry_was_read_at() -> None:
    assert REGISTRY["revision"] == semconv.REVISION
    assert REGISTRY["schema_url"] == semconv.SCHEMA_URL


def test_every_attribute_is_one_of_the_conventions_or_our_own() -> None:
    for operation, readers in semconv.SPANS.items():
        of_models = {name for name in readers if name.startswith(("gen_ai.", "openai."))}
        allowed = REGISTRY["spans"][KIND_OF_SPAN[operation]] if operation else ()
        assert of_models <= set(allowed)
        assert {name for name in readers if not name.startswith("ratchet.")} - of_models <= STABLE
    assert set(semconv.CONTENT) <= set(REGISTRY["spans"]["inference"])


def test_every_metric_is_one_of_the_conventions() -> None:
    for metric in [metric for group in semconv.METRICS.values() for metric in group]:
        known = REGISTRY["metrics"][metric.name]
        assert (metric.unit, list(metric.boundaries)) == (known["unit"], known.get("boundaries", []))
        assert bool(metric.boundaries) == (known["instrument"] == "histogram")
        assert set(metric.attributes) <= set(known["attributes"])


@pytest.mark.parametrize(
    ("dialect", "operation", "provider", "api_type"),
    [
        ("chat", "chat", "openai", "chat_completions"),
        ("responses", "chat", "openai", "responses"),
        ("completions", "text_completion", "openai", None),
        ("messages", "chat", "anthropic", None),
        ("embeddings", "embeddings", "openai", None),
    ],
)
def test_each_dialect_is_an_operation(
    dialect: str, operation: str, provider: str, api_type: str | None
) -> None:
    said = attributes(replace(BEGIN, dialect=dialect))
    assert semconv.span_name(said) == f"{operation} gpt-4o"
    assert said["gen_ai.provider.name"] == provider
    assert said.get("openai.api.type") == api_type
    assert breaches(said, KIND_OF_SPAN[operation]) == []
    for name, values in REGISTRY["values"].items():
        assert said.get(name, values[0]) in values


def test_a_call_without_a_dialect_is_an_http_request() -> None:
    said = attributes(
        replace(BEGIN, dialect="", method="DELETE", path="/v1/files/file-1", model_requested="")
    )
    assert semconv.span_name(said) == "DELETE"
    assert not [name for name in said if name.startswith("gen_ai.")]
    assert measured(replace(BEGIN, dialect="")) == {}


def test_a_fallback_to_our_own_version_is_what_answered() -> None:
    served = Served(model_served="support-3", model_version_id=UUID(int=9), is_canary=True)
    said = attributes(BEGIN, replace(END, served=served))
    assert (said["gen_ai.provider.name"], said["gen_ai.response.model"]) == ("ratchet", "support-3")
    assert (said["ratchet.model_version.id"], said["ratchet.is_canary"]) == (str(UUID(int=9)), True)
    assert "openai.api.type" not in said
    assert "ratchet.is_canary" not in attributes()


def test_a_complete_call_is_measured_whole() -> None:
    who = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.response.model": "gpt-4o-2024-11-20",
    }
    tokens = {**who, "gen_ai.token.modality": "unknown"}
    assert measured() == {
        "gen_ai.client.inference.duration": (2.0, who),
        "gen_ai.client.inference.time_to_first_chunk": (0.25, who),
        "gen_ai.client.inference.usage.input_tokens": (120, tokens),
        "gen_ai.client.inference.usage.output_tokens": (30, tokens),
        "gen_ai.client.inference.usage.cache_read.input_tokens": (100, tokens),
        "gen_ai.client.inference.usage.reasoning.output_tokens": (10, tokens),
        "gen_ai.client.inference.operation.input_tokens": (120, who),
        "gen_ai.client.inference.operation.output_tokens": (30, who),
    }


@pytest.mark.parametrize(
    ("outcome", "status", "error"),
    [
        ("upstream_error", 429, "429"),
        ("unreachable", None, "unreachable"),
        ("upstream_cut", 200, "upstream_cut"),
    ],
)
def test_a_failed_call_says_how_and_measures_no_distribution(
    outcome: str, status: int | None, error: str
) -> None:
    end = EndRecord(call_id=BEGIN.call_id, outcome=outcome, status_code=status, ended_at=3_000_000)
    said = attributes(BEGIN, end)
    assert (said["error.type"], said["gen_ai.response.finish_reasons"]) == (error, ["error"])
    values = measured(BEGIN, end)
    assert values["gen_ai.client.inference.duration"][1]["error.type"] == error
    assert values["gen_ai.client.inference.usage.input_tokens"][0] == 0
    assert not [name for name in values if ".operation." in name or "first_chunk" in name]


def test_embeddings_are_measured_apart() -> None:
    begin = replace(BEGIN, dialect="embeddings", stream=False)
    assert set(measured(begin)) == {
        "gen_ai.client.embeddings.duration",
        "gen_ai.client.embeddings.operation.input_tokens",
    }


@pytest.mark.parametrize("is_stream", [False, True])
def test_recorded_runs_have_content_of_the_conventions_shape(is_stream: bool) -> None:
    tool = {"type": "function", "function": {"name": "think", "parameters": {"type": "object"}}}
    calls = 0
    for run in RUNS[:10]:
        for number, answer in enumerate(run["traj"]):
            if answer["role"] != "assistant":
                continue
            messages = run["traj"][:number]
            begin = replace(BEGIN, request=json.dumps({"messages": messages, "tools": [tool]}).encode())
            whole = completion(messages, answer)
            response = b"".join(events(whole, with_usage=True)) if is_stream else json.dumps(whole).encode()
            said = attributes(begin, replace(END, response=response), content=True)
            assert breaches(said, "inference") == []
            assert said["gen_ai.tool.definitions"] == [
                {"type": "function", "name": "think", "parameters": {"type": "object"}}
            ]
            [message] = said["gen_ai.output.messages"]
            assert (message["role"], len(message["parts"])) == (
                "assistant",
                bool(answer.get("content")) + len(answer.get("tool_calls") or ()),
            )
            calls += 1
    assert calls > 50


def test_content_stays_out_unless_it_is_asked_for() -> None:
    begin = replace(BEGIN, request=b'{"messages": [{"role": "user", "content": "secret"}]}')
    assert "secret" not in str(attributes(begin))
    assert "secret" in str(attributes(begin, content=True))


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        ("responses", {"instructions": "Be brief.", "previous_response_id": "resp_1", "input": "Hello"}),
        ("messages", {"system": "Be brief.", "messages": [{"role": "user", "content": "Hello"}]}),
    ],
)
def test_instructions_that_stand_apart_are_told_apart(dialect: str, body: dict[str, Any]) -> None:
    said = attributes(replace(BEGIN, dialect=dialect, request=json.dumps(body).encode()), content=True)
    assert said["gen_ai.system_instructions"] == [{"type": "text", "content": "Be brief."}]
    assert said["gen_ai.input.messages"] == [
        {"role": "user", "parts": [{"type": "text", "content": "Hello"}]}
    ]


def test_a_system_message_stays_among_the_messages() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    for dialect, field in [("chat", "messages"), ("responses", "input")]:
        begin = replace(BEGIN, dialect=dialect, request=json.dumps({field: messages}).encode())
        said = attributes(begin, content=True)
        assert "gen_ai.system_instructions" not in said
        assert [message["role"] for message in said["gen_ai.input.messages"]] == ["system", "user"]


def test_what_a_model_thought_and_called_comes_in_that_order() -> None:
    answer = {
        "type": "message",
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "Look it up.", "signature": "x"},
            {"type": "text", "text": "One moment."},
            {"type": "tool_use", "id": "toolu_1", "name": "lookup", "input": {"id": 7}},
        ],
    }
    end = replace(END, response=json.dumps(answer).encode())
    said = attributes(replace(BEGIN, dialect="messages"), end, content=True)
    assert breaches(said, "inference") == []
    assert said["gen_ai.output.messages"][0]["parts"] == [
        {"type": "reasoning", "content": "Look it up."},
        {"type": "text", "content": "One moment."},
        {"type": "tool_call", "id": "toolu_1", "name": "lookup", "arguments": {"id": 7}},
    ]


def test_each_kind_of_part_has_its_shape() -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 99}},
        {"type": "input_audio", "input_audio": {"data": "A" * 99, "format": "wav"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/gif", "data": "A" * 99}},
        {"type": "novelty", "data": "A" * 99},
    ]
    begin = replace(BEGIN, request=json.dumps({"messages": [{"role": "user", "content": parts}]}).encode())
    said = attributes(begin, content=True)
    assert breaches(said, "inference") == []
    assert said["gen_ai.input.messages"][0]["parts"] == [
        {"type": "text", "content": "What is this?"},
        {"type": "uri", "modality": "image", "uri": "https://example.com/cat.png"},
        {
            "type": "generic",
            "generic_type": "ratchet.left_out",
            "modality": "image",
            "mime_type": "image/png",
        },
        {"type": "generic", "generic_type": "ratchet.left_out", "modality": "audio"},
        {"type": "file", "modality": "document", "file_id": "file-1"},
        {
            "type": "generic",
            "generic_type": "ratchet.left_out",
            "modality": "image",
            "mime_type": "image/gif",
        },
        {"type": "generic", "generic_type": "novelty"},
    ]


def test_large_content_is_capped_and_says_so() -> None:
    long = "x" * (otel_content.MAX_TEXT_CHARS + 7)
    messages = [{"role": "user", "content": f"{number} {long}"} for number in range(20)]
    said = attributes(replace(BEGIN, request=json.dumps({"messages": messages}).encode()), content=True)
    note, *kept = said["gen_ai.input.messages"]
    assert note["parts"] == [
        {"type": "generic", "generic_type": "ratchet.left_out", "messages": 20 - len(kept)}
    ]
    assert kept[-1]["parts"][0]["content"].startswith("19 x")
    assert kept[-1]["parts"][0]["content"].endswith("x (10 more characters)")
    assert len(json.dumps(kept)) <= otel_content.MAX_ATTRIBUTE_BYTES * 1.1
    huge = replace(BEGIN, request=b" " * (otel_content.MAX_BODY_BYTES + 1))
    assert breaches(attributes(huge, content=True), "inference") == []
    assert str(len(huge.request)) in str(attributes(huge, content=True))


NAMES = [
    "messages", "role", "content", "text", "type", "image_url", "url", "file", "file_id", "tool_calls", "function",
    "name", "arguments", "tool_call_id", "refusal", "tools", "parameters", "choices", "message", "instructions",
]  # fmt: skip
WORDS = [*NAMES, "tool", "assistant", "input_audio", "data:,", '{"a": 1}', "\ud800", ""]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*NAMES, ""]), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=100)
@given(JSON_VALUES, JSON_VALUES, st.sampled_from([*semconv.OPERATIONS]))
def test_strange_bytes_keep_to_the_conventions(messages: Any, tools: Any, dialect: str) -> None:
    stranger = {"messages": [messages], "input": [messages], "prompt": messages, "tools": [tools]}
    asked = stranger | {"instructions": messages, "system": messages}
    begin = replace(BEGIN, dialect=dialect, request=json.dumps(asked).encode(), model_requested="\ud800")
    end = replace(
        END, response=json.dumps({"choices": [{"message": messages}], "output": [messages]}).encode()
    )
    said = attributes(begin, end, content=True)
    assert breaches(said, KIND_OF_SPAN[semconv.OPERATIONS[dialect]]) == []
    json.dumps(said, ensure_ascii=False).encode()
