"""A turn as the events of a response: an event stream over HTTP, or one text frame each over WebSocket."""

import json
from collections.abc import Iterator
from typing import Any

from tests.conformance.provider import script
from tests.conformance.provider.script import Turn

PATH = "/v1/responses"


def tool_results(request: dict[str, Any]) -> int:
    """How many tool calls the request has the results of, those before its `previous_response_id` included."""
    items: str | list[dict[str, Any]] = request["input"]
    previous: str | None = request.get("previous_response_id")
    before = int(previous[-1]) if previous else 0  # ids end with the turn's index
    if isinstance(items, str):
        return before
    return before + sum(item.get("type") == "function_call_output" for item in items)


def stream(turn: Turn, request: dict[str, Any]) -> Iterator[bytes]:
    """The events of an HTTP stream, as bytes."""
    for content in events(turn, request):
        yield f"event: {content['type']}\ndata: {text(content)}\n\n".encode()


def text(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def events(turn: Turn, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The events as documents, numbered."""
    for number, content in enumerate(_events(turn, request)):
        yield {**content, "sequence_number": number}


def _events(turn: Turn, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    item, place = _item(turn), {"item_id": turn.id("fc_" if turn.call else "msg_"), "output_index": 0}
    yield {"type": "response.created", "response": _response(turn, request, "in_progress", [])}
    yield {"type": "response.in_progress", "response": _response(turn, request, "in_progress", [])}
    if turn.call:
        begun = {**item, "status": "in_progress", "arguments": ""}
        yield {"type": "response.output_item.added", "output_index": 0, "item": begun}
        for piece in turn.pieces():
            yield {"type": "response.function_call_arguments.delta", **place, "delta": piece}
        done = {"name": turn.call.name, "arguments": turn.call.arguments}
        yield {"type": "response.function_call_arguments.done", **place, **done}
    else:
        begun = {**item, "status": "in_progress", "content": []}
        yield {"type": "response.output_item.added", "output_index": 0, "item": begun}
        place = {**place, "content_index": 0}
        empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        yield {"type": "response.content_part.added", **place, "part": empty}
        for piece in turn.pieces():
            yield {"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []}
        yield {"type": "response.output_text.done", **place, "text": script.ANSWER, "logprobs": []}
        yield {"type": "response.content_part.done", **place, "part": {**empty, "text": script.ANSWER}}
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    yield {"type": "response.completed", "response": _response(turn, request, "completed", [item])}


def _item(turn: Turn) -> dict[str, Any]:
    if turn.call:
        return {
            "id": turn.id("fc_"),
            "type": "function_call",
            "status": "completed",
            "arguments": turn.call.arguments,
            "call_id": turn.id("call_"),
            "name": turn.call.name,
        }
    part = {"type": "output_text", "text": script.ANSWER, "annotations": [], "logprobs": []}
    return {
        "id": turn.id("msg_"),
        "type": "message",
        "status": "completed",
        "content": [part],
        "role": "assistant",
    }


def _response(
    turn: Turn, request: dict[str, Any], status: str, output: list[dict[str, Any]]
) -> dict[str, Any]:
    total = script.PROMPT_TOKENS + script.COMPLETION_TOKENS
    usage = {
        "input_tokens": script.PROMPT_TOKENS,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": script.COMPLETION_TOKENS,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": total,
    }
    return {
        "id": turn.id("resp_"),
        "object": "response",
        "created_at": script.CREATED,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": request.get("instructions"),
        "max_output_tokens": None,
        "model": "gpt-4o-2024-08-06",
        "output": output,
        "parallel_tool_calls": request.get("parallel_tool_calls", True),
        "previous_response_id": request.get("previous_response_id"),
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": request.get("store", True),
        "temperature": 1.0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": request.get("tools", []),
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": usage if status == "completed" else None,
        "user": None,
        "metadata": request.get("metadata") or {},
    }
