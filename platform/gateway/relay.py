"""One call, sent along its plan: bytes through in both directions, a copy to the capture.

Walks destinations until one answers, retries and fallbacks before the first byte only. The caller gets that
upstream's status, headers and bytes; a transfer that breaks off breaks off for the caller too; what only the gateway
asked for is taken out on the way. Knows no keys, no routes and no dialect: it is told what to send where."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from gateway.breaker import Breakers
from gateway.capture import CallCapture
from gateway.dialects.base import Addition, Hiding
from gateway.errors import Refused
from gateway.headers import to_client
from gateway.routing import Destination
from gateway.wire.client import (
    ConnectFailed,
    Connection,
    Cut,
    HungUp,
    Stale,
    TooSlow,
    UpstreamFailure,
)
from gateway.wire.exchange import CallerGone, Exchange, Header
from gateway.wire.origin import Origin
from gateway.wire.pool import Pool
from telemetry.models import CallOutcome

PASSING_STATUSES = frozenset({408, 429, 500, 502, 503, 504, 529})
"""Another destination is asked when there is one; otherwise the caller gets this answer."""
MAX_HELD_BYTES = 256 << 10
"""Of an error answer that is kept in case no further destination does better; a longer one is final."""
RETRY_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class Shipment:
    """What one destination is sent."""

    headers: Sequence[Header]
    body: bytes | AsyncIterator[bytes] | None
    addition: Addition | None = None
    answer_headers: Sequence[Header] = ()
    """Ratchet's own, added to the answer's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """A call to be relayed."""

    method: str
    path: bytes
    """What follows the destination's base URL, with the query."""
    plan: Sequence[Destination]
    """In the order in which they are asked; never empty."""
    prepare: Callable[[Destination], Shipment]
    is_replayable: bool = True
    """False for a body that streams through: it can be sent once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """What becomes of an upstream's answer when its caller has gone."""

    drains: bool = False
    """Read on, so that usage is known; otherwise the upstream call is cancelled."""
    drain_max_bytes: int = 1 << 20
    drain_max_s: float = 30.0


@dataclass(frozen=True, slots=True)
class _Held:
    """An error answer that is relayed if nothing better comes."""

    status: int
    reason: bytes
    headers: list[Header]
    body: bytes
    destination: Destination
    shipment: Shipment


class _Drain:
    """The end of a call whose caller has left: the upstream gets this much longer, in all."""

    def __init__(self, max_s: float) -> None:
        self._max_s = max_s
        self._latest = math.inf
        self._connection: Connection | None = None

    def watch(self, connection: Connection) -> None:
        """The call goes over this connection now."""
        self._connection = connection
        connection.hurry(self._latest)

    def begin(self) -> None:
        """The caller has left."""
        self._latest = asyncio.get_running_loop().time() + self._max_s
        if self._connection is not None:
            self._connection.hurry(self._latest)


@dataclass(frozen=True, slots=True)
class _Errand:
    """One call on its way."""

    order: Order
    exchange: Exchange
    call: CallCapture
    drain: _Drain | None
    """None: a caller that leaves cancels the upstream call."""


class Relay:
    """Relays calls over one pool of connections."""

    def __init__(self, pool: Pool, breakers: Breakers, patience: Patience) -> None:
        self._pool = pool
        self._breakers = breakers
        self._patience = patience

    async def run(self, order: Order, exchange: Exchange, call: CallCapture) -> None:
        """Relay one call to its end, whatever that is; the capture is told which it was."""
        errand = _Errand(
            order, exchange, call, _Drain(self._patience.drain_max_s) if self._patience.drains else None
        )
        if errand.drain is not None:
            exchange.on_gone = errand.drain.begin
        connection: Connection | None = None
        try:
            reached = await self._reach(errand)
            if isinstance(reached, _Held):
                await _give_held(reached, errand)
                return
            connection, destination, shipment = reached
            await self._give(connection, destination, shipment, errand)
        except UpstreamFailure as failure:
            if exchange.is_gone:
                call.end(CallOutcome.CLIENT_GONE)
            elif exchange.has_begun:
                call.end(CallOutcome.UPSTREAM_CUT)
            else:
                _refuse(failure, errand)
        except (asyncio.CancelledError, CallerGone):
            call.end(CallOutcome.CLIENT_GONE)
            raise
        finally:
            if connection is not None:
                connection.release()

    # Until somebody answers.

    async def _reach(self, errand: _Errand) -> tuple[Connection, Destination, Shipment] | _Held:
        """The first destination that answers for good. Raises the last one's UpstreamFailure when none does."""
        held: _Held | None = None
        failure: UpstreamFailure | None = None
        loop = asyncio.get_running_loop()
        plan = self._breakers.order(errand.order.plan, loop.time())
        for index, destination in enumerate(plan):
            is_last = index == len(plan) - 1
            shipment = errand.order.prepare(destination)
            self._breakers.begin(destination, loop.time())
            try:
                connection = await self._try(destination, shipment, errand)
            except UpstreamFailure as error:
                self._breakers.failed(destination, loop.time())
                failure = error
                continue
            if connection.status in PASSING_STATUSES:
                if connection.status >= 500:
                    self._breakers.failed(destination, loop.time())
                if not is_last:
                    held = await _hold(connection, destination, shipment) or held
                    continue
            else:
                self._breakers.succeeded(destination)
            return connection, destination, shipment
        if held is not None:
            return held
        assert failure is not None
        raise failure

    async def _try(self, destination: Destination, shipment: Shipment, errand: _Errand) -> Connection:
        """One destination, with its retries, up to the answer's head."""
        retries = destination.max_retries if errand.order.is_replayable else 0
        is_fresh = False
        while True:
            errand.call.sent(destination, shipment.addition.hidden if shipment.addition else ())
            try:
                return await self._ask(destination, shipment, errand, is_fresh=is_fresh)
            except Stale:
                # The kept connection was closed under us: a fresh one is no retry, unless the body is spent.
                if is_fresh or not errand.order.is_replayable:
                    raise
                is_fresh = True
            except (ConnectFailed, HungUp):
                if retries <= 0:
                    raise
                retries -= 1
                is_fresh = True
                await asyncio.sleep(RETRY_PAUSE_S)

    async def _ask(
        self, destination: Destination, shipment: Shipment, errand: _Errand, *, is_fresh: bool
    ) -> Connection:
        origin, prefix = _origin(destination.base_url)
        timeouts = destination.timeouts
        connection = await self._pool.take(origin, connect_timeout_s=timeouts.connect_s, fresh=is_fresh)
        if errand.drain is not None:
            errand.drain.watch(connection)
        try:
            order = errand.order
            await connection.send(order.method, prefix + order.path, shipment.headers, shipment.body)
            await connection.head(timeouts.first_byte_s)
        except BaseException:
            connection.release()
            raise
        return connection

    # From the first byte on.

    async def _give(
        self, connection: Connection, destination: Destination, shipment: Shipment, errand: _Errand
    ) -> None:
        exchange, call = errand.exchange, errand.call
        status, headers = connection.status, connection.headers
        media_type, encoding = _said(headers)
        call.answered(status, media_type, encoding)
        is_stream = media_type == "text/event-stream"
        hiding = shipment.addition.hiding if shipment.addition and not encoding and status < 400 else None
        exchange.start(
            status,
            [*to_client(headers, has_length=hiding is None), *shipment.answer_headers],
            connection.reason,
        )
        if not (connection.has_piece or connection.is_complete):
            exchange.flush()  # a direct caller would have the head by now

        def pass_on(piece: bytes) -> bool:
            """A piece from the middle of the answer, when nothing has to be waited for."""
            if exchange.is_gone or exchange.is_choked:
                return False
            call.receive(piece)
            if is_stream and call.has_said_end():
                call.end(_outcome(status))
            exchange.write(piece if hiding is None else hiding.feed(piece))
            return True

        if not call.is_strict:
            connection.pass_on = pass_on
        drained_bytes = 0
        while piece := await _read(connection, destination, hiding, exchange):
            call.receive(piece)
            if exchange.is_gone:
                drained_bytes += len(piece)
                if drained_bytes > self._patience.drain_max_bytes:
                    break
                continue
            if connection.has_ended or (is_stream and call.has_said_end()):
                await call.end_before_last_byte(_outcome(status))
            if hiding is not None:
                piece = hiding.feed(piece)
            if connection.has_ended:
                exchange.finish(piece + hiding.finish() if hiding is not None else piece)
                return
            exchange.write(piece)
            await exchange.drain()
        if exchange.is_gone:
            raise CallerGone
        await call.end_before_last_byte(_outcome(status))
        exchange.finish(hiding.finish() if hiding is not None else b"")


async def _read(
    connection: Connection, destination: Destination, hiding: Hiding | None, exchange: Exchange
) -> bytes:
    try:
        return await connection.read(destination.timeouts.idle_s)
    except UpstreamFailure:
        if hiding is not None:
            exchange.write(hiding.finish())  # a direct caller would have the beginning of an event too
        raise


async def _give_held(held: _Held, errand: _Errand) -> None:
    exchange, call = errand.exchange, errand.call
    media_type, encoding = _said(held.headers)
    call.gave_way(held.destination)
    call.answered(held.status, media_type, encoding)
    call.receive(held.body)
    await call.end_before_last_byte(CallOutcome.UPSTREAM_ERROR)
    exchange.start(held.status, [*to_client(held.headers), *held.shipment.answer_headers], held.reason)
    exchange.finish(held.body)


async def _hold(connection: Connection, destination: Destination, shipment: Shipment) -> _Held | None:
    """The whole error answer; None when it breaks off or does not end soon."""
    pieces = []
    size = 0
    try:
        while size <= MAX_HELD_BYTES and (piece := await connection.read(2.0)):
            pieces.append(piece)
            size += len(piece)
        if not connection.has_ended:
            return None
        return _Held(
            connection.status, connection.reason, connection.headers, b"".join(pieces), destination, shipment
        )
    except (Cut, TooSlow):
        return None
    finally:
        connection.release()


def _outcome(status: int) -> CallOutcome:
    return CallOutcome.COMPLETE if status < 400 else CallOutcome.UPSTREAM_ERROR


def _said(headers: Sequence[Header]) -> tuple[str, str]:
    """Media type and content encoding."""
    media_type = encoding = ""
    for name, value in headers:
        if len(name) in {12, 16}:
            lower = name.lower()
            if lower == b"content-type":
                media_type = value.decode("latin-1").partition(";")[0].strip().lower()
            elif lower == b"content-encoding":
                encoding = value.decode("latin-1")
    return media_type, encoding


@lru_cache(maxsize=10_000)
def _origin(base_url: str) -> tuple[Origin, bytes]:
    return Origin.of(base_url)


def _refuse(failure: UpstreamFailure, errand: _Errand) -> None:
    """The gateway's own answer where no upstream gave one."""
    destination = errand.order.plan[-1]
    origin, _ = _origin(destination.base_url)
    if isinstance(failure, TooSlow):
        refusal = Refused(
            504,
            f"The upstream {origin} sent no answer within {destination.timeouts.first_byte_s:g} s. Check that it is"
            " healthy, or raise RATCHET_FIRST_BYTE_TIMEOUT_S.",
            type="upstream_error",
            code="upstream_timeout",
        )
    else:
        refusal = Refused(
            502,
            f"The upstream {origin} could not be reached: {failure.sentence}. Check {failure.check}.",
            type="upstream_error",
            code="upstream_unreachable",
        )
    body = refusal.body()
    errand.call.answered(refusal.status, "application/json", "")
    errand.call.receive(body)
    errand.call.end(CallOutcome.UNREACHABLE)
    errand.exchange.answer(refusal.status, body, errand.order.prepare(destination).answer_headers)
