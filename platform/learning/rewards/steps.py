"""Facts of each step of an episode, read from the messages of a chat: the countable side of a reward.

Pure; works on production episodes and on the trainer's rollouts alike. What a fact costs is the reward spec's
business."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from learning.environments.base import argument_problem


@dataclass(frozen=True, kw_only=True)
class StepFacts:
    """One agent turn: one model call and the tool calls that it asked for."""

    model_calls: int = 1
    tool_calls: int = 0
    malformed: int = 0
    """Tool calls that could not be parsed, named no offered tool, or had arguments that do not fit it."""
    repeated: int = 0
    """Tool calls equal, name and arguments, to an earlier one of the same episode."""
    tokens: int = 0
    """Prompt and completion tokens together; 0 where the caller does not know."""


def steps_from_messages(
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    call_marker: str = "<tool_call>",
) -> list[StepFacts]:
    """The facts of every assistant message, in order.

    Args:
        messages: OpenAI-style messages; tool call arguments may be JSON text or objects.
        tools: The tools offered, in OpenAI's format; without them only unparsable arguments count as
            malformed.
        call_marker: How a tool call starts in this model's raw text. An assistant message whose text still
            has one holds a call
            that did not parse: servers and TRL hand such text back as a final answer, and it must not pass as
            one.
    """
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools or ()}
    seen: set[str] = set()
    facts = []
    for message in messages:
        if message["role"] != "assistant":
            continue
        calls = message.get("tool_calls") or []
        malformed = (message.get("content") or "").count(call_marker)
        repeated = 0
        for call in calls:
            function = call["function"]
            name, arguments = function["name"], _parsed(function["arguments"])
            if not isinstance(arguments, dict) or (
                tools is not None
                and (name not in schemas or argument_problem(schemas[name], arguments) is not None)
            ):
                malformed += 1
            key = json.dumps([name, arguments], sort_keys=True)
            repeated += key in seen
            seen.add(key)
        facts.append(StepFacts(tool_calls=len(calls), malformed=malformed, repeated=repeated))
    return facts


def _parsed(arguments: object) -> object:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments
