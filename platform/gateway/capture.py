"""The record of a call: the run it belongs to, as far as one gateway can tell, and its two spool records.

The begin record is written before the upstream hears of the call, the end record before the answer's last
byte leaves. Nothing here raises into the relay: what cannot be captured is counted, and the customer's call
goes on."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from gateway import encodings, run_names
from gateway.dialects.base import Dialect
from gateway.limiter import Limiter
from gateway.metrics import Metrics
from gateway.routing import Destination
from gateway.run_memory import RunMemory
from gateway.snapshot import Caller
from kernel.ids import uuid7
from telemetry import stitching
from telemetry.models import CallOutcome
from telemetry.otel import Tracing
from telemetry.records import BeginRecord, EndRecord, Record, Served
from telemetry.spool import Spool, SpoolBroken, SpoolFull
from telemetry.stitching import Hashes, extend, roll
from telemetry.tracker import RunTracker, response_anchor
from telemetry.wire.event_stream import EndWatch

log = logging.getLogger(__name__)

MAX_KEPT_BYTES = 64 << 20
"""How much of an answer is kept. The relay itself has no limit."""


@dataclass(frozen=True, slots=True)
class RunGuess:
    """The run that the caller is told; the database has the last word."""

    run_id: UUID
    name: str = ""
    hashes: Hashes | None = None
    continues: str = ""
    """The id of the response that the request names as its past."""


@dataclass(frozen=True, kw_only=True)
class Capture:
    """What the calls of one process share: spool, tracker, memory of runs, limits, counters."""

    spool: Spool
    metrics: Metrics
    tracing: Tracing
    limiter: Limiter
    clock_us: Callable[[], int]
    is_strict: bool
    """The answer's last byte waits until the end record is on the disk."""
    tracker: RunTracker
    run_memory: RunMemory | None
    """None for a gateway that is alone."""

    async def find_run(
        self,
        caller: Caller,
        messages: Sequence[Mapping[str, Any]],
        *,
        name: str,
        retry_count: int,
        continues: str = "",
        trace_id: str = "",
    ) -> RunGuess:
        """The named run, the run that the request continues, or a new one. Waits only where this process is at a loss
        and another gateway may know.

        `continues` is the id of the response that the request names as its past."""
        hashes = self.hashes(messages)
        memory = self.run_memory
        if (
            memory is not None
            and not name
            and self.tracker.is_at_a_loss(caller.key_id, hashes, retry_count, continues=continues)
        ):
            anchors = (response_anchor(continues),) if continues else hashes.parents if hashes else ()
            found = await memory.find(caller.key_id, anchors)
            if found is not None:
                self.tracker.heard(caller.key_id, *found)
        return self.guess_run(
            caller, hashes, name=name, retry_count=retry_count, continues=continues, trace_id=trace_id
        )

    def guess_run(
        self,
        caller: Caller,
        hashes: Hashes | None,
        *,
        name: str = "",
        retry_count: int = 0,
        continues: str = "",
        trace_id: str = "",
    ) -> RunGuess:
        """The same from what this process knows, at once."""
        if name:
            return RunGuess(run_names.named_run(caller.key_id, name), name, hashes, continues)
        try:
            guess = self.tracker.open(
                caller.key_id, hashes, retry_count, continues=continues, trace_id=trace_id
            )
            return RunGuess(guess.run_id, "", hashes, continues)
        except Exception:
            self.failed("the run could not be guessed")
            return RunGuess(uuid7(), "", hashes, continues)

    def hashes(self, messages: Sequence[Mapping[str, Any]]) -> Hashes | None:
        """What the messages say about where they come from; None when there are none."""
        try:
            return roll(messages) if messages else None
        except Exception:
            self.failed("the messages could not be hashed")
            return None

    def begin(
        self, record: BeginRecord, caller: Caller, *, dialect: Dialect | None, trace: tuple[str, str]
    ) -> "CallCapture":
        """Write the begin record; the result takes the rest of the call. `trace` is the caller's context."""
        self.append(record)
        return CallCapture(self, record, caller, dialect, trace)

    def append(self, record: Record) -> None:
        """Write, or count: the spool counts what it had no room for."""
        try:
            self.spool.append(record)
        except (SpoolFull, SpoolBroken) as error:
            log.debug("a record was lost: %s", error)
        except Exception:
            self.failed("a record could not be written")

    def failed(self, sentence: str) -> None:
        """Count something that could not be captured, and log the exception under way."""
        self.metrics.capture_errors += 1
        log.exception(sentence)


def served_by(destination: Destination, model: str) -> Served:
    """What a record says of who is asked."""
    return Served(
        model_served=destination.model or model,
        model_version_id=destination.model_version_id,
        deployment_id=destination.deployment_id,
        is_canary=destination.is_canary,
    )


class CallCapture:
    """One call under way. `receive` and `end` copy what the relay sees; `end` counts once, whoever calls it
    first."""

    __slots__ = (
        "_attempts", "_caller", "_capture", "_destination", "_dialect", "_encoding", "_end_watch",
        "_first_byte_at", "_hidden", "_kept_bytes", "_media_type", "_pieces", "_status", "_trace", "begin",
        "is_ended",
    )  # fmt: skip

    def __init__(
        self,
        capture: Capture,
        begin: BeginRecord,
        caller: Caller,
        dialect: Dialect | None,
        trace: tuple[str, str],
    ) -> None:
        self.begin = begin
        self.is_ended = False
        self._capture = capture
        self._caller = caller
        self._dialect = dialect
        self._trace = trace
        self._status: int | None = None
        self._media_type = ""
        self._encoding = ""
        self._first_byte_at: int | None = None
        self._pieces: list[bytes] = []
        self._kept_bytes = 0
        self._end_watch: EndWatch | None = None
        self._attempts = 0
        self._destination: Destination | None = None
        self._hidden: tuple[str, ...] = ()

    @property
    def is_strict(self) -> bool:
        """The answer's last byte has to wait for the disk."""
        return self._capture.is_strict

    def sent(self, destination: Destination, hidden: tuple[str, ...]) -> None:
        """The call is about to be sent there, for the first time or again; `hidden` is what the gateway asks for on
        its own account."""
        self._attempts += 1
        self._destination, self._hidden = destination, hidden

    def gave_way(self, destination: Destination) -> None:
        """The answer that the caller gets is an earlier one, from there."""
        self._destination, self._hidden = destination, ()

    def answered(self, status: int, media_type: str, encoding: str) -> None:
        """The answer's status and headers are here."""
        self._status, self._media_type, self._encoding = status, media_type, encoding
        if self._dialect is not None and media_type == "text/event-stream":
            self._end_watch = self._dialect.watch_end()

    def receive(self, piece: bytes) -> None:
        """A piece of the answer, as it came."""
        if self._first_byte_at is None:
            self._first_byte_at = self._capture.clock_us()
        if self._dialect is not None and self._kept_bytes < MAX_KEPT_BYTES:
            self._pieces.append(piece)
            self._kept_bytes += len(piece)

    def has_said_end(self) -> bool:
        """Whether the stream has said, with its latest piece or before, that it is complete."""
        return self._end_watch is not None and bool(self._pieces) and self._end_watch.feed(self._pieces[-1])

    async def end_before_last_byte(self, outcome: CallOutcome) -> None:
        """Write the end record; where capture is strict, wait until the disk has it."""
        if self.is_ended:
            return
        self.end(outcome)
        if self._capture.is_strict:
            try:
                await asyncio.wrap_future(self._capture.spool.synced())
            except SpoolBroken:
                log.debug("a record may not be on the disk")  # counted by the spool

    def end_unsaid(self) -> None:
        """Write the end record of a call that an error of the gateway's own has ended. Says nothing when the call has
        been ended, as it should have been."""
        self.end(CallOutcome.UNREACHABLE)

    def end(self, outcome: CallOutcome) -> None:
        """Write the end record."""
        if self.is_ended:
            return
        self.is_ended = True
        capture, begin = self._capture, self.begin
        known: dict[str, Any] = {
            "call_id": begin.call_id,
            "outcome": outcome,
            "ended_at": capture.clock_us(),
            "status_code": self._status,
            "first_byte_at": self._first_byte_at,
            "response_type": self._media_type,
            "upstream_id": self._destination.upstream_id if self._destination else None,
            "attempts": self._attempts,
            "hidden": self._hidden,
        }
        try:
            if self._dialect is not None:
                known |= self._served() | self._said(outcome, self._dialect)
        except Exception:
            capture.failed("an answer could not be read")
        record = EndRecord(**known)
        try:
            if record.echo_hash is not None and begin.run_hint is not None:
                anchors = [record.echo_hash]
                if record.response_id and self._dialect is not None and self._dialect.name == "responses":
                    anchors.append(response_anchor(record.response_id))
                for anchor in anchors:
                    capture.tracker.answered(begin.api_key_id, begin.run_hint, anchor)
                    if capture.run_memory is not None:
                        capture.run_memory.answered(begin.api_key_id, begin.run_hint, anchor)
            capture.limiter.charge(
                self._caller,
                tokens=(record.prompt_tokens or 0) + (record.completion_tokens or 0),
                microusd=record.cost_microusd or 0,
                now_s=record.ended_at / 1e6,
            )
        except Exception:
            capture.failed("a call could not be counted")
        capture.append(record)
        capture.metrics.calls[record.outcome] += 1
        capture.tracing.observe(begin, record, *self._trace)

    def _served(self) -> dict[str, Any]:
        """Who answered, when that is not who was planned."""
        destination, begin = self._destination, self.begin
        if destination is None or (
            destination.model_version_id == begin.model_version_id
            and (destination.model or begin.model_requested) == begin.model_served
            and destination.deployment_id == begin.deployment_id
            and destination.is_canary == begin.is_canary
        ):
            return {}
        return {"served": served_by(destination, begin.model_requested)}

    def _said(self, outcome: CallOutcome, dialect: Dialect) -> dict[str, Any]:
        """The answer's bytes, and what they say."""
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        said: dict[str, Any] = {"response": body}
        if self._encoding:
            try:
                said["response"] = body = encodings.decode(body, self._encoding)
            except encodings.Undecodable:
                said["response_type"] = f"{self._media_type}; content-encoding={self._encoding}"
        if self._status is None or self._status >= 400:
            return said
        is_stream = self._media_type == "text/event-stream"
        answer = dialect.parse_answer(body, is_stream=is_stream)
        is_complete = outcome == CallOutcome.COMPLETE
        if is_complete and is_stream and not answer.is_whole:
            said["outcome"] = CallOutcome.UPSTREAM_CUT
        if is_complete and answer.message and self.begin.prefix_hash:
            said["echo_hash"] = extend(self.begin.prefix_hash, answer.message)
            said["said_hash"] = stitching.said(answer.message)
        if self._destination is not None and self._destination.price is not None:
            said["cost_microusd"] = self._destination.price.microusd(
                answer.prompt_tokens or 0, answer.completion_tokens or 0, answer.cached_tokens or 0
            )
        return said | {
            "response_id": answer.response_id,
            "finish_reason": answer.finish_reason,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "cached_tokens": answer.cached_tokens,
            "reasoning_tokens": answer.reasoning_tokens,
            "tool_call_count": answer.tool_call_count,
            "tool_calls": answer.tool_calls,
        }
