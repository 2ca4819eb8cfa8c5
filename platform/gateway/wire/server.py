"""HTTP/1.1 towards the caller: the listening socket, and connections on which requests follow each other (RFC 9112).

Parsing is llhttp's (httptools); here stands what a relay needs around it: flow control in both directions, a caller
that goes away noticed at once, keep-alive, upgrades. Knows no routes and reads no bodies."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable

import httptools

from gateway.wire.exchange import REASONS, CallerGone, Exchange, Header
from gateway.wire.line import Line

MAX_HEAD_BYTES = 64 << 10
"""Of a request line with its headers; more is answered with 431."""
HEAD_TIMEOUT_S = 30.0
"""For a request's line and headers to arrive, once its first byte has."""
IDLE_TIMEOUT_S = 120.0
"""A connection without a request is closed after this. Longer than a client keeps one, so that the client is first."""
SWEEP_INTERVAL_S = 5.0

Handler = Callable[[Exchange], Awaitable[None]]


class Connection(Line):
    """One caller's connection: requests are handled one after the other by one task."""

    def __init__(self, handler: Handler, connections: "dict[Connection, asyncio.Event]") -> None:
        super().__init__()
        self._handler = handler
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._task: asyncio.Task[None]
        self._url = b""
        self._headers: list[Header] = []
        self._head_bytes = 0
        self._incoming: Exchange | None = None
        self._waiting: deque[Exchange] = deque()
        self._current: Exchange | None = None
        self._next: asyncio.Future[None] | None = None
        self._is_stopping = False
        self._refusal: int | None = None
        self._again = b""
        """The head of a request whose offer to upgrade is passed over."""
        self._is_upgrading = False
        self._quiet_since = self.loop.time()

    # What the loop says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connections[self] = asyncio.Event()
        self._task = self.loop.create_task(self._serve())

    def data_received(self, data: bytes) -> None:
        if self._tunnel is not None:
            self._tunnel(data)
            return
        if self._refusal is not None:
            return
        if self._is_upgrading:
            self._early += data
            return
        if self._current is None:
            self._quiet_since = self.loop.time()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
            again, self._again = self._again, b""
            if again:
                self._parser = httptools.HttpRequestParser(self)
                self.data_received(again + rest)
            else:
                self._is_upgrading = True
                self._early += rest
        except httptools.HttpParserError:
            self._refuse(431 if self._head_bytes > MAX_HEAD_BYTES else 400)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._connections.pop(self).set()
        current = self._current
        if current is not None and not current.is_finished:
            current.is_gone = True
            current.wake()
            if current.on_gone is not None:
                current.on_gone()
            else:
                self._task.cancel()
        elif current is None:
            self._task.cancel()

    # What the parser says.

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))
        self._count(len(name) + len(value))

    def _count(self, size_bytes: int) -> None:
        self._head_bytes += size_bytes
        if self._head_bytes > MAX_HEAD_BYTES:
            raise ValueError("the request's head is too large")  # reaches `data_received` as a parser's error

    def on_headers_complete(self) -> None:
        parser = self._parser
        headers, self._headers = self._headers, []
        target, self._url = self._url, b""
        is_upgrade = parser.should_upgrade()
        if is_upgrade and (b"upgrade", b"websocket") not in [(n, v.lower()) for n, v in headers]:
            # An upgrade that we do not know is passed over (RFC 9110 section 7.8): the parser would take the body for
            # the other protocol's, so it is given the head again, without the offer.
            self._again = _head_again(parser, target, headers)
            return
        exchange = Exchange(
            self,
            parser.get_method().decode("latin-1"),
            target,
            parser.get_http_version(),
            headers,
            keeps_alive=parser.should_keep_alive(),
            is_upgrade=is_upgrade,
        )
        self._incoming = exchange
        self._waiting.append(exchange)
        if len(self._waiting) > 1:
            self.pause_reading()  # requests sent ahead wait in the socket
        self._wake_next()

    def on_body(self, piece: bytes) -> None:
        if self._incoming is not None:
            self._incoming.feed(piece)

    def on_message_complete(self) -> None:
        if self._incoming is not None:
            self._incoming.end()
            self._incoming = None
        self._head_bytes = 0

    def resume_reading(self) -> None:
        if len(self._waiting) <= 1:  # requests sent ahead wait in the socket
            super().resume_reading()

    # The connection's own life.

    async def _serve(self) -> None:
        try:
            while not self._is_stopping or self._waiting:
                if not self._waiting:
                    if self._refusal is not None:
                        break
                    self._quiet_since = self.loop.time()
                    self._next = self.loop.create_future()
                    await self._next
                    continue
                exchange = self._current = self._waiting.popleft()
                if self._is_paused:
                    self.resume_reading()
                await self._handler(exchange)
                if not exchange.is_finished:
                    exchange.cut()
                    return
                if not exchange.keeps_alive or not exchange.is_read or self.is_lost:
                    break
                self._current = None
        except (asyncio.CancelledError, CallerGone):
            if not self.is_lost:
                self.transport.abort()
            return
        if self._tunnel is None:
            self._say_refusal()
            self.transport.close()

    def _wake_next(self) -> None:
        waiter, self._next = self._next, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _refuse(self, status: int) -> None:
        """What cannot be parsed is answered once everything before it has been, and ends the connection."""
        self._refusal = status
        if self._incoming is not None:  # in the middle of a body: its reader must not wait for the rest
            self._incoming.keeps_alive = False
            self.transport.abort()
        self._wake_next()

    def _say_refusal(self) -> None:
        if self._refusal is None or self.is_lost:
            return
        said = {400: "This is not a valid HTTP/1.1 request.", 431: "The request's headers are too large."}
        body = b'{"error":{"message":"%b","type":"invalid_request_error","param":null,"code":null}}' % (
            said[self._refusal].encode()
        )
        self.transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (self._refusal, REASONS[self._refusal], len(body), body)
        )

    def stop(self) -> None:
        """Close as soon as the answer under way has left."""
        self._is_stopping = True
        if self._current is None:
            self.transport.close()
        else:
            self._current.keeps_alive = False

    def abort(self) -> None:
        """Close now."""
        self.transport.abort()

    def sweep(self, now: float) -> None:
        """Close a connection that says nothing, or begins a request and does not go on."""
        if self._current is None and not self._waiting:
            limit = HEAD_TIMEOUT_S if self._head_bytes else IDLE_TIMEOUT_S
            if now - self._quiet_since > limit:
                self.transport.close()


def _head_again(parser: httptools.HttpRequestParser, target: bytes, headers: list[Header]) -> bytes:
    lines = [b"%b %b HTTP/%b\r\n" % (parser.get_method(), target, parser.get_http_version().encode())]
    lines += [b"%b: %b\r\n" % header for header in headers if header[0] not in {b"connection", b"upgrade"}]
    return b"".join([*lines, b"\r\n"])


class Server:
    """Listens, and keeps the connections."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._connections: dict[Connection, asyncio.Event] = {}
        self._server: asyncio.Server
        self._sweeper: asyncio.Task[None]

    async def start(self, host: str, port: int, *, backlog: int, share_port: bool = False) -> None:
        """Raises OSError when the address cannot be bound. `share_port`: other processes may listen there too
        (SO_REUSEPORT); the kernel spreads connections over them."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self._handler, self._connections),
            host,
            port,
            backlog=backlog,
            reuse_port=share_port,
        )
        self._sweeper = loop.create_task(self._sweep())

    @property
    def port(self) -> int:
        """The port listened on; of use where 0 was asked for."""
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self, *, grace_s: float) -> None:
        """Accept nothing more, let answers under way finish for `grace_s` at most, close."""
        self._sweeper.cancel()
        self._server.close()
        for connection in list(self._connections):
            connection.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._all_closed()
        for connection in list(self._connections):
            connection.abort()
        await self._all_closed()

    async def _all_closed(self) -> None:
        while self._connections:
            await next(iter(self._connections.values())).wait()

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            now = loop.time()
            for connection in list(self._connections):
                connection.sweep(now)
