"""Which metrics a project declares and how it takes signals: each change one transaction with its audit event.

A declaration holds for the signals that are here already: those that do not fit are marked, and count no more. What
fits is decided in `telemetry.metrics`; gateways hear of a change when it commits."""

import os
from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

from django.db import transaction

from accounts.models import Project
from audit import ledger
from audit.actions import JSON, Action, Actor, ObjectRef
from kernel.notify import ROUTES_CHANGED, notify
from telemetry import windows
from telemetry.locks import lock_project
from telemetry.metrics import ANYTHING, JUDGE_PREFIX, RESERVED, Better, Kind, Level, Metric, Rules, misfit
from telemetry.models import DeclaredMetric, Signal, SignalSettings
from telemetry.runs import grow

MAX_WINDOW_S = 400 * 86_400
MAX_LABELS = 100
_CHUNK = 2000


class InvalidMetric(ValueError):
    """A metric cannot be declared like this; the sentence begins with the field."""


class InvalidSetting(ValueError):
    """Signals cannot be taken like this; the sentence begins with the field."""


@transaction.atomic
def declare(
    *, project: Project, metric: Metric, actor: Actor, now: datetime, reason: str = ""
) -> DeclaredMetric:
    """Declare a metric, or change the description and window of one; all else is fixed, because values were given
    under it. Raises InvalidMetric."""
    _check(metric)
    lock_project(project.pk)
    row = DeclaredMetric.objects.filter(project=project, name=metric.name).first()
    known = as_metric(row) if row else None
    if known is not None:
        _check_same(known, metric)
    row = row or DeclaredMetric(project=project, name=metric.name, created_at=now)
    row.kind, row.level, row.better = metric.kind, metric.level, metric.better
    row.minimum, row.maximum, row.labels = metric.minimum, metric.maximum, list(metric.labels)
    row.window_s, row.description, row.updated_at = metric.window_s, metric.description, now
    row.save()
    if known is None:
        _mark_misfits(project, metric)
    if metric.window_s != (known.window_s if known else 0):
        windows.reschedule(project.pk, now=now)
    _record(Action.METRIC_DECLARED, project, ObjectRef("metric", row.pk), told(metric), actor, reason, now)
    return row


@transaction.atomic
def set_signal_settings(
    *,
    project: Project,
    is_strict: bool | None = None,
    review_share: float | None = None,
    actor: Actor,
    now: datetime,
    reason: str = "",
) -> SignalSettings:
    """Change how the project takes signals; None leaves a setting as it is. Runs that closed before are not drawn for
    review by a larger share. Raises InvalidSetting."""
    if review_share is not None and not 0 <= review_share <= 1:
        raise InvalidSetting(f"review_share: it must be from 0 to 1, not {review_share:g}")
    Project.objects.select_for_update().get(pk=project.pk)
    row = SignalSettings.objects.filter(project=project).first() or SignalSettings(
        project=project, review_salt=os.urandom(32), drawn_until=now
    )
    if is_strict is not None:
        row.is_strict = is_strict
    if review_share is not None:
        if not row.review_share:
            row.drawn_until = now
        row.review_share = review_share
    row.updated_at = now
    row.save()
    data: dict[str, JSON] = {"is_strict": row.is_strict, "review_share": repr(row.review_share)}
    _record(
        Action.SIGNAL_SETTINGS_SET,
        project,
        ObjectRef("signal_settings", project.pk),
        data,
        actor,
        reason,
        now,
    )
    return row


def declared(project_id: UUID) -> list[Metric]:
    """The project's metrics, by name."""
    return list(rules_of([project_id])[project_id].metrics.values())


def rules_of(project_ids: Iterable[UUID] | None = None) -> dict[UUID, Rules]:
    """What signals are held against, in two queries: of these projects, or of all that have declared anything."""
    metrics, strict = DeclaredMetric.objects.order_by("name"), SignalSettings.objects.filter(is_strict=True)
    wanted = None if project_ids is None else set(project_ids)
    if wanted is not None:
        metrics, strict = metrics.filter(project_id__in=wanted), strict.filter(project_id__in=wanted)
    by_project: dict[UUID, dict[str, Metric]] = {}
    for row in metrics:
        by_project.setdefault(row.project_id, {})[row.name] = as_metric(row)
    is_strict = set(strict.values_list("project_id", flat=True))
    return {
        project_id: Rules(by_project.get(project_id, {}), project_id in is_strict)
        if project_id in by_project or project_id in is_strict
        else ANYTHING
        for project_id in (by_project.keys() | is_strict if wanted is None else wanted)
    }


def undeclared(project_id: UUID) -> list[str]:
    """Names of signals that the project has received and not declared."""
    names = Signal.objects.filter(project_id=project_id).order_by().values_list("name", flat=True).distinct()
    return sorted(set(names) - RESERVED.keys() - {metric.name for metric in declared(project_id)})


def as_metric(row: DeclaredMetric) -> Metric:
    return Metric(
        name=row.name,
        kind=Kind(row.kind),
        level=Level(row.level),
        better=Better(row.better),
        minimum=row.minimum,
        maximum=row.maximum,
        labels=tuple(row.labels),
        window_s=row.window_s,
        description=row.description,
    )


def told(metric: Metric) -> dict[str, JSON]:
    """The metric as the ledger holds it; it knows no fractions."""
    return {
        "name": metric.name,
        "kind": metric.kind.value,
        "level": metric.level.value,
        "better": metric.better.value,
        "minimum": None if metric.minimum is None else repr(metric.minimum),
        "maximum": None if metric.maximum is None else repr(metric.maximum),
        "labels": list(metric.labels),
        "window_s": metric.window_s,
        "description": metric.description,
    }


def _check(metric: Metric) -> None:
    if not metric.name.strip() or len(metric.name) > 100 or not metric.name.isprintable():
        raise InvalidMetric("name: it must have 1 to 100 printable characters")
    if metric.name.startswith(JUDGE_PREFIX):
        raise InvalidMetric(f"name: names that begin with `{JUDGE_PREFIX}` are those of judges' verdicts")
    if metric.name in RESERVED:
        raise InvalidMetric(f"name: `{metric.name}` is reserved: {RESERVED[metric.name].description}")
    if not 0 <= metric.window_s <= MAX_WINDOW_S:
        raise InvalidMetric(f"window_s: it must be from 0 to {MAX_WINDOW_S} seconds, not {metric.window_s}")
    if len(metric.description) > 500:
        raise InvalidMetric("description: it may have 500 characters")
    if (metric.kind is Kind.LABEL) != bool(metric.labels):
        raise InvalidMetric("labels: a label metric lists them, and no other does")
    if len(metric.labels) > MAX_LABELS or len(set(metric.labels)) < len(metric.labels):
        raise InvalidMetric(f"labels: at most {MAX_LABELS}, each once")
    if not all(0 < len(label) <= 100 for label in metric.labels):
        raise InvalidMetric("labels: each has 1 to 100 characters")
    limits = [limit for limit in (metric.minimum, metric.maximum) if limit is not None]
    if limits and metric.kind is not Kind.NUMBER:
        raise InvalidMetric("minimum: only numbers have a range")
    if any(not abs(limit) <= 2**53 for limit in limits) or (len(limits) == 2 and limits[0] >= limits[1]):
        raise InvalidMetric("minimum: it must be below the maximum, both within 2^53")


def _check_same(known: Metric, wanted: Metric) -> None:
    for field in ("kind", "level", "better", "minimum", "maximum", "labels"):
        was, is_ = getattr(known, field), getattr(wanted, field)
        if was != is_:
            raise InvalidMetric(
                f"{field}: `{known.name}` was declared with {was!r} and has values that mean that: declare another"
            )


def _mark_misfits(project: Project, metric: Metric) -> None:
    """Hold the signals of that name which are here already against it; the runs of those that fall become new
    revisions."""
    rules = Rules({metric.name: metric})
    marked: list[Signal] = []
    rows = Signal.objects.filter(project=project, name=metric.name, misfit="")
    for row in rows.iterator(chunk_size=_CHUNK):
        found = misfit(rules, name=row.name, value=row.value, step=row.step, target_type=row.target_type)
        if found:
            row.misfit = found.message[:300]
            marked.append(row)
    Signal.objects.bulk_update(marked, ["misfit"], batch_size=_CHUNK)
    grow(row.run_id for row in marked if row.run_id)


def _record(
    action: Action,
    project: Project,
    obj: ObjectRef,
    data: dict[str, JSON],
    actor: Actor,
    reason: str,
    now: datetime,
) -> None:
    ledger.record(
        action,
        actor=actor,
        organization_id=project.organization_id,
        project_id=project.pk,
        obj=obj,
        at=now,
        reason=reason,
        data=data,
    )
    notify(ROUTES_CHANGED)
