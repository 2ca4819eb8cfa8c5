"""One exchange with an upstream: bytes through in both directions, a copy to the capture.

Knows no routes and no keys: it is told where to send what. The client gets the upstream's status, headers and
bytes; a stream that breaks off breaks off for the client too; a client that goes away takes the upstream call
with it."""

import asyncio
import io
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from yarl import URL

from gateway.capture import CallCapture
from gateway.errors import Refused
from gateway.headers import Header, to_client
from telemetry.models import CallOutcome

log = logging.getLogger(__name__)

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

CONNECT_TIMEOUT_S = 10.0
MAX_HEADER_BYTES = 64 << 10
LARGE_BODY_BYTES = 256 << 10
_DONE = re.compile(rb"(?:^|[\r\n])data: ?\[DONE\](?:\r\n\r\n|\n\n|\r\r)")
_DONE_BYTES = 32
"""More than the longest spelling of the end mark: how much of the stream's tail is looked at again."""


class ClientGone(Exception):
    """The client closed the connection."""


class Client:
    """The client's side of one exchange, over ASGI."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._task = asyncio.current_task()
        self._watch: asyncio.Task[None] | None = None
        self.is_gone = False
        self.has_answer_begun = False

    async def body(self, limit_bytes: int) -> bytes:
        """The whole request body. Raises Refused (413), or ClientGone."""
        pieces = []
        size = 0
        async for piece in self.pieces():
            size += len(piece)
            if size > limit_bytes:
                raise Refused(
                    413, f"The request body is larger than {limit_bytes} bytes.", code="body_too_large"
                )
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The request body as it comes. Raises ClientGone."""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.is_gone = True
                raise ClientGone
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body"):
                return

    def cancel_when_gone(self) -> None:
        """From here on, a client that goes away cancels the task that made this object. Once the body has
        been read."""

        async def watch() -> None:
            while (await self._receive())["type"] != "http.disconnect":
                pass
            self.is_gone = True
            if self._task is not None:
                self._task.cancel()

        self._watch = asyncio.create_task(watch())

    def stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()

    async def start(self, status: int, headers: Sequence[Header]) -> None:
        self.has_answer_begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": list(headers)})

    async def write(self, piece: bytes) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def finish(self, piece: bytes = b"") -> None:
        """The last piece. An exchange that returns without this is torn down by the server: the client sees a
        broken transfer, never a clean end."""
        await self._send({"type": "http.response.body", "body": piece, "more_body": False})

    async def answer(self, status: int, body: bytes, headers: Sequence[Header] = ()) -> None:
        """A whole answer of the gateway's own, in JSON."""
        own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self.start(status, [*own, *headers])
        await self.finish(body)


@dataclass(frozen=True, slots=True)
class Order:
    """What to send where."""

    method: str
    url: str
    headers: Sequence[tuple[str, str]]
    body: bytes | AsyncIterator[bytes] | None
    answer_headers: Sequence[Header]
    """Ratchet's own, added to the answer's."""


def open_session() -> aiohttp.ClientSession:
    """The connections to all upstreams. Nothing is shared between calls: no cookies, no proxy of the
    environment."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=30),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
        auto_decompress=False,
        skip_auto_headers=["User-Agent", "Accept", "Accept-Encoding", "Content-Type"],
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        max_headers=1000,
    )


class Relay:
    """Relays calls over one session."""

    def __init__(
        self, session: aiohttp.ClientSession, *, first_byte_timeout_s: float, idle_timeout_s: float
    ) -> None:
        self._session = session
        self._first_byte_timeout_s = first_byte_timeout_s
        self._idle_timeout_s = idle_timeout_s

    async def run(self, order: Order, client: Client, call: CallCapture) -> None:
        """Relay one call to its end, whatever that is; the capture is told which it was."""
        origin = str(URL(order.url).origin())
        try:
            async with asyncio.timeout(self._first_byte_timeout_s) as deadline:
                await self._exchange(order, client, call, deadline)
        except aiohttp.ClientError as error:
            if client.is_gone:
                call.end(CallOutcome.CLIENT_GONE)
            elif client.has_answer_begun:
                call.end(CallOutcome.UPSTREAM_CUT)
            else:
                await self._refuse(order, client, call, _unreachable(origin, error))
        except TimeoutError:
            if client.has_answer_begun:
                call.end(CallOutcome.UPSTREAM_CUT)
            else:
                refusal = _too_slow(origin, self._first_byte_timeout_s)
                await self._refuse(order, client, call, refusal)
        except (asyncio.CancelledError, ClientGone):
            call.end(CallOutcome.CLIENT_GONE)
            if not client.is_gone:  # the gateway is being stopped
                raise
        finally:
            client.stop_watching()

    async def _exchange(
        self, order: Order, client: Client, call: CallCapture, deadline: asyncio.Timeout
    ) -> None:
        loop = asyncio.get_running_loop()
        async with self._session.request(
            order.method,
            URL(order.url, encoded=True),
            headers=order.headers,
            data=_sendable(order.body),
            allow_redirects=False,
        ) as response:
            call.answered(
                response.status, response.content_type, response.headers.get("content-encoding", "")
            )
            await client.start(response.status, [*to_client(response.raw_headers), *order.answer_headers])
            is_stream = response.content_type == "text/event-stream"
            held = tail = b""
            try:
                while True:
                    deadline.reschedule(loop.time() + self._idle_timeout_s)
                    piece = await response.content.readany()
                    deadline.reschedule(None)  # a slow client is not an idle upstream
                    if not piece:
                        break
                    call.receive(piece)
                    if not is_stream:
                        # The newest piece may be the last one, which leaves after the end record.
                        piece, held = held, piece
                    elif b"[DONE]" in (tail := (tail + piece)[-_DONE_BYTES - len(piece) :]) and _DONE.search(
                        tail
                    ):
                        call.end(CallOutcome.COMPLETE)
                    tail = tail[-_DONE_BYTES:]
                    if piece:
                        await client.write(piece)
            except (aiohttp.ClientError, TimeoutError):
                if held:
                    await client.write(held)
                raise
        call.end(CallOutcome.COMPLETE if response.status < 400 else CallOutcome.UPSTREAM_ERROR)
        await client.finish(held)

    async def _refuse(self, order: Order, client: Client, call: CallCapture, refusal: Refused) -> None:
        body = refusal.body()
        call.answered(refusal.status, "application/json", "")
        call.receive(body)
        call.end(CallOutcome.UNREACHABLE)
        await client.answer(refusal.status, body, order.answer_headers)


def _sendable(body: bytes | AsyncIterator[bytes] | None) -> io.BytesIO | bytes | AsyncIterator[bytes] | None:
    """Large bodies are read piece by piece, so that writing one does not hold up the other calls."""
    return io.BytesIO(body) if isinstance(body, bytes) and len(body) > LARGE_BODY_BYTES else body


def _unreachable(origin: str, error: aiohttp.ClientError) -> Refused:
    match error:
        case aiohttp.ClientConnectorDNSError():
            what, check = "its host name is not known", "that the URL is spelled right"
        case aiohttp.ClientSSLError():
            what, check = "its TLS certificate was not accepted", "its certificate"
        case aiohttp.ClientConnectorError():
            what, check = (
                f"the connection failed ({error.strerror or 'refused'})",
                "that it is up and reachable from here",
            )
        case aiohttp.ConnectionTimeoutError():
            what, check = (
                f"no connection within {CONNECT_TIMEOUT_S:g} s",
                "that it is up and reachable from here",
            )
        case _:
            what, check = "it closed the connection without an answer", "its own log"
    return Refused(
        502,
        f"The upstream {origin} could not be reached: {what}. Check {check}.",
        type="upstream_error",
        code="upstream_unreachable",
    )


def _too_slow(origin: str, timeout_s: float) -> Refused:
    return Refused(
        504,
        f"The upstream {origin} sent no answer within {timeout_s:g} s. Check that it is healthy, or raise"
        " RATCHET_FIRST_BYTE_TIMEOUT_S.",
        type="upstream_error",
        code="upstream_timeout",
    )
