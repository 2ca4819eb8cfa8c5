"""A spool's records as rows of PostgreSQL, and calls into their tables by COPY.

Values are made to fit their columns here, because records come from strangers by way of the gateway. Which
records are stored when, and how far a spool has been read, is `telemetry.ingest`'s; how bytes are compressed
is `telemetry.chains`'."""

import logging
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID

from django.db import DataError, IntegrityError, connection, transaction

from telemetry import binary, periods
from telemetry.chains import Chains
from telemetry.models import CallOutcome, Signal, Span
from telemetry.otlp_conventions import SpanKind
from telemetry.records import BeginRecord, EndRecord, SignalRecord, SpanRecord

log = logging.getLogger(__name__)

MALFORMED = (ValueError, TypeError, AttributeError, OverflowError, struct.error)
"""What building a row from a record may raise, when it holds values that no gateway writes."""

MAX_TOOL_CALLS = 128
"""So many tool calls of one answer can be found by their id."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_US = 86_400_000_000
_LATEST_US = 253_370_764_800_000_000
"""The year 9999: no month after it has a name."""
_OUTCOMES = frozenset(CallOutcome.values)
_TARGET_TYPES = frozenset({"run_id", "call_id", "response_id", "external_key"})

_CALL_COLUMNS = (
    "id", "project_id", "api_key_id", "process", "boot", "sequence", "dialect", "method", "path",
    "model_requested", "model_served", "model_version_id", "deployment_id", "is_canary", "upstream_id",
    "attempts", "stream", "status_code", "outcome", "retry_count", "run_hint", "run_name", "external_key",
    "response_id",
    "prefix_hash", "parent_hashes", "repeat_hashes", "result_hashes", "continues", "trace_id", "echo_hash",
    "said_hash", "finish_reason", "prompt_tokens", "completion_tokens",
    "cached_tokens", "reasoning_tokens", "cost_microusd", "hidden", "is_shed", "is_opted_out", "tool_call_count",
    "tool_call_ids", "tool_names",
    "started_at", "first_byte_at", "ended_at",
)  # fmt: skip
_SPAN_TEXTS = {
    "trace_id": 32, "span_id": 16, "parent_span_id": 16, "run_name": 200, "name": 200, "service": 200,
    "agent_name": 200, "tool_name": 200, "tool_call_id": 200, "conversation_id": 200, "response_id": 200,
    "model": 200, "error": 200,
}  # fmt: skip
"""Fields of a span that are text, and what their columns hold."""
_BODY_COLUMNS = (
    "period", "call_id", "project_id", "base_id", "request_sha256", "response_type", "data",
)  # fmt: skip
_PIECE_COLUMNS = ("period", "project_id", "sha256", "data")


@dataclass(frozen=True, slots=True)
class CallRow:
    """A call, ready to be stored."""

    sequence: int
    packed: bytes
    """The row of the columns above."""
    period: date
    begin: BeginRecord
    response: bytes
    response_type: str

    @property
    def has_bytes(self) -> bool:
        return bool(self.begin.request or self.response)


def call_row(begin: BeginRecord, end: EndRecord | None, *, process: str, boot: str, sequence: int) -> CallRow:
    """The row of a call; without an end record, of one whose gateway died.

    Raises one of MALFORMED for values that no gateway writes."""
    ended = end or EndRecord(call_id=begin.call_id, outcome=CallOutcome.GATEWAY_DIED, ended_at=0)
    if ended.outcome not in _OUTCOMES:
        raise ValueError(f"unknown outcome {ended.outcome!r}")
    if not 0 <= begin.started_at < _LATEST_US:
        raise ValueError(f"no time at which a call begins: {begin.started_at}")
    served = ended.served or begin
    packed = binary.row(
        (
            binary.uuid(begin.call_id),
            binary.uuid(begin.project_id),
            binary.uuid(begin.api_key_id),
            _repeated(process, 80),
            _repeated(boot, 40),
            binary.int8(sequence),
            _repeated(begin.dialect, 40),
            _repeated(begin.method, 10),
            _repeated(begin.path, 500),
            _repeated(begin.model_requested, 200),
            _repeated(served.model_served, 200),
            binary.uuid(served.model_version_id),
            binary.uuid(served.deployment_id),
            binary.boolean(served.is_canary),
            binary.uuid(ended.upstream_id),
            binary.int2(_count(ended.attempts, 32_767)),
            binary.boolean(begin.stream),
            binary.int2(_count(ended.status_code, 32_767)),
            _repeated(ended.outcome, 20),
            binary.int2(_count(begin.retry_count, 32_767)),
            binary.uuid(begin.run_hint),
            _varchar(begin.run_name, 200),
            _varchar(begin.external_key, 200),
            _varchar(ended.response_id, 200),
            binary.bytea(begin.prefix_hash),
            binary.bytea_array(begin.parent_hashes),
            binary.bytea_array(begin.repeat_hashes),
            binary.bytea_array(begin.result_hashes),
            _varchar(begin.continues, 200),
            _varchar(begin.trace_id, 32),
            binary.bytea(ended.echo_hash),
            binary.bytea(ended.said_hash),
            _repeated(ended.finish_reason, 40),
            binary.int4(_count(ended.prompt_tokens, 2**31 - 1)),
            binary.int4(_count(ended.completion_tokens, 2**31 - 1)),
            binary.int4(_count(ended.cached_tokens, 2**31 - 1)),
            binary.int4(_count(ended.reasoning_tokens, 2**31 - 1)),
            binary.int8(_count(ended.cost_microusd, 2**63 - 1)),
            binary.varchar_array([fitting(name, 20) for name in ended.hidden]),
            binary.boolean(begin.is_shed or ended.is_shed),
            binary.boolean(begin.is_opted_out),
            binary.int2(_count(ended.tool_call_count, 32_767)),
            binary.varchar_array([fitting(name, 200) for name, _ in ended.tool_calls[:MAX_TOOL_CALLS]]),
            binary.varchar_array([fitting(tool, 200) for _, tool in ended.tool_calls[:MAX_TOOL_CALLS]]),
            binary.timestamptz(begin.started_at),
            binary.timestamptz(ended.first_byte_at),
            binary.timestamptz(ended.ended_at if end else None),
        )
    )
    period = _period_of_day(begin.started_at // _DAY_US)
    return CallRow(sequence, packed, period, begin, ended.response, ended.response_type)


def signal_row(record: SignalRecord) -> Signal:
    """The row of a signal. Raises one of MALFORMED for values that no gateway writes."""
    if record.target_type not in _TARGET_TYPES:
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
        source=fitting(record.source, 200),
        supersedes=record.supersedes,
        idempotency_key=fitting(record.idempotency_key, 200),
        observed_at=_time(record.observed_at),
        received_at=_time(record.received_at),
    )


def span_row(record: SpanRecord) -> Span:
    """The row of a span. Raises one of MALFORMED for values that no gateway writes."""
    texts = {name: fitting(getattr(record, name), limit) for name, limit in _SPAN_TEXTS.items()}
    started_at = _time(record.started_at or record.received_at)
    return Span(
        project_id=record.project_id,
        api_key_id=record.api_key_id,
        kind=SpanKind(record.kind),
        arguments=fitting(record.arguments, len(record.arguments)),
        result=fitting(record.result, len(record.result)),
        prompt_tokens=_count(record.prompt_tokens, 2**31 - 1),
        completion_tokens=_count(record.completion_tokens, 2**31 - 1),
        attributes=_json(record.others or {}),
        started_at=started_at,
        ended_at=_time(record.ended_at) if record.ended_at else started_at,
        received_at=_time(record.received_at),
        **texts,
    )


def copy_calls(calls: Sequence[CallRow], chains: Chains, *, may_be_known: bool = False) -> list[int]:
    """Insert calls that are not known yet, with their bytes, within the current transaction.

    Should PostgreSQL refuse one, the others go in without it; the sequence numbers of those refused are
    returned. Straight into the tables at first: only when that fails is each compared with what is there
    (`may_be_known`)."""
    if not calls:
        return []
    try:
        with transaction.atomic():
            copy_bodies([row for row in calls if row.has_bytes], chains, may_be_known=may_be_known)
            _copy("telemetry_call", _CALL_COLUMNS, [row.packed for row in calls], merge=may_be_known)
    except (DataError, IntegrityError) as error:
        chains.forget()
        if not may_be_known:
            for period in {row.period for row in calls}:
                periods.ensure(period)  # dropped meanwhile, perhaps
            return copy_calls(calls, chains, may_be_known=True)
        if len(calls) == 1:
            log.error("a call was refused by the database: %s", str(error).strip())
            return [calls[0].sequence]
        middle = len(calls) // 2
        return [
            sequence
            for half in (calls[:middle], calls[middle:])
            for sequence in copy_calls(half, chains, may_be_known=may_be_known)
        ]
    return []


def copy_bodies(calls: Sequence[CallRow], chains: Chains, *, may_be_known: bool = False) -> None:
    """Insert the bytes of calls; their periods have partitions."""
    bodies = []
    pieces: dict[tuple[UUID, date, bytes], bytes] = {}
    for row in calls:
        begin = row.begin
        link = chains.add(
            project_id=begin.project_id,
            period=row.period,
            call_id=begin.call_id,
            kind=(begin.path, begin.stream),
            request=begin.request,
            response=row.response,
        )
        period, project = binary.date(row.period.toordinal()), binary.uuid(begin.project_id)
        bodies.append(
            binary.row(
                (
                    period,
                    binary.uuid(begin.call_id),
                    project,
                    binary.uuid(link.base_id),
                    binary.bytea(link.request_sha256),
                    _repeated(row.response_type, 100),
                    binary.bytea(link.data),
                )
            )
        )
        for digest, data in link.new_pieces.items():
            fields = (period, project, binary.bytea(digest), binary.bytea(data))
            pieces[begin.project_id, row.period, digest] = binary.row(fields)
    # In one order everywhere: two ingesters that add the same pieces wait for each other, but never in a circle.
    _copy("telemetry_piece", _PIECE_COLUMNS, [pieces[key] for key in sorted(pieces)], merge=True)
    _copy("telemetry_callbody", _BODY_COLUMNS, bodies, merge=may_be_known)


def _copy(table: str, columns: Sequence[str], rows: Sequence[bytes], *, merge: bool) -> None:
    """COPY, or with `merge` COPY into a temporary twin first: COPY itself knows no ON CONFLICT. All names are
    constants of this module."""
    if not rows:
        return
    names = ", ".join(columns)
    into = f"new_{table}" if merge else table
    with connection.cursor() as cursor:
        if merge:
            cursor.execute(f"CREATE TEMP TABLE IF NOT EXISTS {into} (LIKE {table}) ON COMMIT DELETE ROWS")
            cursor.execute(f"TRUNCATE {into}")
        # Django knows nothing of COPY, so it does not translate its errors by itself.
        with (
            connection.wrap_database_errors,
            cursor.copy(f"COPY {into} ({names}) FROM STDIN (FORMAT BINARY)") as copy,
        ):
            copy.write(binary.stream(rows))
        if merge:
            cursor.execute(f"INSERT INTO {table} ({names}) SELECT {names} FROM {into} ON CONFLICT DO NOTHING")


def fitting(value: str, limit: int) -> str:
    """What PostgreSQL can hold: no NUL, no half of a surrogate pair, no more than the column takes."""
    if value.isascii() and "\x00" not in value:
        return value[:limit]
    return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()[:limit]


def _varchar(value: str, limit: int) -> bytes:
    return binary.varchar(fitting(value, limit)) if value else b"\x00\x00\x00\x00"


_repeated = lru_cache(maxsize=4096)(_varchar)
"""For columns that hold the same few values in row after row."""


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


@lru_cache(maxsize=1000)
def _period_of_day(day: int) -> date:
    return periods.period_of(_EPOCH + timedelta(days=day))
