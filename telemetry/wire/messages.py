"""Anthropic's Messages, read from bytes: content blocks as chat messages, what an answer says. JSON and event
streams. Pure, and lenient.

Thinking and hosted tools stand beside a message's text and calls, where no run is stitched by them: callers may leave
them out when they send a turn back. https://docs.anthropic.com/en/api/messages, and its page on streaming"""

from collections.abc import Iterator
from typing import Any

from telemetry.wire import event_stream
from telemetry.wire.answer import Answer
from telemetry.wire.lenient import compact, count, load_object, mapping, mappings, text, total

_DELTAS = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "input_json_delta": "partial_json",
}
"""Delta -> the member that carries it."""


def request_messages(document: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """The system prompt and the messages, as chat messages: a tool's result is a message of its own."""
    system = document.get("system")
    messages = [{"role": "system", "content": _parts(system)}] if system else []
    for message in mappings(document.get("messages")):
        messages += _messages(message)
    return tuple(messages)


def read_answer(body: bytes, *, is_stream: bool) -> Answer:
    """An answer, whole or cut."""
    if is_stream:
        return _read_stream(body)
    document = load_object(body)
    return _answer(document, mapping(document.get("usage")), is_whole=bool(document))


def _answer(document: dict[str, Any], usage: dict[str, Any], *, is_whole: bool) -> Answer:
    content = document.get("content")
    cached = count(usage.get("cache_read_input_tokens"))
    written = count(usage.get("cache_creation_input_tokens"))
    return Answer(
        response_id=text(document.get("id")),
        message=_turn(content) if content and isinstance(content, list) else None,
        finish_reason=text(document.get("stop_reason")),
        # `input_tokens` leaves out what a cache took part in.
        prompt_tokens=total([count(usage.get("input_tokens")), cached, written]),
        completion_tokens=count(usage.get("output_tokens")),
        cached_tokens=cached,
        is_whole=is_whole,
    )


def _read_stream(body: bytes) -> Answer:
    message: dict[str, Any] = {}
    blocks: dict[int, dict[str, Any]] = {}
    usage: dict[str, Any] = {}
    is_whole = False
    for data in event_stream.data(body):
        event = load_object(data)
        kind = text(event.get("type"))
        if kind == "message_start":
            message = dict(mapping(event.get("message")))
            usage |= mapping(message.get("usage"))
        elif kind == "message_delta":
            message |= mapping(event.get("delta"))
            # Counts so far, not further ones. A null says nothing.
            usage |= {name: value for name, value in mapping(event.get("usage")).items() if value is not None}
        elif kind in {"message_stop", "error"}:
            is_whole = True
        elif isinstance(index := event.get("index"), int):
            if kind == "content_block_start":
                blocks[index] = dict(mapping(event.get("content_block")))
            elif kind == "content_block_delta":
                _add_delta(blocks.setdefault(index, {}), mapping(event.get("delta")))
    content = [blocks[index] for index in sorted(blocks)]
    return _answer(message | {"content": content}, usage, is_whole=is_whole)


def _add_delta(block: dict[str, Any], delta: dict[str, Any]) -> None:
    member = _DELTAS.get(text(delta.get("type")))
    if member:
        block.setdefault("type", member)
        block[member] = text(block.get(member)) + text(delta.get(member))


def _messages(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    role, content = text(message.get("role")) or "user", message.get("content")
    if role == "assistant":
        yield _turn(content)
        return
    blocks = content if isinstance(content, list) else []
    results = [block for block in mappings(blocks) if block.get("type") == "tool_result"]
    for result in results:
        tool_call_id = text(result.get("tool_use_id"))
        yield {"role": "tool", "tool_call_id": tool_call_id, "content": _parts(result.get("content"))}
    if results:
        content = [block for block in mappings(blocks) if block.get("type") != "tool_result"]
    if content or not results:
        yield {"role": role, "content": _parts(content)}


def _turn(content: Any) -> dict[str, Any]:
    """What the model said, as one message."""
    parts: list[Any] = []
    calls: list[dict[str, Any]] = []
    thinking: list[str] = []
    hosted: list[dict[str, Any]] = []
    for block in [{"type": "text", "text": content}] if isinstance(content, str) else mappings(content):
        kind = text(block.get("type"))
        if kind == "text":
            parts.append({"type": kind, "text": text(block.get("text"))})
        elif kind == "tool_use":
            calls.append(_tool_call(block))
        elif kind == "thinking":
            thinking.append(text(block.get("thinking")))
        else:
            hosted.append(block)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": parts[0]["text"] if len(parts) == 1 else parts or None,
    }
    rest = {"tool_calls": calls, "reasoning": "\n".join(filter(None, thinking)), "hosted": hosted}
    return message | {name: value for name, value in rest.items() if value}


def _tool_call(block: dict[str, Any]) -> dict[str, Any]:
    # A stream opens a block with an empty input and sends the input's text in pieces.
    arguments = text(block.get("partial_json")) or compact(block.get("input", {}))
    function = {"name": text(block.get("name")), "arguments": arguments}
    return {"id": text(block.get("id")), "type": "function", "function": function}


def _parts(content: Any) -> Any:
    """Content as chat has it, without the marks that say what to cache: callers move them from turn to turn."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    return [
        {name: value for name, value in part.items() if name != "cache_control"} for part in mappings(content)
    ]
