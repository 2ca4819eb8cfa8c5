"""Reading Anthropic's Messages: blocks as chat messages, answers that the next request repeats, streams."""

import json
from typing import Any

from gateway.dialects.table import BY_NAME
from telemetry.stitching import extend, roll

MESSAGES = BY_NAME["messages"]
CONTENT: list[dict[str, Any]] = [
    {"type": "thinking", "thinking": "Hm.", "signature": "sig"},
    {"type": "text", "text": "Let me look."},
    {"type": "tool_use", "id": "toolu_1", "name": "find", "input": {"id": 7}},
]
USAGE = {
    "input_tokens": 10,
    "cache_read_input_tokens": 64,
    "cache_creation_input_tokens": 26,
    "output_tokens": 50,
}
WHOLE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "content": CONTENT,
    "stop_reason": "tool_use",
    "usage": USAGE,
}
TURN = {
    "role": "assistant",
    "content": "Let me look.",
    "reasoning": "Hm.",
    "tool_calls": [
        {"id": "toolu_1", "type": "function", "function": {"name": "find", "arguments": '{"id":7}'}}
    ],
}


def asked(*messages: dict[str, Any], **more: Any) -> tuple[dict[str, Any], ...]:
    return MESSAGES.parse_request({"model": "m", "messages": list(messages), **more}).messages


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


STARTED = {**WHOLE, "content": [], "stop_reason": None, "usage": {**USAGE, "output_tokens": 1}}
PIECES = (
    event("message_start", message=STARTED)
    + event("content_block_start", index=0, content_block={"type": "thinking", "thinking": "", "signature": ""})
    + event("ping")
    + event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "Hm."})
    + event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "sig"})
    + event("content_block_stop", index=0)
    + event("content_block_start", index=1, content_block={"type": "text", "text": ""})
    + event("content_block_delta", index=1, delta={"type": "text_delta", "text": "Let me "})
    + event("content_block_delta", index=1, delta={"type": "text_delta", "text": "look."})
    + event("content_block_stop", index=1)
    + event("content_block_start", index=2, content_block={**CONTENT[2], "input": {}})
    + event("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": ""})
    + event("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": '{"id":'})
    + event("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": "7}"})
    + event("content_block_stop", index=2)
)  # fmt: skip
END = event(
    "message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 50, "input_tokens": None}
)
STREAM = PIECES + END + event("message_stop")


def test_an_answer_is_one_message_with_its_usage() -> None:
    for body, is_stream in [(json.dumps(WHOLE).encode(), False), (STREAM, True)]:
        answer = MESSAGES.parse_answer(body, is_stream=is_stream)
        assert answer.message == TURN
        assert (answer.response_id, answer.finish_reason, answer.is_whole) == ("msg_1", "tool_use", True)
        # What was read from the cache and what was written to it are tokens that went in.
        assert (answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens) == (100, 50, 64)


def test_a_cut_stream_is_put_together_from_its_pieces() -> None:
    answer = MESSAGES.parse_answer(PIECES, is_stream=True)
    assert (answer.message, answer.is_whole, answer.finish_reason) == (TURN, False, "")
    assert answer.prompt_tokens == 100


def test_the_next_request_repeats_the_answer() -> None:
    question = {"role": "user", "content": "Where is 7?"}
    answer = MESSAGES.parse_answer(STREAM, is_stream=True)
    assert answer.message is not None
    echo = extend(roll(asked(question, system="Be kind.")).prefix, answer.message)
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "here"}]}
    hint = {"type": "text", "text": "Go on.", "cache_control": {"type": "ephemeral"}}
    for repeated in (CONTENT, CONTENT[1:]):
        messages = asked(
            {"role": "user", "content": [{"type": "text", "text": "Where is 7?"}]},
            {"role": "assistant", "content": repeated},
            {"role": "user", "content": [result, hint]},
            system=[{"type": "text", "text": "Be kind."}],
        )  # fmt: skip
        assert roll(messages).parents == (echo,)
        assert messages[-2:] == (
            {"role": "tool", "tool_call_id": "toolu_1", "content": [{"type": "text", "text": "here"}]},
            {"role": "user", "content": [{"type": "text", "text": "Go on."}]},
        )


def test_marks_of_what_to_cache_change_no_run() -> None:
    image = {"type": "image", "source": {"type": "base64", "data": "x"}}
    marked = image | {"cache_control": {"type": "ephemeral"}}
    assert roll(asked({"role": "user", "content": [image]})) == roll(
        asked({"role": "user", "content": [marked]})
    )


def test_hosted_tools_stand_beside_the_text() -> None:
    content = [
        {"type": "server_tool_use", "id": "srv_1", "name": "web_search", "input": {}},
        {"type": "text", "text": "Hi"},
    ]
    answer = MESSAGES.parse_answer(json.dumps({**WHOLE, "content": content}).encode(), is_stream=False)
    assert answer.message == {"role": "assistant", "content": "Hi", "hosted": [content[0]]}
    assert answer.tool_call_count == 0


def test_an_error_ends_a_stream() -> None:
    answer = MESSAGES.parse_answer(
        PIECES + event("error", error={"type": "overloaded_error"}), is_stream=True
    )
    assert (answer.is_whole, answer.finish_reason) == (True, "")
