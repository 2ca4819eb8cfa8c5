"""What a connection to a caller and one to an upstream have in common: flow control in both directions, and tunnels
once HTTP has been left behind. Knows no HTTP."""

import asyncio
from collections.abc import Callable
from typing import cast


class Line(asyncio.Protocol):
    """One TCP connection."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport
        self.is_choked = False
        """The other side does not take what was written."""
        self.is_lost = False
        self.on_writable: Callable[[], None] | None = None
        """In a tunnel: called once, when the other side takes more again."""
        self.on_tunnel_lost: Callable[[], None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._is_paused = False
        self._tunnel: Callable[[bytes], None] | None = None
        self._early = b""
        """What came behind the head of an upgrade."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._wake_drained()
        if self.on_tunnel_lost is not None:
            self.on_tunnel_lost()

    def pause_writing(self) -> None:
        self.is_choked = True

    def resume_writing(self) -> None:
        self.is_choked = False
        self._wake_drained()
        on_writable, self.on_writable = self.on_writable, None
        if on_writable is not None:
            on_writable()

    async def drain(self) -> None:
        """Wait until the other side takes more, or is gone."""
        while self.is_choked and not self.is_lost:
            self._drained = self.loop.create_future()
            await self._drained

    def pause_reading(self) -> None:
        if not self._is_paused and not self.is_lost:
            self._is_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._is_paused and not self.is_lost:
            self._is_paused = False
            self.transport.resume_reading()

    def tunnel(self, receive: Callable[[bytes], None]) -> None:
        """From here on the connection's bytes go to `receive`, those that came early first; what is written to the
        transport leaves as it is."""
        self._tunnel = receive
        early, self._early = self._early, b""
        if early:
            receive(early)

    def _wake_drained(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
