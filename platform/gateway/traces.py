"""`POST /v1/traces`: spans of the customer's own instrumentation, as OTLP over HTTP in protobuf or JSON.

Accepted means kept on the disk. What is wrong with single spans is said in the partial success of a 200, everything
else as a `google.rpc.Status` in the request's own encoding, as the protocol asks. What spans mean is
`telemetry.otlp_conventions`', which runs they belong to is found after they are stored (`telemetry.spans`)."""

import asyncio
from collections.abc import Sequence

from gateway.errors import Refused, bad_request
from gateway.headers import first
from gateway.intake import keep
from gateway.limiter import Limiter, used_up
from gateway.metrics import Metrics
from gateway.request import Request
from gateway.run_names import Naming, run_name
from gateway.wire.exchange import Exchange, Header
from telemetry import otlp, otlp_conventions
from telemetry.records import SpanRecord
from telemetry.spool import Spool

PATH = "/v1/traces"
MAX_BODY_BYTES = 8 << 20
"""With its content encoding, and without it."""
PROTOBUF, JSON = "application/x-protobuf", "application/json"


class Traces:
    """The door of one gateway process."""

    def __init__(self, *, spool: Spool, limiter: Limiter, metrics: Metrics) -> None:
        self._spool = spool
        self._limiter = limiter
        self._metrics = metrics

    async def answer(self, request: Request) -> None:
        """Answer the exchange. Raises Refused: 400, 413, 415, 429, 503."""
        if exceeded := self._limiter.refuse_signal(request.caller, request.started_at / 1e6):
            raise used_up(exceeded)
        media_type = _media_type(request.headers)
        if media_type not in {PROTOBUF, JSON}:
            raise Refused(
                415, f"Send spans as {PROTOBUF} or {JSON}, not {media_type!r}.", code="unsupported_media_type"
            )
        is_json = media_type == JSON
        name = run_name(Naming(request.headers, request.path_run_name, ""))
        body = await request.body(MAX_BODY_BYTES)
        # Not on the event loop: a large request takes as long to read as hundreds of calls to relay.
        records, refused = await asyncio.to_thread(_read, request, body, name, is_json)
        await keep(self._spool, records, "spans")
        self._metrics.spans += len(records)
        answer = otlp.answer(refused, is_json=is_json)
        request.exchange.answer(200, answer, [(b"content-type", media_type.encode())])


def refuse(refusal: Refused, exchange: Exchange) -> None:
    """Answer with an error in the encoding that the sender reads."""
    is_json = _media_type(exchange.headers) != PROTOBUF
    headers = [(b"content-type", (JSON if is_json else PROTOBUF).encode()), *refusal.headers]
    exchange.answer(refusal.status, otlp.failure(refusal.message, is_json=is_json), headers)


def _media_type(headers: Sequence[Header]) -> str:
    return first(headers, b"content-type").partition(";")[0].strip().lower()


def _read(
    request: Request, body: bytes, run_name: str, is_json: bool
) -> tuple[list[SpanRecord], dict[str, int]]:
    """The records of the request's spans, and for each reason how many spans are refused. Raises Refused."""
    try:
        parsed = otlp.parse(request.decoded(body, limit_bytes=MAX_BODY_BYTES), is_json=is_json)
    except otlp.Malformed as error:
        raise bad_request(f"The spans cannot be read: {error}.") from None
    return [_record(request, span, run_name) for span in parsed.spans], parsed.refused


def _record(request: Request, span: otlp.OtlpSpan, run_name: str) -> SpanRecord:
    said = otlp_conventions.read(span.attributes, failure=span.failure)
    return SpanRecord(
        project_id=request.caller.project_id,
        api_key_id=request.caller.key_id,
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_span_id,
        run_name=run_name,
        kind=said.kind,
        name=span.name,
        service=span.service,
        agent_name=said.agent_name,
        tool_name=said.tool_name,
        tool_call_id=said.tool_call_id,
        arguments=said.arguments,
        result=said.result,
        conversation_id=said.conversation_id,
        response_id=said.response_id,
        model=said.model,
        prompt_tokens=said.prompt_tokens,
        completion_tokens=said.completion_tokens,
        error=said.error,
        others=dict(said.others) or None,
        started_at=span.started_at,
        ended_at=span.ended_at,
        received_at=request.started_at,
    )
