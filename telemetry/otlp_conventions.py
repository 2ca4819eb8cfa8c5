"""What agents' spans say of agents, tools and models, read by the names of each convention: one table a version.

The GenAI conventions of today (semantic-conventions-genai), those of v1.41 and v1.36, and OpenInference. A span may
mix them, because instrumentations do: for each fact the first name that is there counts, today's before older ones.
Pure; attributes come from strangers, so what has another type than expected counts as absent.

Arguments and results are kept, cut to a length: they are what a span says beyond the calls. Prompts and answers on
spans of model calls are not: a call through the gateway is kept as its own bytes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import orjson

MAX_CONTENT_CHARACTERS = 64 << 10
"""Of arguments and of a result; what is longer is cut."""
MAX_TEXT_CHARACTERS = 200
MAX_OTHERS = 64
MAX_OTHER_CHARACTERS = 1000


class SpanKind(StrEnum):
    """What a span stands for."""

    AGENT = "agent"
    TOOL = "tool"
    INFERENCE = "inference"
    OTHER = "other"


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentSpan:
    """What one span says, whatever the convention."""

    kind: SpanKind = SpanKind.OTHER
    agent_name: str = ""
    tool_name: str = ""
    tool_call_id: str = ""
    """As the model named the call of the tool."""
    arguments: str = ""
    """What went in, as text; JSON where it was JSON."""
    result: str = ""
    conversation_id: str = ""
    response_id: str = ""
    """Of the model's answer, as the provider named it."""
    model: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str = ""
    """A class of error, or the sentence that came with a failed status."""
    others: Mapping[str, Any]
    """The attributes that none of the conventions' names stand for, as many as are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Convention:
    """The names that one version gives the facts. An empty tuple: it has none for it."""

    name: str
    kind: str
    """The attribute that tells the kind."""
    kinds: Mapping[str, SpanKind]
    agent_name: tuple[str, ...] = ()
    tool_name: tuple[str, ...] = ()
    tool_call_id: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    result: tuple[str, ...] = ()
    conversation_id: tuple[str, ...] = ()
    response_id: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    prompt_tokens: tuple[str, ...] = ()
    completion_tokens: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    """Prefixes of what a span of a model call repeats of the call's own bytes."""


_OPERATIONS_1_36 = {
    "chat": SpanKind.INFERENCE,
    "text_completion": SpanKind.INFERENCE,
    "generate_content": SpanKind.INFERENCE,
    "create_agent": SpanKind.AGENT,
    "invoke_agent": SpanKind.AGENT,
    "execute_tool": SpanKind.TOOL,
}

GENAI_TODAY = Convention(
    name="genai",
    kind="gen_ai.operation.name",
    kinds={**_OPERATIONS_1_36, "invoke_workflow": SpanKind.AGENT, "plan": SpanKind.AGENT},
    agent_name=("gen_ai.agent.name", "gen_ai.workflow.name"),
    tool_name=("gen_ai.tool.name",),
    tool_call_id=("gen_ai.tool.call.id",),
    arguments=("gen_ai.tool.call.arguments",),
    result=("gen_ai.tool.call.result",),
    conversation_id=("gen_ai.conversation.id",),
    response_id=("gen_ai.response.id",),
    model=("gen_ai.response.model", "gen_ai.request.model"),
    prompt_tokens=("gen_ai.usage.input_tokens",),
    completion_tokens=("gen_ai.usage.output_tokens",),
    prompts=(
        "gen_ai.input.messages",
        "gen_ai.output.messages",
        "gen_ai.system_instructions",
        "gen_ai.tool.definitions",
    ),
)
GENAI_1_41 = replace(
    GENAI_TODAY,
    name="genai-1.41",
    kinds={**_OPERATIONS_1_36, "invoke_workflow": SpanKind.AGENT},
    prompts=("gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions"),
)
GENAI_1_36 = replace(
    GENAI_TODAY,
    name="genai-1.36",
    kinds=_OPERATIONS_1_36,
    agent_name=("gen_ai.agent.name",),
    arguments=(),
    result=(),
    # The second names are older still; instrumentations of that age went on with them.
    prompt_tokens=("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens"),
    completion_tokens=("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens"),
    prompts=("gen_ai.prompt", "gen_ai.completion"),
)
OPENINFERENCE = Convention(
    name="openinference",
    kind="openinference.span.kind",
    kinds={
        "AGENT": SpanKind.AGENT,
        "TOOL": SpanKind.TOOL,
        "LLM": SpanKind.INFERENCE,
    },
    agent_name=("agent.name", "graph.node.name"),
    tool_name=("tool.name",),
    tool_call_id=("tool.id", "tool_call.id"),
    arguments=("input.value", "tool.parameters"),
    result=("output.value",),
    conversation_id=("session.id",),
    model=("llm.model_name",),
    prompt_tokens=("llm.token_count.prompt",),
    completion_tokens=("llm.token_count.completion",),
    prompts=(
        "llm.input_messages",
        "llm.output_messages",
        "llm.prompts",
        "llm.tools",
        "input.value",
        "output.value",
    ),
)
CONVENTIONS = (GENAI_TODAY, GENAI_1_41, GENAI_1_36, OPENINFERENCE)

_FACTS = (
    "agent_name", "tool_name", "tool_call_id", "arguments", "result", "conversation_id", "response_id", "model",
    "prompt_tokens", "completion_tokens",
)  # fmt: skip
_ERROR_TYPE = "error.type"


def _names() -> dict[str, tuple[str, ...]]:
    """Fact -> all its names, in the order in which they are looked for."""
    return {
        fact: tuple(dict.fromkeys(name for convention in CONVENTIONS for name in getattr(convention, fact)))
        for fact in _FACTS
    }


NAMES = _names()
KNOWN = frozenset(
    {name for names in NAMES.values() for name in names}
    | {convention.kind for convention in CONVENTIONS}
    | {_ERROR_TYPE}
)
"""Attributes that are read here, however many others stand before them."""
PROMPTS = tuple(dict.fromkeys(prefix for convention in CONVENTIONS for prefix in convention.prompts))


def read(attributes: Mapping[str, Any], *, failure: str) -> AgentSpan:
    """What the attributes say. `failure` is the sentence of a failed status, or an empty text."""
    kind = _kind(attributes)
    has_content = kind is not SpanKind.INFERENCE
    return AgentSpan(
        kind=kind,
        agent_name=_text(_first(attributes, "agent_name")),
        tool_name=_text(_first(attributes, "tool_name")),
        tool_call_id=_text(_first(attributes, "tool_call_id")),
        conversation_id=_text(_first(attributes, "conversation_id")),
        response_id=_text(_first(attributes, "response_id")),
        model=_text(_first(attributes, "model")),
        prompt_tokens=_count(_first(attributes, "prompt_tokens")),
        completion_tokens=_count(_first(attributes, "completion_tokens")),
        arguments=_content(_first(attributes, "arguments")) if has_content else "",
        result=_content(_first(attributes, "result")) if has_content else "",
        error=(_text(attributes.get(_ERROR_TYPE)) or failure)[:MAX_TEXT_CHARACTERS],
        others=_others(attributes),
    )


def _kind(attributes: Mapping[str, Any]) -> SpanKind:
    for convention in CONVENTIONS:
        said = attributes.get(convention.kind)
        if isinstance(said, str) and said in convention.kinds:
            return convention.kinds[said]
    return SpanKind.OTHER


def _first(attributes: Mapping[str, Any], fact: str) -> Any:
    return next((attributes[name] for name in NAMES[fact] if attributes.get(name) not in (None, "")), None)


def _text(value: Any) -> str:
    return value[:MAX_TEXT_CHARACTERS] if isinstance(value, str) else ""


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 31 else None


def _content(value: Any) -> str:
    text = value if isinstance(value, str) else "" if value is None else orjson.dumps(value).decode()
    return text[:MAX_CONTENT_CHARACTERS]


def _others(attributes: Mapping[str, Any]) -> dict[str, Any]:
    others: dict[str, Any] = {}
    for name, value in attributes.items():
        if name in KNOWN or name.startswith(PROMPTS) or len(name) > MAX_TEXT_CHARACTERS:
            continue
        if not isinstance(value, bool | int | float):
            value = _content(value)[:MAX_OTHER_CHARACTERS]
        others[name] = value
        if len(others) == MAX_OTHERS:
            break
    return others
