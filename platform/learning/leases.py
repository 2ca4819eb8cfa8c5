"""Leases: one process at a time works on a leased row, and one that was overtaken can write nothing more.

A lease is the row's epoch. Taking a lease raises the epoch by one; every later write carries the epoch it
was taken with and changes nothing once another holds a higher one. Owns no state but the row's: what the
work is, and what its end means, is `learning.training`'s and `learning.evaluation.jobs`'s."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from django.db.models import Q
from django.db.models.functions import Coalesce

from kernel import states
from learning.models import JobState, LeasedJob

J = TypeVar("J", bound=LeasedJob)

TTL = timedelta(seconds=30)
"""How long a lease lasts when its holder falls silent."""
MAX_EPOCHS = 3
"""A row whose holders died this often is not tried again: the work itself seems to kill them."""

TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED}),
    JobState.RUNNING: frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}


class LeaseLost(Exception):
    """The row is another process's now, or its work was cancelled: stop, and write nothing."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on one row."""

    job_id: UUID
    owner: str
    epoch: int
    expires_at: datetime


def lease(
    model: type[LeasedJob], job_id: UUID, *, owner: str, now: datetime, ttl: timedelta = TTL
) -> Lease | None:
    """Take the row if it is queued, or if its holder's lease has run out; None when neither, or another was
    faster."""
    free = Q(state=JobState.QUEUED) | Q(state=JobState.RUNNING, lease_expires_at__lt=now)
    rows = model._default_manager.filter(free, id=job_id)
    seen = rows.values_list("lease_epoch", flat=True).first()
    if seen is None:
        return None
    taken = rows.filter(lease_epoch=seen).update(
        state=JobState.RUNNING,
        lease_owner=owner,
        lease_epoch=seen + 1,
        lease_expires_at=now + ttl,
        started_at=Coalesce("started_at", now),
        updated_at=now,
    )
    return Lease(job_id, owner, seen + 1, now + ttl) if taken == 1 else None


def renew(
    model: type[LeasedJob],
    held: Lease,
    *,
    now: datetime,
    ttl: timedelta = TTL,
    progress: Mapping[str, Any] | None = None,
) -> Lease:
    """Hold the row for another `ttl`, and note how far the work is. Raises LeaseLost."""
    changes: dict[str, Any] = {"lease_expires_at": now + ttl, "updated_at": now}
    if progress is not None:
        changes["progress"] = dict(progress)
    if _held(model, held).update(**changes) != 1:
        raise LeaseLost(f"{model._meta.verbose_name} {held.job_id} is no longer {held.owner}'s")
    return Lease(held.job_id, held.owner, held.epoch, now + ttl)


def lock_held(model: type[J], held: Lease) -> J:
    """The row, locked until the transaction ends, for its holder's last write. Raises LeaseLost."""
    row: J | None = _held(model, held).select_for_update().first()
    if row is None:
        raise LeaseLost(f"{model._meta.verbose_name} {held.job_id} is no longer {held.owner}'s")
    return row


def finish(row: LeasedJob, target: JobState, *, now: datetime, **changes: Any) -> None:
    """Move a row that `lock_held` gave to its final state."""
    states.move(row, target, table=TRANSITIONS, now=now, finished_at=now, lease_expires_at=None, **changes)


def due(model: type[LeasedJob], *, now: datetime) -> list[UUID]:
    """Rows that wait for a worker: queued, or left behind by one that fell silent."""
    free = Q(state=JobState.QUEUED) | Q(state=JobState.RUNNING, lease_expires_at__lt=now)
    return list(model._default_manager.filter(free).order_by("created_at", "id").values_list("id", flat=True))


def _held(model: type[J], held: Lease) -> Any:
    return model._default_manager.filter(
        id=held.job_id, state=JobState.RUNNING, lease_owner=held.owner, lease_epoch=held.epoch
    )
