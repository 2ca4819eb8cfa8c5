"""A spool's records as rows of PostgreSQL, and calls into their tables by COPY.

Values are made to fit their columns here, because records come from strangers by way of the gateway. Which
records are stored when, and how far a spool has been read, is `telemetry.ingest`'s."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import DataError, IntegrityError, connection, transaction

from telemetry.models import CallOutcome, Signal
from telemetry.records import BeginRecord, EndRecord, SignalRecord

log = logging.getLogger(__name__)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_CALL_COLUMNS = {
    "id": "uuid", "project_id": "uuid", "api_key_id": "uuid", "process": "varchar", "boot": "varchar",
    "sequence": "int8", "dialect": "varchar", "method": "varchar", "path": "varchar",
    "model_requested": "varchar", "model_served": "varchar", "model_version_id": "uuid",
    "deployment_id": "uuid", "is_canary": "bool", "stream": "bool", "status_code": "int2",
    "outcome": "varchar", "retry_count": "int2", "run_hint": "uuid", "run_name": "varchar",
    "response_id": "varchar", "prefix_hash": "bytea", "parent_hashes": "bytea[]", "echo_hash": "bytea",
    "finish_reason": "varchar", "prompt_tokens": "int4", "completion_tokens": "int4",
    "tool_call_count": "int2",
    "started_at": "timestamptz", "first_byte_at": "timestamptz", "ended_at": "timestamptz",
}  # fmt: skip
_BODY_COLUMNS = {
    "call_id": "uuid", "project_id": "uuid", "request": "bytea", "response": "bytea",
    "response_type": "varchar",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class CallRows:
    """A call's row and the row of its bytes, in the order of the columns above."""

    sequence: int
    call: tuple[Any, ...]
    body: tuple[Any, ...]


def call_rows(
    call: BeginRecord, end: EndRecord | None, *, process: str, boot: str, sequence: int
) -> CallRows:
    """The rows of a call; without an end record, of one whose gateway died.

    Raises ValueError or OverflowError for values that no gateway writes."""
    ended = end or EndRecord(call_id=call.call_id, outcome=CallOutcome.GATEWAY_DIED, ended_at=0)
    row = {
        "id": call.call_id,
        "project_id": call.project_id,
        "api_key_id": call.api_key_id,
        "process": process,
        "boot": boot,
        "sequence": sequence,
        "dialect": fitting(call.dialect, 40),
        "method": fitting(call.method, 10),
        "path": fitting(call.path, 500),
        "model_requested": fitting(call.model_requested, 200),
        "model_served": fitting(call.model_served, 200),
        "model_version_id": call.model_version_id,
        "deployment_id": call.deployment_id,
        "is_canary": call.is_canary,
        "stream": call.stream,
        "status_code": _count(ended.status_code, 32_767),
        "outcome": CallOutcome(ended.outcome).value,
        "retry_count": _count(call.retry_count, 32_767) or 0,
        "run_hint": call.run_hint,
        "run_name": fitting(call.run_name, 200),
        "response_id": fitting(ended.response_id, 200),
        "prefix_hash": call.prefix_hash,
        "parent_hashes": list(call.parent_hashes),
        "echo_hash": ended.echo_hash,
        "finish_reason": fitting(ended.finish_reason, 40),
        "prompt_tokens": _count(ended.prompt_tokens, 2**31 - 1),
        "completion_tokens": _count(ended.completion_tokens, 2**31 - 1),
        "tool_call_count": _count(ended.tool_call_count, 32_767) or 0,
        "started_at": _time(call.started_at),
        "first_byte_at": _time(ended.first_byte_at) if ended.first_byte_at is not None else None,
        "ended_at": _time(ended.ended_at) if end else None,
    }
    body = (call.call_id, call.project_id, call.request, ended.response, fitting(ended.response_type, 100))
    return CallRows(sequence, tuple(row[name] for name in _CALL_COLUMNS), body)


def signal_row(record: SignalRecord) -> Signal:
    """The row of a signal. Raises ValueError or OverflowError for values that no gateway writes."""
    if record.target_type not in {"run_id", "call_id", "response_id"}:
        raise ValueError(f"unknown target type {record.target_type!r}")
    return Signal(
        id=record.signal_id,
        project_id=record.project_id,
        api_key_id=record.api_key_id,
        target_type=record.target_type,
        target=fitting(record.target, 200),
        name=fitting(record.name, 100),
        value=_json(record.value),
        step=_count(record.step, 2**31 - 1),
        idempotency_key=fitting(record.idempotency_key, 200),
        observed_at=_time(record.observed_at),
        received_at=_time(record.received_at),
    )


def copy_calls(calls: Sequence[CallRows]) -> list[int]:
    """Insert calls that are not known yet, within the current transaction.

    Should PostgreSQL refuse one, the others go in without it; the sequence numbers of those refused are
    returned."""
    if not calls:
        return []
    try:
        with transaction.atomic():
            _copy("telemetry_call", _CALL_COLUMNS, [row.call for row in calls])
            _copy("telemetry_callbody", _BODY_COLUMNS, [row.body for row in calls])
    except (DataError, IntegrityError) as error:
        if len(calls) == 1:
            log.error("a call was refused by the database: %s", str(error).strip())
            return [calls[0].sequence]
        middle = len(calls) // 2
        return copy_calls(calls[:middle]) + copy_calls(calls[middle:])
    return []


def _copy(table: str, columns: dict[str, str], rows: Sequence[tuple[Any, ...]]) -> None:
    """COPY into a temporary twin first: COPY itself knows no ON CONFLICT. All names are constants of this
    module."""
    names = ", ".join(columns)
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TEMP TABLE IF NOT EXISTS new_{table} (LIKE {table}) ON COMMIT DELETE ROWS")
        cursor.execute(f"TRUNCATE new_{table}")
        with cursor.copy(f"COPY new_{table} ({names}) FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(list(columns.values()))
            for row in rows:
                copy.write_row(row)
        cursor.execute(
            f"INSERT INTO {table} ({names}) SELECT {names} FROM new_{table} ON CONFLICT DO NOTHING"
        )


def fitting(value: str, limit: int) -> str:
    """What PostgreSQL can hold: no NUL, no half of a surrogate pair, no more than the column takes."""
    return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()[:limit]


def _json(value: Any) -> Any:
    if isinstance(value, str):
        return fitting(value, len(value))
    if isinstance(value, list):
        return [_json(item) for item in value]
    if isinstance(value, dict):
        return {_json(str(name)): _json(item) for name, item in value.items()}
    return value


def _count(value: int | None, most: int) -> int | None:
    return None if value is None else max(0, min(int(value), most))


def _time(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)
