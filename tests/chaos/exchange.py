"""One HTTP/1.1 exchange over a raw connection: exactly the bytes that came, and exactly how they ended.

A library would hide what the experiment is about (a transfer that broke off, a connection that was refused), so
this reads no more of HTTP than a status line, a few headers, a length and chunks."""

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum

READ_BYTES = 16 << 10
TIMEOUT_S = 120.0


class Result(StrEnum):
    """How an exchange ended for the client."""

    WHOLE = "whole"
    CUT = "cut"  # the answer began and broke off
    LOST = "lost"  # the request was sent, or part of it, and the connection ended without an answer
    REFUSED = "refused"  # no connection: nothing was sent
    LEFT = "left"  # the client went away by itself
    TIMEOUT = "timeout"


@dataclass(slots=True)
class Received:
    """What came back."""

    result: Result = Result.LOST
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)


@dataclass(frozen=True, slots=True)
class Manners:
    """How the client reads."""

    leaves_after_s: float | None = None
    """Goes away if no answer has begun by then."""
    leaves_after_bytes: int | None = None
    """Goes away once this much of an answer's body is here; an error is read to its end."""
    pause_s: float = 0.0
    """Between two reads."""


class _Left(Exception):
    """The client has had enough."""


class Connection:
    """A keep-alive connection to one gateway; opened when needed, dropped after whatever went wrong."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def exchange(self, request: bytes, manners: Manners) -> Received:
        received = Received()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if self._has_ended:
                    self.close()  # the gateway has gone since: as SDKs do, look before using it again
                if self._streams is None:
                    try:
                        self._streams = await asyncio.open_connection(
                            "127.0.0.1", self._port, limit=READ_BYTES
                        )
                    except OSError:
                        received.result = Result.REFUSED
                        return received
                reader, writer = self._streams
                writer.write(request)
                await writer.drain()
                await self._read(reader, received, manners)
                received.result = Result.WHOLE
        except _Left:
            received.result = Result.LEFT
        except TimeoutError:
            received.result = Result.TIMEOUT
        except (OSError, asyncio.IncompleteReadError):
            received.result = Result.CUT if received.status else Result.LOST
        if received.result != Result.WHOLE:
            self.close()
        return received

    @property
    def _has_ended(self) -> bool:
        if self._streams is None:
            return False
        reader, writer = self._streams
        return reader.at_eof() or reader.exception() is not None or writer.transport.is_closing()

    def close(self) -> None:
        """Drop the connection without ceremony, as a client that dies would."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def _read(self, reader: asyncio.StreamReader, received: Received, manners: Manners) -> None:
        try:
            async with asyncio.timeout(manners.leaves_after_s):
                head = await reader.readuntil(b"\r\n\r\n")
        except TimeoutError:
            if manners.leaves_after_s is None:
                raise
            raise _Left from None
        first, *lines = head[:-4].decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        received.headers = {name.lower(): value for name, value in headers.items()}
        received.status = int(first.split(" ", 2)[1])
        if received.headers.get("transfer-encoding") == "chunked":
            while size := int(await reader.readuntil(b"\r\n"), 16):
                await _copy(reader, size, received, manners)
                await reader.readexactly(2)
            await reader.readexactly(2)
        else:
            await _copy(reader, int(received.headers["content-length"]), received, manners)


async def _copy(reader: asyncio.StreamReader, size: int, received: Received, manners: Manners) -> None:
    while size:
        piece = await reader.read(min(size, READ_BYTES))
        if not piece:
            raise asyncio.IncompleteReadError(b"", size)
        received.body += piece
        size -= len(piece)
        leaves = manners.leaves_after_bytes
        if received.status == 200 and leaves is not None and len(received.body) >= leaves:
            raise _Left
        if manners.pause_s:
            await asyncio.sleep(manners.pause_s)


def post(path: str, body: bytes, *, key: str, headers: dict[str, str]) -> bytes:
    """A POST as bytes."""
    lines = [f"POST {path} HTTP/1.1", "host: gateway", f"authorization: Bearer {key}"]
    lines += ["content-type: application/json", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body
