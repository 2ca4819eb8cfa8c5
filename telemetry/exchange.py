"""The stored bytes of an exchange -> the messages that were asked and the message that was answered.

Reads chat completions, whole or as an event stream. Pure, and lenient: bytes come from strangers, so what is
not of a known shape is left out, never raised. What a page shows is the console's business."""

import json
from collections.abc import Iterator
from typing import Any


def request_messages(body: bytes) -> list[dict[str, Any]]:
    """The request's messages in one shape (see `_message`); empty when the body has none."""
    messages = _mapping(_load(body)).get("messages")
    return (
        [_message(item) for item in messages if isinstance(item, dict)] if isinstance(messages, list) else []
    )


def offered_tools(body: bytes) -> list[dict[str, Any]]:
    """The function tools that the request offered, as they were sent."""
    tools = _mapping(_load(body)).get("tools")
    named = [_mapping(tool) for tool in tools] if isinstance(tools, list) else []
    return [tool for tool in named if isinstance(_mapping(tool.get("function")).get("name"), str)]


def answer_message(body: bytes) -> dict[str, Any] | None:
    """The first choice's message; None when the answer holds none (an error, a cut stream without a word)."""
    document = _load(body)
    if document is None:
        return _assemble(_events(body))
    choices = _mapping(document).get("choices")
    if not isinstance(choices, list) or not choices:
        return None
    message = _mapping(choices[0]).get("message")
    return _message({"role": "assistant"} | message) if isinstance(message, dict) else None


def _assemble(events: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
    """A stream's deltas put together, as the OpenAI SDKs do."""
    seen = False
    text: list[str] = []
    refusal: list[str] = []
    calls: dict[int, dict[str, Any]] = {}
    for event in events:
        choices = event.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            delta = _mapping(_mapping(choice).get("delta"))
            if _mapping(choice).get("index", 0) != 0 or not delta:
                continue
            seen = True
            text.append(_text(delta.get("content")))
            refusal.append(_text(delta.get("refusal")))
            pieces = delta.get("tool_calls")
            for piece in pieces if isinstance(pieces, list) else []:
                index = _mapping(piece).get("index")
                call = calls.setdefault(
                    index if isinstance(index, int) else 0,
                    {"id": "", "function": {"name": "", "arguments": ""}},
                )
                function = _mapping(_mapping(piece).get("function"))
                call["id"] = call["id"] or _text(_mapping(piece).get("id"))
                call["function"]["name"] += _text(function.get("name"))
                call["function"]["arguments"] += _text(function.get("arguments"))
    if not seen:
        return None
    return _message(
        {
            "role": "assistant",
            "content": "".join(text),
            "refusal": "".join(refusal),
            "tool_calls": [calls[index] for index in sorted(calls)],
        }
    )


def _events(body: bytes) -> Iterator[dict[str, Any]]:
    for line in body.splitlines():
        event = _load(line[5:]) if line.startswith(b"data:") else None
        if isinstance(event, dict):
            yield event


def _message(fields: dict[str, Any]) -> dict[str, Any]:
    """role, content (text, or parts as they were), and where there is something to say: refusal, tool_calls,
    tool_call_id, name. Tool calls have an id, a name and their arguments as text."""
    content = fields.get("content")
    message: dict[str, Any] = {
        "role": _text(fields.get("role")) or "user",
        "content": content if isinstance(content, str | list) else None,
    }
    calls = fields.get("tool_calls")
    called = [_tool_call(call) for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    rest = {name: _text(fields.get(name)) for name in ("refusal", "tool_call_id", "name")}
    return message | {name: value for name, value in {**rest, "tool_calls": called}.items() if value}


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    function = _mapping(call.get("function"))
    return {
        "id": _text(call.get("id")),
        "type": "function",
        "function": {"name": _text(function.get("name")), "arguments": _arguments(function.get("arguments"))},
    }


def _arguments(value: Any) -> str:
    """The arguments as text. Nesting that no parser takes becomes text that is no JSON, and so counts as
    malformed."""
    try:
        text = value if isinstance(value, str) else json.dumps(value)
        json.loads(text)
    except ValueError:
        return text
    except RecursionError:
        return "(nested too deeply)"
    return text


def _load(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
