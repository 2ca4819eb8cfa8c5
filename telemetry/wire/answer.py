"""What an answer says, whatever the wire format: the one shape that all readers of `telemetry.wire` fill."""

from dataclasses import dataclass
from typing import Any

from telemetry.wire.lenient import mapping, mappings, text


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The interpreted part of an answer. Nothing of it is sure to be there."""

    response_id: str = ""
    message: dict[str, Any] | None = None
    """In the shape of a chat message, as the next request would repeat it."""
    finish_reason: str = ""
    """In the provider's own word."""
    prompt_tokens: int | None = None
    """All tokens that went in, those from a cache among them."""
    completion_tokens: int | None = None
    """All tokens that came out, those of hidden reasoning among them."""
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    is_whole: bool = False
    """It came to its own end: the JSON parsed, or the stream said that it is complete."""

    @property
    def tool_calls(self) -> tuple[tuple[str, str], ...]:
        """Id and tool of each of its tool calls that has an id."""
        calls = mappings(self.message.get("tool_calls")) if self.message else []
        return tuple((text(call["id"]), _tool(call)) for call in calls if text(call.get("id")))

    @property
    def tool_call_count(self) -> int:
        calls = self.message.get("tool_calls") if self.message else None
        return len(calls) if isinstance(calls, list) else 0


def _tool(call: dict[str, Any]) -> str:
    return text(mapping(call.get("function")).get("name")) or text(mapping(call.get("custom")).get("name"))
