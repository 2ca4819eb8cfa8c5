"""OpenAI's chat completions, read from bytes: the messages of a request, what an answer says. JSON and event
streams. Pure, and lenient.

https://platform.openai.com/docs/api-reference/chat"""

from dataclasses import dataclass, field
from typing import Any

from telemetry.wire import event_stream
from telemetry.wire.answer import Answer
from telemetry.wire.lenient import count, load_object, mapping, mappings, text

END = b"[DONE]"
"""The data of the last event."""


def request_messages(document: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """The messages as they were sent; empty when the field has a shape that the upstream will refuse."""
    messages = document.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return ()
    return tuple(messages)


def read_answer(body: bytes, *, is_stream: bool) -> Answer:
    """The first choice of an answer, whole or cut."""
    return _read_stream(body) if is_stream else _read_json(body)


def usage_of(document: dict[str, Any]) -> dict[str, int | None]:
    """The counts of an answer's or a chunk's `usage`, by the names of `Answer`; of completions and embeddings as
    well."""
    usage = mapping(document.get("usage"))
    return {
        "prompt_tokens": count(usage.get("prompt_tokens")),
        "completion_tokens": count(usage.get("completion_tokens")),
        "cached_tokens": count(mapping(usage.get("prompt_tokens_details")).get("cached_tokens")),
        "reasoning_tokens": count(mapping(usage.get("completion_tokens_details")).get("reasoning_tokens")),
    }


def first_choice(document: dict[str, Any]) -> dict[str, Any]:
    """The choice of index 0; empty when the document has none."""
    choices = document.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict) and not choices[0].get("index"):
        return choices[0]  # nearly always
    choices = mappings(choices)
    return next((choice for choice in choices if choice.get("index", 0) == 0), {})


def _read_json(body: bytes) -> Answer:
    document = load_object(body)
    choice = first_choice(document)
    message = choice.get("message")
    return Answer(
        response_id=text(document.get("id")),
        message={"role": "assistant"} | message if isinstance(message, dict) else None,
        finish_reason=text(choice.get("finish_reason")),
        is_whole=bool(document),
        **usage_of(document),
    )


@dataclass
class _Assembly:
    """The first choice's deltas put together, as OpenAI's SDKs do."""

    role: str = "assistant"
    content: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    tool_calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    function_call: dict[str, Any] | None = None
    has_begun: bool = False

    def add(self, delta: dict[str, Any]) -> None:
        self.has_begun = True
        for name, value in delta.items():
            if name == "content":
                self.content.append(text(value))
            elif name == "role":
                self.role = text(value) or self.role
            elif name == "refusal":
                self.refusal.append(text(value))
            elif name == "tool_calls":
                for piece in mappings(value):
                    self._add_tool_call(piece)
            elif name == "function_call" and isinstance(value, dict):
                self.function_call = self.function_call or {"name": "", "arguments": ""}
                _add_texts(self.function_call, value)

    def _add_tool_call(self, piece: dict[str, Any]) -> None:
        index = piece.get("index")
        if not isinstance(index, int):
            # Some servers leave the index out: an id begins a call, a piece without one goes on with the
            # latest.
            index = len(self.tool_calls) - (0 if piece.get("id") or not self.tool_calls else 1)
        kind = "custom" if isinstance(piece.get("custom"), dict) else "function"
        call = self.tool_calls.setdefault(
            index,
            {"id": "", "type": kind, kind: {"name": "", "arguments" if kind == "function" else "input": ""}},
        )
        call["id"] = text(piece.get("id")) or call["id"]
        if kind in call:
            _add_texts(call[kind], mapping(piece.get(kind)))

    def message(self) -> dict[str, Any] | None:
        if not self.has_begun:
            return None
        message: dict[str, Any] = {"role": self.role, "content": "".join(self.content) or None}
        if refusal := "".join(self.refusal):
            message["refusal"] = refusal
        if self.tool_calls:
            message["tool_calls"] = [self.tool_calls[index] for index in sorted(self.tool_calls)]
        if self.function_call:
            message["function_call"] = self.function_call
        return message


def _add_texts(whole: dict[str, Any], piece: dict[str, Any]) -> None:
    for name in whole:
        whole[name] += text(piece.get(name))


def _read_stream(body: bytes) -> Answer:
    assembly = _Assembly()
    response_id = finish_reason = ""
    usage: dict[str, int | None] = {}
    is_done = False
    for data in event_stream.data(body):
        if data == END:
            is_done = True
            break
        chunk = load_object(data)
        choice = first_choice(chunk)
        delta = choice.get("delta")
        if isinstance(delta, dict):
            assembly.add(delta)
        response_id = response_id or text(chunk.get("id"))
        finish_reason = text(choice.get("finish_reason")) or finish_reason
        if chunk.get("usage"):
            usage = usage_of(chunk)
    return Answer(
        response_id=response_id,
        message=assembly.message(),
        finish_reason=finish_reason,
        is_whole=is_done or bool(finish_reason),
        **usage,
    )
