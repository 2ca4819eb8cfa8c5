"""One request and its answer, as a handler sees them (RFC 9112): the body as it comes, the answer as it is made.

The connection that carries them is `gateway.wire.server`'s. Knows no routes and reads no bodies."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.wire.server import Connection

Header = tuple[bytes, bytes]

MAX_WAITING_BYTES = 256 << 10
"""How much of a request's body may wait to be read before the socket is left alone."""
REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_LAST_CHUNK = b"0\r\n\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_LARGE_BYTES = 64 << 10


class CallerGone(Exception):
    """The caller closed the connection."""


class BodyTooLarge(Exception):
    """The request's body passes the limit that its reader set."""


class Exchange:
    """One request and its answer. The answer is `answer`, or `start`, `write` as often as wanted, `finish`; an exchange
    that is left without `finish` tears the connection down, so that the caller sees a broken transfer."""

    __slots__ = (
        "_connection", "_ended", "_expects_continue", "_frame", "_head", "_pieces", "_size", "_waiter",
        "has_begun", "has_body", "headers", "is_finished", "is_gone", "is_upgrade", "keeps_alive", "method",
        "on_gone", "target", "version",
    )  # fmt: skip

    def __init__(
        self,
        connection: "Connection",
        method: str,
        target: bytes,
        version: str,
        headers: list[Header],
        *,
        keeps_alive: bool,
        is_upgrade: bool,
    ) -> None:
        self.method = method
        self.target = target
        """Path and query as they came."""
        self.version = version
        self.headers = headers
        """Names in lower case, values as they came."""
        self.keeps_alive = keeps_alive
        self.is_upgrade = is_upgrade
        self.has_body = False
        self.has_begun = False
        """The answer's head has been handed over."""
        self.is_finished = False
        self.is_gone = False
        self.on_gone: Callable[[], None] | None = None
        """Called instead of cancelling the handler, when the caller goes away before the answer is finished."""
        self._expects_continue = False
        for name, value in headers:
            if name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
                self.has_body = True
            elif name == b"expect" and value.lower() == b"100-continue":
                self._expects_continue = True
        self._connection = connection
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None
        self._head = b""
        self._frame: bool | None = None
        """True: chunked; False: the head gave a length or there is no body; None: until the connection closes."""

    # The request's body.

    async def body(self, limit_bytes: int) -> bytes:
        """The whole body. Raises BodyTooLarge, CallerGone."""
        if self._ended and len(self._pieces) == 1 and self._size <= limit_bytes:
            self._size = 0
            return self._pieces.popleft()
        pieces = []
        size = 0
        async for piece in self.pieces():
            size += len(piece)
            if size > limit_bytes:
                raise BodyTooLarge
            pieces.append(piece)
        return b"".join(pieces)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises CallerGone."""
        while True:
            while self._pieces:
                piece = self._pieces.popleft()
                self._size -= len(piece)
                if self._size <= MAX_WAITING_BYTES:
                    self._connection.resume_reading()
                yield piece
            if self._ended:
                return
            if self.is_gone:
                raise CallerGone
            if self._expects_continue:
                self._expects_continue = False
                self._connection.transport.write(_CONTINUE)
            self._waiter = self._connection.loop.create_future()
            await self._waiter

    @property
    def is_read(self) -> bool:
        """Whether the whole body has arrived."""
        return self._ended

    def feed(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > MAX_WAITING_BYTES:
            self._connection.pause_reading()
        self.wake()

    def end(self) -> None:
        self._ended = True
        self.wake()

    def wake(self) -> None:
        """Something has changed for whoever waits for the body."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # The answer.

    def start(self, status: int, headers: Sequence[Header], reason: bytes = b"") -> None:
        """The answer's head; it leaves with the first piece, or with `flush`. Without a content-length among the
        headers the body is framed here."""
        has_length = False
        lines = [b"HTTP/1.1 %d %b\r\n" % (status, reason or REASONS.get(status, b""))]
        for name, value in headers:
            lines.append(b"%b: %b\r\n" % (name, value))
            if len(name) == 14 and name.lower() == b"content-length":
                has_length = True
        if self.method == "HEAD" or status in {204, 304} or status < 200 or has_length:
            self._frame = False
        elif self.version == "1.0":
            self.keeps_alive = False
        else:
            self._frame = True
            lines.append(b"transfer-encoding: chunked\r\n")
        if not self.keeps_alive and status != 101:
            lines.append(b"connection: close\r\n")
        elif self.version == "1.0":
            lines.append(b"connection: keep-alive\r\n")
        lines.append(b"\r\n")
        self._head = b"".join(lines)
        self.has_begun = True

    def flush(self) -> None:
        """Let the head leave without waiting for a piece."""
        if self._head and not self.is_gone:
            head, self._head = self._head, b""
            self._connection.transport.write(head)

    def write(self, piece: bytes) -> None:
        """A piece of the body. Follow it with `drain` when more is to come."""
        if self.is_gone or not piece:
            return
        head, self._head = self._head, b""
        framed = (b"%x\r\n" % len(piece), piece, b"\r\n") if self._frame else (piece,)
        self._put(head, *framed)

    def finish(self, piece: bytes = b"") -> None:
        """The last piece, which may be empty."""
        self.is_finished = True
        if self.is_gone:
            return
        head, self._head = self._head, b""
        if not self._frame:
            self._put(head, piece)
        elif piece:
            self._put(head, b"%x\r\n" % len(piece), piece, b"\r\n", _LAST_CHUNK)
        else:
            self._put(head, _LAST_CHUNK)

    def answer(self, status: int, body: bytes, headers: Sequence[Header] = ()) -> None:
        """A whole answer of the gateway's own, in JSON unless a header says otherwise."""
        own: list[Header] = [(b"content-length", b"%d" % len(body)), *headers]
        if not any(name == b"content-type" for name, _ in headers):
            own.insert(0, (b"content-type", b"application/json"))
        self.start(status, own)
        self.finish(b"" if self.method == "HEAD" else body)

    @property
    def is_choked(self) -> bool:
        """The caller does not take what was written."""
        return self._connection.is_choked

    async def drain(self) -> None:
        """Wait until the caller takes more. Raises CallerGone."""
        if self._connection.is_choked:
            await self._connection.drain()
        if self.is_gone and self.on_gone is None:
            raise CallerGone

    def upgrade(self, receive: "Callable[[bytes], None]") -> "Connection":
        """After a 101 was flushed: from here on the connection's bytes go to `receive`, and what is written to its
        transport leaves as it is."""
        self.flush()
        self.is_finished = True
        self.keeps_alive = False
        self._connection.tunnel(receive)
        return self._connection

    def cut(self) -> None:
        """Break the answer off: what was written still leaves, and the caller can tell that it is not whole."""
        if self._frame is None or not self.has_begun:
            self._connection.transport.abort()  # a plain close would look like the end
        else:
            self.flush()
            self._connection.transport.close()

    def _put(self, *parts: bytes) -> None:
        transport = self._connection.transport
        if sum(map(len, parts)) > _LARGE_BYTES:
            for part in parts:
                if part:
                    transport.write(part)
        else:
            transport.write(b"".join(parts))
