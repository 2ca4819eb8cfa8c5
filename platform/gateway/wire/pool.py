"""The connections to all upstreams of one process: kept for reuse, watched for waits that take too long.

What happens on one connection is `gateway.wire.client`'s."""

import asyncio
import math
import socket
import ssl
from collections import deque
from collections.abc import Sequence

from gateway.wire.client import ConnectFailed, Connection
from gateway.wire.exchange import Header
from gateway.wire.origin import Origin

SWEEP_INTERVAL_S = 0.05
IDLE_TIMEOUT_S = 30.0
"""An idle connection is closed after this; providers close theirs after 60 s and more."""
MAX_IDLE_PER_ORIGIN = 256


class Pool:
    """The connections to all upstreams of one process. Nothing is shared between calls but the connections."""

    def __init__(self) -> None:
        self._idle: dict[Origin, deque[Connection]] = {}
        self._all: set[Connection] = set()
        self._tls: ssl.SSLContext | None = None
        self._sweeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    def stop(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._all):
            connection.transport.abort()

    async def take(self, origin: Origin, *, connect_timeout_s: float, fresh: bool = False) -> Connection:
        """A connection that nobody uses; a `fresh` one was not kept from before. Raises ConnectFailed."""
        idle = self._idle.get(origin)
        while idle and not fresh:
            kept = idle.pop()
            if not kept.is_lost and not kept.transport.is_closing():
                return kept
        return await self._connect(origin, connect_timeout_s)

    async def fetch(
        self,
        origin: Origin,
        target: bytes,
        headers: Sequence[Header],
        *,
        connect_timeout_s: float,
        limit_bytes: int,
    ) -> bytes:
        """The whole body of a GET's answer, for the gateway's own use; the caller sets the time limit. Raises
        UpstreamFailure."""
        connection = await self.take(origin, connect_timeout_s=connect_timeout_s, fresh=True)
        try:
            await connection.send("GET", target, headers, None)
            await connection.head(math.inf)
            pieces = []
            while (piece := await connection.read(math.inf)) and limit_bytes > 0:
                pieces.append(piece)
                limit_bytes -= len(piece)
            return b"".join(pieces)
        finally:
            connection.release()

    def _keep(self, connection: Connection) -> None:
        idle = self._idle.setdefault(connection.origin, deque())
        connection.idle_since = connection.loop.time()
        idle.append(connection)
        if len(idle) > MAX_IDLE_PER_ORIGIN:
            idle.popleft().transport.abort()

    def _forget(self, connection: Connection) -> None:
        self._all.discard(connection)

    async def _connect(self, origin: Origin, timeout_s: float) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(origin, on_idle=self._keep, on_lost=self._forget),
                    origin.host,
                    origin.port,
                    ssl=self._tls_context() if origin.scheme == "https" else None,
                )
        except TimeoutError:
            raise ConnectFailed(f"no connection within {timeout_s:g} s") from None
        except socket.gaierror:
            raise ConnectFailed("its host name is not known", "that the URL is spelled right") from None
        except ssl.SSLError:
            raise ConnectFailed("its TLS certificate was not accepted", "its certificate") from None
        except OSError as error:
            raise ConnectFailed(f"the connection failed ({error.strerror or 'refused'})") from None
        self._all.add(connection)
        return connection

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            now = loop.time()
            for connection in list(self._all):
                if connection.deadline and now > connection.deadline:
                    connection.deadline = 0.0
                    connection.expire()
            for idle in self._idle.values():
                while idle and (idle[0].is_lost or now - idle[0].idle_since > IDLE_TIMEOUT_S):
                    idle.popleft().transport.abort()
