"""From the spool into PostgreSQL, exactly once: calls with their bytes, signals, spans, losses.

A call's row is written when its end record has been read, or when its gateway is gone. How far a boot has
been read is stored in the transaction that stores its records, and points at the oldest call that has not
ended. So a restart reads the records behind that point once more; their ids are known by then, and nothing
doubles. A segment is removed after a commit that leaves nothing of it to read.

Reads no message and joins no run: `telemetry.runs` does, when the hint arrives."""

import fcntl
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from django.conf import settings
from django.db import Error as AnyDatabaseError
from django.db import close_old_connections, connection, transaction

from accounts.models import ApiKey, Organization
from audit import ledger
from audit.actions import Action, Actor, ObjectRef
from kernel import clock
from kernel.notify import CALLS_ARRIVED, notify
from kernel.queueing import enqueue_on_commit
from telemetry import periods
from telemetry.chains import Chains
from telemetry.models import CaptureLoss, Signal, Span, SpoolPosition
from telemetry.records import BeginRecord, EndRecord, LossRecord, SignalRecord, SpanRecord, UnknownRecord
from telemetry.rows import MALFORMED, CallRow, call_row, copy_calls, fitting, signal_row, span_row
from telemetry.runs import STITCH
from telemetry.shedding import Shed
from telemetry.spool import Entry, Segment, segments

log = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.05
AWAY_INTERVAL_S = 1.0
"""Pause between tries while PostgreSQL is away."""
CHUNK_RECORDS = 2000
CHUNK_BYTES = 16 << 20
"""What one transaction holds at most, give or take one record."""

SPANS_AT_ONCE = 500
"""In one INSERT: their arguments and results may be long."""

_Told = TypeVar("_Told", SignalRecord, SpanRecord)
_Row = TypeVar("_Row", Signal, Span)

_MISSING = "missing"
"""Reason of a gap that no loss record has explained (yet)."""
_DAMAGED = "damaged"
"""Reason of a gap where bytes lie that are no record."""


def run_forever(stop: threading.Event, *, folder: Path | None = None) -> None:
    """Ingest until `stop` is set. Waits while PostgreSQL is away, and while another ingester has the
    folder."""
    folder = folder or settings.ENVIRONMENT.spool
    folder.mkdir(parents=True, exist_ok=True)
    with _only_ingester(folder, stop):
        ingester = Ingester(folder)
        is_away = False
        while not stop.is_set():
            try:
                stored = ingester.ingest_once(now=clock.now())
            except AnyDatabaseError as error:  # InterfaceError, a closed connection, is no DatabaseError
                if not is_away:
                    log.warning("the database is away, the spool keeps filling: %s", str(error).strip())
                is_away = True
                ingester = Ingester(folder)  # what a failed transaction had read is read again
                close_old_connections()
                stop.wait(AWAY_INTERVAL_S)
                continue
            if is_away:
                log.warning("the database is back")
                is_away = False
            if not stored:
                stop.wait(POLL_INTERVAL_S)
    connection.close()


@dataclass(frozen=True, slots=True)
class _Begin:
    """A call that has not ended, and where its record lies."""

    record: BeginRecord
    sequence: int
    segment: int
    offset: int


@dataclass
class _Boot:
    """How far one boot of one gateway process has been read."""

    process: str
    boot: str
    segment: int
    offset: int
    next_sequence: int | None
    """None: the beginning is not here any more, so the first number read is taken as it is."""
    open_calls: dict[UUID, _Begin] = field(default_factory=dict)

    @property
    def low_water(self) -> tuple[int, int, int]:
        """Segment, offset and sequence from which a restart must read: the oldest call that has not ended."""
        oldest = next(iter(self.open_calls.values()), None)
        if oldest is not None:
            return oldest.segment, oldest.offset, oldest.sequence
        return self.segment, self.offset, self.next_sequence or 0


@dataclass
class _Chunk:
    """The rows of one transaction."""

    calls: list[tuple[_Begin, EndRecord | None]] = field(default_factory=list)
    signals: list[tuple[int, SignalRecord]] = field(default_factory=list)
    spans: list[tuple[int, SpanRecord]] = field(default_factory=list)
    gaps: list[tuple[int, int, str]] = field(default_factory=list)
    """First and last sequence number, reason."""
    explanations: list[LossRecord] = field(default_factory=list)


class Ingester:
    """Reads one spool folder. Holds the calls that have not ended in memory; the rest is in the database."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._boots: dict[tuple[str, str], _Boot] = {}
        self._unreadable: set[Path] = set()
        self._chains = Chains()
        self._periods: set[date] = set()

    def ingest_once(self, *, now: datetime) -> int:
        """Store what the gateways have written so far; return how many records were read.

        Raises django.db.Error when the database is away; make a new Ingester then."""
        # Asked before the folder is listed for good: a writer has its next segment before it closes the one
        # before.
        closed = {segment for segment in segments(self._folder) if segment.is_closed()}
        by_boot: dict[tuple[str, str], list[Segment]] = {}
        for segment in segments(self._folder):
            by_boot.setdefault((segment.process, segment.boot), []).append(segment)
        self._boots = {key: boot for key, boot in self._boots.items() if key in by_boot}
        return sum(self._ingest_boot(files, closed, now=now) for files in by_boot.values())

    def _ingest_boot(self, files: Sequence[Segment], closed: set[Segment], *, now: datetime) -> int:
        is_over = files[-1] in closed
        process, name = files[0].process, files[0].boot
        boot = self._boots.get((process, name)) or _load(process, name, files[0].number)
        self._boots[process, name] = boot
        count = 0
        for file in files:
            if file.number < boot.segment:
                continue
            if file.number > boot.segment:
                boot.segment, boot.offset = file.number, 0
            read, is_exhausted = 1, False
            while read and not is_exhausted:
                chunk = _Chunk()
                read, is_exhausted = self._read(file, boot, chunk, is_closed=file in closed)
                is_end = is_exhausted and is_over and file is files[-1]
                if is_end:
                    _finish(chunk, boot, file)
                if read or is_end:
                    self._store(chunk, boot, now)
                count += read
            if not is_exhausted:
                return count
        self._remove(files, boot, is_over=is_over)
        return count

    def _read(self, file: Segment, boot: _Boot, chunk: _Chunk, *, is_closed: bool) -> tuple[int, bool]:
        """Fill a chunk from a segment; return how many records it took, and whether the segment has no
        more."""
        read, begin_offset = 0, boot.offset
        try:
            for entry in file.read(boot.offset, is_closed=is_closed):
                _take(entry, boot, chunk)
                boot.offset = entry.end_offset
                read += 1
                if read >= CHUNK_RECORDS or boot.offset - begin_offset >= CHUNK_BYTES:
                    return read, False
        except UnknownRecord as error:
            if file.path not in self._unreadable:
                log.error("%s waits for a newer version of Ratchet: %s", file.path, error)
                self._unreadable.add(file.path)
            return read, False
        return read, True

    def _store(self, chunk: _Chunk, boot: _Boot, now: datetime) -> None:
        projects = dict(ApiKey.objects.filter(id__in=_key_ids(chunk)).values_list("id", "project_id"))
        calls = _call_rows(chunk, boot, projects)
        signals = _rows(chunk.signals, signal_row, chunk, projects)
        spans = _rows(chunk.spans, span_row, chunk, projects)
        for period in {row.period for row in calls} - self._periods:
            periods.ensure(period)  # before the transaction that writes: making one takes a lock
            self._periods.add(period)
        with transaction.atomic():
            chunk.gaps += [(sequence, sequence, "refused") for sequence in copy_calls(calls, self._chains)]
            _store_signals(signals)
            Span.objects.bulk_create(spans, ignore_conflicts=True, batch_size=SPANS_AT_ONCE)
            _store_losses(chunk, boot, now)
            segment, offset, sequence = boot.low_water
            SpoolPosition.objects.update_or_create(
                process=boot.process,
                boot=boot.boot,
                segment=segment,
                defaults={"offset_bytes": offset, "next_sequence": sequence, "updated_at": now},
            )
            arrived = {row.begin.project_id for row in calls}
            arrived |= {row.project_id for row in signals} | {row.project_id for row in spans}
            for project_id in arrived:
                enqueue_on_commit(STITCH, project_id=str(project_id))
            if arrived:
                notify(CALLS_ARRIVED)

    def _remove(self, files: Sequence[Segment], boot: _Boot, *, is_over: bool) -> None:
        """Remove the segments that nothing needs any more; the commit that says so is behind us."""
        needed_from = boot.low_water[0]
        for file in files:
            if is_over or file.number < needed_from:
                file.remove()
        if is_over:
            SpoolPosition.objects.filter(process=boot.process, boot=boot.boot).delete()
            del self._boots[boot.process, boot.boot]


def _load(process: str, boot: str, first_segment: int) -> _Boot:
    position = SpoolPosition.objects.filter(process=process, boot=boot).order_by("-segment").first()
    if position is None or position.segment < first_segment:
        return _Boot(process, boot, first_segment, 0, 0 if first_segment == 0 else None)
    return _Boot(process, boot, position.segment, position.offset_bytes, position.next_sequence)


def _take(entry: Entry, boot: _Boot, chunk: _Chunk) -> None:
    """Sort one record into the chunk, noticing what is missing before it."""
    if boot.next_sequence is not None and entry.sequence > boot.next_sequence:
        reason = _DAMAGED if entry.is_after_damage else _MISSING
        chunk.gaps.append((boot.next_sequence, entry.sequence - 1, reason))
    boot.next_sequence = entry.sequence + 1
    match entry.record:
        case BeginRecord() as begin:
            boot.open_calls[begin.call_id] = _Begin(begin, entry.sequence, boot.segment, boot.offset)
        case EndRecord() as end:
            opened = boot.open_calls.pop(end.call_id, None)
            if opened is not None:  # its begin was lost: the gap says so
                chunk.calls.append((opened, end))
        case SignalRecord() as signal:
            chunk.signals.append((entry.sequence, signal))
        case SpanRecord() as span:
            chunk.spans.append((entry.sequence, span))
        case LossRecord() as loss:
            chunk.explanations.append(loss)


def _finish(chunk: _Chunk, boot: _Boot, last: Segment) -> None:
    """The boot is over and read to its end: calls that are still open died with it."""
    chunk.calls += [(begin, None) for begin in boot.open_calls.values()]
    boot.open_calls.clear()
    if last.path.stat().st_size > boot.offset:
        torn = boot.next_sequence or 0
        chunk.gaps.append((torn, torn, "torn"))


def _call_rows(chunk: _Chunk, boot: _Boot, projects: Mapping[UUID, UUID]) -> list[CallRow]:
    rows = []
    for begin, end in chunk.calls:
        if projects.get(begin.record.api_key_id) != begin.record.project_id:
            chunk.gaps.append((begin.sequence, begin.sequence, "unknown_project"))
            continue
        try:
            row = call_row(begin.record, end, process=boot.process, boot=boot.boot, sequence=begin.sequence)
        except MALFORMED:
            chunk.gaps.append((begin.sequence, begin.sequence, "malformed"))
        else:
            rows.append(row)
    return rows


def _rows(
    records: Sequence[tuple[int, _Told]],
    make: Callable[[_Told], _Row],
    chunk: _Chunk,
    projects: Mapping[UUID, UUID],
) -> list[_Row]:
    """The rows of what was told besides calls; what cannot be one becomes a gap."""
    rows = []
    for sequence, record in records:
        if projects.get(record.api_key_id) != record.project_id:
            chunk.gaps.append((sequence, sequence, "unknown_project"))
            continue
        try:
            rows.append(make(record))
        except MALFORMED:
            chunk.gaps.append((sequence, sequence, "malformed"))
    return rows


def _store_signals(signals: Sequence[Signal]) -> None:
    """Insert signals that are not known yet. The gateway makes the id of one with an idempotency key from the key and
    the content, so the same one sent again is the first; another one under the same key is kept, marked, and does not
    count."""
    Signal.objects.bulk_create(signals, ignore_conflicts=True)
    keyed = [row for row in signals if row.idempotency_key]
    if not keyed:
        return
    known = set(Signal.objects.filter(id__in=[row.id for row in keyed]).values_list("id", flat=True))
    conflicting = [row for row in keyed if row.id not in known]
    for row in conflicting:
        row.misfit = f"The idempotency key {row.idempotency_key} was used before, with other content."[:300]
        row.idempotency_key = ""
    Signal.objects.bulk_create(conflicting, ignore_conflicts=True)


def _key_ids(chunk: _Chunk) -> set[UUID]:
    calls = {begin.record.api_key_id for begin, _ in chunk.calls}
    signals = {record.api_key_id for _, record in chunk.signals}
    return calls | signals | {record.api_key_id for _, record in chunk.spans}


@dataclass
class _Loss:
    """A row to be: what is missing, or what the bodies of some records were."""

    first: int
    last: int
    count: int
    reason: str


def _losses_of(chunk: _Chunk) -> list[_Loss]:
    """The chunk's gaps, those that one loss record explains taken together, and the bodies that were shed."""
    losses = []
    explained: dict[LossRecord, _Loss] = {}
    for first, last, reason in sorted(chunk.gaps):
        explanation = next(
            (r for r in chunk.explanations if r.first_sequence <= first and last <= r.last_sequence), None
        )
        if reason != _MISSING or explanation is None:
            losses.append(_Loss(first, last, last - first + 1, reason))
        elif explanation in explained:
            loss = explained[explanation]
            loss.last, loss.count = last, loss.count + last - first + 1
        else:
            loss = explained[explanation] = _Loss(first, last, last - first + 1, explanation.reason)
            losses.append(loss)
    return losses + [
        _Loss(record.first_sequence, record.last_sequence, record.count, record.reason)
        for record in chunk.explanations
        if record.reason == Shed.BODY
    ]


def _store_losses(chunk: _Chunk, boot: _Boot, now: datetime) -> None:
    """A row for each loss that is new, and an event in the ledger of every organization: whose records they
    were is exactly what is not known."""
    losses = _losses_of(chunk)
    rows = CaptureLoss.objects.filter(process=boot.process, boot=boot.boot)
    found = rows.filter(first_sequence__in=[loss.first for loss in losses])
    known = {(first, reason == Shed.BODY) for first, reason in found.values_list("first_sequence", "reason")}
    for loss in losses:
        if (loss.first, loss.reason == Shed.BODY) not in known:
            known.add((loss.first, loss.reason == Shed.BODY))
            _store_loss(loss, boot, now)
    for record in chunk.explanations:
        if record.reason != Shed.BODY:
            inside = rows.filter(
                first_sequence__gte=record.first_sequence, last_sequence__lte=record.last_sequence
            )
            inside.filter(reason=_MISSING).update(reason=fitting(record.reason, 60))


def _store_loss(loss: _Loss, boot: _Boot, now: datetime) -> None:
    row = CaptureLoss.objects.create(
        process=boot.process,
        boot=boot.boot,
        first_sequence=loss.first,
        last_sequence=loss.last,
        count=loss.count,
        reason=fitting(loss.reason, 60),
        recorded_at=now,
    )
    for organization_id in Organization.objects.values_list("id", flat=True):
        ledger.record(
            Action.CAPTURE_LOST,
            actor=Actor.service("ingest"),
            organization_id=organization_id,
            project_id=None,
            obj=ObjectRef("capture_loss", row.id),
            at=now,
            data={
                "process": row.process,
                "boot": row.boot,
                "first_sequence": row.first_sequence,
                "last_sequence": row.last_sequence,
                "count": row.count,
                "reason": row.reason,
            },
        )


@contextmanager
def _only_ingester(folder: Path, stop: threading.Event) -> Iterator[None]:
    """One ingester at a time per folder; a second one waits to take over."""
    with (folder / "ingest.lock").open("a") as lock:
        while not stop.is_set():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                stop.wait(AWAY_INTERVAL_S)
        yield
