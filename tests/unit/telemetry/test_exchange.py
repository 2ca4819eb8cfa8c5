"""Stored bytes -> messages: whole answers, streams, and bytes of any other shape."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from telemetry.exchange import answer_message, offered_tools, request_messages, sampled_tokens
from telemetry.wire.tokens import Sampled

DIALECTS = ["chat", "responses", "completions", "embeddings", "messages", "", "unknown"]
NAMES = [
    "messages",
    "choices",
    "message",
    "delta",
    "tool_calls",
    "function",
    "index",
    "role",
    "tools",
    "input",
    "output",
    "type",
    "content",
    "prompt_token_ids",
    "token_ids",
    "logprobs",
    "system",
    "hosted",
    "call_id",
    "summary",
    "text",
]
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
    assert answer_message(whole, "chat") == answer_message(streamed, "chat") == ANSWER


def test_an_error_is_no_answer():
    assert answer_message(b'{"error": {"message": "no"}}', "chat") is None
    assert answer_message(b"data: [DONE]\n\n", "chat") is None
    assert answer_message(b"", "chat") is None


def test_requests_keep_parts_and_tool_results():
    parts = [{"type": "image_url", "image_url": {"url": "data:"}}]
    sent = [
        {"role": "user", "content": parts},
        ANSWER,
        {"role": "tool", "tool_call_id": "call_1", "content": "{}"},
    ]
    tools = [{"type": "function", "function": {"name": "lookup"}}]
    body = json.dumps({"messages": sent, "tools": [*tools, 7]}).encode()
    assert request_messages(body, "chat") == sent
    assert offered_tools(body, "chat") == tools


def test_every_dialect_reads_as_the_same_messages():
    asked = {"role": "user", "content": "Where is 7?"}
    call = {"type": "function_call", "call_id": "call_1", "name": "lookup", "arguments": '{"id": 7}'}
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Wait."}]}
    blocks = [
        {"type": "text", "text": "Wait."},
        {"type": "tool_use", "id": "call_1", "name": "lookup", "input": {"id": 7}},
    ]
    requests = {
        "chat": {"messages": [asked]},
        "responses": {"input": [asked]},
        "messages": {"messages": [asked]},
        "completions": {"prompt": "Where is 7?"},
    }
    answers = {
        "chat": {"choices": [{"index": 0, "message": ANSWER}]},
        "responses": {"output": [said, call]},
        "messages": {"content": blocks},
        "completions": {"choices": [{"index": 0, "text": "Wait."}]},
    }
    for dialect, request in requests.items():
        assert request_messages(json.dumps(request).encode(), dialect) == [asked]
        message = answer_message(json.dumps(answers[dialect]).encode(), dialect)
        assert message is not None
        for called in message.get("tool_calls", ()):
            called["function"]["arguments"] = json.dumps(json.loads(called["function"]["arguments"]))
        assert message == (ANSWER if dialect != "completions" else {"role": "assistant", "content": "Wait."})
    assert request_messages(b'{"input": "embed me"}', "embeddings") == []
    assert answer_message(b'{"data": []}', "embeddings") is None
    assert request_messages(b'{"messages": []}', "") == []


def test_what_the_provider_did_itself_is_named():
    output = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"type": "web_search_call", "id": "ws_1"},
    ]
    assert answer_message(json.dumps({"output": output}).encode(), "responses") == {
        "role": "assistant",
        "content": None,
        "reasoning": "Hm.",
        "hosted": ["web_search_call"],
    }


def test_offered_tools_read_as_those_of_chat():
    schema = {"type": "object", "properties": {}}
    function = {"name": "lookup", "description": "Finds.", "parameters": schema}
    offered = {
        "chat": {"type": "function", "function": function},
        "responses": {"type": "function", **function},
        "messages": {"name": "lookup", "description": "Finds.", "input_schema": schema},
    }
    for dialect, tool in offered.items():
        body = json.dumps({"tools": [tool, {"type": "web_search"}]}).encode()
        assert offered_tools(body, dialect) == [offered["chat"]]


def entry(logprob):
    return {"token": "x", "logprob": logprob, "bytes": [120], "top_logprobs": []}


def test_tokens_of_our_own_nodes_whole_and_streamed():
    def choice(ids, *logprobs):
        return {
            "index": 0,
            "token_ids": ids,
            "logprobs": {"content": [entry(logprob) for logprob in logprobs]},
        }

    whole = {"prompt_token_ids": [1, 2], "choices": [choice([7, 8, 9], -0.5, 0, -2.25)]}
    chunks = [
        {
            "prompt_token_ids": [1, 2],
            "choices": [{"index": 0, "delta": {"role": "assistant"}, "logprobs": None}],
        },
        {"choices": [choice([7], -0.5)]},
        {"choices": [choice([8, 9], 0, -2.25)]},
        {"choices": [], "usage": {}},
    ]
    streamed = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)
    expected = Sampled(prompt_token_ids=(1, 2), token_ids=(7, 8, 9), logprobs=(-0.5, 0.0, -2.25))
    assert sampled_tokens(json.dumps(whole).encode(), "chat") == expected
    assert sampled_tokens(streamed + b"data: [DONE]\n\n", "chat") == expected
    assert sampled_tokens(b'{"choices": []}', "chat") is None
    one_short = {**whole, "choices": [choice([7, 8, 9], -0.5, 0)]}
    assert sampled_tokens(json.dumps(one_short).encode(), "chat") is None


@given(value=json_values | st.binary(max_size=20), dialect=st.sampled_from(DIALECTS))
def test_no_bytes_raise(value, dialect):
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    event = b"data: " + body + b"\n\n"
    for message in [
        *request_messages(body, dialect),
        answer_message(body, dialect),
        answer_message(event, dialect),
    ]:
        assert message is None or isinstance(message["role"], str)
    offered_tools(body, dialect)
    sampled_tokens(body, dialect)
    sampled_tokens(event, dialect)
