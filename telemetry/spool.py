"""The spool: append-only segments in which a gateway keeps its records until they are in the database.

Owns framing, order, rotation, the quota and durability; what records mean is `telemetry.records`, and moving
them into tables is `telemetry.ingest`. Nothing here removes a segment unless told to.

    <folder>/<process>/lock                     locked while a writer of that name lives
    <folder>/<process>/<boot>-<segment>.seg     locked while it may grow; frames: length u32, CRC-32 u32, then
                                                kind u8, sequence u64, header length u32, JSON header, raw body

A frame leaves in one write(2), so it survives `kill -9` of the writer; fsync follows within FSYNC_INTERVAL_S,
so a power cut takes at most that. Sequence numbers have no gap within a process and boot: what is missing was
lost, and a LossRecord says how much of it and why."""

import errno
import fcntl
import logging
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from kernel.ids import uuid7
from telemetry.records import LossRecord, Record, decode, encode

log = logging.getLogger(__name__)

SEGMENT_BYTES = 64 << 20
MAX_BYTES = 4 << 30
"""Quota of one process's folder. Beyond it records are lost, loudly, rather than the disk filled."""
FSYNC_INTERVAL_S = 0.01
HOUSEKEEPING_INTERVAL_S = 0.5
"""How often the folder is measured (shipped segments disappear) and pending losses are written."""

_FRAME = struct.Struct(">II")
_PREFIX = struct.Struct(">BQI")


class SpoolFull(Exception):
    """The quota is used up: the record was not kept. It has been counted and will become a LossRecord."""


class SpoolBroken(OSError):
    """The disk refused the write or the fsync. The record was counted like one that met a full spool."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One record as read back."""

    sequence: int
    record: Record
    end_offset: int
    """Where the next frame begins, in bytes."""


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """One file of a spool. Sorts by process, then in the order of writing."""

    process: str
    boot: str
    number: int
    path: Path

    def is_closed(self) -> bool:
        """Whether the writer is done with it: went on to the next segment, ended or was killed. Ask before
        reading: what a closed segment holds is all that it will ever hold."""
        try:
            with self.path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def read(self, offset: int = 0) -> Iterator[Entry]:
        """The records from byte `offset` on, up to the first frame that is not whole.

        A torn tail ends the reading quietly. A frame whose checksum fails is passed over: its sequence number
        is missing then. Raises UnknownRecord at a record that only a newer version can read."""
        with self.path.open("rb") as file:
            file.seek(offset)
            while len(frame := file.read(_FRAME.size)) == _FRAME.size:
                length, checksum = _FRAME.unpack(frame)
                payload = file.read(length)
                # A power cut can leave zeros at the end, which read as an empty frame.
                if len(payload) < length or length < _PREFIX.size:
                    return
                offset += _FRAME.size + length
                if zlib.crc32(payload) == checksum:
                    kind, sequence, header_bytes = _PREFIX.unpack_from(payload)
                    body_at = _PREFIX.size + header_bytes
                    yield Entry(
                        sequence, decode(kind, payload[_PREFIX.size : body_at], payload[body_at:]), offset
                    )

    def remove(self) -> None:
        """Delete the file; its records are elsewhere now."""
        self.path.unlink(missing_ok=True)


def segments(folder: Path) -> list[Segment]:
    """Every segment of every process below `folder`, in the order of writing."""
    found = []
    for path in folder.glob("*/*.seg"):
        boot, _, number = path.stem.rpartition("-")
        found.append(Segment(path.parent.name, boot, int(number), path))
    return sorted(found)


class Spool:
    """The writer of one process. Threads may share it; `append` never waits for the disk to be in sync."""

    def __init__(
        self,
        folder: Path,
        process: str = "gateway",
        *,
        segment_bytes: int = SEGMENT_BYTES,
        max_bytes: int = MAX_BYTES,
        fsync_interval_s: float = FSYNC_INTERVAL_S,
    ) -> None:
        """Take the first free name among `<process>-1`, `<process>-2`, ... and begin a boot of its own."""
        self.boot = uuid7().hex
        self.process, self._name_lock = _claim_name(folder, process)
        self.folder = folder / self.process
        self.losses = 0
        """Records lost since the start."""
        self._segment_bytes = segment_bytes
        self._max_bytes = max_bytes
        self._fsync_interval_s = fsync_interval_s
        self._mutex = threading.Lock()
        self._sequence = 0
        self._segment = 0
        self._pending_losses: list[LossRecord] = []
        self._retired: list[int] = []
        self._waiting: list[Future[None]] = []
        self._wake = threading.Event()
        self._is_dirty = False
        self._is_closed = False
        self._earlier_bytes = self._measure()
        self._file, self._offset = self._open_segment(0), 0
        self._syncer = threading.Thread(target=self._sync_for_ever, name="spool-fsync", daemon=True)
        self._syncer.start()

    @property
    def size_bytes(self) -> int:
        """What the folder of this process holds, as of the last measurement plus what was written since."""
        return self._earlier_bytes + self._offset

    @property
    def is_writable(self) -> bool:
        """Whether the next record has room, as far as is known."""
        return self.size_bytes < self._max_bytes and not self._pending_losses

    @property
    def position(self) -> tuple[int, int]:
        """Segment number and byte offset behind the newest record."""
        with self._mutex:
            return self._segment, self._offset

    def append(self, record: Record) -> int:
        """Write one record and return its sequence number. Raises SpoolFull or SpoolBroken; both are
        counted."""
        with self._mutex:
            sequence = self._sequence
            frame = _frame(record, sequence)
            self._sequence += 1
            if self.size_bytes + len(frame) > self._max_bytes:
                self._lose(sequence, "spool_full")
                raise SpoolFull(f"the spool holds {self.size_bytes} bytes and may hold {self._max_bytes}")
            try:
                self._write(frame)
            except OSError as error:
                self._lose(sequence, "write_failed")
                raise SpoolBroken(error.errno, f"the spool cannot be written: {error.strerror}") from error
        self._mark_dirty()
        return sequence

    def synced(self) -> "Future[None]":
        """A future that is done once everything appended so far is on the disk; SpoolBroken when the disk
        refuses."""
        waiting: Future[None] = Future()
        with self._mutex:
            self._waiting.append(waiting)
        self._mark_dirty()
        return waiting

    def close(self) -> None:
        """Write pending losses, sync, give the name back."""
        self._is_closed = True
        self._wake.set()
        self._syncer.join()
        os.close(self._file)
        os.close(self._name_lock)

    def _mark_dirty(self) -> None:
        if not self._is_dirty:
            self._is_dirty = True
            self._wake.set()

    def _write(self, frame: bytes) -> None:
        if self._offset and self._offset + len(frame) > self._segment_bytes:
            file = self._open_segment(self._segment + 1)
            self._retired.append(self._file)
            self._earlier_bytes += self._offset
            self._file, self._segment, self._offset = file, self._segment + 1, 0
        written = os.write(self._file, frame)
        if written < len(frame):  # the disk is full: leave no half frame in front of later ones
            os.ftruncate(self._file, self._offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._offset += written

    def _open_segment(self, number: int) -> int:
        path = self.folder / f"{self.boot}-{number:08d}.seg"
        draft = path.with_suffix(".draft")
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL | os.O_CLOEXEC, 0o600)
        # Locked before it gets its name: a reader never sees an open segment that looks closed.
        fcntl.flock(file, fcntl.LOCK_EX)
        draft.rename(path)
        return file

    def _lose(self, sequence: int, reason: str) -> None:
        self.losses += 1
        first = sequence
        if self._pending_losses:
            latest = self._pending_losses[-1]
            if latest.last_sequence == sequence - 1 and latest.reason == reason:
                first = self._pending_losses.pop().first_sequence
        self._pending_losses.append(
            LossRecord(
                first_sequence=first,
                last_sequence=sequence,
                reason=reason,
                recorded_at=time.time_ns() // 1000,
            )
        )

    def _write_pending_losses(self) -> None:
        """Turn losses into records. They are few and small, so they may pass the quota; a full disk keeps
        them pending."""
        with self._mutex:
            while self._pending_losses:
                try:
                    self._write(_frame(self._pending_losses[0], self._sequence))
                except OSError:
                    return
                self._sequence += 1
                self._is_dirty = True
                del self._pending_losses[0]

    def _measure(self) -> int:
        """Bytes of the segments of this process, the current one aside."""
        current = f"{self.boot}-{self._segment:08d}.seg"
        total = 0
        with os.scandir(self.folder) as files:
            for file in files:
                if file.name.endswith(".seg") and file.name != current:
                    try:
                        total += file.stat().st_size
                    except FileNotFoundError:  # shipped and removed meanwhile
                        continue
        return total

    def _sync_for_ever(self) -> None:
        housekeeping_due = time.monotonic() + HOUSEKEEPING_INTERVAL_S
        while not self._is_closed:
            self._wake.wait(max(0.0, housekeeping_due - time.monotonic()))
            if time.monotonic() >= housekeeping_due:
                self._keep_house()
                housekeeping_due = time.monotonic() + HOUSEKEEPING_INTERVAL_S
            if self._is_dirty:
                self._sync()
                # Whatever arrives in this pause shares one fsync.
                time.sleep(self._fsync_interval_s)
        self._write_pending_losses()
        self._sync()

    def _keep_house(self) -> None:
        self._write_pending_losses()
        with self._mutex:
            self._earlier_bytes = self._measure()

    def _sync(self) -> None:
        with self._mutex:
            # Cleared before the fsync: a record that arrives during it asks for another one.
            self._wake.clear()
            self._is_dirty = False
            retired, self._retired = self._retired, []
            waiting, self._waiting = self._waiting, []
            file = self._file
        failure = None
        try:
            for number in [*retired, file]:
                os.fsync(number)
            if retired:
                _sync_folder(self.folder)
        except OSError as error:
            log.error("the spool's disk refuses to sync: %s", error.strerror)
            failure = SpoolBroken(error.errno, f"the spool's disk refuses to sync: {error.strerror}")
        for number in retired:
            os.close(number)
        for future in waiting:
            if failure:
                future.set_exception(failure)
            else:
                future.set_result(None)


def _claim_name(folder: Path, process: str) -> tuple[str, int]:
    """The first name that no living writer holds, and its lock."""
    number = 1
    while True:
        name = f"{process}-{number}"
        (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / name / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            number += 1
        else:
            return name, lock


def _frame(record: Record, sequence: int) -> bytes:
    kind, header, body = encode(record)
    payload = b"".join((_PREFIX.pack(kind, sequence, len(header)), header, body))
    return _FRAME.pack(len(payload), zlib.crc32(payload)) + payload


def _sync_folder(folder: Path) -> None:
    """Make new file names durable too."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
