"""OTLP export requests -> typed spans: protobuf, and the JSON mapping of OpenTelemetry (ids in hex, 64-bit numbers as
text). And back, what such a request is answered with.

Pure, and never raises but for bytes that are no export request at all: a span that cannot be one is counted and left
out, a value that is too long or too deep is cut. What attributes mean is `telemetry.otlp_conventions`'."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from telemetry.otlp_conventions import KNOWN, MAX_CONTENT_CHARACTERS
from telemetry.wire.lenient import mapping, mappings, text

MAX_SPANS = 5000
"""In one request; SDKs send 512 by default."""
MAX_DEPTH = 8
"""Of a value made of values."""
MAX_ITEMS = 200
"""Of one value made of values, all levels together."""
MAX_ATTRIBUTES = 128
"""Of a span, beside those that a convention names."""
MAX_NAME_CHARACTERS = 200
_CUT = "…"
_MAX_INT, _MAX_UINT = 1 << 63, 1 << 64


class Malformed(ValueError):
    """The bytes are no export request; the sentence says why."""


@dataclass(frozen=True, slots=True)
class OtlpSpan:
    """One span as it was sent."""

    trace_id: str
    """32 hex digits."""
    span_id: str
    """16 hex digits."""
    parent_span_id: str
    """Empty for the trace's root."""
    name: str
    started_at: int
    """Unix microseconds by the sender's clock; 0 when it was not said, as for the end."""
    ended_at: int
    attributes: Mapping[str, Any]
    service: str
    """The resource's `service.name`."""
    failure: str
    """What came with a failed status, `error` when nothing did; empty for any other status."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What of a request can be kept, and what cannot."""

    spans: tuple[OtlpSpan, ...]
    refused: Counter[str]
    """Reason -> number of spans."""


def parse(body: bytes, *, is_json: bool) -> Parsed:
    """The spans of an export request. Raises Malformed."""
    raw = _raw_of_json(body) if is_json else _raw_of_protobuf(body)
    spans: list[OtlpSpan] = []
    refused = Counter[str]()
    for span in raw:
        if len(spans) == MAX_SPANS:
            refused[f"a request may hold {MAX_SPANS} spans"] += 1
        elif wrong := _wrong(span):
            refused[wrong] += 1
        else:
            spans.append(span)
    return Parsed(tuple(spans), refused)


def answer(refused: Mapping[str, int], *, is_json: bool) -> bytes:
    """The body of a 200: empty, or how many spans were refused and why."""
    count = sum(refused.values())
    sentence = "; ".join(f"{number} refused: {reason}" for reason, number in refused.items())
    if is_json:
        partial = {"rejectedSpans": str(count), "errorMessage": sentence}
        return orjson.dumps({"partialSuccess": partial} if count else {})
    response = ExportTraceServiceResponse()
    if count:
        response.partial_success.rejected_spans = count
        response.partial_success.error_message = sentence
    return bytes(response.SerializeToString())


def failure(message: str, *, is_json: bool) -> bytes:
    """The body of an error: a `google.rpc.Status`."""
    return (
        orjson.dumps({"message": message}) if is_json else bytes(Status(message=message).SerializeToString())
    )


def _wrong(span: OtlpSpan) -> str:
    if not _is_id(span.trace_id, 32):
        return "a trace id must be 16 bytes that are not all zero"
    if not _is_id(span.span_id, 16):
        return "a span id must be 8 bytes that are not all zero"
    return ""


def _is_id(digits: str, length: int) -> bool:
    return len(digits) == length and not set(digits) - set("0123456789abcdef") and digits.strip("0") != ""


def _parent(digits: str) -> str:
    return digits if _is_id(digits, 16) else ""


# Protobuf.


def _raw_of_protobuf(body: bytes) -> Iterator[OtlpSpan]:
    request = ExportTraceServiceRequest()
    try:
        request.ParseFromString(body)
    except (DecodeError, RecursionError):
        raise Malformed("the body is no ExportTraceServiceRequest in protobuf") from None
    return _spans_of_message(request)


def _spans_of_message(request: ExportTraceServiceRequest) -> Iterator[OtlpSpan]:
    for resource in request.resource_spans:
        service = _service(_kept(_pairs_of_message(resource.resource.attributes)))
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield OtlpSpan(
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_span_id=_parent(span.parent_span_id.hex()),
                    name=span.name[:MAX_NAME_CHARACTERS],
                    started_at=span.start_time_unix_nano // 1000,
                    ended_at=span.end_time_unix_nano // 1000,
                    attributes=_kept(_pairs_of_message(span.attributes)),
                    service=service,
                    failure=_failure(span.status.code, span.status.message),
                )


_Pair = tuple[str, Callable[["_Budget"], Any]]
"""An attribute's name, and how its value is read when it is kept."""


def _pairs_of_message(attributes: Iterable[KeyValue]) -> Iterator[_Pair]:
    for attribute in attributes:
        yield attribute.key, partial(_of_message, attribute.value)


def _of_message(value: AnyValue, budget: "_Budget", depth: int = 0) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        items = value.array_value.values
        return [_of_message(item, budget, depth + 1) for item in budget.take(items, depth)]
    if kind == "kvlist_value":
        pairs = value.kvlist_value.values
        return {
            pair.key[:MAX_NAME_CHARACTERS]: _of_message(pair.value, budget, depth + 1)
            for pair in budget.take(pairs, depth)
        }
    return _scalar(getattr(value, kind)) if kind else None


# JSON.


def _raw_of_json(body: bytes) -> Iterator[OtlpSpan]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"the body is not valid JSON: {error.msg}") from None
    if not isinstance(document, dict) or not isinstance(document.get("resourceSpans", []), list):
        raise Malformed("the body is no ExportTraceServiceRequest: it has no list `resourceSpans`")
    return _spans_of_json(document)


def _spans_of_json(document: dict[str, Any]) -> Iterator[OtlpSpan]:
    for resource in mappings(document.get("resourceSpans")):
        service = _service(_kept(_pairs_of_json(mapping(resource.get("resource")).get("attributes"))))
        for scope in mappings(resource.get("scopeSpans")):
            for span in scope["spans"] if isinstance(scope.get("spans"), list) else ():
                fields = mapping(span)
                status = mapping(fields.get("status"))
                yield OtlpSpan(
                    trace_id=text(fields.get("traceId")).lower(),
                    span_id=text(fields.get("spanId")).lower(),
                    parent_span_id=_parent(text(fields.get("parentSpanId")).lower()),
                    name=text(fields.get("name"))[:MAX_NAME_CHARACTERS],
                    started_at=_nanoseconds(fields.get("startTimeUnixNano")) // 1000,
                    ended_at=_nanoseconds(fields.get("endTimeUnixNano")) // 1000,
                    attributes=_kept(_pairs_of_json(fields.get("attributes"))),
                    service=service,
                    failure=_failure(status.get("code"), text(status.get("message"))),
                )


def _pairs_of_json(attributes: Any) -> Iterator[_Pair]:
    for attribute in mappings(attributes):
        yield text(attribute.get("key")), partial(_of_json, attribute.get("value"))


def _of_json(value: Any, budget: "_Budget", depth: int = 0) -> Any:
    fields = mapping(value)
    if "arrayValue" in fields:
        items = mappings(mapping(fields["arrayValue"]).get("values"))
        return [_of_json(item, budget, depth + 1) for item in budget.take(items, depth)]
    if "kvlistValue" in fields:
        pairs = mappings(mapping(fields["kvlistValue"]).get("values"))
        return {
            text(pair.get("key"))[:MAX_NAME_CHARACTERS]: _of_json(pair.get("value"), budget, depth + 1)
            for pair in budget.take(pairs, depth)
        }
    if "intValue" in fields:
        return _scalar(_whole(fields["intValue"]))
    for kind in ("stringValue", "boolValue", "doubleValue", "bytesValue"):
        if kind in fields:
            return _scalar(fields[kind])
    return None


def _whole(value: Any) -> Any:
    """A 64-bit number, which JSON carries as text; what is none stays as it is."""
    if isinstance(value, str) and len(value) <= 20 and value.isascii() and value.lstrip("-").isdigit():
        try:
            return int(value)
        except ValueError:
            return value
    return value


def _nanoseconds(value: Any) -> int:
    number = _whole(value)
    return number if type(number) is int and 0 <= number < _MAX_UINT else 0


# Both.


class _Budget:
    """How much of one value made of values may still be read."""

    def __init__(self) -> None:
        self._left = MAX_ITEMS

    def take(self, items: Iterable[Any], depth: int) -> Iterator[Any]:
        if depth >= MAX_DEPTH:
            return
        for item in items:
            if self._left <= 0:
                return
            self._left -= 1
            yield item


def _kept(pairs: Iterable[_Pair]) -> dict[str, Any]:
    """The attributes that a convention names, and the first others up to a number."""
    kept: dict[str, Any] = {}
    others = 0
    for name, read in pairs:
        if name not in KNOWN:
            if not name or others == MAX_ATTRIBUTES:
                continue
            others += 1
        kept[name[:MAX_NAME_CHARACTERS]] = read(_Budget())
    return kept


def _scalar(value: Any) -> Any:
    """A value that JSON can carry, cut where it is long."""
    match value:
        case bool() | None:
            return value
        case int():
            return value if -_MAX_INT <= value < _MAX_INT else str(value)
        case float():
            return value if math.isfinite(value) else str(value)
        case bytes():
            return value[: MAX_CONTENT_CHARACTERS // 2].hex()
        case str():
            return (
                value if len(value) <= MAX_CONTENT_CHARACTERS else value[: MAX_CONTENT_CHARACTERS - 1] + _CUT
            )
    return None


def _service(attributes: Mapping[str, Any]) -> str:
    return text(attributes.get("service.name"))[:MAX_NAME_CHARACTERS]


def _failure(code: Any, message: str) -> str:
    if code not in (trace_pb2.Status.STATUS_CODE_ERROR, "STATUS_CODE_ERROR"):
        return ""
    return message[:MAX_NAME_CHARACTERS] or "error"
