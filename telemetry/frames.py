"""The frames of a spool segment: how a record lies on the disk, and how it is found again behind damage.

    length u32, CRC-32 u32, then `length` bytes: kind u8, sequence u64, header length u32, JSON header, raw body

The checksum begins with the boot's name, which no customer knows: what looks like a frame inside a customer's body
is never taken for one, even when the frame around it is damaged.
Pure bytes: which files there are, and when they may be read, is `telemetry.spool`'s; what kind, header and body
mean is `telemetry.records`'."""

import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_FRAME = struct.Struct(">II")
_PREFIX = struct.Struct(">BQI")
_HEAD_BYTES = _FRAME.size + _PREFIX.size
BLOCK_BYTES = 1 << 20
"""How much is read at once."""


class Frame(NamedTuple):
    """One whole frame as read back."""

    kind: int
    sequence: int
    header: bytes
    body: bytes
    end_offset: int
    """Where the next frame begins, in bytes."""
    is_after_damage: bool
    """Whether bytes that are no frame lie between this one and the one before."""


def seed(boot: str) -> int:
    """Where the checksums of a boot's frames begin."""
    return zlib.crc32(boot.encode())


def pack(kind: int, sequence: int, header: bytes, body: bytes, *, seed: int) -> bytes:
    """A frame, ready to be written in one go."""
    prefix = _PREFIX.pack(kind, sequence, len(header))
    checksum = zlib.crc32(body, zlib.crc32(header, zlib.crc32(prefix, seed)))
    return b"".join((_FRAME.pack(len(prefix) + len(header) + len(body), checksum), prefix, header, body))


def read(file: BinaryIO, offset: int, *, seed: int, is_closed: bool) -> Iterator[Frame]:
    """The frames from byte `offset` on.

    Damage is passed over: reading goes on at the next place that is a frame by its checksum. Where there is
    none, reading ends: at a torn tail, at the zeros that a power cut can leave. Of a file that may still grow,
    a frame that is not whole is left alone, since its rest may be on its way."""
    window = _Window(file, offset, seed)
    at, is_after_damage = offset, False
    while True:
        frame = window.frame(at, is_after_damage)
        is_whole = False
        if frame is None and window.holds(at, _HEAD_BYTES) and (is_whole := window.is_whole(at)):
            # Asked once, and looked at again: of a file that grows, the rest may have come between two looks, and
            # a frame that was unfinished at one and whole at the next is not damaged.
            frame = window.frame(at, is_after_damage)
        if frame is not None:
            yield frame
            at, is_after_damage = frame.end_offset, False
            continue
        if not is_whole and not (is_closed and window.holds(at, _HEAD_BYTES)):
            return
        found = window.find_next(at + 1)
        if found is None:
            return
        at, is_after_damage = found, True


class _Window:
    """A part of the file in memory, moved forward as frames are asked for."""

    def __init__(self, file: BinaryIO, offset: int, seed: int) -> None:
        self._file = file
        self._seed = seed
        self._start = offset
        self._data = b""
        file.seek(offset)

    def frame(self, at: int, is_after_damage: bool) -> Frame | None:
        """The frame at byte `at`; None when what stands there is none, or not whole."""
        if not self.holds(at, _HEAD_BYTES):
            return None
        length, checksum = _FRAME.unpack_from(self._data, at - self._start)
        if length < _PREFIX.size or not self.holds(at, _FRAME.size + length):
            return None
        begin = at - self._start + _FRAME.size
        end = begin + length
        payload = self._data[begin:end]
        if zlib.crc32(payload, self._seed) != checksum:
            return None
        kind, sequence, header_bytes = _PREFIX.unpack_from(payload)
        body_at = _PREFIX.size + header_bytes
        return Frame(
            kind,
            sequence,
            payload[_PREFIX.size : body_at],
            payload[body_at:],
            self._start + end,
            is_after_damage,
        )

    def is_whole(self, at: int) -> bool:
        """Whether all bytes that the frame at `at` says it has are there: then it is damaged, not unfinished."""
        length, _ = _FRAME.unpack_from(self._data, at - self._start)
        return self.holds(at, _FRAME.size + length)

    def find_next(self, at: int) -> int | None:
        """The first place from `at` on where a frame stands. Headers are JSON objects, so few places are tried."""
        while True:
            self.holds(at, BLOCK_BYTES)
            brace = self._data.find(b"{", at - self._start + _HEAD_BYTES)
            if brace < 0:
                skipped = self._start + len(self._data) - _HEAD_BYTES
                if skipped <= at or not self.holds(skipped, _HEAD_BYTES + 1):
                    return None
                at = skipped
                continue
            at = self._start + brace - _HEAD_BYTES
            if self.frame(at, True) is not None:
                return at
            at += 1

    def holds(self, at: int, size: int) -> bool:
        """Whether the file has `size` bytes from `at` on; they are in memory then."""
        end = self._start + len(self._data)
        if at + size > end:
            unread = os.fstat(self._file.fileno()).st_size - end
            if unread <= 0 or (size > BLOCK_BYTES and at + size > end + unread):
                return False  # a damaged length may ask for gigabytes, at one place after the other
            more = self._file.read(max(0, min(max(at + size - end, BLOCK_BYTES), unread)))
            self._data = self._data[at - self._start :] + more
            self._start = at
        return self._start + len(self._data) >= at + size
