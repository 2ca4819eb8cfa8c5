"""What may be read of telemetry: runs, calls, losses and counts of one project, as frozen rows.

Every function takes the project whose rows it reads; a row of another project is never found."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import Count, Exists, OuterRef, Q, QuerySet, Sum
from django.db.models.functions import Coalesce

from accounts.models import Project
from telemetry import exchange, signals
from telemetry.bodies import Body, bodies_of
from telemetry.models import Call, CallOutcome, CaptureLoss, Run, Signal, Step
from telemetry.shedding import Shed
from telemetry.signals import SignalRow

Cursor = tuple[datetime, UUID]
"""The last row of a page, `(started_at, id)`: the next page begins after it."""


@dataclass(frozen=True, slots=True)
class RunRow:
    id: UUID
    name: str
    state: str
    task_key: str
    model_alias: str
    confidence: float
    revision: int
    step_count: int
    call_count: int
    started_at: datetime
    latest_call_at: datetime
    closed_at: datetime | None
    signals: dict[str, Any]
    """Latest value of each signal about the run as a whole."""


@dataclass(frozen=True, slots=True)
class CallRow:
    id: UUID
    run_id: UUID | None
    """None until the call has been stitched."""
    step_index: int | None
    response_id: str
    dialect: str
    path: str
    model_requested: str
    model_served: str
    model_version_id: UUID | None
    is_canary: bool
    outcome: str
    status_code: int | None
    retry_count: int
    prompt_tokens: int | None
    completion_tokens: int | None
    started_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class StepRow:
    index: int
    parent_index: int | None
    confidence: float
    reason: str
    calls: list[CallRow]
    answer: dict[str, Any] | None
    """The message of the step's latest answered call."""


@dataclass(frozen=True, slots=True)
class RunDetail:
    run: RunRow
    steps: list[StepRow]
    messages: list[dict[str, Any]]
    """The conversation as it stood at the latest answered step, with its answer."""
    signals: list[SignalRow]


@dataclass(frozen=True, slots=True)
class LossRow:
    process: str
    boot: str
    first_sequence: int
    last_sequence: int
    count: int
    """How many records of this range."""
    reason: str
    recorded_at: datetime


@dataclass(frozen=True, slots=True)
class Counts:
    calls: int
    unstitched_calls: int
    runs: int
    runs_with_signals: int
    """Runs of which anything was observed: the feedback coverage's numerator."""
    signals: int
    unmatched_signals: int


@dataclass(frozen=True, slots=True)
class TaskGroup:
    """Attempts at the same task."""

    task_key: str
    runs: int


_RUN = (
    "id", "name", "state", "task_key", "model_alias", "confidence", "revision", "step_count", "call_count",
    "started_at", "latest_call_at", "closed_at",
)  # fmt: skip
_CALL = (
    "id", "step__run_id", "step__index", "response_id", "dialect", "path", "model_requested",
    "model_served", "model_version_id", "is_canary", "outcome", "status_code", "retry_count", "prompt_tokens",
    "completion_tokens", "started_at", "ended_at",
)  # fmt: skip


def runs_page(*, project: Project, limit: int = 50, after: Cursor | None = None) -> list[RunRow]:
    """Runs, newest first."""
    runs = _page(Run.objects.filter(project=project), after)
    return _run_rows(list(runs.values_list(*_RUN)[:limit]))


def calls_page(*, project: Project, limit: int = 50, after: Cursor | None = None) -> list[CallRow]:
    """Calls with the run each belongs to, newest first."""
    calls = _page(Call.objects.filter(project=project), after)
    return [CallRow(*row) for row in calls.values_list(*_CALL)[:limit]]


def run_detail(*, project: Project, run_id: UUID, now: datetime) -> RunDetail | None:
    """One run with its steps, conversation and signals; None when the project has no such run."""
    runs = _run_rows(list(Run.objects.filter(project=project, id=run_id).values_list(*_RUN)))
    if not runs:
        return None
    calls: dict[int, list[CallRow]] = {}
    for row in Call.objects.filter(step__run_id=run_id).order_by("started_at", "id").values_list(*_CALL):
        found = CallRow(*row)
        if found.step_index is not None:
            calls.setdefault(found.step_index, []).append(found)
    answered = {index: answering_call(rows) for index, rows in calls.items()}
    answering = {call.id: call for call in answered.values() if call}
    bodies = bodies_of(project.id, answering)
    answers = {
        call_id: exchange.answer_message(body.response, answering[call_id].dialect)
        for call_id, body in bodies.items()
    }
    steps = [
        StepRow(
            index, parent, confidence, reason, calls.get(index, []), _answer(answered.get(index), answers)
        )
        for index, parent, confidence, reason in Step.objects.filter(run_id=run_id)
        .order_by("index")
        .values_list("index", "parent__index", "confidence", "reason")
    ]
    last = next((call for step in reversed(steps) if (call := answered.get(step.index))), None)
    return RunDetail(
        run=runs[0],
        steps=steps,
        messages=_conversation(bodies[last.id], last.dialect) if last and last.id in bodies else [],
        signals=[row for rows in signals.latest_signals([run_id], now=now).values() for row in rows],
    )


def answering_call(calls: Sequence[CallRow]) -> CallRow | None:
    """Of the calls of one step, attempts at the same request, the one whose answer counts: the last whole
    one."""
    return next((call for call in reversed(calls) if call.outcome == CallOutcome.COMPLETE), None)


def losses(*, limit: int = 100) -> list[LossRow]:
    """What was seen and could not be kept, newest first. Of the installation: a lost record has no
    project."""
    rows = CaptureLoss.objects.order_by("-recorded_at", "-id")
    fields = ("process", "boot", "first_sequence", "last_sequence", "count", "reason", "recorded_at")
    return [LossRow(*row) for row in rows.values_list(*fields)[:limit]]


def lost_records() -> int:
    """How many records of the installation are known to be lost; those that only lack their body are not."""
    return int(CaptureLoss.objects.exclude(reason=Shed.BODY).aggregate(n=Coalesce(Sum("count"), 0))["n"])


def counts(*, project: Project) -> Counts:
    """How much of everything the project has."""
    calls = Call.objects.filter(project=project).aggregate(
        calls=Count("id"), unstitched_calls=Count("id", filter=Q(stitched_at=None))
    )
    observed = Exists(Signal.objects.filter(run_id=OuterRef("id")))
    runs = Run.objects.filter(project=project).aggregate(
        runs=Count("id"), runs_with_signals=Count("id", filter=observed)
    )
    observations = Signal.objects.filter(project=project).aggregate(
        signals=Count("id"), unmatched_signals=Count("id", filter=Q(run=None))
    )
    return Counts(**calls, **runs, **observations)


def task_groups(*, project: Project) -> list[TaskGroup]:
    """Runs by task, by key."""
    groups = Run.objects.filter(project=project).exclude(task_key="").values("task_key")
    return [TaskGroup(**row) for row in groups.annotate(runs=Count("id")).order_by("task_key")]


def _page(rows: "QuerySet[Any]", after: Cursor | None) -> "QuerySet[Any]":
    if after is not None:
        rows = rows.filter(Q(started_at__lt=after[0]) | Q(started_at=after[0], id__lt=after[1]))
    return rows.order_by("-started_at", "-id")


def _run_rows(rows: Sequence[Any]) -> list[RunRow]:
    values = signals.run_signals([row[0] for row in rows])
    return [RunRow(**dict(zip(_RUN, row, strict=True)), signals=values.get(row[0], {})) for row in rows]


def _answer(call: CallRow | None, answers: dict[UUID, dict[str, Any] | None]) -> dict[str, Any] | None:
    return answers.get(call.id) if call else None


def _conversation(body: Body, dialect: str) -> list[dict[str, Any]]:
    answer = exchange.answer_message(body.response, dialect)
    return exchange.request_messages(body.request, dialect) + ([answer] if answer else [])
