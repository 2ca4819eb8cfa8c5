"""WebSocket connections: bytes through in both directions as they are, and a call captured for each turn.

A turn begins with the client's `response.create` (or, where the server decides, with its `response.created`) and ends
with the server's terminal event; its begin record is written before the upstream sees the one, its end record before
the client sees the other. The connection itself is a call without bytes. What is read is a copy: nothing here changes
or delays a frame."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Any

import orjson

from gateway.capture import CallCapture, Capture, RunGuess
from gateway.dialects import table
from gateway.dialects.base import Dialect
from gateway.dialects.realtime import RealtimeDialect
from gateway.errors import Refused
from gateway.headers import first, to_client, to_upstream
from gateway.request import Request
from gateway.routing import Destination
from gateway.wire import client, frames
from gateway.wire.client import UpstreamFailure
from gateway.wire.exchange import Header
from gateway.wire.origin import Origin
from gateway.wire.pool import Pool
from telemetry.models import CallOutcome

log = logging.getLogger(__name__)

BROWSER_KEY = "openai-insecure-api-key."
"""How a browser, which can set no headers, sends its key: as one of the subprotocols that it offers."""
_TERMINAL = frozenset(
    {"response.completed", "response.incomplete", "response.failed", "response.done", "error"}
)
_MAX_WAITING_EVENTS = 1000


def key_in_protocol(headers: Sequence[Header]) -> str:
    """The key among the offered subprotocols, or an empty text."""
    for item in first(headers, b"sec-websocket-protocol").split(","):
        if item.strip().startswith(BROWSER_KEY):
            return item.strip().removeprefix(BROWSER_KEY)
    return ""


async def relay(
    request: Request, destination: Destination, run: RunGuess | None, pool: Pool, capture: Capture
) -> None:
    """Relay one connection until either end closes it. Raises Refused (502, 504) when there is no upstream."""
    exchange = request.exchange
    record = request.begin_record(run)
    call = capture.begin(record, request.caller, dialect=None, trace=request.trace)
    call.sent(destination, ())
    own: list[Header] = [(b"x-ratchet-call-id", str(record.call_id).encode())]
    upstream: client.Connection | None = None
    try:
        upstream = await _open(request, destination, pool)
        call.answered(upstream.status, "", "")
        headers = [*to_client(upstream.headers), *own]
        if upstream.status == 101:
            headers += [(b"connection", b"Upgrade"), (b"upgrade", b"websocket")]
            exchange.start(101, headers, upstream.reason)
            # A spoken session is one run; turns that are posted over a socket name what they continue.
            name = run.name if run else str(record.call_id) if request.path == "/realtime" else ""
            turns = _Turns(request, destination, name, capture, upstream.headers)
            try:
                await _pump(request, upstream, turns)
            finally:
                turns.close()
            call.end(CallOutcome.COMPLETE)
        else:  # the upstream would rather not: its answer is the answer
            exchange.start(upstream.status, headers, upstream.reason)
            while piece := await upstream.read(destination.timeouts.idle_s):
                exchange.write(piece)
                await exchange.drain()
            call.end(CallOutcome.UPSTREAM_ERROR)
            exchange.finish()
    except UpstreamFailure as failure:
        call.end(CallOutcome.UPSTREAM_CUT if exchange.has_begun else CallOutcome.UNREACHABLE)
        if not exchange.has_begun:
            raise Refused(
                502,
                f"The upstream {Origin.of(destination.base_url)[0]} could not be reached: {failure.sentence}."
                f" Check {failure.check}.",
                type="upstream_error",
                code="upstream_unreachable",
            ) from None
    except asyncio.CancelledError:
        call.end(CallOutcome.CLIENT_GONE)
        raise
    finally:
        if upstream is not None:
            upstream.release()


async def _open(request: Request, destination: Destination, pool: Pool) -> client.Connection:
    origin, prefix = Origin.of(destination.base_url)
    headers = to_upstream(request.headers, destination.auth)
    offered = first(headers, b"sec-websocket-protocol")
    if BROWSER_KEY in offered:
        rest = [item.strip() for item in offered.split(",") if not item.strip().startswith(BROWSER_KEY)]
        headers = [header for header in headers if header[0] != b"sec-websocket-protocol"]
        if rest:
            headers.append((b"sec-websocket-protocol", ", ".join(rest).encode("latin-1")))
    headers += [(b"connection", b"Upgrade"), (b"upgrade", b"websocket")]
    upstream = await pool.take(origin, connect_timeout_s=destination.timeouts.connect_s, fresh=True)
    try:
        await upstream.send(request.method, prefix + request.target, headers, None)
        await upstream.head(destination.timeouts.first_byte_s)
    except BaseException:
        upstream.release()
        raise
    return upstream


async def _pump(request: Request, upstream: client.Connection, turns: "_Turns") -> None:
    """Bytes in both directions until one side is lost; the other is closed then."""
    over = asyncio.get_running_loop().create_future()

    def to_upstream_side(data: bytes) -> None:
        turns.client_said(data)
        upstream.transport.write(data)
        if upstream.is_choked:
            caller.pause_reading()
            upstream.on_writable = caller.resume_reading

    def to_client_side(data: bytes) -> None:
        turns.server_said(data)
        caller.transport.write(data)
        if caller.is_choked:
            upstream.pause_reading()
            caller.on_writable = upstream.resume_reading

    def lost() -> None:
        if not over.done():
            over.set_result(None)

    upstream.on_tunnel_lost = lost
    caller = request.exchange.upgrade(to_upstream_side)
    caller.on_tunnel_lost = lost
    upstream.tunnel(to_client_side)
    if upstream.is_lost or caller.transport.is_closing():
        lost()
    try:
        await over
    finally:
        # What one side has said last still has to leave before the other is closed.
        for transport in (caller.transport, upstream.transport):
            with contextlib.suppress(RuntimeError):
                transport.close()


class _Turns:
    """The turns of one connection. Never raises: what cannot be read is relayed all the same."""

    def __init__(
        self,
        request: Request,
        destination: Destination,
        name: str,
        capture: Capture,
        answer_headers: list[Header],
    ) -> None:
        self._request = request
        self._destination = destination
        self._name = name
        """Of the run, where the caller or the protocol gives one."""
        self._capture = capture
        self._from_client, self._from_server = frames.readers(answer_headers)
        self._dialect: Dialect | None = {
            "/responses": table.BY_NAME["responses"],
            "/realtime": RealtimeDialect(),
        }.get(request.path)
        self._model = _query_model(request.query)
        self._waiting: list[bytes] = []
        """Client events since the last turn began."""
        self._turn: CallCapture | None = None

    def client_said(self, data: bytes) -> None:
        """Bytes that the client sent, before the upstream has them."""
        for event, payload in self._events(self._from_client, data):
            self._waiting.append(payload)
            if len(self._waiting) > _MAX_WAITING_EVENTS:
                del self._waiting[0]
            if event.get("type") == "response.create" and self._turn is None:
                self._open(event)

    def server_said(self, data: bytes) -> None:
        """Bytes that the upstream sent, before the client has them."""
        for event, payload in self._events(self._from_server, data):
            kind = event.get("type")
            if self._turn is None and kind == "response.created":
                self._open({})
            if self._turn is not None:
                self._turn.receive(b"data: %b\n\n" % payload)
                if kind in _TERMINAL:
                    self._turn.end(CallOutcome.COMPLETE)
                    self._turn = None

    def close(self) -> None:
        """The connection is over, and with it a turn that has not ended."""
        if self._turn is not None:
            self._turn.end(CallOutcome.UPSTREAM_CUT)
            self._turn = None

    def _events(self, reader: frames.MessageReader, data: bytes) -> list[tuple[dict[str, Any], bytes]]:
        if self._dialect is None:
            return []
        try:
            events = []
            for opcode, payload in reader.feed(data):
                document = orjson.loads(payload) if opcode == frames.TEXT else None
                if isinstance(document, dict):
                    events.append((document, payload))
            return events
        except Exception:
            self._dialect = None  # one direction is out of step: nothing of this connection can be trusted
            self._capture.failed("a WebSocket connection could not be read any further")
            return []

    def _open(self, event: dict[str, Any]) -> None:
        dialect = self._dialect
        if dialect is None:
            return
        try:
            is_responses = dialect.name == "responses"
            stored = self._waiting[-1:] if is_responses else self._waiting
            document = event if is_responses else {"model": self._model}
            asked = dialect.parse_request({"model": self._model, **document})
            run = self._capture.guess_run(
                self._request.caller,
                self._capture.hashes(asked.messages),
                name=self._name,
                continues=asked.previous_response_id,
                trace_id=self._request.trace_id,
            )
            record = self._request.begin_record(
                run,
                dialect=dialect.name,
                model_requested=asked.model,
                model_served=asked.model,
                stream=True,
                is_opted_out=asked.is_opted_out,
                request=b"\n".join(stored),
            )
            self._turn = self._capture.begin(
                record, self._request.caller, dialect=dialect, trace=self._request.trace
            )
            self._turn.sent(self._destination, ())
            self._turn.answered(200, "text/event-stream", "")
            self._waiting = []
        except Exception:
            self._capture.failed("a turn could not be read")


def _query_model(query: str) -> str:
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        if name == "model":
            return value
    return ""
