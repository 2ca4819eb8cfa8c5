"""A turn as the event stream of Anthropic's messages API."""

import json
from collections.abc import Iterator
from typing import Any

from tests.conformance.provider import script
from tests.conformance.provider.script import Turn

PATH = "/v1/messages"


def tool_results(request: dict[str, Any]) -> int:
    """How many tool calls the request has the results of."""
    blocks = [b for m in request["messages"] if isinstance(m["content"], list) for b in m["content"]]
    return sum(block["type"] == "tool_result" for block in blocks)


def stream(turn: Turn, request: dict[str, Any]) -> Iterator[bytes]:
    """The events, as bytes."""
    message = {
        "model": request["model"],
        "id": turn.id("msg_"),
        "type": "message",
        "role": "assistant",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": script.PROMPT_TOKENS,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 1,
            "service_tier": "standard",
        },
    }
    yield _event("message_start", message=message)
    if turn.call:
        block = {"type": "tool_use", "id": turn.id("toolu_"), "name": turn.call.name, "input": {}}
        kind, member, reason = "input_json_delta", "partial_json", "tool_use"
    else:
        block = {"type": "text", "text": ""}
        kind, member, reason = "text_delta", "text", "end_turn"
    yield _event("content_block_start", index=0, content_block=block)
    yield _event("ping")
    for piece in turn.pieces():
        yield _event("content_block_delta", index=0, delta={"type": kind, member: piece})
    yield _event("content_block_stop", index=0)
    usage = {"output_tokens": script.COMPLETION_TOKENS}
    yield _event("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage=usage)
    yield _event("message_stop")


def _event(kind: str, **content: Any) -> bytes:
    document = json.dumps({"type": kind, **content}, ensure_ascii=False, separators=(",", ":"))
    return f"event: {kind}\ndata: {document}\n\n".encode()
