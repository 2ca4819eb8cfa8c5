"""What may be read of learning, as frozen rows of one project: episodes, snapshots, jobs, and where a job
came from."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from accounts.models import Project
from learning.models import DatasetSnapshot, Episode, TrainingJob


@dataclass(frozen=True, slots=True)
class EpisodeRow:
    id: UUID
    run_id: UUID
    run_revision: int
    task_key: str
    step_count: int
    reward: float | None
    """None when the outcome is not known."""
    reward_parts: dict[str, float]
    reward_spec: str
    sha256: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    id: UUID
    name: str
    episode_count: int
    reward_spec: str
    root: str
    mean_reward: str
    frozen_at: datetime


@dataclass(frozen=True, slots=True)
class JobRow:
    id: UUID
    model_line: str
    algorithm: str
    state: str
    snapshot: str
    progress: dict[str, Any]
    error: str
    requested_by: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Lineage:
    """All that a training job rests on, down to single calls of production."""

    job: JobRow
    plan: dict[str, Any]
    snapshot: SnapshotRow
    reward_spec_digest: str
    reward_spec_document: dict[str, Any]
    base_model: str
    base_sha256: str
    environment: str
    environment_digest: str
    result: dict[str, Any] | None


def episodes(*, project: Project, limit: int = 50) -> list[EpisodeRow]:
    """Episodes, newest first."""
    rows = Episode.objects.filter(project=project).select_related("reward_spec").defer("payload")
    return [
        EpisodeRow(
            row.id, row.run_id, row.run_revision, row.task_key, row.step_count, row.reward, row.reward_parts,
            str(row.reward_spec), row.sha256, row.created_at,
        )
        for row in rows.order_by("-created_at", "-id")[:limit]
    ]  # fmt: skip


def snapshots(*, project: Project) -> list[SnapshotRow]:
    """Snapshots, newest first."""
    rows = DatasetSnapshot.objects.filter(project=project).select_related("reward_spec")
    return [_snapshot(row) for row in rows.order_by("-frozen_at", "-id")]


def jobs(*, project: Project, limit: int = 50) -> list[JobRow]:
    """Training jobs, newest first."""
    rows = TrainingJob.objects.filter(project=project).select_related("snapshot")
    return [_job(row) for row in rows.order_by("-created_at", "-id")[:limit]]


def lineage(*, project: Project, job_id: UUID) -> Lineage | None:
    """What a job was made from; None when the project has no such job."""
    rows = TrainingJob.objects.select_related("snapshot__reward_spec", "reward_spec")
    job = rows.filter(project=project, id=job_id).first()
    if job is None:
        return None
    return Lineage(
        job=_job(job),
        plan=job.plan,
        snapshot=_snapshot(job.snapshot),
        reward_spec_digest=job.reward_spec.digest,
        reward_spec_document=job.reward_spec.document,
        base_model=job.base_model,
        base_sha256=job.base_sha256,
        environment=job.environment,
        environment_digest=job.environment_digest,
        result=job.result,
    )


def _snapshot(row: DatasetSnapshot) -> SnapshotRow:
    return SnapshotRow(
        row.id,
        row.name,
        row.episode_count,
        str(row.reward_spec),
        row.root,
        row.manifest["mean_reward"],
        row.frozen_at,
    )


def _job(row: TrainingJob) -> JobRow:
    return JobRow(
        row.id, row.model_line, row.algorithm, row.state, row.snapshot.name, row.progress, row.error,
        row.requested_by, row.created_at, row.started_at, row.finished_at,
    )  # fmt: skip
