"""Reading Responses: items as chat messages, answers that the next request repeats, streams whole and cut."""

import json
from typing import Any

import pytest

from gateway.dialects.table import BY_NAME
from telemetry.stitching import extend, roll

RESPONSES = BY_NAME["responses"]
OUTPUT: list[dict[str, Any]] = [
    {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}], "encrypted_content": "x"},
    {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "q"}},
    {
        "type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "phase": "commentary",
        "content": [{"type": "output_text", "text": "Let me look.", "annotations": [], "logprobs": []}],
    },
    {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "find", "arguments": '{"id": 7}'},
    {"type": "custom_tool_call", "id": "ct_1", "call_id": "call_2", "name": "shell", "input": "ls -l"},
]  # fmt: skip
USAGE = {
    "input_tokens": 100,
    "input_tokens_details": {"cached_tokens": 64},
    "output_tokens": 50,
    "output_tokens_details": {"reasoning_tokens": 32},
    "total_tokens": 150,
}
WHOLE = {"id": "resp_1", "object": "response", "status": "completed", "output": OUTPUT, "usage": USAGE}
TURN = {
    "role": "assistant",
    "content": "Let me look.",
    "reasoning": "Hm.",
    "hosted": [OUTPUT[1]],
    "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": '{"id": 7}'}},
        {"id": "call_2", "type": "function", "function": {"name": "shell", "arguments": '{"input":"ls -l"}'}},
    ],
}


def asked(**document: Any) -> tuple[dict[str, Any], ...]:
    return RESPONSES.parse_request({"model": "m", **document}).messages


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def test_an_answer_is_one_message_with_its_usage() -> None:
    answer = RESPONSES.parse_answer(json.dumps(WHOLE).encode(), is_stream=False)
    assert answer.message == TURN
    assert (answer.response_id, answer.finish_reason, answer.tool_call_count) == ("resp_1", "completed", 2)
    counts = (answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens, answer.reasoning_tokens)
    assert counts == (100, 50, 64, 32)
    assert answer.is_whole


@pytest.mark.parametrize(
    "repeated",
    [
        OUTPUT,
        OUTPUT[2:],  # without reasoning and hosted tools
        [{key: value for key, value in item.items() if key not in {"id", "status"}} for item in OUTPUT],
        [{"role": "assistant", "content": "Let me look."}, *OUTPUT[3:]],
    ],
)
def test_the_next_request_repeats_the_answer(repeated: list[dict[str, Any]]) -> None:
    question = [{"role": "user", "content": "Where is 7?"}]
    results = [
        {"type": "function_call_output", "call_id": "call_1", "output": "here"},
        {
            "type": "custom_tool_call_output",
            "call_id": "call_2",
            "output": [{"type": "input_text", "text": "x"}],
        },
    ]
    answer = RESPONSES.parse_answer(json.dumps(WHOLE).encode(), is_stream=False)
    assert answer.message is not None
    echo = extend(roll(asked(input=question)).prefix, answer.message)
    messages = asked(input=[*question, *repeated, *results])
    assert roll(messages).parents == (echo,)
    assert messages[-2:] == (
        {"role": "tool", "tool_call_id": "call_1", "content": "here"},
        {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "input_text", "text": "x"}]},
    )


def test_input_as_text_and_as_items() -> None:
    assert asked(input="Hi", instructions="Be kind.") == (
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
    )
    parts = [{"type": "input_text", "text": "Hi"}, {"type": "input_image", "image_url": "data:"}]
    assert asked(input=[{"type": "message", "role": "developer", "content": parts}]) == (
        {"role": "developer", "content": parts},
    )
    assert asked(input=[{"type": "mcp_approval_response", "id": "x", "approve": True}]) == (
        {"role": "mcp_approval_response", "content": '{"approve":true,"type":"mcp_approval_response"}'},
    )
    assert asked() == ()
    assert asked(input=7) == ()


def test_what_only_the_provider_remembers_is_part_of_what_is_asked() -> None:
    request = RESPONSES.parse_request({"previous_response_id": "resp_1", "input": "yes"})
    assert (request.model, request.previous_response_id) == ("", "resp_1")
    assert request.messages == (
        {"role": "previous_response", "content": "resp_1"},
        {"role": "user", "content": "yes"},
    )
    pasts: list[dict[str, Any]] = [
        {},
        {"previous_response_id": "resp_1"},
        {"previous_response_id": "resp_2"},
        {"conversation": "conv_1"},
        {"prompt": {"id": "pmpt_1"}},
    ]
    assert len({roll(asked(input="yes", **past)).prefix for past in pasts}) == len(pasts)
    assert asked(input="yes", conversation={"id": "conv_1"}) == asked(input="yes", conversation="conv_1")


def test_a_conversation_names_the_run_unless_the_caller_does() -> None:
    named = RESPONSES.parse_request({"conversation": {"id": "conv_1"}, "metadata": {"run_id": "mine"}})
    assert named.metadata_run_id == "mine"
    assert RESPONSES.parse_request({"conversation": "conv_1"}).metadata_run_id == "conv_1"


def stream_of(end: bytes) -> bytes:
    return (
        event("response.created", response={"id": "resp_1", "status": "in_progress", "output": []})
        + event("response.output_item.added", output_index=0, item={"type": "reasoning", "summary": []})
        + event("response.output_item.done", output_index=0, item=OUTPUT[0])
        + event("response.output_item.done", output_index=1, item=OUTPUT[1])
        + event("response.output_item.added", output_index=2, item={**OUTPUT[2], "content": []})
        + event("response.output_text.delta", output_index=2, content_index=0, delta="Let me ")
        + event("response.output_text.delta", output_index=2, content_index=0, delta="look.")
        + event("response.output_item.added", output_index=3, item={**OUTPUT[3], "arguments": ""})
        + event("response.function_call_arguments.delta", output_index=3, delta='{"id"')
        + event("response.function_call_arguments.delta", output_index=3, delta=": 7}")
        + event("response.output_item.added", output_index=4, item={**OUTPUT[4], "input": ""})
        + event("response.custom_tool_call_input.delta", output_index=4, delta="ls -l")
        + end
    )


def test_a_stream_reads_as_the_same_answer_in_json() -> None:
    whole = RESPONSES.parse_answer(json.dumps(WHOLE).encode(), is_stream=False)
    completed = stream_of(event("response.completed", response=WHOLE))
    assert RESPONSES.parse_answer(completed, is_stream=True) == whole
    bare = stream_of(event("response.completed", response={**WHOLE, "output": []}))
    assert RESPONSES.parse_answer(bare, is_stream=True) == whole


def test_a_cut_stream_is_put_together_from_its_pieces() -> None:
    answer = RESPONSES.parse_answer(stream_of(b""), is_stream=True)
    assert answer.message == TURN
    assert (answer.response_id, answer.finish_reason, answer.is_whole) == ("resp_1", "", False)
    assert answer.prompt_tokens is None
    shorter = stream_of(b"").split(b"event: response.output_item.added")[2]
    assert RESPONSES.parse_answer(b"event: x" + shorter, is_stream=True).message == {
        "role": "assistant",
        "content": "Let me look.",
    }


def test_refusals_are_put_together() -> None:
    body = event("response.refusal.delta", output_index=0, content_index=0, delta="No")
    body += event("response.refusal.delta", output_index=0, content_index=0, delta=".")
    message = RESPONSES.parse_answer(body, is_stream=True).message
    assert message == {"role": "assistant", "content": None, "refusal": "No."}


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (event("response.incomplete", response={"incomplete_details": {"reason": "max_output_tokens"}}),
         "max_output_tokens"),
        (event("response.failed", response={"status": "failed", "error": {"code": "server_error"}}), "failed"),
        (event("error", code="server_error", message="no"), ""),
    ],
)  # fmt: skip
def test_a_stream_ends_in_other_ways(end: bytes, reason: str) -> None:
    answer = RESPONSES.parse_answer(stream_of(end), is_stream=True)
    assert (answer.finish_reason, answer.is_whole) == (reason, True)
    assert answer.message == TURN


def test_a_background_answer_has_nothing_to_say_yet() -> None:
    body = b'{"id":"resp_1","status":"queued","background":true,"output":[],"usage":null}'
    answer = RESPONSES.parse_answer(body, is_stream=False)
    assert (answer.response_id, answer.message, answer.finish_reason, answer.is_whole) == (
        "resp_1",
        None,
        "",
        True,
    )
