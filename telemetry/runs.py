"""Runs and steps in the database: every call finds its place, idle runs close.

The rule is `telemetry.stitching.decide`; this module brings it the earlier calls, a batch at a time, and
writes what it says. One stitcher at a time works on a project. What a run is worth is not known here, nor
which signal ends it."""

from bisect import insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from operator import itemgetter
from uuid import UUID

from django.db import connection, transaction
from django.db.models import Exists, F, OuterRef, Q, Window
from django.db.models.functions import RowNumber

from kernel.ids import uuid7
from kernel.queueing import TaskRef
from telemetry import waiting, windows
from telemetry.locks import lock_project
from telemetry.models import Call, CallOutcome, Run, RunState, Signal, Step
from telemetry.stitching import (
    MAX_EQUALS,
    MAX_TRACE_ROOTS,
    Earlier,
    Hashes,
    Link,
    Reason,
    decide,
    is_one_run,
    is_particular,
    proven_run,
)

STITCH = TaskRef("telemetry.stitch")
"""Argument `project_id`: stitch the project's new calls, then join its signals."""

BATCH = 500
GRACE = timedelta(seconds=3)
"""How long a call waits, after its end, for an earlier call that another gateway's spool may still bring. A
parent that comes later becomes a run of its own: links are never rewritten, because episodes may have been
built on them."""
MAX_AHEAD = timedelta(minutes=5)
"""How far a gateway's clock may run ahead of ours; a call from further off waits for nothing."""
RETRY_WINDOW = timedelta(minutes=15)
"""How far back an SDK's retry looks for its first attempt."""
IDLE = timedelta(minutes=10)


def due_projects() -> list[UUID]:
    """Projects with calls to stitch or signals to join."""
    calls = Call.objects.filter(stitched_at=None)
    signals = Signal.objects.filter(run=None, sought_at=None)
    return sorted(
        calls.order_by()
        .values_list("project_id", flat=True)
        .union(signals.values_list("project_id", flat=True))
    )


def stitch_pending(*, project_id: UUID, now: datetime) -> int:
    """Give the project's new calls their step and run; return how many found their place.

    Calls are taken in the order in which they started, so that the order of arrival does not matter. One
    whose earlier call is not here yet waits for GRACE."""
    stitched = 0
    after: tuple[datetime, UUID] | None = None
    while True:
        with transaction.atomic():
            lock_project(project_id)
            pending = Call.objects.filter(project_id=project_id, stitched_at=None)
            if after:
                pending = pending.filter(Q(started_at__gt=after[0]) | Q(started_at=after[0], id__gt=after[1]))
            calls = list(pending.order_by("started_at", "id")[:BATCH])
            stitched += _stitch(calls, now)
        if len(calls) < BATCH:
            return stitched
        after = calls[-1].started_at, calls[-1].id


def grow(run_ids: Iterable[UUID]) -> None:
    """What is known of these runs has changed: the next episode is of a new revision."""
    Run.objects.filter(id__in=set(run_ids)).update(revision=F("revision") + 1)


def close(run_ids: Iterable[UUID], *, now: datetime) -> int:
    """Close runs whose outcome is known; return how many were open."""
    return Run.objects.filter(id__in=list(run_ids), state=RunState.OPEN).update(
        state=RunState.CLOSED, closed_at=now
    )


def close_idle(*, now: datetime, idle: timedelta = IDLE) -> int:
    """Close the runs of all projects that had no call for `idle`; return how many.

    A late call opens a closed run again, which says since when; a late signal does not. Either is a new revision, and
    with it a new episode is due."""
    quiet = Run.objects.filter(state=RunState.OPEN, latest_call_at__lt=now - idle)
    return quiet.update(state=RunState.CLOSED, closed_at=now)


@dataclass
class _Attempts:
    """The calls of one step, as something that an SDK may have tried again."""

    run_id: UUID
    step_id: UUID
    retry_counts: set[int]
    answered: bool

    def earlier(self, retry_count: int) -> Earlier:
        claimed = max(self.retry_counts) >= retry_count
        return Earlier(self.run_id, self.step_id, claimed=claimed, answered=self.answered)


@dataclass
class _Known:
    """What the rule needs to know about earlier calls; grows as the batch's own calls find their place."""

    answers: dict[tuple[UUID, bytes], list[tuple[datetime, Earlier]]] = field(default_factory=dict)
    """By API key and echo hash, or what they said, in the order in which the answers ended."""
    responses: dict[tuple[UUID, str], list[tuple[datetime, Earlier]]] = field(default_factory=dict)
    """By API key and the id of the response, in the order in which they ended."""
    roots: dict[tuple[UUID, str], list[Earlier]] = field(default_factory=dict)
    """By API key and trace: where conversations began under it, at most MAX_TRACE_ROOTS."""
    attempts: dict[tuple[UUID, bytes], dict[UUID, _Attempts]] = field(default_factory=dict)
    """By API key and prefix hash, then by step, oldest first."""
    runs: dict[UUID, Run] = field(default_factory=dict)
    named: dict[tuple[UUID, str], Run] = field(default_factory=dict)
    taken: set[UUID] = field(default_factory=set)
    """Told run ids that are run ids already."""
    grown: dict[UUID, Run] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    placed: list[Call] = field(default_factory=list)
    reopened: set[UUID] = field(default_factory=set)

    def add_run(self, run: Run) -> None:
        self.runs[run.id] = run
        # A caller may send back, as the run's name, the id that an answer told it.
        for name in {run.name, str(run.id)} - {""}:
            self.named[run.api_key_id, name] = run

    def grow(self, run: Run) -> None:
        """The run's next revision, once for all that the batch brings it."""
        if run.id not in self.grown:
            run.revision += 1
            self.grown[run.id] = run

    def add_answer(self, key_id: UUID, digest: bytes, ended_at: datetime, earlier: Earlier) -> None:
        insort(self.answers.setdefault((key_id, digest), []), (ended_at, earlier), key=itemgetter(0))

    def add_response(self, key_id: UUID, response_id: str, ended_at: datetime, earlier: Earlier) -> None:
        insort(self.responses.setdefault((key_id, response_id), []), (ended_at, earlier), key=itemgetter(0))

    def answered(self, key_id: UUID, digest: bytes) -> list[Earlier]:
        return [earlier for _, earlier in self.answers.get((key_id, digest), ())]

    def traced(self, key_id: UUID, trace_id: str) -> list[Earlier]:
        """A call of the run that the trace names, if it names one."""
        roots = self.roots.get((key_id, trace_id), []) if trace_id else []
        return roots[:1] if is_one_run(len({root.run_id for root in roots}), len(roots)) else []

    def add_attempt(
        self, key_id: UUID, prefix: bytes, run_id: UUID, step_id: UUID, retry_count: int, outcome: str
    ) -> None:
        steps = self.attempts.setdefault((key_id, prefix), {})
        attempts = steps.setdefault(step_id, _Attempts(run_id, step_id, set(), answered=False))
        attempts.retry_counts.add(retry_count)
        attempts.answered |= outcome == CallOutcome.COMPLETE


def _stitch(calls: Sequence[Call], now: datetime) -> int:
    if not calls:
        return 0
    known = _load(calls)
    for call in _parents_first(calls):
        if not call.dialect and call.method != "POST" and not call.run_name:
            known.placed.append(call)  # housekeeping such as GET /v1/files: nobody's turn, no step, no run
            continue
        link = _link(call, known, now)
        if link is not None:
            _place(call, link, known)
    _save(calls[0].project_id, known, now)
    return len(known.placed)


def _parents_first(calls: Sequence[Call]) -> Iterator[Call]:
    """In the order of their starts, but none before the call whose answer it repeats: clocks of gateways differ."""
    answered: dict[tuple[UUID, bytes], Call] = {}
    for call in calls:
        if call.echo_hash:
            answered.setdefault((call.api_key_id, bytes(call.echo_hash)), call)
    done: set[UUID] = set()
    for call in calls:
        line: list[Call] = []
        at: Call | None = call
        while at is not None and at.id not in done:
            done.add(at.id)
            line.append(at)
            echoes = ((at.api_key_id, bytes(echo)) for echo in at.parent_hashes)
            at = next((answered[echo] for echo in echoes if echo in answered), None)
        yield from reversed(line)


def _load(calls: Sequence[Call]) -> _Known:
    """Everything earlier that the batch may refer to, in a few queries however long it is."""
    known = _Known()
    keys = {call.api_key_id for call in calls}
    echoes = {bytes(echo) for call in calls for echo in call.parent_hashes}
    _load_answers(known, keys, "echo_hash", echoes)
    found = {echo for _, echo in known.answers} | {bytes(call.echo_hash) for call in calls if call.echo_hash}
    lost = [call for call in calls if found.isdisjoint(map(bytes, call.parent_hashes))]
    repeats = {bytes(repeat) for call in lost for repeat in call.repeat_hashes}
    results = {bytes(result) for call in calls for result in call.result_hashes}
    _load_answers(known, keys, "said_hash", set(filter(is_particular, repeats)) | results)
    _load_last_words(known, lost)
    _load_responses(known, keys, {call.continues for call in calls} - {""})
    _load_traces(known, keys, {call.trace_id for call in calls} - {""})

    retries = [call for call in calls if call.retry_count and call.prefix_hash]
    if retries:
        first_attempts = (
            Call.objects.filter(
                api_key_id__in=keys,
                prefix_hash__in={bytes(call.prefix_hash) for call in retries if call.prefix_hash},
                step__isnull=False,
                started_at__gte=retries[0].started_at - RETRY_WINDOW,
            )
            .order_by("started_at", "id")
            .values_list("api_key_id", "prefix_hash", "step__run_id", "step_id", "retry_count", "outcome")
        )
        for key_id, prefix, run_id, step_id, retry_count, outcome in first_attempts:
            if prefix is not None:
                known.add_attempt(key_id, bytes(prefix), run_id, step_id, retry_count, outcome)

    names = {call.run_name for call in calls if call.run_name}
    linked = {answer.run_id for equals in known.answers.values() for _, answer in equals}
    linked |= {answer.run_id for equals in known.responses.values() for _, answer in equals}
    linked |= {root.run_id for roots in known.roots.values() for root in roots}
    linked |= {attempts.run_id for steps in known.attempts.values() for attempts in steps.values()}
    called = Q(name__in=names) | Q(id__in=[UUID(name) for name in names if _is_run_id(name)])
    for run in Run.objects.filter(Q(id__in=linked) | Q(called, api_key_id__in=keys)):
        known.add_run(run)
    told = {call.run_hint for call in calls if call.run_hint}
    known.taken.update(Run.objects.filter(id__in=told).values_list("id", flat=True))
    return known


def _load_answers(
    known: _Known, keys: set[UUID], column: str, digests: set[bytes], **narrowed: object
) -> None:
    """The newest answers to each of these digests, with whether they were continued."""
    if not digests:
        return
    newest_first = Window(
        RowNumber(), partition_by=[F("api_key_id"), F(column)], order_by=F("ended_at").desc(nulls_last=True)
    )
    answers = (
        Call.objects.filter(
            api_key_id__in=keys,
            step__isnull=False,
            ended_at__isnull=False,
            **{f"{column}__in": digests},
            **narrowed,
        )
        .annotate(rank=newest_first, claimed=Exists(Step.objects.filter(parent_id=OuterRef("step_id"))))
        .filter(rank__lte=MAX_EQUALS)
        .values_list("api_key_id", column, "ended_at", "step__run_id", "step_id", "claimed")
    )
    for key_id, digest, ended_at, run_id, step_id, claimed in answers:
        known.add_answer(key_id, bytes(digest), ended_at, Earlier(run_id, step_id, claimed=claimed))


def _load_last_words(known: _Known, lost: Sequence[Call]) -> None:
    """Answers that may be said in any run, of the runs that calls without an echo can only come from."""
    wanted: dict[UUID, set[bytes]] = {}
    for call in lost:
        repeats = [bytes(repeat) for repeat in call.repeat_hashes]
        run_id = proven_run({repeat: known.answered(call.api_key_id, repeat) for repeat in repeats})
        if run_id and not is_particular(repeats[0]):
            wanted.setdefault(run_id, set()).add(repeats[0])
    if wanted:
        digests = {digest for digests in wanted.values() for digest in digests}
        keys = {call.api_key_id for call in lost}
        _load_answers(known, keys, "said_hash", digests, step__run_id__in=list(wanted))


def _load_responses(known: _Known, keys: set[UUID], response_ids: set[str]) -> None:
    """The calls that answered with these ids."""
    if not response_ids:
        return
    calls = Call.objects.filter(api_key_id__in=keys, response_id__in=response_ids, step__isnull=False)
    for key_id, response_id, started_at, ended_at, run_id, step_id in calls.values_list(
        "api_key_id", "response_id", "started_at", "ended_at", "step__run_id", "step_id"
    ):
        known.add_response(key_id, response_id, ended_at or started_at, Earlier(run_id, step_id))


def _load_traces(known: _Known, keys: set[UUID], trace_ids: set[str]) -> None:
    """Where conversations began under these traces, the first ones of each."""
    if not trace_ids:
        return
    rank = Window(
        RowNumber(), partition_by=[F("api_key_id"), F("trace_id")], order_by=[F("started_at"), F("id")]
    )
    roots = (
        Call.objects.filter(
            api_key_id__in=keys, trace_id__in=trace_ids, step__parent=None, step__isnull=False
        )
        .annotate(rank=rank)
        .filter(rank__lte=MAX_TRACE_ROOTS)
        .order_by("started_at", "id")
        .values_list("api_key_id", "trace_id", "step__run_id", "step_id")
    )
    for key_id, trace_id, run_id, step_id in roots:
        known.roots.setdefault((key_id, trace_id), []).append(Earlier(run_id, step_id))


def _link(call: Call, known: _Known, now: datetime) -> Link | None:
    """Where the call stands; None while it waits for an earlier call that may still arrive."""
    parents = tuple(bytes(echo) for echo in call.parent_hashes)
    repeats = tuple(bytes(repeat) for repeat in call.repeat_hashes)
    hashes = Hashes(bytes(call.prefix_hash), parents, repeats) if call.prefix_hash else None
    run = known.named.get((call.api_key_id, call.run_name)) if call.run_name else None
    attempts = []
    if call.retry_count and hashes:
        steps = known.attempts.get((call.api_key_id, hashes.prefix), {})
        attempts = [
            step.earlier(call.retry_count)
            for step in steps.values()
            if min(step.retry_counts) < call.retry_count
        ]
    answers = {digest: known.answered(call.api_key_id, digest) for digest in (*parents, *repeats)}
    responses = known.responses.get((call.api_key_id, call.continues), ())
    continued = [earlier for _, earlier in responses] if call.continues else None
    traced = known.traced(call.api_key_id, call.trace_id)
    if call.run_name:
        run_id = run.id if run else None
        attempts = [attempt for attempt in attempts if attempt.run_id == run_id]
        answers = {
            echo: [answer for answer in equals if answer.run_id == run_id] for echo, equals in answers.items()
        }
        continued = [earlier for earlier in continued or () if earlier.run_id == run_id]
    elif _is_fresh(call, now) and _may_get_better(call, parents, answers, attempts, continued):
        return None
    return decide(
        hashes,
        answers=answers,
        attempts=attempts,
        continued=continued,
        traced=traced,
        named=bool(call.run_name),
        told=call.run_hint,
    )


def _is_fresh(call: Call, now: datetime) -> bool:
    return -MAX_AHEAD < now - (call.ended_at or call.started_at) < GRACE


def _may_get_better(
    call: Call,
    parents: Sequence[bytes],
    answers: Mapping[bytes, Sequence[Earlier]],
    attempts: Sequence[Earlier],
    continued: Sequence[Earlier] | None,
) -> bool:
    """Whether an earlier call that has not arrived could be the one that this call continues or retries."""
    if call.retry_count and call.prefix_hash:
        return not attempts
    if continued is not None:
        return not continued
    if not parents:
        return False
    equals = answers[parents[0]]
    told_another = call.run_hint is not None and all(answer.run_id != call.run_hint for answer in equals)
    return not equals or told_another


def _place(call: Call, link: Link, known: _Known) -> None:
    if call.run_name:
        run = known.named.get((call.api_key_id, call.run_name)) or _open_run(call, known)
    else:
        run = known.runs[link.to.run_id] if link.to else _open_run(call, known)
    if link.reason is Reason.RETRY and link.to and link.to.step_id:
        call.step_id = link.to.step_id
    else:
        step = Step(
            project_id=call.project_id,
            run_id=run.id,
            index=run.step_count,
            parent_id=link.to.step_id if link.to and link.reason is not Reason.TRACE else None,
            confidence=link.confidence,
            reason=link.reason,
        )
        known.steps.append(step)
        call.step_id = step.id
        run.step_count += 1
        if link.to:
            link.to.claimed = True
        if call.trace_id and step.parent_id is None:
            roots = known.roots.setdefault((call.api_key_id, call.trace_id), [])
            if len(roots) < MAX_TRACE_ROOTS:
                roots.append(Earlier(run.id, step.id))
    known.grow(run)
    if run.state == RunState.CLOSED:
        known.reopened.add(run.id)
    ended_at = call.ended_at or call.started_at
    run.call_count += 1
    run.confidence = min(run.confidence, link.confidence)
    run.started_at = min(run.started_at, call.started_at)
    run.latest_call_at = max(run.latest_call_at, ended_at)
    run.model_alias = run.model_alias or call.model_requested
    known.placed.append(call)
    answer = Earlier(run.id, call.step_id)
    for digest in filter(None, (call.echo_hash, call.said_hash)):
        known.add_answer(call.api_key_id, bytes(digest), ended_at, answer)
    if call.response_id:
        known.add_response(call.api_key_id, call.response_id, ended_at, answer)
    if link.to and link.to.step_id and call.result_hashes:
        _adopt(call, run, link.to.step_id, known)
    if call.prefix_hash:
        known.add_attempt(
            call.api_key_id, bytes(call.prefix_hash), run.id, call.step_id, call.retry_count, call.outcome
        )


def _adopt(call: Call, run: Run, parent_step_id: UUID, known: _Known) -> None:
    """Make runs children of the step that this call continues, where their last words have come back word for word as
    what one of the step's tools answered: sub-agents, in sequence or side by side."""
    for result in call.result_hashes:
        runs = {answer.run_id for answer in known.answered(call.api_key_id, bytes(result))} - {run.id}
        child = known.runs.get(runs.pop()) if len(runs) == 1 else None
        # A child begins after its parent: so there is no circle.
        if child and not child.parent_step_id and run.started_at < child.started_at < call.started_at:
            child.parent_step_id = parent_step_id
            known.grow(child)


def _is_run_id(name: str) -> bool:
    try:
        return str(UUID(name)) == name
    except ValueError:
        return False


def _open_run(call: Call, known: _Known) -> Run:
    told_is_free = call.run_hint is not None and call.run_hint not in known.taken
    run = Run(
        id=call.run_hint if told_is_free else uuid7(),
        project_id=call.project_id,
        api_key_id=call.api_key_id,
        name=call.run_name,
        started_at=call.started_at,
        latest_call_at=call.started_at,
    )
    known.taken.add(run.id)
    known.add_run(run)
    return run


def _save(project_id: UUID, known: _Known, now: datetime) -> None:
    windows.schedule(known.grown.values(), project_id, now)
    # `state` is not among the updated fields: a run may be closed by somebody else meanwhile.
    Run.objects.bulk_create(
        known.grown.values(),
        update_conflicts=True,
        unique_fields=["id"],
        update_fields=[
            "revision",
            "model_alias",
            "confidence",
            "step_count",
            "call_count",
            "started_at",
            "latest_call_at",
            "matures_at",
            "is_mature",
            "parent_step",
        ],
    )
    if known.reopened:
        closed = Run.objects.filter(id__in=known.reopened, state=RunState.CLOSED)
        closed.update(state=RunState.OPEN, closed_at=None, reopened_at=now)
    Step.objects.bulk_create(known.steps)
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE telemetry_call AS call SET step_id = placed.step_id, stitched_at = %s"
            " FROM unnest(%s::uuid[], %s::uuid[]) AS placed (id, step_id) WHERE call.id = placed.id",
            [now, [call.id for call in known.placed], [call.step_id for call in known.placed]],
        )
    waiting.wake(project_id, known.placed, known.grown.values())
