"""Signals: what was observed about runs, from whoever knows, at any time and in any order.

The ledger of signals is append-only: the latest observation of a name counts, and nothing is edited. Here
signals find their runs and are read; they arrive through the spool (`telemetry.ingest`). What they are
worth is `learning`'s business."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import F

from telemetry.models import Call, Run, Signal
from telemetry.runs import lock_project

TASK = "task"
"""The signal whose text makes two runs attempts at the same task."""
BATCH = 1000
PATIENCE = timedelta(days=7)
"""How long a stored signal waits for its target; after that it stays listed as unmatched."""


@dataclass(frozen=True, slots=True)
class SignalRow:
    """One observation, as the others read it."""

    id: UUID
    run_id: UUID | None
    name: str
    value: Any
    """Bool, number, text, or a demonstration (an object)."""
    step: int | None
    source: str
    target_type: str
    target: str
    observed_at: datetime
    received_at: datetime


_COLUMNS = (
    "id", "run_id", "name", "value", "step", "source", "target_type", "target", "observed_at", "received_at",
)  # fmt: skip


def join_pending(*, project_id: UUID, now: datetime) -> int:
    """Join the project's waiting signals to the runs that exist by now; return how many found theirs.

    A signal names a run by its id, by the id that the gateway told the caller, or by the caller's own name
    for it; or through one of the run's calls or responses. Each joined run's revision grows."""
    joined = 0
    after = UUID(int=0)
    while True:
        with transaction.atomic():
            lock_project(project_id)
            waiting = Signal.objects.filter(
                project_id=project_id, run=None, stored_at__gt=now - PATIENCE, id__gt=after
            )
            signals = list(waiting.order_by("id")[:BATCH])
            joined += _join(project_id, signals)
        if len(signals) < BATCH:
            return joined
        after = signals[-1].id


def latest_signals(run_ids: Iterable[UUID]) -> dict[UUID, list[SignalRow]]:
    """For each run the signals that count: the latest observation of each name, for the run as a whole and
    for each step that was spoken of, by name and step."""
    rows = (
        Signal.objects.filter(run_id__in=list(run_ids))
        .order_by("run_id", "name", "step", "-observed_at", "-received_at", "-id")
        .distinct("run_id", "name", "step")
        .values_list(*_COLUMNS)
    )
    found: dict[UUID, list[SignalRow]] = {}
    for row in (SignalRow(*values) for values in rows):
        if row.run_id is not None:
            found.setdefault(row.run_id, []).append(row)
    return found


def run_signals(run_ids: Iterable[UUID]) -> dict[UUID, dict[str, Any]]:
    """For each run with signals, the value of each name for the run as a whole."""
    return {
        run_id: {row.name: row.value for row in rows if row.step is None}
        for run_id, rows in latest_signals(run_ids).items()
    }


def unmatched(project_id: UUID, *, limit: int = 100) -> list[SignalRow]:
    """Signals that have found no run, newest first."""
    rows = Signal.objects.filter(project_id=project_id, run=None).order_by("-received_at", "-id")
    return [SignalRow(*row) for row in rows.values_list(*_COLUMNS)[:limit]]


def _join(project_id: UUID, signals: Sequence[Signal]) -> int:
    targets = _targets(project_id, signals)
    joined = []
    for signal in signals:
        signal.run_id = targets.get((signal.target_type, signal.target))
        if signal.run_id is not None:
            joined.append(signal)
    if joined:
        Signal.objects.bulk_update(joined, ["run"])
        Run.objects.filter(id__in={signal.run_id for signal in joined}).update(revision=F("revision") + 1)
        _set_task_keys({signal.run_id for signal in joined if signal.name == TASK and signal.run_id})
    return len(joined)


def _targets(project_id: UUID, signals: Sequence[Signal]) -> dict[tuple[str, str], UUID]:
    """The run of each target that has one, in at most five queries."""
    texts: dict[str, set[str]] = {"run_id": set(), "call_id": set(), "response_id": set()}
    for signal in signals:
        texts[signal.target_type].add(signal.target)
    stitched = Call.objects.filter(project_id=project_id, step__isnull=False).order_by("started_at", "id")
    found: dict[tuple[str, str], UUID] = {}

    responses = (
        stitched.filter(response_id__in=texts["response_id"]) if texts["response_id"] else Call.objects.none()
    )
    found |= {
        ("response_id", text): run_id for text, run_id in responses.values_list("response_id", "step__run_id")
    }

    by_call = _uuids(texts["call_id"])
    calls = stitched.filter(id__in=by_call) if by_call else Call.objects.none()
    for call_id, run_id in calls.values_list("id", "step__run_id"):
        found |= {("call_id", text): run_id for text in by_call[call_id]}

    if texts["run_id"]:
        # From the weakest claim to the strongest, the later ones overwriting: the caller's own name, the id
        # that the gateway told (the stitcher may have chosen another), a run's id.
        runs = Run.objects.filter(project_id=project_id)
        named = runs.filter(name__in=texts["run_id"]).order_by("started_at", "id")
        found |= {("run_id", name): run_id for name, run_id in named.values_list("name", "id")}
        by_run = _uuids(texts["run_id"])
        told = stitched.filter(run_hint__in=by_run).values_list("run_hint", "step__run_id")
        chosen: dict[UUID | None, UUID] = dict(told)
        chosen |= {run_id: run_id for run_id in runs.filter(id__in=by_run).values_list("id", flat=True)}
        for run_id, texts_of_run in by_run.items():
            if run_id in chosen:
                found |= {("run_id", text): chosen[run_id] for text in texts_of_run}
    return found


def _uuids(texts: Iterable[str]) -> dict[UUID, list[str]]:
    """The texts that are UUIDs, in any spelling, by UUID."""
    found: dict[UUID, list[str]] = {}
    for text in texts:
        try:
            found.setdefault(UUID(text), []).append(text)
        except ValueError:
            continue
    return found


def _set_task_keys(run_ids: set[UUID]) -> None:
    tasks = {run_id: values[TASK] for run_id, values in run_signals(run_ids).items() if TASK in values}
    runs = [Run(id=run_id, task_key=str(task)[:200]) for run_id, task in tasks.items()]
    Run.objects.bulk_update(runs, ["task_key"])
