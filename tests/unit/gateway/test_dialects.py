"""What all dialects have in common: they never fail on an answer, and refuse only what names no model."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.table import BY_NAME, BY_PATH
from gateway.errors import Refused
from telemetry.stitching import extend, roll

NAMES = [
    "id", "type", "choices", "message", "delta", "content", "text", "index", "usage", "tool_calls", "function",
    "output",
    "response", "item", "output_index", "content_index", "call_id", "arguments", "input", "messages", "role", "system",
    "prompt", "instructions", "conversation", "content_block", "prompt_tokens", "input_tokens", "summary", "metadata",
    "run_id", "stop_reason", "incomplete_details", "partial_json", "custom", "function_call", "model", "tools",
]  # fmt: skip
TYPES = [
    "message", "function_call", "function_call_output", "reasoning", "web_search_call", "item_reference", "tool_use",
    "tool_result", "text", "thinking", "response.output_item.added", "response.output_text.delta",
    "response.function_call_arguments.delta", "response.completed", "message_start", "content_block_start",
    "content_block_delta", "message_delta", "input_json_delta", "assistant", "error",
]  # fmt: skip
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(TYPES)
    | st.sampled_from(["\ud800", -1, 1 << 70])
)
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=25,
)
objects = st.dictionaries(st.sampled_from(NAMES), documents, max_size=6)


@pytest.mark.parametrize("name", BY_NAME)
@given(data=st.data())
def test_no_answer_raises(name: str, data: st.DataObject) -> None:
    dialect = BY_NAME[name]
    raw = data.draw(st.binary(max_size=100) | st.text('data:[DONE]{}"\n ', max_size=100).map(str.encode))
    events = data.draw(st.lists(documents, max_size=5))
    framed = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    for body in (raw, framed, json.dumps(events).encode(), *(json.dumps(event).encode() for event in events)):
        for is_stream in (True, False):
            answer = dialect.parse_answer(body, is_stream=is_stream)
            assert answer.tool_call_count >= 0
            if answer.message is not None:
                extend(roll([]).prefix, answer.message)


@pytest.mark.parametrize("name", BY_NAME)
@given(document=objects)
def test_no_request_raises_but_for_its_model(name: str, document: dict[str, Any]) -> None:
    dialect = BY_NAME[name]
    document["model"] = "m"
    asked = dialect.parse_request(document)
    assert all(isinstance(message, dict) for message in asked.messages)
    roll(asked.messages)
    body = json.dumps(document).encode()
    addition = dialect.ask_more(body, json.loads(body), asks_usage=True, is_own_node=True)
    if addition is not None:
        json.loads(addition.body)


@pytest.mark.parametrize("name", ["chat", "completions", "embeddings", "messages"])
@pytest.mark.parametrize("document", [{}, {"model": None}, {"model": ""}, {"model": 4}])
def test_a_request_without_a_model_is_refused(name: str, document: dict[str, Any]) -> None:
    with pytest.raises(Refused) as raised:
        BY_NAME[name].parse_request(document)
    assert (raised.value.status, raised.value.param) == (400, "model")


def test_paths() -> None:
    assert {path: dialect.name for path, dialect in BY_PATH.items()} == {
        "/chat/completions": "chat",
        "/responses": "responses",
        "/completions": "completions",
        "/embeddings": "embeddings",
        "/messages": "messages",
    }


def test_completions() -> None:
    dialect = BY_NAME["completions"]
    asked = dialect.parse_request({"model": "m", "prompt": "Once", "stream": True})
    assert (asked.stream, asked.messages) == (True, ({"role": "user", "content": "Once"},))
    assert dialect.parse_request({"model": "m", "prompt": [1, 2]}).messages[0]["content"] == "[1,2]"
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    whole = {
        "id": "cmpl-1",
        "choices": [{"index": 0, "text": " upon", "finish_reason": "stop"}],
        "usage": usage,
    }
    chunks: list[dict[str, Any]] = [
        {"id": "cmpl-1", "choices": [{"index": 1, "text": "no"}, {"index": 0, "text": " up"}]},
        {"id": "cmpl-1", "choices": [{"index": 0, "text": "on", "finish_reason": "stop"}], "usage": None},
        {"id": "cmpl-1", "choices": [], "usage": usage},
    ]
    stream = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)
    answer = dialect.parse_answer(stream + b"data: [DONE]\n\n", is_stream=True)
    assert answer == dialect.parse_answer(json.dumps(whole).encode(), is_stream=False)
    assert answer.message == {"role": "assistant", "content": " upon"}
    assert (answer.finish_reason, answer.prompt_tokens, answer.completion_tokens) == ("stop", 1, 2)
    assert dialect.parse_answer(stream[:80], is_stream=True).is_whole is False


def test_embeddings() -> None:
    dialect = BY_NAME["embeddings"]
    asked = dialect.parse_request({"model": "m", "input": ["a"]})
    assert (asked.messages, asked.stream) == ((), False)
    body = b'{"object":"list","data":[{"embedding":[0.1]}],"usage":{"prompt_tokens":3,"total_tokens":3}}'
    answer = dialect.parse_answer(body, is_stream=False)
    assert (answer.prompt_tokens, answer.completion_tokens, answer.message, answer.is_whole) == (
        3,
        None,
        None,
        True,
    )
