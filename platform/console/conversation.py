"""A captured exchange as a person reads it: text per message, tools by name, nothing longer than a page
takes. Pure.

`telemetry.exchange` reads the wire format; bytes that it finds no messages in are shown as they are."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from telemetry import exchange

MAX_TEXT = 20_000
"""Characters of one message that a page shows; the API and the episode hold the whole."""


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool that the model asked for."""

    name: str
    arguments: str
    """Indented JSON, or the raw text when it is none."""


@dataclass(frozen=True)
class Message:
    """One message, as text."""

    role: str
    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""
    """The tool that answered, on a tool's message."""
    thinking: str = ""
    """What the model thought first, where the provider shows it."""
    hosted: tuple[str, ...] = ()
    """Tools of the provider's own that it used meanwhile."""


def request_messages(body: bytes, dialect: str) -> list[Message]:
    """What the caller sent; one raw message for a request of another shape."""
    messages = exchange.request_messages(body, dialect)
    if not messages:
        return [Message("request", _raw(body))] if body else []
    # A tool's message carries an id only: the assistant's message before it says which tool that was.
    asked = [call for message in messages for call in message.get("tool_calls", ())]
    tools = {call["id"]: call["function"]["name"] for call in asked}
    return [_message(message, tools) for message in messages]


def answer_message(body: bytes, dialect: str) -> Message | None:
    """What came back; raw when it is an error or of another shape, None when nothing came."""
    if not body.strip():
        return None
    message = exchange.answer_message(body, dialect)
    return _message(message, {}) if message else Message("raw answer", _raw(body))


def since(messages: Sequence[Message], earlier: int) -> list[Message]:
    """The messages that the parent step has not shown: after its `earlier` ones. A rewritten history is
    shown whole."""
    return list(messages[earlier:]) if earlier < len(messages) else list(messages)


def _message(message: Mapping[str, Any], tools: Mapping[str, str]) -> Message:
    text = "\n".join(part for part in (_content(message["content"]), message.get("refusal", "")) if part)
    return Message(
        role=message["role"],
        text=_clip(text),
        tool_calls=tuple(
            ToolCall(call["function"]["name"], _indented(call["function"]["arguments"]))
            for call in message.get("tool_calls", ())
        ),
        name=message.get("name") or tools.get(message.get("tool_call_id", ""), ""),
        thinking=_clip(message.get("reasoning", "")),
        hosted=tuple(message.get("hosted", ())),
    )


def _content(content: Any) -> str:
    if not isinstance(content, list):
        return content or ""
    return "\n".join(_part(part) for part in content)


def _part(part: Any) -> str:
    fields = part if isinstance(part, dict) else {}
    text = fields.get("text")
    return text if isinstance(text, str) else f"[{fields.get('type', 'part')}]"


def _indented(text: str) -> str:
    try:
        return _clip(json.dumps(json.loads(text), indent=2, ensure_ascii=False))
    except (ValueError, RecursionError):
        return _clip(text)


def _raw(body: bytes) -> str:
    return _indented(body.decode("utf-8", "replace"))


def _clip(text: str) -> str:
    rest = len(text) - MAX_TEXT
    return text if rest <= 0 else f"{text[:MAX_TEXT]}\n… {rest:,} more characters"
