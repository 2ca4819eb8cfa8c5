"""Stored bytes -> messages: whole answers, streams, and bytes of any other shape."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.exchange import answer_message, offered_tools, request_messages

NAMES = ["messages", "choices", "message", "delta", "tool_calls", "function", "index", "role", "tools"]
names = st.sampled_from(NAMES)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        names,
        inner,
        max_size=3,
    ),
    max_leaves=12,
)  # fmt: skip
TOOL_CALL = {"id": "call_1", "type": "function", "function": {"name": "lookup", "arguments": '{"id": 7}'}}
ANSWER = {"role": "assistant", "content": "Wait.", "tool_calls": [TOOL_CALL]}


def stream(*deltas: dict[str, Any]) -> bytes:
    events = [json.dumps({"choices": [{"index": 0, "delta": delta}]}) for delta in deltas]
    return "".join(
        f"data: {event}\r\n\r\n" for event in [*events, '{"choices": [], "usage": {}}', "[DONE]"]
    ).encode()


def test_a_stream_says_what_the_whole_answer_says():
    whole = json.dumps(
        {"choices": [{"index": 0, "message": ANSWER | {"refusal": None, "audio": None}}]}
    ).encode()
    first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "lookup", "arguments": ""}}
    streamed = stream(
        {"role": "assistant", "content": "Wa"},
        {"content": "it."},
        {"tool_calls": [first]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"id":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": " 7}"}}]},
    )
    assert answer_message(whole) == answer_message(streamed) == ANSWER


def test_an_error_is_no_answer():
    assert answer_message(b'{"error": {"message": "no"}}') is None
    assert answer_message(b"data: [DONE]\n\n") is None
    assert answer_message(b"") is None


def test_requests_keep_parts_and_tool_results():
    parts = [{"type": "image_url", "image_url": {"url": "data:"}}]
    sent = [
        {"role": "user", "content": parts},
        ANSWER,
        {"role": "tool", "tool_call_id": "call_1", "content": "{}"},
    ]
    tools = [{"type": "function", "function": {"name": "lookup"}}]
    body = json.dumps({"messages": sent, "tools": [*tools, 7]}).encode()
    assert request_messages(body) == sent
    assert offered_tools(body) == tools


@given(json_values | st.binary(max_size=20))
@settings(max_examples=60, deadline=None)
def test_no_bytes_raise(value):
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    for message in [
        *request_messages(body),
        answer_message(body),
        answer_message(b"data: " + body + b"\n\n"),
    ]:
        assert message is None or isinstance(message["role"], str)
    offered_tools(body)
