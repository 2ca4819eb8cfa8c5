"""Signals: what was observed about runs, from whoever knows, at any time and in any order.

The ledger of signals is append-only: the latest observation of a name counts, and nothing is edited. Here
signals find their runs and are read; they arrive through the spool (`telemetry.ingest`). What fits is decided in
`telemetry.metrics`, what wakes a signal that waits in `telemetry.waiting`; what they are worth is `learning`'s
business."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connection, transaction
from django.db.models import Count, Exists, OuterRef, Q, QuerySet

from telemetry import runs, waiting
from telemetry.declarations import rules_of
from telemetry.locks import lock_project
from telemetry.metrics import CLOSED, EXTERNAL_KEY, TASK, Kind, Level, Rules, misfit
from telemetry.models import Call, Run, Signal

BATCH = 1000


@dataclass(frozen=True, slots=True)
class SignalRow:
    """One observation, as the others read it."""

    id: UUID
    run_id: UUID | None
    name: str
    value: Any
    """Bool, number, text, or an assistant message (an object)."""
    step: int | None
    source: str
    target_type: str
    target: str
    misfit: str
    """Why it does not count; empty when it does."""
    observed_at: datetime
    received_at: datetime
    is_final: bool = True
    """Its metric's window has closed."""
    evidence: tuple[str, ...] = ()
    """Sentences on what it rests on, where it says so."""


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Observations of one thing that do not agree, all of them kept; the first one counts."""

    run_id: UUID
    name: str
    step: int | None
    rows: tuple[SignalRow, ...]
    """The latest first."""


_COLUMNS = (
    "id", "run_id", "name", "value", "step", "source", "target_type", "target", "misfit", "observed_at",
    "received_at",
)  # fmt: skip
_LATEST_FIRST = ("-observed_at", "-received_at", "-id")


def join_pending(*, project_id: UUID, now: datetime) -> int:
    """Join the project's signals that are to be looked for to the runs that exist by now; return how many found
    theirs.

    A signal names a run by its id, by the id that the gateway told the caller, or by the caller's own name
    for it; through one of the run's calls or responses; or by the project's own key. Each joined run's revision
    grows."""
    joined = 0
    while True:
        with transaction.atomic():
            lock_project(project_id)
            sought = Signal.objects.filter(project_id=project_id, run=None, sought_at=None)
            signals = list(sought.order_by("id")[:BATCH])
            joined += _join(project_id, signals, now)
        if len(signals) < BATCH and not sought.exists():  # a key that was found may have woken others
            return joined


def latest_signals(run_ids: Iterable[UUID], *, now: datetime) -> dict[UUID, list[SignalRow]]:
    """For each run the signals that count: the latest observation of each name, for the run as a whole and
    for each step that was spoken of, by name and step. Those whose window is open at `now` are not final."""
    read: list[Any] = list(_latest(run_ids).values_list(*_COLUMNS, "project_id", "run__latest_call_at"))
    rules = rules_of({row[-2] for row in read})
    found: dict[UUID, list[SignalRow]] = {}
    for *values, project_id, latest_call_at in read:
        row = SignalRow(*values)
        window_s = rules[project_id].window_s(row.name)
        is_final = not window_s or latest_call_at + timedelta(seconds=window_s) <= now
        if row.run_id is not None:
            found.setdefault(row.run_id, []).append(replace(row, is_final=is_final))
    return found


def run_signals(run_ids: Iterable[UUID]) -> dict[UUID, dict[str, Any]]:
    """For each run with signals, the value of each name for the run as a whole."""
    found: dict[UUID, dict[str, Any]] = {}
    for run_id, name, value in _latest(run_ids).filter(step=None).values_list("run_id", "name", "value"):
        if run_id is not None:
            found.setdefault(run_id, {})[name] = value
    return found


def unmatched(project_id: UUID, *, limit: int = 100) -> list[SignalRow]:
    """Signals that have found no run, newest first."""
    return _rows(Signal.objects.filter(project_id=project_id, run=None), limit)


def misfits(project_id: UUID, *, limit: int = 100) -> list[SignalRow]:
    """Signals that are kept and do not count, newest first; each says why."""
    return _rows(Signal.objects.filter(project_id=project_id).exclude(misfit=""), limit)


def contradictions(project_id: UUID, *, since: datetime, limit: int = 100) -> list[Contradiction]:
    """Where observations received since then disagree with each other or with earlier ones about the same run or step.
    One that names the signal it supersedes disagrees with nothing. Two queries."""
    counted = _counting(Signal.objects.filter(project_id=project_id, run__isnull=False))
    groups = (
        counted.order_by()
        .values("run_id", "name", "step")
        .annotate(values=Count("value", distinct=True), recent=Count("id", filter=Q(received_at__gte=since)))
        .filter(values__gt=1, recent__gt=0)
        .order_by("run_id", "name", "step")[:limit]
    )
    wanted = [(group["run_id"], group["name"], group["step"]) for group in groups]
    rows = counted.filter(run_id__in={key[0] for key in wanted}, name__in={key[1] for key in wanted})
    found: dict[tuple[Any, str, int | None], list[SignalRow]] = {key: [] for key in wanted}
    for values in rows.order_by(*_LATEST_FIRST).values_list(*_COLUMNS):
        row = SignalRow(*values)
        if (key := (row.run_id, row.name, row.step)) in found:
            found[key].append(row)
    return [Contradiction(*key, tuple(rows)) for key, rows in found.items()]


def _latest(run_ids: Iterable[UUID]) -> "QuerySet[Signal]":
    rows = _counting(Signal.objects.filter(run_id__in=list(run_ids)))
    return rows.order_by("run_id", "name", "step", *_LATEST_FIRST).distinct("run_id", "name", "step")


def _counting(rows: "QuerySet[Signal]") -> "QuerySet[Signal]":
    """Without those that do not fit, and those whose place another one has taken."""
    successors = Signal.objects.filter(
        supersedes=OuterRef("id"), project_id=OuterRef("project_id"), name=OuterRef("name"), misfit=""
    )
    return rows.filter(~Exists(successors), misfit="")


def _rows(rows: "QuerySet[Signal]", limit: int) -> list[SignalRow]:
    return [SignalRow(*row) for row in rows.order_by("-received_at", "-id").values_list(*_COLUMNS)[:limit]]


def _join(project_id: UUID, signals: Sequence[Signal], now: datetime) -> int:
    if not signals:
        return 0
    rules = rules_of([project_id])[project_id]
    places = _places(project_id, signals)
    joined = [signal for signal in signals if signal.id in places]
    for signal in signals:
        if signal.id in places:
            _put(signal, places[signal.id], rules)
        else:
            signal.sought_at = now
    _save(signals)
    fitting = [signal for signal in joined if not signal.misfit]
    replaced = Signal.objects.filter(
        project_id=project_id, id__in={signal.supersedes for signal in fitting if signal.supersedes}
    )
    touched = {*(signal.run_id for signal in joined), *replaced.values_list("run_id", flat=True)}
    runs.grow(run_id for run_id in touched if run_id)
    runs.close((signal.run_id for signal in fitting if _tells_end(signal) and signal.run_id), now=now)
    _set_task_keys({signal.run_id for signal in fitting if signal.name == TASK and signal.run_id})
    waiting.wake_keys(project_id, {signal.value for signal in fitting if signal.name == EXTERNAL_KEY})
    return len(joined)


def _tells_end(signal: Signal) -> bool:
    return signal.name == CLOSED and signal.value is True


def _save(signals: Sequence[Signal]) -> None:
    """What the search has found out, in one statement: Django's own for many rows takes longer than the search."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE telemetry_signal AS signal SET run_id = found.run_id, sought_at = found.sought_at,"
            " step = found.step, misfit = found.misfit"
            " FROM unnest(%s::uuid[], %s::uuid[], %s::timestamptz[], %s::integer[], %s::text[])"
            " AS found (id, run_id, sought_at, step, misfit) WHERE signal.id = found.id",
            [
                [signal.id for signal in signals],
                [signal.run_id for signal in signals],
                [signal.sought_at for signal in signals],
                [signal.step for signal in signals],
                [signal.misfit for signal in signals],
            ],
        )


def _put(signal: Signal, place: "_Place", rules: Rules) -> None:
    """Give a signal its run; where it is about a step, also that; and note what does not fit."""
    found = misfit(
        rules, name=signal.name, value=signal.value, step=signal.step, target_type=signal.target_type
    )
    if found and not signal.misfit:
        signal.misfit = found.message[:300]
    metric = rules.metric(signal.name)
    is_about_a_step = metric and (metric.level is not Level.RUN or metric.kind is Kind.CORRECTION)
    if signal.step is None and is_about_a_step:
        signal.step = place.step
    signal.run_id = place.run_id


@dataclass(frozen=True, slots=True)
class _Place:
    """What a signal speaks of."""

    run_id: UUID
    step: int | None = None
    """Of the call that it names."""


def _places(project_id: UUID, signals: Sequence[Signal]) -> dict[UUID, _Place]:
    """Of each signal that has one, in at most seven queries."""
    texts: dict[str, set[str]] = {
        name: set() for name in ("run_id", "call_id", "response_id", "external_key")
    }
    for signal in signals:
        texts[signal.target_type].add(signal.target)
    stitched = Call.objects.filter(project_id=project_id, step__isnull=False)
    found: dict[tuple[str, str], _Place] = {
        **_of_responses(stitched, texts["response_id"]),
        **_of_calls(stitched, texts["call_id"]),
        **_of_runs(project_id, stitched, texts["run_id"]),
    }
    keyed = _runs_by_key(project_id, stitched, texts["external_key"])
    places: dict[UUID, _Place] = {}
    for signal in signals:
        if signal.target_type == "external_key":
            place = _among(keyed.get(signal.target, []), signal.observed_at)
        else:
            place = found.get((signal.target_type, signal.target))
        if place:
            places[signal.id] = place
    return places


def _of_responses(stitched: "QuerySet[Call]", texts: set[str]) -> dict[tuple[str, str], _Place]:
    if not texts:
        return {}
    rows = stitched.filter(response_id__in=texts).order_by("started_at", "id")
    return {
        ("response_id", text): _Place(run_id, step)
        for text, run_id, step in rows.values_list("response_id", "step__run_id", "step__index")
    }


def _of_calls(stitched: "QuerySet[Call]", texts: set[str]) -> dict[tuple[str, str], _Place]:
    by_call = _uuids(texts)
    if not by_call:
        return {}
    rows = stitched.filter(id__in=by_call).values_list("id", "step__run_id", "step__index")
    return {
        ("call_id", text): _Place(run_id, step) for call_id, run_id, step in rows for text in by_call[call_id]
    }


def _of_runs(project_id: UUID, stitched: "QuerySet[Call]", texts: set[str]) -> dict[tuple[str, str], _Place]:
    if not texts:
        return {}
    # From the weakest claim to the strongest, the later ones overwriting: the caller's own name, the id
    # that the gateway told (the stitcher may have chosen another), a run's id.
    all_runs = Run.objects.filter(project_id=project_id)
    named = all_runs.filter(name__in=texts).order_by("started_at", "id")
    found = {("run_id", name): _Place(run_id) for name, run_id in named.values_list("name", "id")}
    by_run = _uuids(texts)
    told = stitched.filter(run_hint__in=by_run).order_by("started_at", "id")
    chosen: dict[UUID | None, UUID] = dict(told.values_list("run_hint", "step__run_id"))
    chosen |= {run_id: run_id for run_id in all_runs.filter(id__in=by_run).values_list("id", flat=True)}
    for run_id, texts_of_run in by_run.items():
        if run_id in chosen:
            found |= {("run_id", text): _Place(chosen[run_id]) for text in texts_of_run}
    return found


def _runs_by_key(
    project_id: UUID, stitched: "QuerySet[Call]", keys: set[str]
) -> dict[str, list[tuple[datetime, UUID]]]:
    """When each run of a key began, and which it is, the oldest first: runs whose calls carry the key, and those that a
    signal gave it to."""
    if not keys:
        return {}
    by_call = stitched.filter(external_key__in=keys).values_list(
        "external_key", "step__run__started_at", "step__run_id"
    )
    given = Signal.objects.filter(
        project_id=project_id, name=EXTERNAL_KEY, value__in=keys, run__isnull=False, misfit=""
    ).values_list("value", "run__started_at", "run_id")
    found: dict[str, set[tuple[datetime, UUID]]] = {}
    for key, started_at, run_id in [*by_call.distinct(), *given]:
        found.setdefault(key, set()).add((started_at, run_id))
    return {key: sorted(begun) for key, begun in found.items()}


def _among(begun: Sequence[tuple[datetime, UUID]], observed_at: datetime) -> _Place | None:
    """Of the runs of one key, oldest first, the one that an observation is about: the newest that had begun by then;
    the first, when none had, because clocks differ and some know beforehand."""
    if not begun:
        return None
    began = [run_id for started_at, run_id in begun if started_at <= observed_at]
    return _Place(began[-1] if began else begun[0][1])


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
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE telemetry_run AS run SET task_key = task.key"
            " FROM unnest(%s::uuid[], %s::text[]) AS task (run_id, key) WHERE run.id = task.run_id",
            [list(tasks), [str(task)[:200] for task in tasks.values()]],
        )
