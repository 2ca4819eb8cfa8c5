"""HTTP/1.1 towards an upstream: one connection, one request at a time (RFC 9112).

Parsing is llhttp's (httptools). A transfer that breaks off is an error and never a clean end. A time limit costs
nothing per piece: it is a number that the pool's sweep looks at (`gateway.wire.pool`). Knows no keys and follows no
redirects."""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

import httptools

from gateway.wire.exchange import Header
from gateway.wire.line import Line
from gateway.wire.origin import Origin

MAX_WAITING_BYTES = 256 << 10
"""How much of an answer may wait for the caller before the upstream's socket is left alone."""
MAX_HEAD_BYTES = 256 << 10
_LARGE_BODY_BYTES = 256 << 10


class UpstreamFailure(Exception):
    """The exchange with an upstream failed. `sentence` says how, without a secret; `check` what to look at."""

    check = "that it is up and reachable from here"

    def __init__(self, sentence: str, check: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.check = check or self.check


class ConnectFailed(UpstreamFailure):
    """No connection: nothing was sent."""


class HungUp(UpstreamFailure):
    """The connection ended before the answer's head was there."""

    check = "its own log"


class Stale(HungUp):
    """A kept connection had been closed by the other side: nothing says that the request was seen."""


class Cut(UpstreamFailure):
    """The answer broke off in the middle."""


class TooSlow(UpstreamFailure):
    """Nothing came for as long as was allowed."""


class Connection(Line):
    """One connection to an upstream. `send`, then `head`, then `read` until it is empty, then `release`."""

    def __init__(
        self,
        origin: Origin,
        *,
        on_idle: Callable[["Connection"], None],
        on_lost: Callable[["Connection"], None],
    ) -> None:
        super().__init__()
        self.origin = origin
        self.deadline = 0.0
        """Loop time at which a wait is over; 0.0 while none is limited."""
        self.latest = math.inf
        """Loop time after which no wait goes on, however long the single one may be."""
        self.idle_since = 0.0
        self.pass_on: Callable[[bytes], bool] | None = None
        """Offered, while `read` waits, each piece that is not the last; what it takes (True) is not read. To wake a
        task for a piece costs more than everything else that is done with it."""
        self.status = 0
        self.reason = b""
        self.headers: list[Header] = []
        """Of the answer, as they came."""
        self.has_head = False
        self.is_complete = False
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._is_reused = False
        self._is_head_request = False
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._received_bytes = 0
        self._keeps_alive = True
        self._ends_with_connection = False
        self._failure: UpstreamFailure | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_reading = False
        self._read_timeout_s = 0.0
        self._upload: asyncio.Task[None] | None = None

    # What the loop says.

    def data_received(self, data: bytes) -> None:
        if self._tunnel is not None:
            self._tunnel(data)
            return
        self._received_bytes += len(data)
        if not self.has_head and self._received_bytes > MAX_HEAD_BYTES:
            self._fail(HungUp("its answer's headers are too large"))
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._early = data[upgrade.args[0] :]
            self.is_complete = True
        except httptools.HttpParserError:
            sentence = "its answer is not HTTP/1.1"
            self._fail(Cut(sentence) if self.has_head else HungUp(sentence))
        if not (self._is_reading and self._pieces and self._passes_on()):
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._keeps_alive = False
        self._on_lost(self)
        if self.has_head and self._ends_with_connection and exc is None:
            self.is_complete = True
        elif not self.is_complete and self._failure is None:
            if self.has_head:
                self._failure = Cut("it broke the answer off")
            elif self._is_reused and not self._received_bytes:
                self._failure = Stale("it closed the connection without an answer")
            else:
                self._failure = HungUp("it closed the connection without an answer")
        self._wake()

    # What the parser says.

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            return  # an interim answer; its end is `on_message_complete`
        self.status = status
        self.has_head = True
        self._keeps_alive = self._parser.should_keep_alive()
        has_length = False
        for name, _ in self.headers:
            if len(name) in {14, 17} and name.lower() in {b"content-length", b"transfer-encoding"}:
                has_length = True
        if self._is_head_request or status in {204, 304}:
            # The parser does not know that there is no body: the connection ends with this answer.
            self._keeps_alive = False
            self.is_complete = True
        elif not has_length and status != 101:
            self._ends_with_connection = True

    def on_body(self, piece: bytes) -> None:
        if self.is_complete:
            return
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > MAX_WAITING_BYTES:
            self.pause_reading()

    def on_message_complete(self) -> None:
        if not self.has_head:  # it was an interim answer
            self.reason = b""
            self.headers = []
            self._received_bytes = 0
        else:
            self.is_complete = True

    # What the relay does.

    async def send(
        self,
        method: str,
        target: bytes,
        headers: Sequence[Header],
        body: bytes | AsyncIterator[bytes] | None,
    ) -> None:
        """Send a request whose headers are complete but for `host` and the body's framing."""
        self._is_head_request = method == "HEAD"
        lines = [b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (method.encode(), target, self.origin.host_header)]
        lines += [b"%b: %b\r\n" % header for header in headers]
        if isinstance(body, bytes):
            lines.append(b"content-length: %d\r\n\r\n" % len(body))
            if len(body) <= _LARGE_BODY_BYTES:
                lines.append(body)
                self.transport.write(b"".join(lines))
                return
            self.transport.write(b"".join(lines))
            self._upload = self.loop.create_task(self._send_large(body))
        elif body is None:
            lines.append(b"\r\n")
            self.transport.write(b"".join(lines))
        else:
            is_framed = any(name == b"content-length" for name, _ in headers)
            lines.append(b"\r\n" if is_framed else b"transfer-encoding: chunked\r\n\r\n")
            self.transport.write(b"".join(lines))
            self._upload = self.loop.create_task(self._send_pieces(body, is_chunked=not is_framed))

    async def head(self, timeout_s: float) -> None:
        """Wait for the answer's status and headers. Raises HungUp, Stale, TooSlow, or what reading the body to be sent
        raised."""
        self.deadline = min(self.loop.time() + timeout_s, self.latest)
        while not self.has_head:
            if self._failure is not None:
                raise self._failure
            if self._upload is not None and self._upload.done() and (error := self._upload.exception()):
                raise error
            await self._wait()
        self.deadline = 0.0

    async def read(self, timeout_s: float) -> bytes:
        """Everything of the body that is here, at least one byte; empty at its end. Raises Cut, TooSlow."""
        if not self._pieces and not self.is_complete:
            self._read_timeout_s = timeout_s
            self.deadline = min(self.loop.time() + timeout_s, self.latest)
            while not self._pieces and not self.is_complete:
                if self._failure is not None:
                    raise self._failure
                self._is_reading = True
                try:
                    await self._wait()
                finally:
                    self._is_reading = False
            self.deadline = 0.0
        return self._taken() if self._pieces else b""

    def _taken(self) -> bytes:
        piece = self._pieces.popleft() if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        self.resume_reading()
        return piece

    def _passes_on(self) -> bool:
        """Whether what has just come needs nobody to be woken."""
        if self.pass_on is None or self.is_complete or self._failure is not None:
            return False
        piece = self._taken()
        if not self.pass_on(piece):
            self._pieces.append(piece)
            self._size = len(piece)
            return False
        self.deadline = min(self.loop.time() + self._read_timeout_s, self.latest)
        return True

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left to be read."""
        return self.is_complete and not self._pieces

    @property
    def has_piece(self) -> bool:
        return bool(self._pieces)

    def release(self) -> None:
        """Give the connection back: kept when it can serve another request, closed otherwise."""
        self.deadline = 0.0
        self.pass_on = None
        upload, self._upload = self._upload, None
        if upload is not None and not upload.done():
            upload.cancel()
            self._keeps_alive = False
        elif upload is not None and not upload.cancelled():
            upload.exception()  # seen
        if self.is_lost:
            return
        if self.has_ended and self._keeps_alive and self._failure is None:
            self.status, self.reason, self.headers = 0, b"", []
            self.has_head = self.is_complete = self._ends_with_connection = False
            self._received_bytes = 0
            self.latest = math.inf
            self._is_reused = True
            self._on_idle(self)
        else:
            self.transport.abort()

    def hurry(self, latest: float) -> None:
        """From now on no wait lasts beyond the loop time `latest`."""
        self.latest = latest
        if self.deadline:
            self.deadline = min(self.deadline, latest)

    def expire(self) -> None:
        """The wait under way has taken too long."""
        self._fail(TooSlow("it sent nothing for as long as was allowed"))
        self._wake()

    def _fail(self, failure: UpstreamFailure) -> None:
        if self._failure is None:
            self._failure = failure
        self.transport.abort()

    async def _wait(self) -> None:
        self._waiter = self.loop.create_future()
        await self._waiter

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _send_large(self, body: bytes) -> None:
        """Piece by piece, so that writing one large body does not hold up the other calls."""
        view = memoryview(body)
        for start in range(0, len(view), _LARGE_BODY_BYTES):
            self.transport.write(view[start : start + _LARGE_BODY_BYTES])
            await self.drain()
            if self.is_lost:
                return

    async def _send_pieces(self, pieces: AsyncIterator[bytes], *, is_chunked: bool) -> None:
        try:
            async for piece in pieces:
                if self.is_lost:
                    return
                self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
                await self.drain()
            if is_chunked and not self.is_lost:
                self.transport.write(b"0\r\n\r\n")
        finally:
            self._wake()
