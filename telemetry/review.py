"""The review stream: runs drawn at random for people to label, whoever gave feedback and whoever did not.

Drawn when a run closes, by a hash of its id and the project's secret salt: the same run is drawn or not however often
one asks, and nobody who names runs can steer it. Labels are signals with the source `review:<person>`, and so the one
unbiased measure of what feedback says."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import transaction

from accounts.models import Project
from audit import ledger
from audit.actions import Action, Actor, ObjectRef
from kernel.ids import uuid7
from telemetry.declarations import rules_of
from telemetry.locks import lock_project
from telemetry.metrics import Level, misfit
from telemetry.models import Review, Run, RunState, Signal, SignalSettings
from telemetry.runs import grow

SOURCE = "review:"
OVERLAP = timedelta(minutes=10)
"""How far back each draw looks again, because the clocks of workers differ."""
BATCH = 1000


class InvalidLabel(ValueError):
    """A label does not fit; the sentence begins with the name."""


@dataclass(frozen=True, slots=True)
class ReviewRow:
    """A run that waits for its label."""

    run_id: UUID
    model_alias: str
    step_count: int
    drawn_at: datetime


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far feedback and reviewers say the same about the runs that both have spoken of."""

    name: str
    runs: int
    equal: int
    kappa: float | None
    """Cohen's kappa: 1 for perfect agreement, 0 for what chance would give; None where chance alone explains all (both
    always say one and the same) or nobody has spoken."""


def draw_due(*, now: datetime) -> int:
    """Draw from the runs of all projects that have closed since the last time; return how many were drawn."""
    drawing = SignalSettings.objects.filter(review_share__gt=0).values_list("project_id", flat=True)
    return sum(_draw(project_id, now) for project_id in drawing)


def is_drawn(run_id: UUID, *, salt: bytes, share: float) -> bool:
    """Whether this share of all runs, chosen by this salt, includes the run."""
    number = int.from_bytes(hashlib.sha256(salt + run_id.bytes).digest()[:8], "big")
    return number < share * 2**64


def waiting(project_id: UUID, *, limit: int = 50) -> list[ReviewRow]:
    """Runs that were drawn and that nobody has labelled, the longest waiting first."""
    rows = Review.objects.filter(project_id=project_id, labelled_at=None).order_by("drawn_at", "id")
    columns = ("run_id", "run__model_alias", "run__step_count", "drawn_at")
    return [ReviewRow(*row) for row in rows.values_list(*columns)[:limit]]


@transaction.atomic
def label(
    *, project: Project, run_id: UUID, values: Mapping[str, Any], person: Actor, now: datetime
) -> list[UUID]:
    """Record what a person says about a whole run, drawn or not; returns the ids of the signals. Raises InvalidLabel,
    and Run.DoesNotExist for a run of another project."""
    lock_project(project.pk)
    run = Run.objects.get(project=project, id=run_id)
    rules = rules_of([project.pk])[project.pk]
    if not values:
        raise InvalidLabel("values: there are none")
    for name, value in values.items():
        metric = rules.metric(name)
        if metric and metric.level is not Level.RUN:
            raise InvalidLabel(f"{name}: it is about a {metric.level}, not about whole runs")
        wrong = misfit(rules, name=name, value=value, step=None, target_type="run_id")
        if wrong:
            raise InvalidLabel(f"{name}: {wrong.message}")
    rows = [
        Signal(
            id=uuid7(),
            project=project,
            target_type="run_id",
            target=str(run_id),
            run=run,
            name=name,
            value=value,
            source=f"{SOURCE}{person.name or person.id}"[:200],
            observed_at=now,
            received_at=now,
        )
        for name, value in values.items()
    ]
    Signal.objects.bulk_create(rows)
    grow([run_id])
    Review.objects.filter(run=run, labelled_at=None).update(labelled_at=now)
    ledger.record(
        Action.RUN_REVIEWED,
        actor=person,
        organization_id=project.organization_id,
        project_id=project.pk,
        obj=ObjectRef("run", run_id),
        at=now,
        data={"names": sorted(values), "signals": [str(row.id) for row in rows]},
    )
    return [row.id for row in rows]


def agreement(project_id: UUID, name: str) -> Agreement:
    """What the latest review and the latest feedback of each run say under this name, against each other."""
    rows = Signal.objects.filter(
        project_id=project_id, name=name, step=None, misfit="", run__review__isnull=False
    ).order_by("observed_at", "received_at", "id")
    said: dict[UUID | None, dict[bool, Any]] = {}
    for run_id, source, value in rows.values_list("run_id", "source", "value"):
        said.setdefault(run_id, {})[source.startswith(SOURCE)] = value
    pairs = [(both[False], both[True]) for both in said.values() if len(both) == 2]
    equal = sum(feedback == review for feedback, review in pairs)
    return Agreement(name, len(pairs), equal, cohens_kappa(pairs))


def cohens_kappa(pairs: Sequence[tuple[Any, Any]]) -> float | None:
    """Of two raters' verdicts on the same things; None where it is not defined."""
    if not pairs:
        return None
    kinds = [(_kind(one), _kind(other)) for one, other in pairs]
    observed = sum(one == other for one, other in kinds) / len(kinds)
    by_chance = sum(
        _share(kind, (one for one, _ in kinds), len(kinds))
        * _share(kind, (other for _, other in kinds), len(kinds))
        for kind in {kind for pair in kinds for kind in pair}
    )
    return None if by_chance == 1 else (observed - by_chance) / (1 - by_chance)


def _kind(value: Any) -> str:
    """A verdict as a category: numbers are equal or they are not."""
    return repr(float(value)) if isinstance(value, int | float) else repr(value)


def _share(kind: str, said: Iterable[str], count: int) -> float:
    return sum(one == kind for one in said) / count


@transaction.atomic
def _draw(project_id: UUID, now: datetime) -> int:
    settings = SignalSettings.objects.select_for_update().get(project_id=project_id)
    salt, share = bytes(settings.review_salt), settings.review_share
    closed = Run.objects.filter(
        project_id=project_id, state=RunState.CLOSED, closed_at__gt=settings.drawn_until - OVERLAP
    ).values_list("id", flat=True)
    drawn = [run_id for run_id in closed.iterator(BATCH) if is_drawn(run_id, salt=salt, share=share)]
    known = set(Review.objects.filter(run_id__in=drawn).values_list("run_id", flat=True))
    rows = [
        Review(project_id=project_id, run_id=run_id, drawn_at=now) for run_id in drawn if run_id not in known
    ]
    Review.objects.bulk_create(rows, batch_size=BATCH, ignore_conflicts=True)
    settings.drawn_until = now
    settings.save(update_fields=["drawn_until"])
    return len(rows)
