"""Raw text of an answer <-> content and tool calls, in the Hermes form that Qwen models use:
`<tool_call>{json}</tool_call>`.

Pure. One function decides for whole answers and for streams, so that both always say the same."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
_CALL = re.compile(re.escape(CALL_OPEN) + r"(.*?)" + re.escape(CALL_CLOSE), re.DOTALL)


@dataclass(frozen=True)
class ToolCall:
    """A call that parsed: the tool's name and its arguments as JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Answer:
    """What an assistant said. `content` is the raw text, marks included, where a call does not parse: the
    caller must see it."""

    content: str
    tool_calls: tuple[ToolCall, ...]


def parse(text: str) -> Answer:
    """Split an answer's text. Either every call in it parses, or none counts and all of it is content."""
    head, mark, rest = text.partition(CALL_OPEN)
    if not mark:
        return Answer(text, ())
    calls = []
    for body in _CALL.findall(mark + rest):
        try:
            call = json.loads(body)
            name, arguments = call["name"], call.get("arguments") or {}
        except (ValueError, TypeError, KeyError, AttributeError):
            return Answer(text, ())
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return Answer(text, ())
        calls.append(ToolCall(name, json.dumps(arguments, ensure_ascii=False)))
    if not calls or _CALL.sub("", mark + rest).strip():
        return Answer(text, ())
    return Answer(head, tuple(calls))


def streamable(text: str) -> str:
    """The part of an unfinished answer that is content whatever follows: up to a call mark, or what may
    become one."""
    head, mark, _ = text.partition(CALL_OPEN)
    if mark:
        return head
    for length in range(len(CALL_OPEN) - 1, 0, -1):
        if head.endswith(CALL_OPEN[:length]):
            return head[:-length]
    return head
