"""The stored bytes of an exchange -> the messages that were asked and the message that was answered, whatever the
dialect, in one shape.

Pure, and lenient: bytes come from strangers, so what is not of a known shape is left out, never raised. The wire
formats are read in `telemetry.wire`; what a page shows is the console's business."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from telemetry.wire import chat, completions, embeddings, messages, responses
from telemetry.wire.answer import Answer
from telemetry.wire.lenient import load_object, mapping, mappings, text
from telemetry.wire.tokens import Sampled, read_tokens


class _ReadAnswer(Protocol):
    def __call__(self, body: bytes, *, is_stream: bool) -> Answer: ...


@dataclass(frozen=True)
class _Wire:
    request_messages: Callable[[dict[str, Any]], tuple[dict[str, Any], ...]]
    read_answer: _ReadAnswer


_WIRES: Mapping[str, _Wire] = {
    "chat": _Wire(chat.request_messages, chat.read_answer),
    "completions": _Wire(completions.request_messages, completions.read_answer),
    "embeddings": _Wire(embeddings.request_messages, embeddings.read_answer),
    "messages": _Wire(messages.request_messages, messages.read_answer),
    "responses": _Wire(responses.request_messages, responses.read_answer),
}
"""By the dialect's name."""


_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "seed", "stop", "n", "max_tokens", "max_completion_tokens",
    "max_output_tokens", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias",
    "tool_choice", "parallel_tool_calls", "reasoning_effort", "response_format",
)  # fmt: skip
"""What a request may say about how its answer is drawn."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asked for."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    sampling: dict[str, Any]


def asked(body: bytes, dialect: str, *, with_messages: bool = True) -> Asked:
    """The request, read once; `with_messages=False` leaves its messages out."""
    document = load_object(body)
    wire = _WIRES.get(dialect) if with_messages else None
    return Asked(
        messages=[_message(message) for message in wire.request_messages(document)] if wire else [],
        tools=_offered_tools(document, dialect),
        sampling={name: document[name] for name in _SAMPLING if document.get(name) is not None},
    )


def request_messages(body: bytes, dialect: str) -> list[dict[str, Any]]:
    """The request's messages in one shape (see `_message`); empty when the body has none."""
    wire = _WIRES.get(dialect)
    return [_message(message) for message in wire.request_messages(load_object(body))] if wire else []


def offered_tools(body: bytes, dialect: str) -> list[dict[str, Any]]:
    """The function tools that the request offered, in the shape of chat."""
    return _offered_tools(load_object(body), dialect)


def _offered_tools(document: dict[str, Any], dialect: str) -> list[dict[str, Any]]:
    tools = [_offered(tool, dialect) for tool in mappings(document.get("tools"))]
    return [tool for tool in tools if isinstance(mapping(tool.get("function")).get("name"), str)]


def answer_message(body: bytes, dialect: str) -> dict[str, Any] | None:
    """The first choice's message; None when the answer holds none (an error, a cut stream without a word)."""
    wire = _WIRES.get(dialect)
    message = wire.read_answer(body, is_stream=_is_stream(body)).message if wire else None
    return _message(message) if message is not None else None


def sampled_tokens(body: bytes, dialect: str) -> Sampled | None:
    """The token ids and log-probabilities of an answer of our own nodes; None for an answer without them."""
    return read_tokens(body, is_stream=_is_stream(body)) if dialect == "chat" else None


def _is_stream(body: bytes) -> bool:
    """No line of an event stream begins with a bracket, and every answer in JSON does."""
    return body[:100].lstrip()[:1] not in (b"{", b"[")


def _offered(tool: dict[str, Any], dialect: str) -> dict[str, Any]:
    if dialect == "responses" and tool.get("type") == "function":
        return {
            "type": "function",
            "function": {name: value for name, value in tool.items() if name != "type"},
        }
    if dialect == "messages" and tool.get("type", "custom") == "custom":
        function = {name: value for name, value in tool.items() if name in {"name", "description"}}
        return {"type": "function", "function": function | {"parameters": tool.get("input_schema")}}
    return tool


def _message(fields: Mapping[str, Any]) -> dict[str, Any]:
    """role, content (text, or parts as they were), and where there is something to say: refusal, reasoning,
    tool_calls, hosted (names of the provider's own tools that it used), tool_call_id, name. Tool calls have an id, a
    name and their arguments as text."""
    content = fields.get("content")
    message: dict[str, Any] = {
        "role": text(fields.get("role")) or "user",
        "content": content if isinstance(content, str | list) else None,
    }
    called = [_tool_call(call) for call in mappings(fields.get("tool_calls"))]
    if not called and (function := mapping(fields.get("function_call"))):  # the deprecated form
        called = [_tool_call({"function": function})]
    hosted = [text(item.get("name")) or text(item.get("type")) for item in mappings(fields.get("hosted"))]
    rest = {name: text(fields.get(name)) for name in ("refusal", "reasoning", "tool_call_id", "name")}
    lists = {"tool_calls": called, "hosted": hosted}
    return message | {name: value for name, value in {**rest, **lists}.items() if value}


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    function, custom = mapping(call.get("function")), mapping(call.get("custom"))
    arguments = function.get("arguments")
    if custom:  # free text, and arguments are JSON
        arguments = {"input": custom.get("input")}
    return {
        "id": text(call.get("id")),
        "type": "function",
        "function": {
            "name": text(function.get("name") or custom.get("name")),
            "arguments": _arguments(arguments),
        },
    }


def _arguments(value: Any) -> str:
    """The arguments as text. Nesting that no parser takes becomes text that is no JSON, and so counts as
    malformed."""
    try:
        written = value if isinstance(value, str) else json.dumps(value)
        json.loads(written)
    except ValueError:
        return written
    except RecursionError:
        return "(nested too deeply)"
    return written
