"""What a spool leaves out when its quota runs out, in which order. Loud and in steps: a call's bodies go first,
its headers and usage last.

Pure: knows sizes and records, no files. `telemetry.spool` asks before each write and counts the answers."""

from dataclasses import replace
from enum import IntEnum, StrEnum
from uuid import UUID

from telemetry.records import BeginRecord, EndRecord, Record


class Shed(StrEnum):
    """Why something was not kept."""

    BODY = "body_shed"
    """The record was kept without its body."""
    PASS_THROUGH = "pass_through_shed"
    """A call that no dialect reads."""
    FULL = "spool_full"
    WRITE_FAILED = "write_failed"
    """The disk refused it."""


class Level(IntEnum):
    """How much is being left out; each level includes the ones below."""

    NOTHING = 0
    BODIES = 1
    PASS_THROUGH = 2
    NEW_CALLS = 3
    """Only the ends of calls that are on record, and signals, still have room."""
    EVERYTHING = 4


_SHARES = {Level.BODIES: 0.8, Level.PASS_THROUGH: 0.9, Level.NEW_CALLS: 0.95, Level.EVERYTHING: 1.0}
"""From which share of the quota on a level holds."""


class Policy:
    """The decision for each record. Remembers the calls whose begin was left out: their end would say nothing."""

    def __init__(self, max_bytes: int) -> None:
        self._limits = {level: int(max_bytes * share) for level, share in _SHARES.items()}
        self.soft_bytes = self._limits[Level.BODIES]
        """Below it nothing is left out, so nobody has to ask."""
        self.calls_left_out: dict[UUID, Shed] = {}

    def level(self, size_bytes: int) -> Level:
        """The level that holds while the spool has this size."""
        return max(
            (level for level, limit in self._limits.items() if size_bytes > limit), default=Level.NOTHING
        )

    def refuses(self, record: Record, level: Level) -> Shed | None:
        """Why a record, already without its body, is not kept at this level; None when it is."""
        if isinstance(record, EndRecord):
            reason = self.calls_left_out.pop(record.call_id, None)
            if reason is not None:
                return reason
        if level is Level.EVERYTHING:
            return Shed.FULL
        if not isinstance(record, BeginRecord):
            return None
        if level is Level.NEW_CALLS:
            return Shed.FULL
        return Shed.PASS_THROUGH if level is Level.PASS_THROUGH and not record.dialect else None

    def left_out(self, record: Record, reason: Shed) -> None:
        """A record was lost, for whatever reason."""
        if isinstance(record, BeginRecord):
            self.calls_left_out[record.call_id] = reason


def without_body(record: Record) -> Record:
    """The record with a mark in place of its body; itself when it has none."""
    if isinstance(record, BeginRecord) and record.request:
        return replace(record, request=b"", is_shed=True)
    if isinstance(record, EndRecord) and record.response:
        return replace(record, response=b"", is_shed=True)
    return record
