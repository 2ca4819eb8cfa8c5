"""OpenAI's Responses, read from bytes: input items as chat messages, what an answer says. JSON and event streams.
Pure, and lenient.

A turn of the model is one assistant message, however many items it takes: its texts, its calls of the caller's
tools. What callers leave out or change when they send a turn back (reasoning, hosted tools, ids of items) stands
beside, where no run is stitched by it. https://platform.openai.com/docs/api-reference/responses"""

from collections.abc import Iterable, Iterator
from typing import Any

from telemetry.wire import event_stream
from telemetry.wire.answer import Answer
from telemetry.wire.lenient import compact, count, load_object, mapping, mappings, text

TERMINAL_EVENTS = frozenset({"response.completed", "response.incomplete", "response.failed", "error"})
_UNDER_WAY = frozenset({"queued", "in_progress"})
_MODEL_ITEMS = frozenset({"reasoning", "compaction", "mcp_list_tools", "mcp_approval_request", "program"})
_ARGUMENTS = ("arguments", "input", "action", "operation")
_DELTAS = {
    "response.output_text.delta": ("output_text", "text"),
    "response.refusal.delta": ("refusal", "refusal"),
    "response.function_call_arguments.delta": ("", "arguments"),
    "response.custom_tool_call_input.delta": ("", "input"),
}
"""Event -> the kind of part that it continues (none: the item itself), and the member."""


def request_messages(document: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """What the model is asked, as chat messages.

    With `previous_response_id`, `conversation` or a stored `prompt` the request holds only what is new: they stand
    first, as messages of those roles, so that equal words after different pasts are not taken for equal."""
    prompt = mapping(document.get("prompt"))
    past = {
        "previous_response": text(document.get("previous_response_id")),
        "conversation": conversation_id(document),
        "prompt": compact(prompt) if prompt else "",
        "system": document.get("instructions"),
    }
    messages = [
        {"role": role, "content": content}
        for role, content in past.items()
        if content and isinstance(content, str | list)
    ]
    asked = document.get("input")
    if isinstance(asked, str):
        return (*messages, {"role": "user", "content": asked})
    return (*messages, *_messages(mappings(asked)))


def conversation_id(document: dict[str, Any]) -> str:
    """The stored conversation that a request belongs to, if any."""
    conversation = document.get("conversation")
    return text(conversation) or text(mapping(conversation).get("id"))


def read_answer(body: bytes, *, is_stream: bool) -> Answer:
    """An answer, whole or cut."""
    if not is_stream:
        response = load_object(body)
        return _answer(response, mappings(response.get("output")), is_whole=bool(response))
    return _read_stream(body)


def _answer(response: dict[str, Any], output: list[dict[str, Any]], *, is_whole: bool) -> Answer:
    usage = mapping(response.get("usage"))
    status = text(response.get("status"))
    reason = text(mapping(response.get("incomplete_details")).get("reason"))
    return Answer(
        response_id=text(response.get("id")),
        message=_turn(output) if output else None,
        finish_reason=reason or ("" if status in _UNDER_WAY else status),
        prompt_tokens=count(usage.get("input_tokens")),
        completion_tokens=count(usage.get("output_tokens")),
        cached_tokens=count(mapping(usage.get("input_tokens_details")).get("cached_tokens")),
        reasoning_tokens=count(mapping(usage.get("output_tokens_details")).get("reasoning_tokens")),
        is_whole=is_whole,
    )


def _read_stream(body: bytes) -> Answer:
    response: dict[str, Any] = {}
    items: dict[int, dict[str, Any]] = {}
    is_whole = False
    for data in event_stream.data(body):
        event = load_object(data)
        kind = text(event.get("type"))
        response = mapping(event.get("response")) or response
        index = event.get("output_index")
        if kind in TERMINAL_EVENTS:
            is_whole = True
        elif not isinstance(index, int):
            continue
        elif kind in {"response.output_item.added", "response.output_item.done"}:
            items[index] = mapping(event.get("item"))
        elif kind in _DELTAS:
            _add_delta(
                items.setdefault(index, {"type": "message", "role": "assistant"}), event, *_DELTAS[kind]
            )
    # The last event repeats everything; of a cut stream, and from servers that leave it out there, the pieces count.
    output = mappings(response.get("output")) or [items[index] for index in sorted(items)]
    return _answer(response, output, is_whole=is_whole)


def _add_delta(item: dict[str, Any], event: dict[str, Any], part_kind: str, member: str) -> None:
    whole = item
    if part_kind:
        parts = item.get("content")
        if not isinstance(parts, list):
            parts = item["content"] = []
        at = event.get("content_index")
        place = next((part for part in mappings(parts) if part.get("at") == at), None)
        if place is None:
            place = {"type": part_kind, "at": at}
            parts.append(place)
        whole = place
    whole[member] = text(whole.get(member)) + text(event.get("delta"))


def _messages(items: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    turn: list[dict[str, Any]] = []
    for item in items:
        if _is_of_model(item):
            turn.append(item)
            continue
        if turn:
            yield _turn(turn)
            turn = []
        yield _other(item)
    if turn:
        yield _turn(turn)


def _is_of_model(item: dict[str, Any]) -> bool:
    kind = text(item.get("type"))
    if kind in {"", "message"}:
        return item.get("role") == "assistant"
    if kind.endswith("_output"):
        return not text(item.get("call_id"))  # of a hosted tool
    return kind.endswith("_call") or kind in _MODEL_ITEMS or kind == "item_reference"


def _turn(items: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Items of the model in a row, as one message."""
    parts: list[Any] = []
    refusals: list[str] = []
    calls: list[dict[str, Any]] = []
    reasoning: list[str] = []
    hosted: list[dict[str, Any]] = []
    for item in items:
        kind, call_id = text(item.get("type")), text(item.get("call_id"))
        if kind in {"", "message"}:
            _add_content(parts, refusals, item.get("content"))
        elif kind == "item_reference":
            parts.append({"type": kind, "id": item.get("id")})
        elif kind == "reasoning":
            thoughts = [*mappings(item.get("summary")), *mappings(item.get("content"))]
            reasoning += [text(thought.get("text")) for thought in thoughts]
        elif call_id and not kind.endswith("_output"):
            calls.append(_tool_call(item, kind, call_id))
        else:
            hosted.append(item)
    is_text = len(parts) == 1 and mapping(parts[0]).get("type") == "text"
    message: dict[str, Any] = {
        "role": "assistant",
        "content": parts[0]["text"] if is_text else parts or None,
    }
    rest = {
        "refusal": "".join(refusals),
        "tool_calls": calls,
        "reasoning": "\n".join(filter(None, reasoning)),
        "hosted": hosted,
    }
    return message | {name: value for name, value in rest.items() if value}


def _add_content(parts: list[Any], refusals: list[str], content: Any) -> None:
    if isinstance(content, str):
        parts.append({"type": "text", "text": content})
    for part in content if isinstance(content, list) else []:
        fields = mapping(part)
        if isinstance(fields.get("text"), str):
            parts.append({"type": "text", "text": fields["text"]})
        elif isinstance(fields.get("refusal"), str):
            refusals.append(fields["refusal"])
        else:
            parts.append(part)


def _tool_call(item: dict[str, Any], kind: str, call_id: str) -> dict[str, Any]:
    given = next((item[name] for name in _ARGUMENTS if item.get(name) is not None), "")
    if kind == "custom_tool_call":
        given = {"input": given}  # free text, and arguments are JSON
    name = text(item.get("name")) or kind.removesuffix("_call")
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": compact(given)}}


def _other(item: dict[str, Any]) -> dict[str, Any]:
    """An item of the caller as one message."""
    kind, role = text(item.get("type")), text(item.get("role"))
    if kind in {"", "message"}:
        return {"role": role or "user", "content": item.get("content")}
    if kind.endswith("_output"):
        given = item.get("output", item.get("tools"))
        content = given if isinstance(given, str | list) else compact(given)
        return {"role": "tool", "tool_call_id": text(item.get("call_id")), "content": content}
    told = {name: value for name, value in item.items() if name not in {"id", "status"}}
    return {"role": role or kind, "content": compact(told)}
