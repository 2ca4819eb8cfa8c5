"""OpenAI's chat completions: what the gateway reads of a request and of an answer, JSON or event stream.

Only the fields named here are interpreted; relaying is not done here and never depends on an answer that
parses. https://platform.openai.com/docs/api-reference/chat, server-sent events as in the HTML standard,
section 9.2."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.errors import bad_request

NAME = "chat"
PATH = "/chat/completions"
_LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """The interpreted part of a request."""

    model: str
    stream: bool
    messages: tuple[dict[str, Any], ...]
    """Empty when the field has a shape that the upstream will refuse."""
    metadata_run_id: str


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """The interpreted part of an answer: its first choice. Nothing of it is sure to be there."""

    response_id: str = ""
    message: dict[str, Any] | None = None
    finish_reason: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    is_whole: bool = False
    """It came to its own end: the JSON parsed, or the stream said `[DONE]` or gave a finish reason."""

    @property
    def tool_call_count(self) -> int:
        calls = self.message.get("tool_calls") if self.message else None
        return len(calls) if isinstance(calls, list) else 0


def parse_request(body: bytes) -> ChatRequest:
    """Raises Refused (400), naming the field, for a body that no model could be found for."""
    document = _load_request(body)
    if not isinstance(document, dict):
        raise bad_request("The request body must be a JSON object.")
    model = document.get("model")
    if not isinstance(model, str) or not model:
        raise bad_request("The field `model` must name a model, as text.", param="model")
    messages = document.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        messages = []
    metadata = document.get("metadata")
    run_id = metadata.get("run_id") if isinstance(metadata, dict) else None
    return ChatRequest(
        model=model,
        stream=document.get("stream") is True,
        messages=tuple(messages),
        metadata_run_id=run_id if isinstance(run_id, str) else "",
    )


def _load_request(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        reason = error.msg
    try:
        # orjson is stricter than some upstreams, e.g. with lone surrogates: those may judge for themselves.
        return json.loads(body.decode())
    except (ValueError, RecursionError):
        raise bad_request(f"The request body is not valid JSON: {reason}.") from None


def parse_answer(body: bytes, *, is_stream: bool) -> ChatAnswer:
    """Read an answer, whole or cut. Never raises on odd content: what cannot be read stays empty."""
    return _parse_stream(body) if is_stream else _parse_json(body)


def _parse_json(body: bytes) -> ChatAnswer:
    document = _load(body)
    choice = _first_choice(document)
    message = choice.get("message")
    prompt_tokens, completion_tokens = _usage(document)
    return ChatAnswer(
        response_id=_text(document.get("id")),
        message=message if isinstance(message, dict) else None,
        finish_reason=_text(choice.get("finish_reason")),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        is_whole=bool(document),
    )


@dataclass
class _Assembly:
    """The first choice's deltas put together."""

    role: str = "assistant"
    content: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    tool_calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    function_call: dict[str, Any] | None = None
    has_begun: bool = False

    def add(self, delta: dict[str, Any]) -> None:
        self.has_begun = True
        self.role = _text(delta.get("role")) or self.role
        self.content.append(_text(delta.get("content")))
        self.refusal.append(_text(delta.get("refusal")))
        pieces = delta.get("tool_calls")
        for piece in pieces if isinstance(pieces, list) else []:
            if isinstance(piece, dict):
                self._add_tool_call(piece)
        function = delta.get("function_call")
        if isinstance(function, dict):
            self.function_call = self.function_call or {"name": "", "arguments": ""}
            _add_function(self.function_call, function)

    def _add_tool_call(self, piece: dict[str, Any]) -> None:
        index = piece.get("index")
        if not isinstance(index, int):
            # Some servers leave the index out: an id begins a call, a piece without one goes on with the
            # latest.
            index = len(self.tool_calls) - (0 if piece.get("id") or not self.tool_calls else 1)
        call = self.tool_calls.setdefault(
            index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        call["id"] = _text(piece.get("id")) or call["id"]
        call["type"] = _text(piece.get("type")) or call["type"]
        function = piece.get("function")
        if isinstance(function, dict):
            _add_function(call["function"], function)

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


def _add_function(function: dict[str, Any], piece: dict[str, Any]) -> None:
    function["name"] += _text(piece.get("name"))
    function["arguments"] += _text(piece.get("arguments"))


def _parse_stream(body: bytes) -> ChatAnswer:
    assembly = _Assembly()
    response_id = finish_reason = ""
    prompt_tokens = completion_tokens = None
    is_done = False
    for data in _events(body):
        if data == b"[DONE]":
            is_done = True
            break
        chunk = _load(data)
        choice = _first_choice(chunk)
        delta = choice.get("delta")
        if isinstance(delta, dict):
            assembly.add(delta)
        response_id = response_id or _text(chunk.get("id"))
        finish_reason = _text(choice.get("finish_reason")) or finish_reason
        if chunk.get("usage"):
            prompt_tokens, completion_tokens = _usage(chunk)
    return ChatAnswer(
        response_id=response_id,
        message=assembly.message(),
        finish_reason=finish_reason,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        is_whole=is_done or bool(finish_reason),
    )


def _events(body: bytes) -> Iterator[bytes]:
    """The data of each finished event; comments and other fields are passed over, an unfinished event is
    dropped."""
    data: list[bytes] = []
    for line in _LINE_END.split(body.removeprefix(b"\xef\xbb\xbf")):
        if not line:
            if data:
                yield b"\n".join(data)
            data = []
        elif line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))


def _first_choice(document: dict[str, Any]) -> dict[str, Any]:
    choices = document.get("choices")
    for choice in choices if isinstance(choices, list) else []:
        if isinstance(choice, dict) and choice.get("index", 0) == 0:
            return choice
    return {}


def _usage(document: dict[str, Any]) -> tuple[int | None, int | None]:
    usage = document.get("usage")
    if not isinstance(usage, dict):
        return None, None
    return _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))


def _load(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
