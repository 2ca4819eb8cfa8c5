"""What a gateway writes to its spool, as frozen types, and their form as bytes.

A record is a JSON header and, for calls, the customer's bytes behind it, untouched. Does not know files or
tables: `telemetry.spool` frames and stores the bytes, `telemetry.ingest` turns records into rows. Times are
Unix microseconds."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from operator import attrgetter
from typing import Any, ClassVar
from uuid import UUID

import orjson


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """Which model a call was sent to."""

    model_served: str = ""
    model_version_id: UUID | None = None
    deployment_id: UUID | None = None
    is_canary: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class BeginRecord:
    """A call is about to be relayed: appended before the upstream hears of it."""

    KIND: ClassVar[int] = 1
    BODY: ClassVar[str] = "request"

    call_id: UUID
    project_id: UUID
    api_key_id: UUID
    started_at: int
    dialect: str
    """`chat`, `responses`, ...; empty for what passes through uninterpreted, whose bytes are not kept."""
    method: str
    path: str
    model_requested: str = ""
    model_served: str = ""
    model_version_id: UUID | None = None
    deployment_id: UUID | None = None
    is_canary: bool = False
    stream: bool = False
    retry_count: int = 0
    run_hint: UUID | None = None
    run_name: str = ""
    external_key: str = ""
    """The project's own key for what the run is about."""
    prefix_hash: bytes | None = None
    parent_hashes: tuple[bytes, ...] = ()
    repeat_hashes: tuple[bytes, ...] = ()
    result_hashes: tuple[bytes, ...] = ()
    continues: str = ""
    """The id of the response that the request names as its past."""
    trace_id: str = ""
    """The caller's W3C trace, as 32 hexadecimal digits."""
    is_shed: bool = False
    """Whether the spool left the body out, because it was nearly full."""
    is_opted_out: bool = False
    """Nothing may be learnt from the call: the caller or its API key says so."""
    request: bytes = b""
    """The client's body, without its content encoding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EndRecord:
    """A call is over: appended before the answer's last byte leaves. A begin without an end means a killed
    gateway."""

    KIND: ClassVar[int] = 2
    BODY: ClassVar[str] = "response"

    call_id: UUID
    outcome: str
    """A `telemetry.models.CallOutcome`."""
    status_code: int | None = None
    response_id: str = ""
    finish_reason: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    """Of the prompt's tokens, those that the provider had cached."""
    reasoning_tokens: int | None = None
    """Of the completion's tokens, those that the model thought with."""
    cost_microusd: int | None = None
    """What the upstream's price list says the call cost, in millionths of a US dollar; None without a price."""
    tool_call_count: int = 0
    tool_calls: tuple[tuple[str, str], ...] = ()
    """The model's id for each tool call that it asked for, and the tool."""
    echo_hash: bytes | None = None
    said_hash: bytes | None = None
    upstream_id: UUID | None = None
    """The provider that answered; None for a policy node of ours, and when nobody answered."""
    attempts: int = 1
    """How often the call was sent, retries and fallbacks counted."""
    served: Served | None = None
    """Set when a fallback answered: what stands here replaces the begin record's plan."""
    hidden: tuple[str, ...] = ()
    """What was asked for on the gateway's own account, so that the client did not see it: `usage`,
    `token_ids`, `logprobs`. `response` holds it."""
    first_byte_at: int | None = None
    ended_at: int
    is_shed: bool = False
    """Whether the spool left the body out, because it was nearly full."""
    response: bytes = b""
    """What of the answer was received, without its content encoding."""
    response_type: str = ""
    """Its media type; `; content-encoding=br` follows when that encoding could not be undone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SignalRecord:
    """Feedback that was accepted."""

    KIND: ClassVar[int] = 3
    BODY: ClassVar[str] = ""

    signal_id: UUID
    project_id: UUID
    api_key_id: UUID
    target_type: str
    target: str
    name: str
    value: Any
    step: int | None = None
    source: str = "feedback"
    supersedes: UUID | None = None
    """The signal that this one takes the place of."""
    idempotency_key: str = ""
    observed_at: int
    received_at: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LossRecord:
    """Records of which something could not be kept. The sequence numbers of what is missing are used up, so the
    gap and this record explain each other."""

    KIND: ClassVar[int] = 4
    BODY: ClassVar[str] = ""

    first_sequence: int
    last_sequence: int
    count: int
    """How many of them it was."""
    reason: str
    """A `telemetry.shedding.Shed`."""
    recorded_at: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SpanRecord:
    """A span of the customer's own instrumentation that was accepted; its fields are those of
    `telemetry.otlp.OtlpSpan` and `telemetry.otlp_conventions.AgentSpan`."""

    KIND: ClassVar[int] = 5
    BODY: ClassVar[str] = ""

    project_id: UUID
    api_key_id: UUID
    trace_id: str
    span_id: str
    parent_span_id: str = ""
    run_name: str = ""
    """The run that the sender named for all spans of its request."""
    kind: str
    name: str = ""
    service: str = ""
    agent_name: str = ""
    tool_name: str = ""
    tool_call_id: str = ""
    arguments: str = ""
    result: str = ""
    conversation_id: str = ""
    response_id: str = ""
    model: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str = ""
    others: dict[str, Any] | None = None
    started_at: int
    ended_at: int
    received_at: int
    """By the gateway's clock; the two before by the sender's."""


Record = BeginRecord | EndRecord | SignalRecord | LossRecord | SpanRecord


class UnknownRecord(ValueError):
    """The bytes are a whole record, of a kind or shape that this version does not know."""


def encode(record: Record) -> tuple[int, bytes, bytes]:
    """A record as its kind, JSON header and raw body. What is at its default is left out of the header."""
    shape = _SHAPES[record.KIND]
    values = zip(shape.names, shape.values(record), shape.defaults, strict=True)
    header = {name: value for name, value, default in values if value is not default}
    body: bytes = getattr(record, record.BODY) if record.BODY else b""
    return record.KIND, orjson.dumps(header, default=bytes.hex), body


def decode(kind: int, header: bytes, body: bytes) -> Record:
    """The record that `encode` saw. Fields that this version does not know are dropped. Raises
    UnknownRecord."""
    shape = _SHAPES.get(kind)
    if shape is None:
        raise UnknownRecord(f"record kind {kind} is not known to this version")
    try:
        stored = orjson.loads(header)
        if not shape.known.issuperset(stored):
            stored = {name: value for name, value in stored.items() if name in shape.known}
        for name, parse in shape.parsers:
            value = stored.get(name)
            if value is not None:
                stored[name] = parse(value)
        if shape.type.BODY:
            stored[shape.type.BODY] = body
        return shape.type(**stored)
    except (ValueError, TypeError, AttributeError) as error:
        raise UnknownRecord(f"record of kind {kind} has a shape that this version does not know") from error


def _hashes(value: list[str]) -> tuple[bytes, ...]:
    return tuple(bytes.fromhex(item) for item in value)


def _pairs(value: list[list[str]]) -> tuple[tuple[str, str], ...]:
    return tuple((first, second) for first, second in value)


def _served(value: dict[str, Any]) -> Served:
    ids = {name: UUID(value[name]) for name in ("model_version_id", "deployment_id") if value.get(name)}
    return Served(model_served=value.get("model_served", ""), is_canary=value.get("is_canary", False), **ids)


# The same few stand in record after record, and to parse one takes longer than to look it up.
_repeated_id = lru_cache(maxsize=4096)(UUID)

_PARSERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(["call_id", "signal_id", "run_hint", "supersedes"], UUID),
    **dict.fromkeys(
        ["project_id", "api_key_id", "model_version_id", "deployment_id", "upstream_id"], _repeated_id
    ),
    "served": _served,
    "hidden": tuple,
    "tool_calls": _pairs,
    "prefix_hash": bytes.fromhex,
    "echo_hash": bytes.fromhex,
    "said_hash": bytes.fromhex,
    **dict.fromkeys(["parent_hashes", "repeat_hashes", "result_hashes"], _hashes),
}


class _Shape:
    """What the two functions above ask of a record's type for each record, worked out once."""

    def __init__(self, record_type: type[Record]) -> None:
        header = [field for field in fields(record_type) if field.name != record_type.BODY]
        self.type = record_type
        self.names = tuple(field.name for field in header)
        self.known = frozenset(self.names)
        self.values: Callable[[Record], tuple[Any, ...]] = attrgetter(*self.names)
        # MISSING is no value that a record holds: a field without a default is always written.
        self.defaults = tuple(field.default for field in header)
        self.parsers = tuple((name, _PARSERS[name]) for name in self.names if name in _PARSERS)


_SHAPES = {
    record_type.KIND: _Shape(record_type)
    for record_type in (BeginRecord, EndRecord, SignalRecord, LossRecord, SpanRecord)
}
