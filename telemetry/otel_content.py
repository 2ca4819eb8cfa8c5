"""Prompts, answers and tools as the GenAI conventions shape them: messages made of parts.

Reads what `telemetry.exchange` makes of a call's bytes. Pure, and bounded: a long text is cut, what does not fit is
replaced by a note, files that were sent inline stay out. Whether any of this is sent is not decided here."""

import json
from typing import Any

import orjson

from telemetry import exchange
from telemetry.records import BeginRecord, EndRecord
from telemetry.wire.lenient import load_object, mappings

MAX_BODY_BYTES = 1 << 20
"""A longer body is not read for its content."""
MAX_ATTRIBUTE_BYTES = 64 << 10
"""About how much one attribute holds, as JSON."""
MAX_TEXT_CHARS = 16 << 10
MAX_DEPTH = 12
"""Of nested values."""

_INSTRUCTIONS = {"responses": "instructions", "messages": "system"}
"""Dialect -> the field in which a request states instructions apart from its messages."""
_PAST = frozenset({"previous_response", "conversation", "prompt"})
"""Roles of what `exchange` puts before a response's input to name a past that the provider keeps."""


def system_instructions(begin: BeginRecord, end: EndRecord) -> list[Any]:
    """Instructions that were given apart from the messages; a system message among them is one of those."""
    if len(begin.request) > MAX_BODY_BYTES:
        return []
    return _first_that_fit(_asked(begin)[0])


def input_messages(begin: BeginRecord, end: EndRecord) -> list[Any]:
    """What the model was given, the latest messages if not all of them fit."""
    if len(begin.request) > MAX_BODY_BYTES:
        return [{"role": "user", "parts": [_left_out(bytes=len(begin.request))]}]
    messages = [_message(message) for message in _asked(begin)[1]]
    kept = _first_that_fit(messages[::-1])[::-1]
    missing = len(messages) - len(kept)
    return [{"role": "user", "parts": [_left_out(messages=missing)]}, *kept] if missing else kept


def output_messages(begin: BeginRecord, end: EndRecord) -> list[Any]:
    """What the model answered (its first choice)."""
    if len(end.response) > MAX_BODY_BYTES:
        return [{"role": "assistant", "parts": [_left_out(bytes=len(end.response))]}]
    message = exchange.answer_message(end.response, begin.dialect)
    return [_bounded(_message(message))] if message else []


def tool_definitions(begin: BeginRecord, end: EndRecord) -> list[Any]:
    """The function tools that the model was offered, the first ones if not all of them fit."""
    if len(begin.request) > MAX_BODY_BYTES:
        return []
    tools = exchange.offered_tools(begin.request, begin.dialect)
    return _first_that_fit([_tool(tool["function"]) for tool in tools])


def sendable(text: str) -> str:
    """The text without lone surrogates, which JSON may spell and no collector takes."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _asked(begin: BeginRecord) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The parts of the instructions that stood apart, and the messages."""
    messages = exchange.request_messages(begin.request, begin.dialect)
    field = _INSTRUCTIONS.get(begin.dialect)
    if field is None:
        return [], messages
    messages = [message for message in messages if message["role"] not in _PAST]
    stands_apart = bool(load_object(begin.request).get(field))
    if stands_apart and messages and messages[0]["role"] == "system":
        return _parts(messages[0]["content"]), messages[1:]
    return [], messages


def _message(message: dict[str, Any]) -> dict[str, Any]:
    role, content = message["role"], message["content"]
    if role == "tool":
        answered = {"id": message["tool_call_id"]} if message.get("tool_call_id") else {}
        response = _parts(content) if isinstance(content, list) else content or ""
        parts = [{"type": "tool_call_response", **answered, "response": response}]
    else:
        thoughts = message.get("reasoning")
        parts = [{"type": "reasoning", "content": thoughts}] if thoughts else []
        parts += _parts(content)
        if message.get("refusal"):
            parts.append(_generic("refusal", content=message["refusal"]))
        parts += [_tool_call(call) for call in message.get("tool_calls", ())]
    return {"role": role, "parts": parts} | ({"name": message["name"]} if message.get("name") else {})


def _parts(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "content": content}] if content else []
    return [_part(part) for part in mappings(content)]


def _part(part: dict[str, Any]) -> dict[str, Any]:
    """One part of a message's content, in whichever dialect's spelling."""
    match part:
        case {"text": str(text)}:
            return {"type": "text", "content": text}
        case {"image_url": {"url": str(url)} | str(url)} | {"type": "image", "source": {"url": str(url)}}:
            return _linked("image", url)
        case {"type": "image", "source": {"media_type": str(mime_type)}}:
            return _left_out(modality="image", mime_type=mime_type)
        case {"file": {"file_id": str(file_id)}} | {"file_id": str(file_id)}:
            return {"type": "file", "modality": "document", "file_id": file_id}
        case {"type": "input_audio"}:
            return _left_out(modality="audio")
        case {"type": str(kind)}:
            return _generic(kind)
    return _generic("unknown")


def _linked(modality: str, url: str) -> dict[str, Any]:
    if url.startswith("data:"):
        return _left_out(modality=modality, mime_type=url[5:].partition(",")[0].partition(";")[0])
    return {"type": "uri", "modality": modality, "uri": url}


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        arguments = function["arguments"]
    known = {"id": call["id"]} if call["id"] else {}
    return {"type": "tool_call", **known, "name": function["name"], "arguments": arguments}


def _tool(function: dict[str, Any]) -> dict[str, Any]:
    stated = {
        name: function[name] for name in ("description", "parameters") if function.get(name) is not None
    }
    return {"type": "function", "name": function["name"], **stated}


def _left_out(**what: Any) -> dict[str, Any]:
    return _generic("ratchet.left_out", **what)


def _generic(kind: str, **fields: Any) -> dict[str, Any]:
    """A part that the conventions have no type for."""
    return {"type": "generic", "generic_type": kind, **fields}


def _first_that_fit(items: list[Any]) -> list[Any]:
    """As many as MAX_ATTRIBUTE_BYTES hold, each bounded; at least one."""
    kept: list[Any] = []
    size = 0
    for item in items:
        bounded = _bounded(item)
        size += len(orjson.dumps(bounded))
        if kept and size > MAX_ATTRIBUTE_BYTES:
            break
        kept.append(bounded)
    return kept


def _bounded(value: Any, depth: int = 0) -> Any:
    """A JSON value that a collector takes: texts cut, integers of 64 bits, no bottomless nesting."""
    match value:
        case str():
            return _cut(sendable(value))
        case bool() | float() | None:
            return value
        case int():
            return value if -(1 << 63) <= value < 1 << 63 else str(value)
        case _ if depth == MAX_DEPTH:
            return "(nested too deeply)"
        case dict():
            return {sendable(name): _bounded(item, depth + 1) for name, item in value.items() if name}
    return [_bounded(item, depth + 1) for item in value]


def _cut(text: str) -> str:
    more = len(text) - MAX_TEXT_CHARS
    return f"{text[:MAX_TEXT_CHARS]} ({more} more characters)" if more > 0 else text
