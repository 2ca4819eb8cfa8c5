"""A turn as the event stream of a chat completion."""

import json
from collections.abc import Iterator
from typing import Any

from tests.conformance.provider import script
from tests.conformance.provider.script import Turn

PATH = "/v1/chat/completions"


def tool_results(request: dict[str, Any]) -> int:
    """How many tool calls the request has the results of."""
    return sum(message["role"] == "tool" for message in request["messages"])


def stream(turn: Turn, request: dict[str, Any]) -> Iterator[bytes]:
    """The events, as bytes."""
    asks_usage = (request.get("stream_options") or {}).get("include_usage", False)
    head = {
        "id": turn.id("chatcmpl-"),
        "object": "chat.completion.chunk",
        "created": script.CREATED,
        "model": "gpt-4o-2024-08-06",
        "service_tier": "default",
        "system_fingerprint": "fp_b8bc95a0ac",
    }

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        usage = {"usage": None} if asks_usage else {}
        return event({**head, "choices": [choice], **usage, "obfuscation": "x7Kq2"})

    if turn.call:
        called = {"name": turn.call.name, "arguments": ""}
        first = {"index": 0, "id": turn.id("call_"), "type": "function", "function": called}
        yield chunk({"role": "assistant", "content": None, "tool_calls": [first], "refusal": None})
        for piece in turn.pieces():
            yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
        yield chunk({}, "tool_calls")
    else:
        yield chunk({"role": "assistant", "content": "", "refusal": None})
        for piece in turn.pieces():
            yield chunk({"content": piece})
        yield chunk({}, "stop")
    if asks_usage:
        counted = {
            "prompt_tokens": script.PROMPT_TOKENS,
            "completion_tokens": script.COMPLETION_TOKENS,
            "total_tokens": script.PROMPT_TOKENS + script.COMPLETION_TOKENS,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        }
        yield event({**head, "choices": [], "usage": counted, "obfuscation": "Gd"})
    yield b"data: [DONE]\n\n"


def event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
