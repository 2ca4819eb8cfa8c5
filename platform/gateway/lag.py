"""How long the oldest record of this process has been waiting to be shipped into the database.

Knows positions in the spool, not records: a position is noted with the time at which it was first seen
written."""

import threading
from collections import deque

Position = tuple[int, int]
"""Segment number and byte offset; later positions compare greater."""

START: Position = (0, 0)


class ShippingLag:
    """Threads may share it. Exact to the interval at which it is asked."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiting: deque[tuple[Position, float]] = deque()
        self._shipped = START

    def shipped(self, position: Position) -> None:
        """Everything up to `position` is in the database."""
        with self._mutex:
            self._shipped = max(self._shipped, position)

    def age_s(self, written: Position, now_s: float) -> float:
        """Seconds since the oldest waiting record was first seen; 0.0 when none waits. `written` is the
        newest position."""
        with self._mutex:
            if written > (self._waiting[-1][0] if self._waiting else self._shipped):
                self._waiting.append((written, now_s))
            while self._waiting and self._waiting[0][0] <= self._shipped:
                self._waiting.popleft()
            return now_s - self._waiting[0][1] if self._waiting else 0.0
