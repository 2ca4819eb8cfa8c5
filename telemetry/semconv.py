"""Ratchet's calls in the words of OpenTelemetry: the one table of names, and where each value comes from.

Owns names, units, bucket boundaries and the mapping from records. Does not send anything (`telemetry.otel`), and
does not know the shape of prompts and answers (`telemetry.otel_content`). The rest of Ratchet uses its own words;
when the conventions rename something, it is renamed here."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from telemetry import otel_content
from telemetry.records import BeginRecord, EndRecord

SCHEMA_URL = "https://opentelemetry.io/schemas/gen-ai-dev/1.42.0-dev"
REVISION = "024a4f944a1291fcb627c9c47da69e79868dd15e"
"""The commit of the GenAI conventions (repository `open-telemetry/semantic-conventions-genai`) that the names follow.
They are in development there and have no releases; `tests/golden/otel` holds what the tests need of them."""

Reader = Callable[[BeginRecord, EndRecord], Any]
"""Reads one value from a call's records; None or an empty text where there is none."""

OPERATIONS = {
    "chat": "chat",
    "responses": "chat",
    "messages": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
}
"""Dialect -> `gen_ai.operation.name`. A call of no dialect is a plain HTTP request."""

API_TYPES = {"chat": "chat_completions", "responses": "responses"}
"""Dialect -> `openai.api.type`."""

OWN_NODES = "ratchet"
"""`gen_ai.provider.name` of answers from policy nodes; the conventions allow names of one's own."""


def _provider(begin: BeginRecord, end: EndRecord) -> str:
    """The wire format's owner: records do not say whose host spoke it, and the conventions ask for the flavour."""
    if (end.served or begin).model_version_id:
        return OWN_NODES
    return "anthropic" if begin.dialect == "messages" else "openai"


def _api_type(begin: BeginRecord, end: EndRecord) -> str | None:
    return API_TYPES.get(begin.dialect) if _provider(begin, end) == "openai" else None


def _is_canary(begin: BeginRecord, end: EndRecord) -> bool | None:
    served = end.served or begin
    return served.is_canary if served.model_version_id else None


def _error_type(begin: BeginRecord, end: EndRecord) -> str | None:
    """The upstream's status when it answered with an error, otherwise how the call failed (a `CallOutcome`)."""
    if end.outcome == "complete":
        return None
    return str(end.status_code) if end.outcome == "upstream_error" and end.status_code else end.outcome


def _finish_reasons(begin: BeginRecord, end: EndRecord) -> list[str] | None:
    if end.finish_reason:
        return [end.finish_reason]
    return None if end.outcome == "complete" else ["error"]


def _first_chunk_s(begin: BeginRecord, end: EndRecord) -> float | None:
    if not begin.stream or end.first_byte_at is None:
        return None
    return (end.first_byte_at - begin.started_at) / 1e6


def _duration_s(begin: BeginRecord, end: EndRecord) -> float:
    return (end.ended_at - begin.started_at) / 1e6


def _if_complete(count: Callable[[EndRecord], int | None]) -> Reader:
    return lambda begin, end: count(end) if end.outcome == "complete" else None


EVERY_CALL: dict[str, Reader] = {
    "http.request.method": lambda begin, end: begin.method,
    "http.response.status_code": lambda begin, end: end.status_code,
    "url.path": lambda begin, end: begin.path,
    "error.type": _error_type,
    "ratchet.call.id": lambda begin, end: begin.call_id,
    "ratchet.project.id": lambda begin, end: begin.project_id,
    "ratchet.call.attempts": lambda begin, end: end.attempts,
}
EVERY_MODEL_CALL: dict[str, Reader] = {
    "gen_ai.operation.name": lambda begin, end: OPERATIONS[begin.dialect],
    "gen_ai.provider.name": _provider,
    "gen_ai.request.model": lambda begin, end: begin.model_requested,
    "gen_ai.response.model": lambda begin, end: (end.served or begin).model_served,
    "gen_ai.usage.input_tokens": lambda begin, end: end.prompt_tokens,
    "ratchet.model_version.id": lambda begin, end: (end.served or begin).model_version_id,
    "ratchet.is_canary": _is_canary,
    "ratchet.cost.microusd": lambda begin, end: end.cost_microusd,
}
INFERENCE: dict[str, Reader] = {
    "gen_ai.conversation.id": lambda begin, end: begin.run_hint,
    "gen_ai.request.stream": lambda begin, end: begin.stream or None,
    "gen_ai.response.id": lambda begin, end: end.response_id,
    "gen_ai.response.finish_reasons": _finish_reasons,
    "gen_ai.response.time_to_first_chunk": _first_chunk_s,
    "gen_ai.usage.output_tokens": lambda begin, end: end.completion_tokens,
    "gen_ai.usage.cache_read.input_tokens": lambda begin, end: end.cached_tokens,
    "gen_ai.usage.reasoning.output_tokens": lambda begin, end: end.reasoning_tokens,
    "openai.api.type": _api_type,
}
CONTENT: dict[str, Reader] = {
    "gen_ai.system_instructions": otel_content.system_instructions,
    "gen_ai.input.messages": otel_content.input_messages,
    "gen_ai.output.messages": otel_content.output_messages,
    "gen_ai.tool.definitions": otel_content.tool_definitions,
}
"""What an operator has to ask for, on spans that have the attributes of INFERENCE."""

SPANS: dict[str, dict[str, Reader]] = {
    "": EVERY_CALL,
    "chat": EVERY_CALL | EVERY_MODEL_CALL | INFERENCE,
    "text_completion": EVERY_CALL | EVERY_MODEL_CALL | INFERENCE,
    "embeddings": EVERY_CALL | EVERY_MODEL_CALL,
}
"""Operation -> the attributes of its span."""

SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TOKENS = tuple(4**power for power in range(14))

WHO = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model", "gen_ai.response.model")
MODALITY = "gen_ai.token.modality"


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """An instrument, and what a call adds to it."""

    name: str
    unit: str
    description: str
    read: Reader
    boundaries: tuple[float, ...] = ()
    """Of a histogram's buckets; a counter has none."""
    attributes: tuple[str, ...] = WHO


def _used(name: str, description: str, count: Callable[[EndRecord], int | None]) -> Metric:
    """A counter of tokens. It grows by 0 where no usage came, as the conventions ask, so that the series exists."""
    return Metric(
        name=f"gen_ai.client.inference.usage.{name}",
        unit="{token}",
        description=description,
        read=lambda begin, end: count(end) or 0,
        attributes=(*WHO, MODALITY),
    )


_OF_INFERENCE = (
    Metric(
        name="gen_ai.client.inference.duration",
        unit="s",
        description="Duration of a call that generates.",
        read=_duration_s,
        boundaries=SECONDS,
        attributes=(*WHO, "error.type"),
    ),
    Metric(
        name="gen_ai.client.inference.time_to_first_chunk",
        unit="s",
        description="Time from the start of a streamed call to its first bytes.",
        read=_first_chunk_s,
        boundaries=SECONDS,
    ),
    _used("input_tokens", "Tokens that went in, cached ones among them.", lambda end: end.prompt_tokens),
    _used(
        "output_tokens", "Tokens that came out, thought ones among them.", lambda end: end.completion_tokens
    ),
    _used("cache_read.input_tokens", "Tokens that the provider had cached.", lambda end: end.cached_tokens),
    _used("reasoning.output_tokens", "Tokens that a model thought with.", lambda end: end.reasoning_tokens),
    Metric(
        name="gen_ai.client.inference.operation.input_tokens",
        unit="{token}",
        description="Tokens that went into one complete call.",
        read=_if_complete(lambda end: end.prompt_tokens),
        boundaries=TOKENS,
    ),
    Metric(
        name="gen_ai.client.inference.operation.output_tokens",
        unit="{token}",
        description="Tokens that came out of one complete call.",
        read=_if_complete(lambda end: end.completion_tokens),
        boundaries=TOKENS,
    ),
)
_OF_EMBEDDINGS = (
    Metric(
        name="gen_ai.client.embeddings.duration",
        unit="s",
        description="Duration of a call that embeds.",
        read=_duration_s,
        boundaries=SECONDS,
        attributes=(*WHO, "error.type"),
    ),
    Metric(
        name="gen_ai.client.embeddings.operation.input_tokens",
        unit="{token}",
        description="Tokens of one complete call that embeds.",
        read=_if_complete(lambda end: end.prompt_tokens),
        boundaries=TOKENS,
    ),
)
METRICS = {"chat": _OF_INFERENCE, "text_completion": _OF_INFERENCE, "embeddings": _OF_EMBEDDINGS}
"""Operation -> its metrics. Calls without a model are in the gateway's own /metrics."""


def operation(begin: BeginRecord) -> str:
    """`gen_ai.operation.name`; empty for a call of no dialect."""
    return OPERATIONS.get(begin.dialect, "")


def span_name(attributes: dict[str, Any]) -> str:
    """Of few different values, as the conventions ask: no ids and no paths."""
    words = (attributes.get("gen_ai.operation.name"), attributes.get("gen_ai.request.model"))
    return " ".join(word for word in words if word) or attributes["http.request.method"]


def attributes_of(begin: BeginRecord, end: EndRecord, *, content: bool) -> dict[str, Any]:
    """A span's attributes; what is absent or empty is left out."""
    readers = SPANS[operation(begin)]
    if content and readers.keys() >= INFERENCE.keys():
        readers = readers | CONTENT
    values = {name: read(begin, end) for name, read in readers.items()}
    return {name: _attribute(value) for name, value in values.items() if value not in (None, "", [])}


def measurements(
    begin: BeginRecord, end: EndRecord, attributes: dict[str, Any]
) -> Iterator[tuple[Metric, float, dict[str, Any]]]:
    """What a call adds to which metric, under which of its span's `attributes`."""
    labels = {**attributes, MODALITY: "unknown"}  # no record says of what kind its tokens were
    for metric in METRICS.get(operation(begin), ()):
        value = metric.read(begin, end)
        if value is not None:
            yield metric, value, {name: labels[name] for name in metric.attributes if name in labels}


def _attribute(value: Any) -> Any:
    if isinstance(value, bool | int | float | list):
        return value
    return otel_content.sendable(str(value))
