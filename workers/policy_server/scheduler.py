"""One thread that owns the engine, and how the HTTP side talks to it: requests in by queue, tokens out by
callback.

Requests that arrive while others are decoding join at the next step. The event loop never waits for the
model, so health checks answer while it works."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from dataclasses import dataclass, field

from workers.policy_server.engine import Engine, Generation, Token

log = logging.getLogger(__name__)


class GenerationFailed(RuntimeError):
    """The model raised while this answer was in its batch."""


@dataclass(eq=False)
class Ticket:
    """One answer under way. `updates` gets the tokens drawn since the last one; None after the last, or an
    error."""

    generation: Generation
    updates: asyncio.Queue[list[Token] | GenerationFailed | None] = field(default_factory=asyncio.Queue)
    delivered: int = 0


class Scheduler:
    """Starts the engine's thread; `submit` and `stop` are for the event loop's thread."""

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop, *, max_batch: int) -> None:
        self._engine, self._loop, self._max_batch = engine, loop, max_batch
        self._arrivals: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that have not joined a batch yet."""
        return self._arrivals.qsize()

    def submit(self, generation: Generation) -> Ticket:
        """Queue an answer."""
        ticket = Ticket(generation)
        self._arrivals.put(ticket)
        return ticket

    def stop(self) -> None:
        """End the thread after the step under way."""
        self._arrivals.put(None)
        self._thread.join(timeout=30)

    def _work(self) -> None:
        decoding: list[Ticket] = []
        while True:
            joining, stopping = self._arrived(room=self._max_batch - len(decoding), wait=not decoding)
            if stopping:
                return
            decoding += joining
            try:
                self._engine.step([ticket.generation for ticket in joining])
            except Exception as error:
                # Whatever the model raised, these answers are lost and the server goes on.
                log.exception("a batch of %d answers failed", len(decoding))
                self._engine.reset()
                self._post([(t, GenerationFailed(str(error))) for t in decoding])
                decoding = []
                continue
            self._publish(decoding)
            decoding = [ticket for ticket in decoding if ticket.generation.finish_reason is None]

    def _arrived(self, *, room: int, wait: bool) -> tuple[list[Ticket], bool]:
        joining: list[Ticket] = []
        while len(joining) < room:
            try:
                ticket = self._arrivals.get(block=wait and not joining)
            except queue.Empty:
                break
            if ticket is None:
                return [], True
            if not ticket.generation.cancelled:
                joining.append(ticket)
        return joining, False

    def _publish(self, decoding: list[Ticket]) -> None:
        updates: list[tuple[Ticket, list[Token] | GenerationFailed | None]] = []
        for ticket in decoding:
            tokens = ticket.generation.tokens
            updates.append((ticket, tokens[ticket.delivered :]))
            ticket.delivered = len(tokens)
            if ticket.generation.finish_reason is not None:
                updates.append((ticket, None))
        self._post(updates)

    def _post(self, updates: list[tuple[Ticket, list[Token] | GenerationFailed | None]]) -> None:
        def deliver() -> None:
            for ticket, update in updates:
                ticket.updates.put_nowait(update)

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(deliver)
