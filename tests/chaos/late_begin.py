"""A sabotaged gateway that writes no begin record before the upstream call: `-m tests.chaos.late_begin -m gateway ...`.

The begin record is held back and written together with the end record, so that everything looks right as long as no
gateway dies. The oracle must notice."""

import runpy
import sys
from uuid import UUID

from telemetry.records import BeginRecord, EndRecord, Record
from telemetry.spool import Spool

_append = Spool.append
_held: dict[UUID, BeginRecord] = {}


def _append_late(spool: Spool, record: Record) -> int:
    if isinstance(record, BeginRecord):
        _held[record.call_id] = record
        return 0
    if isinstance(record, EndRecord):
        _append(spool, _held.pop(record.call_id))
    return _append(spool, record)


if __name__ == "__main__":
    Spool.append = _append_late  # type: ignore[method-assign, assignment]
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
