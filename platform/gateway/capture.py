"""The record of a call: the run it belongs to, as far as one gateway can tell, and its two spool records.

The begin record is written before the upstream hears of the call, the end record before the answer's last
byte leaves. Nothing here raises into the relay: what cannot be captured is counted, and the customer's call
goes on."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from gateway import encodings, run_names
from gateway.dialects import chat
from gateway.metrics import Metrics
from gateway.snapshot import Caller
from kernel.ids import uuid7
from release.routing import Route, Target
from telemetry.models import CallOutcome
from telemetry.otel import Tracing
from telemetry.records import BeginRecord, EndRecord, Record
from telemetry.spool import Spool, SpoolBroken, SpoolFull
from telemetry.stitching import Hashes, RunTracker, extend, roll

log = logging.getLogger(__name__)

MAX_KEPT_BYTES = 64 << 20
"""How much of an answer is kept. The relay itself has no limit."""


@dataclass(frozen=True, slots=True)
class RunGuess:
    """The run that the caller is told; the database has the last word."""

    run_id: UUID
    name: str = ""
    hashes: Hashes | None = None


class Capture:
    """What the calls of one process share: spool, tracker, counters."""

    def __init__(self, spool: Spool, metrics: Metrics, tracing: Tracing, clock_us: Callable[[], int]) -> None:
        self.spool = spool
        self.metrics = metrics
        self.tracing = tracing
        self.clock_us = clock_us
        self.tracker = RunTracker()

    def guess_run(
        self, caller: Caller, messages: Sequence[Mapping[str, Any]], *, name: str, retry_count: int
    ) -> RunGuess:
        """The named run, the run that the messages continue, or a new one."""
        try:
            hashes = roll(messages) if messages else None
            if name:
                return RunGuess(run_names.named_run(caller.key_id, name), name, hashes)
            return RunGuess(self.tracker.open(caller.key_id, hashes, retry_count).run_id, "", hashes)
        except Exception:
            self._failed("the run could not be guessed")
            return RunGuess(run_names.named_run(caller.key_id, name) if name else uuid7(), name)

    def begin(self, record: BeginRecord, traceparent: str) -> "CallCapture":
        """Write the begin record; the result takes the rest of the call."""
        self.append(record)
        return CallCapture(self, record, traceparent)

    def append(self, record: Record) -> None:
        """Write, or count: the spool counts what it had no room for."""
        try:
            self.spool.append(record)
        except (SpoolFull, SpoolBroken) as error:
            log.debug("a record was lost: %s", error)
        except Exception:
            self._failed("a record could not be written")

    def _failed(self, sentence: str) -> None:
        self.metrics.capture_errors += 1
        log.exception(sentence)


def served_by(route: Route, target: Target) -> dict[str, Any]:
    """The begin record's fields that say which version of ours answers."""
    return {
        "model_served": target.served_name,
        "model_version_id": UUID(target.model_version_id),
        "deployment_id": UUID(route.deployment_id),
        "is_canary": target is route.canary,
    }


class CallCapture:
    """One call under way. `receive` and `end` copy what the relay sees; `end` counts once, whoever calls it
    first."""

    def __init__(self, capture: Capture, begin: BeginRecord, traceparent: str) -> None:
        self.begin = begin
        self.is_ended = False
        self._capture = capture
        self._traceparent = traceparent
        self._status: int | None = None
        self._media_type = ""
        self._encoding = ""
        self._first_byte_at: int | None = None
        self._pieces: list[bytes] = []
        self._kept_bytes = 0

    def answered(self, status: int, media_type: str, encoding: str) -> None:
        """The answer's status and headers are here."""
        self._status, self._media_type, self._encoding = status, media_type, encoding

    def receive(self, piece: bytes) -> None:
        """A piece of the answer, as it came."""
        if self._first_byte_at is None:
            self._first_byte_at = self._capture.clock_us()
        if self.begin.dialect and self._kept_bytes < MAX_KEPT_BYTES:
            self._pieces.append(piece)
            self._kept_bytes += len(piece)

    def end(self, outcome: CallOutcome) -> None:
        """Write the end record."""
        if self.is_ended:
            return
        self.is_ended = True
        record = EndRecord(call_id=self.begin.call_id, outcome=outcome, ended_at=self._capture.clock_us())
        try:
            record = self._filled(record)
            if record.echo_hash is not None and self.begin.run_hint is not None:
                self._capture.tracker.answered(self.begin.api_key_id, self.begin.run_hint, record.echo_hash)
        except Exception:
            self._capture._failed("an answer could not be read")
        self._capture.append(record)
        self._capture.metrics.calls[record.outcome] += 1
        self._capture.tracing.observe(self.begin, record, self._traceparent)

    def _filled(self, record: EndRecord) -> EndRecord:
        """The record with what the answer says."""
        body, response_type = b"".join(self._pieces), self._media_type
        try:
            body = encodings.decode(body, self._encoding)
        except encodings.Undecodable:
            response_type = f"{response_type}; content-encoding={self._encoding}"
        record = replace(
            record,
            status_code=self._status,
            first_byte_at=self._first_byte_at,
            response=body,
            response_type=response_type,
        )
        if self.begin.dialect != chat.NAME or self._status is None or self._status >= 400:
            return record
        is_stream = self._media_type.startswith("text/event-stream")
        answer = chat.parse_answer(body, is_stream=is_stream)
        is_complete = record.outcome == CallOutcome.COMPLETE
        if is_complete and is_stream and not answer.is_whole:
            record = replace(record, outcome=CallOutcome.UPSTREAM_CUT)
        echo = None
        if is_complete and answer.message and self.begin.prefix_hash:
            echo = extend(self.begin.prefix_hash, answer.message)
        return replace(
            record,
            response_id=answer.response_id,
            finish_reason=answer.finish_reason,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            tool_call_count=answer.tool_call_count,
            echo_hash=echo,
        )
