"""What the control API answers, always of one project. Lists are one query each, whatever their length."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.apps import apps
from django.db.models import Avg, Count, OuterRef, Prefetch, QuerySet, Subquery

from accounts.models import Project
from console import selectors
from learning import models as learning
from release import models as release
from telemetry import models as telemetry
from telemetry.selectors import counts, lost_records, task_groups

Json = Mapping[str, Any]


class NotFound(Exception):
    """Nothing of this kind has this id in the key's project."""


def summary(project: Project) -> Json:
    """The project in figures, over its whole life."""
    found = counts(project=project)
    episodes = selectors.newest_episodes().filter(project=project)
    return {
        "runs": found.runs,
        "runs_with_signals": found.runs_with_signals,
        "calls": found.calls,
        "unstitched_calls": found.unstitched_calls,
        "signals": found.signals,
        "unmatched_signals": found.unmatched_signals,
        "lost_calls": lost_records(),
        **episodes.aggregate(
            episodes=Count("pk"), scored_episodes=Count("reward"), mean_reward=Avg("reward")
        ),
        "task_groups": task_groups(project=project),
    }


def page(rows: "QuerySet[Any]", *, limit: int, offset: int) -> Json:
    """One page; a row more than asked for tells whether there is another."""
    found = list(rows[offset : offset + limit + 1])
    return {"items": found[:limit], "limit": limit, "offset": offset, "more": len(found) > limit}


def one(rows: "QuerySet[Any]", pk: UUID) -> Any:
    """The row with this id. Raises NotFound."""
    row = rows.filter(pk=pk).first()
    if row is None:
        raise NotFound(f"no {rows.model._meta.verbose_name} {pk} in this project")
    return row


def runs(project: Project) -> "QuerySet[Any]":
    newest = learning.Episode.objects.filter(run_id=OuterRef("pk")).order_by("-run_revision", "-created_at")
    rows = telemetry.Run.objects.filter(project=project).annotate(
        reward=Subquery(newest.values("reward")[:1])
    )
    return rows.order_by("-started_at", "-pk")


def run(project: Project, run_id: UUID) -> Any:
    """A run by its id, or by the id that the gateway told the caller, with its calls. Raises NotFound."""
    told = telemetry.Call.objects.filter(project=project, run_hint=run_id, step__isnull=False)
    known = runs(project).filter(pk=run_id).exists()
    row = one(runs(project), run_id if known else told.values_list("step__run", flat=True).first() or run_id)
    row.calls = calls(project).filter(step__run=row.pk).order_by("started_at")
    return row


def calls(project: Project) -> "QuerySet[Any]":
    rows = telemetry.Call.objects.filter(project=project).select_related("step")
    return rows.order_by("-started_at", "-pk")


def signals(project: Project) -> "QuerySet[Any]":
    return telemetry.Signal.objects.filter(project=project).order_by("-received_at", "-pk")


def episodes(project: Project) -> "QuerySet[Any]":
    rows = learning.Episode.objects.filter(project=project).defer("payload").select_related("reward_spec")
    return rows.order_by("-created_at", "-pk")


def snapshots(project: Project) -> "QuerySet[Any]":
    rows = learning.DatasetSnapshot.objects.filter(project=project).select_related("reward_spec")
    return rows.order_by("-frozen_at", "-pk")


def training_jobs(project: Project) -> "QuerySet[Any]":
    rows = learning.TrainingJob.objects.filter(project=project).select_related("snapshot", "reward_spec")
    return rows.order_by("-created_at", "-pk")


def evaluations(project: Project) -> "QuerySet[Any]":
    rows = learning.Evaluation.objects.filter(project=project).select_related("reward_spec")
    return rows.order_by("-created_at", "-pk")


def versions(project: Project) -> "QuerySet[Any]":
    return release.ModelVersion.objects.filter(project=project).order_by("-created_at", "-pk")


def deployments(project: Project) -> "QuerySet[Any]":
    rows = (
        release.Deployment.objects.filter(project=project)
        .select_related("champion", "canary")
        .order_by("alias")
    )
    return rows.prefetch_related(
        Prefetch("promotions", release.Promotion.objects.select_related("previous").order_by("-champion_at"))
    )


def promotions(project: Project) -> "QuerySet[Any]":
    rows = release.Promotion.objects.filter(project=project)
    rows = rows.select_related("deployment", "candidate", "previous", "requested_by", "decided_by")
    return rows.order_by("-created_at", "-pk")


def upstreams(project: Project) -> "QuerySet[Any]":
    rows = _routing("Upstream").filter(project=project)
    return rows.defer("credential").order_by("priority", "name")


def aliases(project: Project) -> "QuerySet[Any]":
    targets = _routing("AliasTarget").select_related("upstream", "deployment").order_by("priority", "pk")
    rows = _routing("Alias").filter(project=project).order_by("name")
    return rows.prefetch_related(Prefetch("targets", targets.defer("upstream__credential")))


def limits(project: Project) -> "QuerySet[Any]":
    return _routing("Limit").filter(project=project).order_by("measure", "window_s", "pk")


def _routing(table: str) -> "QuerySet[Any]":
    """A table of the gateway, by name: the console stands beside it and does not import it."""
    rows: QuerySet[Any] = apps.get_model("gateway", table)._default_manager.all()
    return rows
