"""Identifiers: UUIDv7 (RFC 9562), so that rows created together lie together on disk and sort by time."""

import os
import time
from uuid import UUID

_FETCHED_AT_ONCE = 400
_RANDOM: list[bytes] = []
"""Ten random bytes each, fetched many at a time: the system call takes longer than everything else here."""

# A forked process must not hand out what its parent will.
os.register_at_fork(after_in_child=_RANDOM.clear)


def uuid7() -> UUID:
    """A fresh UUIDv7: 48 bits of Unix milliseconds, then 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds & (1 << 48) - 1) << 80 | int.from_bytes(_ten_random_bytes(), "big")
    value = value & ~(0xF << 76) | 7 << 76  # version
    value = value & ~(0b11 << 62) | 0b10 << 62  # variant
    return UUID(int=value)


def _ten_random_bytes() -> bytes:
    while True:
        try:
            return _RANDOM.pop()  # one thread gets it, whichever is first
        except IndexError:
            fetched = os.urandom(10 * _FETCHED_AT_ONCE)
            _RANDOM.extend(fetched[at : at + 10] for at in range(0, len(fetched), 10))
