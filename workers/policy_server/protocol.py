"""The wire: OpenAI's chat completions as vLLM speaks them. Requests are parsed here, once, into types;
answers are built here.

What would change the answer and cannot be honoured is refused by name (`n`, `logit_bias`, ...). Other unknown
fields are ignored, as vLLM does. Pure: no model, no sockets, and no clock but for what callers pass in."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from workers.policy_server.answers import Answer, ToolCall
from workers.policy_server.engine import Token

# Fields that would change the answer, with the values that would not.
_UNSUPPORTED_UNLESS: dict[str, tuple[object, ...]] = {
    "n": (1,), "best_of": (1,), "use_beam_search": (False,), "logit_bias": ({},), "bad_words": ([],),
    "presence_penalty": (0,), "frequency_penalty": (0,), "repetition_penalty": (1,), "min_tokens": (0,),
    "top_k": (-1, 0), "min_p": (0,), "ignore_eos": (False,), "stop_token_ids": ([],), "prompt_logprobs": (),
    "response_format": ({"type": "text"},), "guided_json": (), "structured_outputs": (), "prediction": (),
    "functions": (), "function_call": (), "audio": (), "logits_processors": (), "echo": (False,),
    "add_generation_prompt": (True,), "continue_final_message": (False,),
}  # fmt: skip
_ROLES = ("system", "developer", "user", "assistant", "tool")
_LOWEST_LOGPROB = -9999.0  # as vLLM: minus infinity is not JSON


class ApiError(Exception):
    """An answer in OpenAI's error shape."""

    def __init__(
        self, status: int, message: str, *, kind: str = "BadRequestError", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param = status, kind, param

    def body(self) -> dict[str, Any]:
        """The JSON body; `code` repeats the status, as vLLM does."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.status}}


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A chat completion request, validated."""

    model: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    tools_allowed: bool
    stream: bool
    include_usage: bool
    top_logprobs: int | None
    return_token_ids: bool
    temperature: float
    top_p: float
    max_tokens: int | None
    seed: int | None
    stop: tuple[str, ...]


def parse_chat(document: object) -> ChatRequest:
    """A request's JSON -> ChatRequest.

    Raises:
        ApiError: 400, naming the field.
    """
    if not isinstance(document, dict):
        raise ApiError(400, "the body must be a JSON object")
    body: dict[str, Any] = {k: v for k, v in document.items() if v is not None}
    for name, harmless in _UNSUPPORTED_UNLESS.items():
        if name in body and body[name] not in harmless:
            raise ApiError(
                400, f"{name}={json.dumps(body[name])} is not supported by this server", param=name
            )
    tool_choice = body.get("tool_choice", "auto")
    if tool_choice not in ("auto", "none"):
        raise ApiError(400, "tool_choice must be 'auto' or 'none' on this server", param="tool_choice")
    tools = _field(body, "tools", list, None)
    stream = _field(body, "stream", bool, False)
    options = _field(body, "stream_options", dict, {})
    if options and not stream:
        raise ApiError(400, "stream_options needs stream=true", param="stream_options")
    max_tokens = _number(
        body, "max_completion_tokens", int, 1, 2**31, _number(body, "max_tokens", int, 1, 2**31, None)
    )
    return ChatRequest(
        model=_required(body, "model", str),
        messages=_messages(_required(body, "messages", list)),
        tools=tools,
        # Without tools in the request a call would be noise: OpenAI never answers with one then.
        tools_allowed=bool(tools) and tool_choice == "auto",
        stream=stream,
        include_usage=bool(options.get("include_usage", False)),
        top_logprobs=_top_logprobs(body),
        return_token_ids=_field(body, "return_token_ids", bool, False),
        temperature=_number(body, "temperature", float, 0, 2, 1.0),
        top_p=_number(body, "top_p", float, 1e-6, 1, 1.0),
        max_tokens=max_tokens,
        seed=_number(body, "seed", int, -(2**63), 2**63, None),
        stop=_stop(body),
    )


def chat_response(
    *,
    request: ChatRequest,
    call_id: str,
    created: int,
    answer: Answer,
    tool_call_ids: Sequence[str],
    tokens: Sequence[Token],
    prompt: Sequence[int],
    finish_reason: str,
    text_of: Callable[[int], str],
) -> dict[str, Any]:
    """The whole answer as one JSON object."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.content or None, "refusal": None}
    if answer.tool_calls:
        pairs = zip(tool_call_ids, answer.tool_calls, strict=True)
        message["tool_calls"] = [_tool_call(call_id, call) for call_id, call in pairs]
    elif not answer.content:
        message["content"] = ""
    choice: dict[str, Any] = {
        "index": 0,
        "message": message,
        "logprobs": _logprobs(request, tokens, text_of),
        "finish_reason": "tool_calls" if answer.tool_calls else finish_reason,
    }
    response = _envelope(call_id, "chat.completion", created, request.model)
    response |= {"choices": [choice], "usage": _usage(prompt, len(tokens))}
    if request.return_token_ids:
        choice["token_ids"] = [t.id for t in tokens]
        response["prompt_token_ids"] = list(prompt)
    return response


class ChunkStream:
    """Builds the chunks of one streamed answer. Every token's id and log-probability leaves with exactly one
    chunk."""

    def __init__(
        self,
        *,
        request: ChatRequest,
        call_id: str,
        created: int,
        prompt: Sequence[int],
        text_of: Callable[[int], str],
    ) -> None:
        self._request, self._prompt, self._text_of = request, prompt, text_of
        self._head = _envelope(call_id, "chat.completion.chunk", created, request.model)
        self._waiting: list[Token] = []
        self._count = 0

    def opening(self) -> dict[str, Any]:
        """The first chunk: the role, and the prompt's ids if they were asked for."""
        chunk = self._chunk({"role": "assistant", "content": ""})
        if self._request.return_token_ids:
            chunk["prompt_token_ids"] = list(self._prompt)
        return chunk

    def tokens(self, tokens: Sequence[Token], text: str) -> dict[str, Any] | None:
        """Tokens as they are drawn and the text that they add. Without text the tokens wait for the next
        chunk."""
        self._waiting += tokens
        self._count += len(tokens)
        return self._chunk({"content": text}) if text else None

    def closing(
        self, answer: Answer, tool_call_ids: Sequence[str], rest: str, finish_reason: str
    ) -> list[dict[str, Any]]:
        """What is left: text, tool calls (a call's arguments come whole), the finish reason, and the usage if
        asked for."""
        chunks = [self._chunk({"content": rest})] if rest else []
        for index, (call_id, call) in enumerate(zip(tool_call_ids, answer.tool_calls, strict=True)):
            chunks.append(self._chunk({"tool_calls": [{"index": index, **_tool_call(call_id, call)}]}))
        last = self._chunk({})
        last["choices"][0]["finish_reason"] = "tool_calls" if answer.tool_calls else finish_reason
        chunks.append(last)
        if self._request.include_usage:
            chunks.append({**self._head, "choices": [], "usage": _usage(self._prompt, self._count)})
        return chunks

    def _chunk(self, delta: dict[str, Any]) -> dict[str, Any]:
        tokens, self._waiting = self._waiting, []
        logprobs = _logprobs(self._request, tokens, self._text_of) if tokens else None
        choice: dict[str, Any] = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        if self._request.return_token_ids and tokens:
            choice["token_ids"] = [t.id for t in tokens]
        return {**self._head, "choices": [choice]}


def models_response(models: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`GET /v1/models`."""
    return {"object": "list", "data": list(models)}


def model_entry(*, name: str, root: str, parent: str | None, max_length: int, created: int) -> dict[str, Any]:
    """One served model, with vLLM's fields: an adapter's `parent` is its base, and `root` its folder."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "ratchet",
        "root": root,
        "parent": parent,
        "max_model_len": max_length,
    }


def _envelope(call_id: str, kind: str, created: int, model: str) -> dict[str, Any]:
    return {"id": call_id, "object": kind, "created": created, "model": model, "system_fingerprint": None}


def _usage(prompt: Sequence[int], completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": len(prompt),
        "completion_tokens": completion_tokens,
        "total_tokens": len(prompt) + completion_tokens,
    }


def _tool_call(call_id: str, call: ToolCall) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _logprobs(
    request: ChatRequest, tokens: Sequence[Token], text_of: Callable[[int], str]
) -> dict[str, Any] | None:
    if request.top_logprobs is None:
        return None

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        text = text_of(token_id)
        return {"token": text, "logprob": max(logprob, _LOWEST_LOGPROB), "bytes": list(text.encode())}

    content = []
    for token in tokens:
        assert token.logprob is not None
        content.append(
            {**entry(token.id, token.logprob), "top_logprobs": [entry(*pair) for pair in token.top]}
        )
    return {"content": content, "refusal": None}


def _messages(messages: list[Any]) -> list[dict[str, Any]]:
    if not messages:
        raise ApiError(400, "messages must not be empty", param="messages")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _message(message: object, where: str) -> dict[str, Any]:
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise ApiError(400, f"{where}.role must be one of {', '.join(_ROLES)}", param=f"{where}.role")
    role = "system" if message["role"] == "developer" else message["role"]
    parsed: dict[str, Any] = {
        "role": role,
        "content": _text_content(message.get("content"), f"{where}.content"),
    }
    if role == "tool" and isinstance(message.get("name"), str):
        parsed["name"] = message["name"]
    calls = message.get("tool_calls")
    if calls:
        if role != "assistant" or not isinstance(calls, list):
            raise ApiError(
                400, f"{where}.tool_calls must be a list on an assistant message", param=f"{where}.tool_calls"
            )
        parsed["tool_calls"] = [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    return parsed


def _call(call: object, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ApiError(400, f"{where}.function.name must be text", param=f"{where}.function.name")
    if not isinstance(function.get("arguments"), str):
        raise ApiError(400, f"{where}.function.arguments must be text", param=f"{where}.function.arguments")
    return {"type": "function", "function": {"name": function["name"], "arguments": function["arguments"]}}


def _text_content(content: object, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise ApiError(400, f"{where} must be text or a list of parts", param=where)
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ApiError(400, f"{where} may hold text parts only on this server", param=where)
        texts.append(part["text"])
    return "".join(texts)


def _top_logprobs(body: dict[str, Any]) -> int | None:
    wanted = _field(body, "logprobs", bool, False)
    top: int | None = _number(body, "top_logprobs", int, 0, 20, None)
    if top is not None and not wanted:
        raise ApiError(400, "top_logprobs needs logprobs=true", param="top_logprobs")
    return (top or 0) if wanted else None


def _stop(body: dict[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > 16 or not all(isinstance(s, str) and s for s in stops):
        raise ApiError(400, "stop must be text or a list of at most 16 texts", param="stop")
    return tuple(stops)


def _required(body: dict[str, Any], name: str, kind: type[Any]) -> Any:
    if name not in body:
        raise ApiError(400, f"{name} is missing", param=name)
    return _field(body, name, kind, None)


def _field(body: dict[str, Any], name: str, kind: type[Any], default: Any) -> Any:
    value = body.get(name, default)
    if value is not default and not isinstance(value, kind):
        raise ApiError(400, f"{name} must be of type {kind.__name__}", param=name)
    return value


def _number(body: dict[str, Any], name: str, kind: type[Any], low: float, high: float, default: Any) -> Any:
    value = body.get(name, default)
    if value is default:
        return default
    numeric = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if not numeric or not low <= value <= high:
        raise ApiError(
            400,
            f"{name} must be {'a whole' if kind is int else 'a'} number from {low:g} to {high:g}",
            param=name,
        )
    return kind(value)
