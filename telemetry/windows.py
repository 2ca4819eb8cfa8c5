"""Attribution windows: until when the signals of a run may still change, and the sweep that notices that they cannot.

A declared metric may have a window; it closes that long after the run's latest call, for values that were given and
for values that were not. Before, a value is censored: it stands, but is not final. Each closing is a new revision of
the run, so that an episode is built which says so; a late call opens the windows again."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from django.db import transaction
from django.db.models import Case, DateTimeField, Expression, F, Q, Value, When
from django.db.models.functions import Coalesce

from telemetry.locks import lock_project
from telemetry.models import DeclaredMetric, Run


def windows_of(project_id: UUID) -> list[int]:
    """The lengths of the project's windows in seconds, the shortest first; each once."""
    rows = DeclaredMetric.objects.filter(project_id=project_id, window_s__gt=0)
    return sorted(set(rows.values_list("window_s", flat=True)))


def next_close(latest_call_at: datetime, windows_s: Sequence[int], now: datetime) -> datetime | None:
    """When the next window of a run closes; None when all have."""
    ends = (latest_call_at + timedelta(seconds=window_s) for window_s in windows_s)
    return next((end for end in ends if end > now), None)


def schedule(runs: Iterable[Run], project_id: UUID, now: datetime) -> None:
    """Set, on runs that got a call, when their next window closes. The caller saves them."""
    windows_s = windows_of(project_id)
    for run in runs:
        run.matures_at = next_close(run.latest_call_at, windows_s, now)
        run.is_mature = run.matures_at is None


def reschedule(project_id: UUID, *, now: datetime) -> None:
    """The project's windows have changed: those of its runs that are open, or are open again, close accordingly. What
    is over by that is left to the sweep."""
    windows_s = windows_of(project_id)
    longest = timedelta(seconds=windows_s[-1] if windows_s else 0)
    touched = Run.objects.filter(
        Q(is_mature=False) | Q(latest_call_at__gt=now - longest), project_id=project_id
    )
    touched.update(is_mature=False, matures_at=Coalesce(_next_close(windows_s, now), Value(now)))


def mature_due(*, now: datetime) -> int:
    """Close the windows whose time has come, of all projects; return for how many runs."""
    due = Run.objects.filter(matures_at__lte=now)
    return sum(_mature(project_id, now) for project_id in due.values_list("project_id", flat=True).distinct())


@transaction.atomic
def _mature(project_id: UUID, now: datetime) -> int:
    lock_project(project_id)
    due = Run.objects.filter(project_id=project_id, matures_at__lte=now)
    close = _next_close(windows_of(project_id), now)
    count = due.update(matures_at=close, revision=F("revision") + 1)
    Run.objects.filter(project_id=project_id, matures_at=None, is_mature=False).update(is_mature=True)
    return count


def _next_close(windows_s: Sequence[int], now: datetime) -> Expression:
    """`next_close` in SQL."""
    lengths = [timedelta(seconds=window_s) for window_s in windows_s]
    return Case(
        *(When(latest_call_at__gt=now - length, then=F("latest_call_at") + length) for length in lengths),
        default=Value(None),
        output_field=DateTimeField(),
    )
