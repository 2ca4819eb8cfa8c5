"""Reading chat completions: whole, streamed, cut, and not at all what was promised."""

import json
from typing import Any

import pytest

from demo.recorded import completion, events
from gateway.dialects.table import BY_NAME
from tests.fakes.upstream import RUNS

CHAT = BY_NAME["chat"]
parse_answer = CHAT.parse_answer
ANSWERS = [
    (run["traj"][:index], message)
    for run in RUNS[:10]
    for index, message in enumerate(run["traj"])
    if message["role"] == "assistant"
]


def test_a_stream_reads_as_the_same_answer_in_json() -> None:
    for history, message in ANSWERS:
        whole = completion(history, message)
        read = parse_answer(json.dumps(whole).encode(), is_stream=False)
        assert parse_answer(b"".join(events(whole, with_usage=True)), is_stream=True) == parse_answer(
            json.dumps(_without_nulls(whole)).encode(), is_stream=False
        )
        assert read.tool_call_count == len(message.get("tool_calls") or [])
        assert (read.response_id, read.is_whole) == (whole["id"], True)
        assert read.prompt_tokens == whole["usage"]["prompt_tokens"]


def _without_nulls(whole: dict[str, Any]) -> dict[str, Any]:
    """The optional members of the message that a stream cannot tell from absent ones."""
    choice = whole["choices"][0]
    message = {
        name: value for name, value in choice["message"].items() if name == "content" or value is not None
    }
    return {**whole, "choices": [{**choice, "message": message}]}


def stream(*chunks: dict[str, Any], end: bytes = b"data: [DONE]\n\n") -> bytes:
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + end


def piece(delta: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": delta, **more}]}


def tool_piece(*calls: dict[str, Any]) -> dict[str, Any]:
    return piece({"tool_calls": list(calls)})


def test_parallel_tool_calls_are_put_together_by_index() -> None:
    body = stream(
        piece({"role": "assistant", "content": None}),
        tool_piece({"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}),
        tool_piece({"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": "{"}}),
        tool_piece(
            {"index": 0, "function": {"arguments": '{"x":'}}, {"index": 1, "function": {"arguments": "}"}}
        ),
        tool_piece({"index": 0, "function": {"arguments": "1}"}}),
        piece({}, finish_reason="tool_calls"),
    )
    answer = parse_answer(body, is_stream=True)
    assert answer.message == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    }
    assert (answer.finish_reason, answer.tool_call_count) == ("tool_calls", 2)


def test_other_choices_usage_chunks_comments_and_line_ends() -> None:
    body = (
        b"\xef\xbb\xbf: ping\r\n\r\nevent: x\r\ndata:"
        + json.dumps(piece({"content": "Gr"})).encode()
        + b"\r\n\r\n"
        + stream(
            {"id": "chatcmpl-1", "choices": [{"index": 1, "delta": {"content": "no"}}]},
            piece({"content": "üße"}, finish_reason="stop"),
            {"id": "chatcmpl-1", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 0}},
        )
    )
    answer = parse_answer(body, is_stream=True)
    assert answer.message == {"role": "assistant", "content": "Grüße"}
    assert (answer.prompt_tokens, answer.completion_tokens) == (3, 0)


def test_a_cut_stream_is_not_whole() -> None:
    body = stream(piece({"role": "assistant", "content": "Hel"}), end=b"")
    assert parse_answer(body, is_stream=True).is_whole is False
    assert parse_answer(body + b"data: [DONE]\n\n", is_stream=True).is_whole is True
    assert (
        parse_answer(body + stream(piece({}, finish_reason="stop"), end=b""), is_stream=True).is_whole is True
    )


def test_a_custom_tools_call_is_put_together() -> None:
    body = stream(
        tool_piece({"index": 0, "id": "a", "type": "custom", "custom": {"name": "sh", "input": "ls"}}),
        tool_piece({"index": 0, "custom": {"input": " -l"}}),
    )
    message = parse_answer(body, is_stream=True).message
    assert message is not None
    assert message["tool_calls"] == [
        {"id": "a", "type": "custom", "custom": {"name": "sh", "input": "ls -l"}}
    ]


def test_tokens_from_caches_and_for_reasoning_are_counted() -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 50,
        "prompt_tokens_details": {"cached_tokens": 64},
        "completion_tokens_details": {"reasoning_tokens": 32},
    }
    for body, is_stream in [(json.dumps({"usage": usage}).encode(), False), (stream({"usage": usage}), True)]:
        answer = parse_answer(body, is_stream=is_stream)
        counts = (
            answer.prompt_tokens,
            answer.completion_tokens,
            answer.cached_tokens,
            answer.reasoning_tokens,
        )
        assert counts == (100, 50, 64, 32)


@pytest.mark.parametrize(
    "document",
    [
        {"choices": 1},
        {"choices": [None, 1]},
        {"choices": [{"message": 1, "finish_reason": 2}], "usage": {"prompt_tokens": -1}},
        {"choices": [{"delta": {"tool_calls": [None, {"index": "x", "function": 3}]}}], "usage": 1},
        [],
    ],
)
def test_odd_shapes_are_left_out(document: Any) -> None:
    for body, is_stream in [(json.dumps(document).encode(), False), (stream(document), True)]:
        answer = parse_answer(body, is_stream=is_stream)
        assert answer.finish_reason == ""
        assert answer.prompt_tokens is None


def test_a_request_is_read_leniently_where_the_upstream_may_judge() -> None:
    request = CHAT.parse_request({"model": "m", "messages": [1], "stream": 1, "metadata": []})
    assert (request.messages, request.stream, request.metadata_run_id) == ((), False, "")
    assert CHAT.parse_request({"model": "m", "messages": [{"content": "\ud800"}]}).messages == (
        {"content": "\ud800"},
    )
    named = CHAT.parse_request({"model": "m", "metadata": {"run_id": "r"}, "stream": True})
    assert (named.metadata_run_id, named.stream) == ("r", True)
