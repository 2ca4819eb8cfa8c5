"""Prompts, answers and tools as the GenAI conventions shape them: messages made of parts.

Reads what `telemetry.exchange` makes of a call's bytes. Pure, and bounded: a long text is cut, what does not fit is
replaced by a note, files that were sent inline stay out. Whether any of this is sent is not decided here."""

import json
from typing import Any

import orjson

from telemetry import exchange
from telemetry.records import BeginRecord, EndRecord

MAX_BODY_BYTES = 1 << 20
"""A longer body is not read for its content."""
MAX_ATTRIBUTE_BYTES = 64 << 10
"""About how much one attribute holds, as JSON."""
MAX_TEXT_CHARS = 16 << 10
MAX_DEPTH = 12
"""Of nested values."""

_INSTRUCTIONS = {"responses": "instructions", "messages": "system"}
"""Dialect -> the field in which a request states instructions apart from its messages."""


def system_instructions(begin: BeginRecord, end: EndRecord) -> list[Any]:
    """Instructions that were given apart from the messages; a system message among them is one of those."""
    field = _INSTRUCTIONS.get(begin.dialect)
    if field is None:
        return []
    if len(begin.request) > MAX_BODY_BYTES:
        return [_left_out(bytes=len(begin.request))]
    return _first_that_fit(_parts(_request(begin).get(field)))


def input_messages(begin: BeginRecord, end: EndRecord) -> list[Any]:
    """What the model was given, the latest messages if not all of them fit."""
    if len(begin.request) > MAX_BODY_BYTES:
        return [{"role": "user", "parts": [_left_out(bytes=len(begin.request))]}]
    messages = [_message(message) for message in exchange.request_messages(begin.request)]
    kept = _first_that_fit(messages[::-1])[::-1]
    missing = len(messages) - len(kept)
    return [{"role": "user", "parts": [_left_out(messages=missing)]}, *kept] if missing else kept


def output_messages(begin: BeginRecord, end: EndRecord) -> list[Any]:
    """What the model answered (its first choice)."""
    if len(end.response) > MAX_BODY_BYTES:
        return [{"role": "assistant", "parts": [_left_out(bytes=len(end.response))]}]
    message = exchange.answer_message(end.response)
    return [_bounded(_message(message))] if message else []


def tool_definitions(begin: BeginRecord, end: EndRecord) -> list[Any]:
    """The function tools that the model was offered, the first ones if not all of them fit."""
    if len(begin.request) > MAX_BODY_BYTES:
        return []
    tools = [_tool(tool["function"]) for tool in exchange.offered_tools(begin.request)]
    return _first_that_fit(tools)


def sendable(text: str) -> str:
    """The text without lone surrogates, which JSON may spell and no collector takes."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _message(message: dict[str, Any]) -> dict[str, Any]:
    role = message["role"]
    if role == "tool":
        answered = {"id": message["tool_call_id"]} if message.get("tool_call_id") else {}
        content = message["content"]
        parts = [
            {"type": "tool_call_response", **answered, "response": content if content is not None else ""}
        ]
    else:
        parts = _parts(message["content"])
        if message.get("refusal"):
            parts.append(_generic("refusal", content=message["refusal"]))
        parts += [_tool_call(call) for call in message.get("tool_calls", ())]
    return {"role": role, "parts": parts} | ({"name": message["name"]} if message.get("name") else {})


def _parts(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "content": content}] if content else []
    return [_part(part) for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _part(part: dict[str, Any]) -> dict[str, Any]:
    """One part of a message's content, in whichever dialect's spelling."""
    match part:
        case {"text": str(text)}:
            return {"type": "text", "content": text}
        case {"image_url": {"url": str(url)} | str(url)}:
            return _linked("image", url)
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


def _request(begin: BeginRecord) -> dict[str, Any]:
    try:
        document = json.loads(begin.request)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
