"""Reads that only the console needs, across domains, each in a fixed number of queries. Narrowed by
`console.scope`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import Avg, Count, Exists, Max, OuterRef, Q, Sum

from accounts.models import Project, User
from audit import selectors as ledger
from console import scope
from console.progress import JobProgress, progress_of
from learning.models import JOB_OPEN, Episode, TrainingJob
from release.models import PROMOTION_OPEN, Deployment, Promotion, PromotionState
from telemetry.models import Call, CallOutcome, CaptureLoss, Run
from telemetry.shedding import Shed

DAY = timedelta(hours=24)


@dataclass(frozen=True)
class Losses:
    """What could not be captured, over the whole installation: losses happen in a gateway, before a project
    is known."""

    calls: int
    bodies: int
    """Records that were kept without their body, because a spool was nearly full."""
    latest_at: datetime | None


@dataclass(frozen=True)
class ProjectGlance:
    """A project on the home page. Counts are of the last 24 hours."""

    project: Project
    runs: int = 0
    calls: int = 0
    broken_calls: int = 0
    """Calls that did not end with a whole answer."""
    episodes: int = 0
    scored: int = 0
    """Episodes whose outcome is known; the mean is over these only."""
    mean_reward: float | None = None
    jobs: list[tuple[TrainingJob, JobProgress]] = field(default_factory=list)
    promotions: list[Promotion] = field(default_factory=list)
    deployments: list[Deployment] = field(default_factory=list)

    @property
    def coverage(self) -> float | None:
        """The share of episodes whose outcome is known, in percent."""
        return 100 * self.scored / self.episodes if self.episodes else None


@dataclass(frozen=True)
class OrganizationGlance:
    """An organization on the home page: its ledger's head and its projects."""

    name: str
    id: UUID
    head: ledger.HeadRow
    projects: list[ProjectGlance]


def losses() -> Losses:
    """In one query."""
    found = CaptureLoss.objects.aggregate(
        calls=Sum("count", filter=~Q(reason=Shed.BODY)),
        bodies=Sum("count", filter=Q(reason=Shed.BODY)),
        latest=Max("recorded_at"),
    )
    return Losses(found["calls"] or 0, found["bodies"] or 0, found["latest"])


def glance(*, user: User, now: datetime) -> list[OrganizationGlance]:
    """All that the home page shows of projects: nine queries, however much there is."""
    projects = list(
        scope.projects(user).select_related("organization").order_by("organization__name", "name")
    )
    since, wanted = now - DAY, [project.pk for project in projects]
    runs = _by_project(Run.objects.filter(project__in=wanted, started_at__gte=since), runs=Count("pk"))
    calls = _by_project(
        Call.objects.filter(project__in=wanted, started_at__gte=since),
        calls=Count("pk"),
        broken_calls=Count("pk", filter=~Q(outcome=CallOutcome.COMPLETE)),
    )
    episodes = _by_project(
        newest_episodes().filter(project__in=wanted, created_at__gte=since),
        episodes=Count("pk"),
        scored=Count("reward"),
        mean_reward=Avg("reward"),
    )
    jobs = TrainingJob.objects.filter(project__in=wanted, state__in=JOB_OPEN).order_by("created_at")
    promotions = (
        Promotion.objects.filter(project__in=wanted, state__in=PROMOTION_OPEN)
        .select_related("candidate", "previous", "deployment", "requested_by")
        .order_by("created_at")
    )
    deployments = (
        Deployment.objects.filter(project__in=wanted).select_related("champion", "canary").order_by("alias")
    )
    all_jobs, all_promotions, all_deployments = list(jobs), list(promotions), list(deployments)
    by_organization: dict[UUID, list[ProjectGlance]] = {}
    for project in projects:
        pk = project.pk
        by_organization.setdefault(project.organization_id, []).append(
            ProjectGlance(
                project=project,
                **runs.get(pk, {}),
                **calls.get(pk, {}),
                **episodes.get(pk, {}),
                jobs=[(job, progress_of(job)) for job in all_jobs if job.project_id == pk],
                promotions=[row for row in all_promotions if row.project_id == pk],
                deployments=[row for row in all_deployments if row.project_id == pk],
            )
        )
    heads = ledger.heads(list(by_organization))
    return [
        OrganizationGlance(rows[0].project.organization.name, organization_id, heads[organization_id], rows)
        for organization_id, rows in by_organization.items()
    ]


def newest_episodes() -> Any:
    """Of each run, the episode of its newest revision: the older ones are history, not further runs."""
    newer = Episode.objects.filter(run_id=OuterRef("run_id")).filter(
        Q(run_revision__gt=OuterRef("run_revision"))
        | Q(run_revision=OuterRef("run_revision"), created_at__gt=OuterRef("created_at"))
    )
    return Episode.objects.filter(~Exists(newer))


def waiting_for_decision(user: User) -> int:
    """How many promotions wait for a person, for the badge beside the menu."""
    return scope.narrow(Promotion.objects.filter(state=PromotionState.PROPOSED), user, to="project").count()


def _by_project(rows: Any, **aggregates: Any) -> Mapping[UUID, dict[str, Any]]:
    return {row.pop("project"): row for row in rows.order_by().values("project").annotate(**aggregates)}
