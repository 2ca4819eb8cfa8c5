"""Signals that wait for their run: how long they may (as long as it takes), and what wakes them.

A signal is looked for once when it arrives. If in vain, nobody looks again until something is stitched that it may
mean: so a signal that waits costs nothing, whether for minutes or for months. Which run it means is decided in
`telemetry.signals`."""

from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

from django.db.models import Q

from telemetry.models import Call, Run, Signal


def wake(project_id: UUID, calls: Sequence[Call], runs: Iterable[Run]) -> None:
    """Have the signals looked for again that may mean one of these calls or runs, which are being stitched. To be
    called in the transaction that does so."""
    run_ids = {run.id for run in runs} | {call.run_hint for call in calls if call.run_hint}
    _wake(
        project_id,
        {
            "call_id": {str(call.id) for call in calls},
            "response_id": {call.response_id for call in calls},
            "run_id": {call.run_name for call in calls} | set(map(str, run_ids)),
            "external_key": {call.external_key for call in calls},
        },
    )


def wake_keys(project_id: UUID, keys: Iterable[str]) -> None:
    """The same for these keys of the project's own, which have been given to runs."""
    _wake(project_id, {"external_key": set(keys)})


def _wake(project_id: UUID, targets: Mapping[str, set[str]]) -> None:
    waiting = Signal.objects.filter(project_id=project_id, run=None, sought_at__isnull=False)
    if not waiting.exists():
        return
    named = Q()
    for target_type, texts in targets.items():
        if texts := texts - {""}:
            named |= Q(target_type=target_type, target__in=texts)
    if named:
        waiting.filter(named).update(sought_at=None)
