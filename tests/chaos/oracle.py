"""What must be true afterwards, whatever was killed, stopped or filled: journals against rows.

`compare` is pure: it starts nothing and knows no process. Its rules:

- A request that reached the provider has exactly one call row: the begin record comes before the upstream call.
- A call id that a client was told has exactly one row; there is no row of a request that nobody sent.
- What a client received is what the provider sent, to the byte, in full or, where it was cut, as a prefix. Only a
  usage chunk that the client did not ask for is missing.
- What is stored is the request as the client sent it and the answer as the provider sent it, usage included.
- The row's outcome says how the exchange ended.
- The gateway itself answers with an error only when the provider died before its answer; just started, it may say so
  (`starting`). A connection may break only where a gateway was killed.
- Every accepted feedback is one signal.
- Every loss is a row, and only a full disk makes any; a frame torn by kill -9 is the one other reason.
- Every call finds its step, every signal its run."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.chaos import rows, witnesses
from tests.chaos.answers import Behaviour, Reply, reply
from tests.chaos.exchange import Result
from tests.chaos.experiment import Evidence
from tests.chaos.rows import BodyDigest, CallRow, LossRow, SignalRow, Stored
from tests.chaos.witnesses import Attempt, Witnesses

SLACK_S = 0.2
"""How much later than the fault itself its effect may be seen."""

LOST = "lost"
DOUBLED = "duplicated"
WRONG_BYTES = "with wrong bytes"
STORE_FAILED = "failed because of a store"
WRONG_OUTCOME = "with a wrong outcome"
UNFINISHED = "not joined to their run"
CRASHED = "processes that ended by themselves"
KINDS = (LOST, DOUBLED, WRONG_BYTES, STORE_FAILED, WRONG_OUTCOME, UNFINISHED, CRASHED)

_NOTHING_SHA256 = hashlib.sha256(b"").hexdigest()
_DISK_REASONS = frozenset({"spool_full", "write_failed"})
_ENDED_BY_CLIENT = frozenset({"client_gone", "complete", "upstream_error", "upstream_cut", "unreachable"})


@dataclass
class Verdict:
    """What the oracle found."""

    requests: int = 0
    """Requests on the wire, retries counted, refused connections not."""
    feedback: int = 0
    """Pieces of feedback that were accepted."""
    rows: int = 0
    counted_losses: int = 0
    """Records that a full disk did not take: each is accounted for in a loss row."""
    lost_on_full_disk: int = 0
    """Calls without a row because of it."""
    counted_sheds: int = 0
    """Records that a full disk took without their bytes, as loss rows count them."""
    results: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    violations: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    @property
    def holds(self) -> bool:
        return not any(self.violations.values())

    def add(self, kind: str, sentence: str) -> None:
        self.violations[kind].append(sentence)


def judge(evidence: Evidence, *, known_losses: Iterable[LossRow] = ()) -> Verdict:
    """Compare what was seen with what is stored. `known_losses` are those of earlier experiments."""
    seen = witnesses.read(evidence.folder)
    verdict = compare(seen, rows.read(evidence.installation, evidence.project_id, known_losses=known_losses))
    for name in evidence.died:
        verdict.add(CRASHED, name)
    if not evidence.is_drained:
        verdict.add(
            UNFINISHED, "the spool was not empty, or calls had no step, when the time to drain was over"
        )
    return verdict


def compare(seen: Witnesses, stored: Stored) -> Verdict:
    """The rules above, applied."""
    verdict = Verdict(rows=len(stored.calls))
    nonces = _judge_bodies(seen, stored, verdict)
    _judge_rows(seen, stored.calls, nonces, verdict)
    _judge_feedback(seen, stored.signals, {row.id for row in stored.calls}, verdict)
    _judge_losses(seen, stored, verdict)
    _judge_sequences(seen, stored, verdict)
    return verdict


def _expected(attempt: Attempt, serial: str) -> Reply:
    return reply(attempt.plan, serial, with_usage=attempt.served[serial].with_usage)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _judge_bodies(seen: Witnesses, stored: Stored, verdict: Verdict) -> dict[str, str]:
    """Check the stored bytes of every call; return the nonce of each call id, as its stored request has it."""
    calls = {row.id: row for row in stored.calls}
    by_request = {attempt.request_sha256: attempt for attempt in seen.attempts.values()}
    # Where a full disk cost the request's bytes, the client still knows its call id.
    told = {attempt.call_id: attempt for attempt in seen.attempts.values() if attempt.call_id}
    shed = {row.id: told[row.id] for row in stored.calls if row.is_shed and row.id in told}
    nonces = {call_id: attempt.plan.nonce for call_id, attempt in shed.items()}
    with_bytes = set()
    for body in stored.bodies:
        if body.request_sha256 == _NOTHING_SHA256 and calls[body.call_id].is_shed:
            attempt = shed.get(body.call_id)
            if attempt is None:
                continue  # whose it is nobody can say
        else:
            attempt = by_request.get(body.request_sha256)
        if attempt is None:
            verdict.add(WRONG_BYTES, f"call {body.call_id}: its stored request is none that a client sent")
            continue
        if body.call_id in with_bytes:
            verdict.add(DOUBLED, f"call {body.call_id}: its bytes are there twice")
        with_bytes.add(body.call_id)
        nonces[body.call_id] = attempt.plan.nonce
        row = calls.get(body.call_id)
        if row is not None and not _is_stored_right(attempt, row, body):
            words = f"call {row.id} ({attempt.plan.nonce}, {row.outcome})"
            verdict.add(WRONG_BYTES, f"{words}: the stored answer is not the provider's")
    return nonces


def _is_stored_right(attempt: Attempt, row: CallRow, body: BodyDigest) -> bool:
    """Whether the stored answer is the one that the client saw, or a part of it that is no shorter than the
    client's; or was left out, and says so."""
    is_answered = row.outcome in {"complete", "upstream_error"}
    if row.outcome in {"gateway_died", "unreachable"} or (row.is_shed and not body.response_bytes):
        return True
    if not (is_answered or body.response_bytes or attempt.size_bytes):
        return True  # it ended before an answer began
    serials = [attempt.serial] if attempt.answer else list(attempt.served)
    for whole in (_expected(attempt, serial).whole for serial in serials):
        has_length = body.response_bytes == len(whole) or (
            not is_answered and body.response_bytes >= attempt.size_bytes
        )
        if has_length and _sha256(whole[: body.response_bytes]) == body.response_sha256:
            return True
    return False


def _judge_rows(seen: Witnesses, stored: Sequence[CallRow], nonces: dict[str, str], verdict: Verdict) -> None:
    by_nonce: dict[str, list[CallRow]] = defaultdict(list)
    for row in stored:
        verdict.outcomes[row.outcome] += 1
        if row.id in nonces:
            by_nonce[nonces[row.id]].append(row)
        elif not row.is_shed:
            verdict.add(
                LOST, f"call {row.id} ({row.outcome}) has a row and no bytes that belong to a request"
            )
        if not row.is_stitched:
            verdict.add(UNFINISHED, f"call {row.id} has no step")
    for call_id, count in Counter(row.id for row in stored).items():
        if count > 1:
            verdict.add(DOUBLED, f"call {call_id} has {count} rows")
    numbers = Counter((row.process, row.boot, row.sequence) for row in stored)
    for (process, boot, sequence), count in numbers.items():
        if count > 1:
            verdict.add(DOUBLED, f"sequence number {sequence} of {process} {boot} has {count} rows")
    for attempt in seen.attempts.values():
        verdict.results[attempt.result] += 1
        verdict.requests += attempt.result != Result.REFUSED
        _judge_attempt(seen, attempt, by_nonce[attempt.plan.nonce], verdict)


def _judge_attempt(seen: Witnesses, attempt: Attempt, own: Sequence[CallRow], verdict: Verdict) -> None:
    words = (
        f"request {attempt.plan.nonce} ({attempt.plan.behaviour}, {attempt.result}, {attempt.status or '-'})"
    )
    if len(own) > 1:
        verdict.add(DOUBLED, f"{words} has {len(own)} rows")
    if attempt.call_id and own and own[0].id != attempt.call_id:
        verdict.add(
            WRONG_OUTCOME, f"{words} was told the call id {attempt.call_id} and is stored as {own[0].id}"
        )
    was_full = seen.during("DiskFull", attempt.began, attempt.ended)
    if not own and (attempt.call_id or attempt.served):
        if was_full:
            verdict.lost_on_full_disk += 1
        else:
            reason = "its client was told its id" if attempt.call_id else "the provider got it"
            verdict.add(LOST, f"{words} has no row, though {reason}")
    _judge_client(seen, attempt, words, verdict)
    if own and not was_full:
        _judge_outcome(seen, attempt, own[0], words, verdict)


def _judge_client(seen: Witnesses, attempt: Attempt, words: str, verdict: Verdict) -> None:
    """What the client saw, against what the provider sent and what was done to the gateway meanwhile."""
    was_killed = _was_killed(seen, attempt)
    is_provider_dead = attempt.plan.behaviour in {Behaviour.DIES_BEFORE, Behaviour.DIES_WITHIN}
    if attempt.result == Result.WHOLE and attempt.error_code:
        is_right = (attempt.error_code == "starting" and was_killed) or (
            attempt.status == 502 and attempt.plan.behaviour == Behaviour.DIES_BEFORE and bool(attempt.served)
        )
        if not is_right:
            verdict.add(STORE_FAILED, f"{words}: the gateway answered with {attempt.error_code}")
    elif attempt.result == Result.TIMEOUT:
        verdict.add(STORE_FAILED, f"{words}: no answer")
    elif attempt.result in {Result.LOST, Result.REFUSED} and not was_killed:
        verdict.add(STORE_FAILED, f"{words}: the connection failed, and its gateway was not killed")
    elif attempt.result == Result.CUT and not (was_killed or is_provider_dead):
        verdict.add(STORE_FAILED, f"{words}: the answer was cut, and neither gateway nor provider died")
    if attempt.error_code or not attempt.status:
        return
    if attempt.answer is None:
        verdict.add(WRONG_BYTES, f"{words}: the answer has no x-request-id of the provider's")
        return
    expected = _expected(attempt, attempt.serial)
    sent = expected.whole if attempt.plan.usage else expected.visible
    is_whole = attempt.status == expected.status and attempt.size_bytes == len(sent)
    if attempt.result == Result.WHOLE and not is_whole:
        verdict.add(
            WRONG_BYTES, f"{words}: {attempt.size_bytes} bytes, not {expected.status} and {len(sent)}"
        )
    elif _sha256(sent[: attempt.size_bytes]) != attempt.sha256:
        verdict.add(WRONG_BYTES, f"{words}: the bytes are not the provider's")
    elif attempt.result == Result.WHOLE and not attempt.answer.is_whole:
        verdict.add(WRONG_BYTES, f"{words}: it looks whole, and the provider had cut it")
    if attempt.status >= 400 and attempt.retry_after != "1":
        verdict.add(WRONG_BYTES, f"{words}: retry-after is missing")


def _was_killed(seen: Witnesses, attempt: Attempt) -> bool:
    """Whether the attempt met a gateway that was being killed or was starting again."""
    target = f"gateway {attempt.gateway}"
    # A client that leaves is noticed a moment later, by a gateway that is still there.
    unnoticed_s = SLACK_S if attempt.result == Result.LEFT else 0.0
    return seen.during("Kill", attempt.began - SLACK_S, attempt.ended + unnoticed_s, target=target)


def _judge_outcome(seen: Witnesses, attempt: Attempt, row: CallRow, words: str, verdict: Verdict) -> None:
    allowed = _allowed_outcomes(attempt)
    if _was_killed(seen, attempt) and attempt.result != Result.WHOLE:
        # Its end record may have been written, with whatever outcome, and the answer's last byte not left.
        allowed = allowed | {"gateway_died", "complete", "upstream_error", "unreachable"}
    if row.outcome not in allowed:
        verdict.add(WRONG_OUTCOME, f"{words} is stored as {row.outcome}, not {' or '.join(sorted(allowed))}")
    if row.outcome in {"complete", "upstream_error"} and attempt.status and row.status_code != attempt.status:
        verdict.add(WRONG_OUTCOME, f"{words} is stored with status {row.status_code}")


def _allowed_outcomes(attempt: Attempt) -> frozenset[str]:
    match attempt.result:
        case Result.WHOLE if attempt.error_code:
            return frozenset({"unreachable"})
        case Result.WHOLE:
            return frozenset({"complete" if attempt.status < 400 else "upstream_error"})
        case Result.CUT:
            return frozenset({"upstream_cut"})
        case Result.LEFT:
            return _ENDED_BY_CLIENT
    return frozenset()


def _judge_feedback(
    seen: Witnesses, stored: Sequence[SignalRow], call_ids: set[str], verdict: Verdict
) -> None:
    by_key: dict[str, list[SignalRow]] = defaultdict(list)
    for row in stored:
        by_key[row.idempotency_key].append(row)
        if row.idempotency_key not in seen.feedback:
            verdict.add(DOUBLED, f"signal {row.id} was never given")
        if row.target in call_ids and not row.has_run:
            verdict.add(UNFINISHED, f"signal {row.id} has no run, though its call has a row")
    for key, feedback in seen.feedback.items():
        found = by_key[key]
        verdict.feedback += feedback.is_accepted
        if feedback.is_accepted and not found:
            verdict.add(LOST, f"feedback {key} was accepted and has no row")
        if len(found) > 1:
            verdict.add(DOUBLED, f"feedback {key} has {len(found)} rows")
        if found and found[0].target != feedback.call_id:
            verdict.add(WRONG_BYTES, f"feedback {key} is stored for {found[0].target}")
        for one in feedback.tries:
            _judge_try(seen, key, one, verdict)


def _judge_try(seen: Witnesses, key: str, one: dict[str, Any], verdict: Verdict) -> None:
    target = f"gateway {one['gateway']}"
    was_killed = seen.during("Kill", one["began"] - SLACK_S, one["ended"], target=target)
    is_right = (
        (one["result"] == Result.WHOLE and one["status"] == 202)
        or (one["result"] in {Result.LOST, Result.REFUSED, Result.CUT} and was_killed)
        or (one["error_code"] == "starting" and was_killed)
        or (one["status"] == 503 and seen.during("DiskFull", one["began"] - SLACK_S, one["ended"]))
    )
    if not is_right:
        verdict.add(STORE_FAILED, f"feedback {key}: {one['result']} {one['status']} {one['error_code']}")


def _judge_losses(seen: Witnesses, stored: Stored, verdict: Verdict) -> None:
    torn = 0
    for row in stored.losses:
        if row.reason == "body_shed":
            verdict.counted_sheds += row.count
            continue
        if row.reason in _DISK_REASONS:
            verdict.counted_losses += row.count
        elif row.reason == "torn":
            torn += 1
        else:
            verdict.add(
                LOST,
                f"records {row.first_sequence} to {row.last_sequence} of {row.process} {row.boot}: {row.reason}",
            )
    kills = sum(window.fault == "Kill" and window.target.startswith("gateway") for window in seen.windows)
    if torn > kills:
        verdict.add(LOST, f"{torn} frames are torn, and only {kills} gateways were killed")
    shed = sum(row.is_shed for row in stored.calls)
    if shed > verdict.counted_sheds:
        verdict.add(LOST, f"{shed} calls are without bytes, and {verdict.counted_sheds} records are counted")
    is_disk_fault = any(window.fault == "DiskFull" for window in seen.windows)
    if verdict.counted_losses + verdict.counted_sheds and not is_disk_fault:
        verdict.add(LOST, f"{verdict.counted_losses} records were refused by a disk that was never full")
    if verdict.lost_on_full_disk > verdict.counted_losses:
        verdict.add(
            LOST,
            f"the full disk cost {verdict.lost_on_full_disk} calls, and {verdict.counted_losses} records are counted",
        )


def _judge_sequences(seen: Witnesses, stored: Stored, verdict: Verdict) -> None:
    """Every sequence number up to a boot's last call is a call's begin or end, a signal or a loss. Which signals a
    boot has taken no row says, so this is one sum over all boots."""
    latest: dict[tuple[str, str], int] = {}
    for row in stored.calls:
        latest[row.process, row.boot] = max(row.sequence, latest.get((row.process, row.boot), 0))
    used = sum(sequence + 1 for sequence in latest.values())
    ended = sum(row.outcome != "gateway_died" for row in stored.calls)
    tries = sum(len(feedback.tries) for feedback in seen.feedback.values())
    lost = sum(
        row.count * (row.reason != "body_shed") + 1 for row in stored.losses
    )  # a loss record has a number of its own
    unexplained = used - len(stored.calls) - ended - tries - lost
    if unexplained > 0:
        verdict.add(LOST, f"{unexplained} sequence numbers are neither in a row nor in a loss")
