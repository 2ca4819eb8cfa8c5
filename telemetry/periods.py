"""The months in which bytes are kept: their partitions are made ahead and on demand, and dropped whole.

Dropping a partition gives its space back at once and leaves nothing to clean up; a DELETE would do neither. What
lies in them is `telemetry.bodies`' business. Calls, runs and episodes stay: only bytes have a retention."""

from collections import Counter
from datetime import UTC, date, datetime
from uuid import UUID

from django.db import connection, transaction
from django.db.models import Count

from accounts.models import Project
from audit import ledger
from audit.actions import Action, Actor, ObjectRef
from telemetry.models import CallBody

TABLES = ("telemetry_callbody", "telemetry_piece")
INLINE = "toast_tuple_target = 4080"
"""Rows are read for their bytes, so those stay in the row while two rows fit a page."""
AHEAD_MONTHS = 2
"""How many months have their partitions before the first call of theirs."""
LOCK_TIMEOUT = "5s"
"""How long dropping waits for readers, with writers queueing behind it; the next sweep tries again."""


def period_of(at: datetime) -> date:
    """The period of a call that began at `at`: the first day of that month, UTC."""
    return at.astimezone(UTC).date().replace(day=1)


def ensure(period: date) -> None:
    """Make the partitions of a period where there are none.

    Attached rather than created in place: that waits for nobody who reads or writes other periods."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('telemetry periods'))")
        for table in TABLES:
            partition = _partition(table, period)
            cursor.execute("SELECT to_regclass(%s)", [partition])
            if cursor.fetchone() != (None,):
                continue
            cursor.execute(f"CREATE TABLE {partition} (LIKE {table} INCLUDING ALL) WITH ({INLINE})")
            cursor.execute(
                f"ALTER TABLE {table} ATTACH PARTITION {partition} FOR VALUES FROM (%s) TO (%s)",
                [period, _later(period, 1)],
            )


def sweep(*, now: datetime, retention_months: int | None) -> list[date]:
    """Make the partitions of the months to come, and drop what is older than `retention_months` whole months
    before the current one (None keeps everything). Returns the periods that were dropped."""
    current = period_of(now)
    for months in range(AHEAD_MONTHS + 1):
        ensure(_later(current, months))
    if retention_months is None:
        return []
    expired = [period for period in kept() if period < _later(current, -retention_months)]
    for period in expired:
        drop(period, now=now)
    return expired


def kept() -> list[date]:
    """The periods that have partitions, oldest first."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT child.relname FROM pg_inherits JOIN pg_class AS child ON child.oid = inhrelid"
            " WHERE inhparent = %s::regclass",
            [TABLES[0]],
        )
        names = [name for (name,) in cursor.fetchall()]
    return sorted(
        date.fromisoformat(name.removeprefix(f"{TABLES[0]}_").replace("_", "-") + "-01") for name in names
    )


@transaction.atomic
def drop(period: date, *, now: datetime) -> None:
    """Drop the bytes of a period, and say so in the ledger of every organization that had some.

    Raises OperationalError when somebody reads them for longer than LOCK_TIMEOUT."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('telemetry periods'))")
        # Nobody adds to what is counted here and dropped below.
        cursor.execute(f"LOCK TABLE {', '.join(_partition(table, period) for table in TABLES)}")
        for organization_id, bodies in _bodies_by_organization(period).items():
            ledger.record(
                Action.PERIOD_DROPPED,
                actor=Actor.service("retention"),
                organization_id=organization_id,
                project_id=None,
                obj=ObjectRef("period", f"{period:%Y-%m}"),
                at=now,
                data={"bodies": bodies},
            )
        for table in TABLES:
            cursor.execute(f"DROP TABLE {_partition(table, period)}")


def _bodies_by_organization(period: date) -> Counter[UUID]:
    """How many calls of each organization lose their bytes with this period."""
    by_project = CallBody.objects.filter(period=period).values_list("project_id").annotate(Count("call_id"))
    bodies = dict(by_project.order_by("project_id"))
    counts = Counter[UUID]()
    for project_id, organization_id in Project.objects.filter(id__in=bodies).values_list(
        "id", "organization_id"
    ):
        counts[organization_id] += bodies[project_id]
    return counts


def _partition(table: str, period: date) -> str:
    return f"{table}_{period.year:04d}_{period.month:02d}"


def _later(period: date, months: int) -> date:
    count = period.year * 12 + period.month - 1 + months
    return date(count // 12, count % 12 + 1, 1)
