"""The spool: append-only segments in which a gateway keeps its records until they are in the database.

Owns order, rotation, the quota and durability; the form of a frame is `telemetry.frames`, what a nearly full spool
leaves out is `telemetry.shedding`, what records mean is `telemetry.records`, and moving them into tables is
`telemetry.ingest`. Nothing here removes a segment unless told to.

    <folder>/<process>/lock                     locked while a writer of that name lives
    <folder>/<process>/<boot>-<segment>.seg     locked while it may grow; frames, one after the other

A frame leaves in one write(2), so it survives `kill -9` of the writer; fsync follows within the interval,
so a power cut takes at most that. Sequence numbers have no gap within a process and boot: what is missing was
lost, and a LossRecord says how much of it and why."""

import errno
import fcntl
import logging
import os
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from kernel.ids import uuid7
from telemetry import frames
from telemetry.records import LossRecord, Record, decode, encode
from telemetry.shedding import Level, Policy, Shed, without_body

log = logging.getLogger(__name__)

SEGMENT_BYTES = 64 << 20
MAX_BYTES = 4 << 30
"""Quota of one process's folder. Beyond it records are lost, loudly, rather than the disk filled."""
FSYNC_INTERVAL_S = 0.01
HOUSEKEEPING_INTERVAL_S = 0.5
"""How often the folder is measured (shipped segments disappear), and losses are written that none has told yet."""
STUMBLE_PAUSE_S = 0.1
"""How long the thread that syncs rests when something failed."""
MAX_PENDING_LOSSES = 100
"""So many ranges of lost records are told apart between two housekeepings, at once where a record follows them, and
so many more are kept for the second; further ones widen the latest."""


class SpoolFull(Exception):
    """The quota is used up: the record was not kept. It has been counted and will become a LossRecord."""


class SpoolBroken(OSError):
    """The disk refused the write or the fsync. The record was counted like one that met a full spool."""


@dataclass(frozen=True)
class Entry:
    """One record as read back."""

    frame: frames.Frame

    @property
    def sequence(self) -> int:
        return self.frame.sequence

    @property
    def end_offset(self) -> int:
        """Where the next frame begins, in bytes."""
        return self.frame.end_offset

    @property
    def is_after_damage(self) -> bool:
        """Whether unreadable bytes lie before it."""
        return self.frame.is_after_damage

    @cached_property
    def record(self) -> Record:
        """Raises UnknownRecord for one that only a newer version can read."""
        return decode(self.frame.kind, self.frame.header, self.frame.body)


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

    def read(self, offset: int = 0, *, is_closed: bool = False) -> Iterator[Entry]:
        """The records from byte `offset` on; how torn and damaged frames are met is said in `frames.read`."""
        with self.path.open("rb", buffering=0) as file:
            for frame in frames.read(file, offset, seed=frames.seed(self.boot), is_closed=is_closed):
                yield Entry(frame)

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
        self._seed = frames.seed(self.boot)
        self.process, self._name_lock = _claim_name(folder, process)
        self.folder = folder / self.process
        self.losses = 0
        """Records lost since the start."""
        self.level = Level.NOTHING
        """What is being left out at the moment."""
        self.sync_failures = 0
        """How often the thread that syncs has failed since the start."""
        self.sync_problem = ""
        """Why it failed the last time; empty once it works again."""
        self._shed = Counter[Shed]()
        self._segment_bytes = segment_bytes
        self._max_bytes = max_bytes
        self._fsync_interval_s = fsync_interval_s
        self._policy = Policy(max_bytes)
        self._mutex = threading.Lock()
        self._sequence = 0
        self._segment = 0
        self._is_failing = False
        self._pending_losses: list[LossRecord] = []
        self._has_gap = False
        """Whether one of them says what became of a record that is not there."""
        self._tellings_left = MAX_PENDING_LOSSES
        """How often losses may still be told before the next housekeeping; each becomes a row of its own."""
        self._retired: list[int] = []
        self._waiting: Future[None] | None = None
        self._urgent = threading.Event()
        self._is_dirty = False
        self._is_closed = False
        self._earlier_bytes = self._measure()
        self._file, self._offset = self._open_segment(0), 0
        self._housekeeping_due_s = time.monotonic() + HOUSEKEEPING_INTERVAL_S
        self._syncer = threading.Thread(target=self._sync_for_ever, name="spool-fsync", daemon=True)
        self._syncer.start()

    @property
    def size_bytes(self) -> int:
        """What the folder of this process holds, as of the last measurement plus what was written since."""
        return self._earlier_bytes + self._offset

    @property
    def is_writable(self) -> bool:
        """Whether the next call can be recorded, bodies aside, as far as is known."""
        return self.level < Level.NEW_CALLS and not self._is_failing

    @property
    def shed(self) -> Mapping[Shed, int]:
        """How many records were left out or cut short since the start, by reason; every reason is there."""
        return {reason: self._shed[reason] for reason in Shed}

    @property
    def position(self) -> tuple[int, int]:
        """Segment number and byte offset behind the newest record."""
        with self._mutex:
            return self._segment, self._offset

    def append(self, record: Record) -> int:
        """Write one record and return its sequence number. Raises SpoolFull or SpoolBroken; both are
        counted."""
        with self._mutex:
            kept = record
            frame = self._frame(record)
            if self.size_bytes + len(frame) > self._policy.soft_bytes or self._policy.calls_left_out:
                kept, frame = self._fitting(record, frame)
            if self._has_gap and self._tellings_left:
                # Told before what follows it: a process killed in between leaves no gap that nobody explains.
                self._tellings_left -= 1
                self._write_pending_losses()
                frame = self._frame(kept)
            try:
                self._write(frame)
            except OSError as error:
                cut = self._write_without_body(kept)
                if cut is None:
                    self._is_failing = True
                    self._lose(record, Shed.WRITE_FAILED)
                    raise SpoolBroken(
                        error.errno, f"the spool cannot be written: {error.strerror}"
                    ) from error
                kept = cut
            sequence = self._sequence
            self._sequence += 1
            if kept is not record:
                self._note(sequence, Shed.BODY)
        self._is_dirty = True
        return sequence

    def synced(self) -> "Future[None]":
        """A future that is done once everything appended so far is on the disk; SpoolBroken when the disk
        refuses. All who ask before the next fsync share one, so it cannot be cancelled."""
        with self._mutex:
            if self._waiting is None:
                self._waiting = Future()
                self._waiting.set_running_or_notify_cancel()
            waiting = self._waiting
        self._is_dirty = True
        self._urgent.set()
        return waiting

    def close(self) -> None:
        """Write pending losses, sync, give the name back."""
        self._is_closed = True
        self._urgent.set()
        self._syncer.join()
        os.close(self._file)
        os.close(self._name_lock)

    def _fitting(self, record: Record, frame: bytes) -> tuple[Record, bytes]:
        """The record and its frame, without its body where the quota asks for that. Raises SpoolFull where it asks
        for more."""
        kept = record
        if self.size_bytes + len(frame) > self._policy.soft_bytes:
            kept = without_body(record)
            frame = self._frame(kept)
        level = self._policy.level(self.size_bytes)
        if self.size_bytes + len(frame) > self._max_bytes:
            level = Level.EVERYTHING
        self._enter(level)
        reason = self._policy.refuses(record, level)
        if reason is not None:
            self._lose(record, reason)
            raise SpoolFull(
                f"{reason}: the spool holds {self.size_bytes} bytes and may hold {self._max_bytes}"
            )
        return kept, frame

    def _write_without_body(self, record: Record) -> Record | None:
        """The record as a full disk took it, without its body; None when it did not."""
        cut = without_body(record)
        if cut is record:
            return None
        try:
            self._write(self._frame(cut))
        except OSError:
            return None
        return cut

    def _frame(self, record: Record) -> bytes:
        """The frame of the record, should it be the next one."""
        kind, header, body = encode(record)
        return frames.pack(kind, self._sequence, header, body, seed=self._seed)

    def _enter(self, level: Level) -> None:
        if level is self.level:
            return
        log.warning(
            "the spool holds %d of %d bytes and leaves out: %s",
            self.size_bytes,
            self._max_bytes,
            level.name.lower().replace("_", " "),
        )
        self.level = level

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
        # A draft of this name is what a full disk left of the last try.
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        # Locked before it gets its name: a reader never sees an open segment that looks closed.
        fcntl.flock(file, fcntl.LOCK_EX)
        draft.rename(path)
        return file

    def _lose(self, record: Record, reason: Shed) -> None:
        """Use up a sequence number for a record that is not there."""
        self.losses += 1
        self._has_gap = True
        self._policy.left_out(record, reason)
        self._note(self._sequence, reason)
        self._sequence += 1

    def _note(self, sequence: int, reason: Shed) -> None:
        """Count what is not kept, and have a LossRecord say so. Bodies of records that are there make no gap, so
        one range spans them all; lost records keep exact ranges while there are not too many."""
        self._shed[reason] += 1
        may_widen = reason is Shed.BODY or len(self._pending_losses) >= MAX_PENDING_LOSSES
        for index in range(len(self._pending_losses) - 1, -1, -1):
            latest = self._pending_losses[index]
            if latest.reason == reason:
                if may_widen or latest.last_sequence == sequence - 1:
                    widened = replace(latest, last_sequence=sequence, count=latest.count + 1)
                    self._pending_losses[index] = widened
                    return
                break
        now = time.time_ns() // 1000
        self._pending_losses.append(
            LossRecord(
                first_sequence=sequence, last_sequence=sequence, count=1, reason=reason, recorded_at=now
            )
        )

    def _write_pending_losses(self) -> None:
        """Turn losses into records, with the mutex held. They are few and small, so they may pass the quota; a full
        disk keeps them pending."""
        while self._pending_losses:
            try:
                self._write(self._frame(self._pending_losses[0]))
            except OSError:
                return
            self._sequence += 1
            self._is_failing = False
            del self._pending_losses[0]
        self._has_gap = False

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
        while not self._is_closed:
            self._attempt(self._work)
        self._attempt(self._finish)

    def _attempt(self, step: Callable[[], None]) -> None:
        """Do it, and survive it whatever happens: everybody's fsync comes from this thread."""
        try:
            step()
        except Exception as error:
            self._stumbled(error)
        else:
            if self.sync_problem:
                log.warning("the spool is synced again")
                self.sync_problem = ""

    def _stumbled(self, error: Exception) -> None:
        self.sync_failures += 1
        if self.sync_problem != str(error):
            is_expected = isinstance(error, OSError)
            log.error("the spool cannot be synced: %s", error, exc_info=not is_expected)
        self.sync_problem = str(error) or type(error).__name__
        with self._mutex:
            self._is_dirty = True  # tried again, although nothing new may come
        # Relative to the present, unlike the deadlines of sleeps and locks: those fail where a clock is bent.
        select.select([], [], [], STUMBLE_PAUSE_S)

    def _work(self) -> None:
        """One turn. The fsync comes first: nothing else that fails may stand in its way."""
        if self._is_dirty:
            self._sync()
        if time.monotonic() >= self._housekeeping_due_s:
            self._housekeeping_due_s = time.monotonic() + HOUSEKEEPING_INTERVAL_S
            self._keep_house()
        # Whatever arrives in this pause shares one fsync; who waits for it ends the pause. Nobody else does: to wake a
        # thread for each record would cost the call that the record is about more than the record itself.
        self._urgent.wait(self._fsync_interval_s)

    def _finish(self) -> None:
        with self._mutex:
            self._write_pending_losses()
        self._sync()

    def _keep_house(self) -> None:
        with self._mutex:
            self._tellings_left = MAX_PENDING_LOSSES
            if self._pending_losses:
                self._write_pending_losses()
                self._is_dirty = True
            try:
                self._earlier_bytes = self._measure()
                self._enter(self._policy.level(self.size_bytes))
            except OSError as error:  # the fsync is not to wait for this
                log.error("the spool's folder cannot be measured: %s", error.strerror)

    def _sync(self) -> None:
        """One fsync for all who wait. Raises what it met, once they have been told."""
        with self._mutex:
            # Cleared before the fsync: a record that arrives during it asks for another one.
            self._urgent.clear()
            self._is_dirty = False
            retired, self._retired = self._retired, []
            waiting, self._waiting = self._waiting, None
            file = self._file
        try:
            with ExitStack() as closing:
                for number in retired:
                    closing.callback(os.close, number)
                for number in [*retired, file]:
                    os.fsync(number)
                if retired:
                    _sync_folder(self.folder)
        except Exception as error:
            if waiting:
                waiting.set_exception(_broken(error))
            raise
        if waiting:
            waiting.set_result(None)


def _broken(error: Exception) -> SpoolBroken:
    number = error.errno if isinstance(error, OSError) else None
    return SpoolBroken(number or errno.EIO, f"the spool cannot be synced: {error}")


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


def _sync_folder(folder: Path) -> None:
    """Make new file names durable too."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
