"""Model versions: immutable, numbered within their line, their files verified and kept under a name with
their digest.

Does not decide who answers: `release.rollout` does."""

import re
import shutil
from datetime import datetime
from pathlib import Path
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Max, QuerySet

from accounts.models import Project
from audit import ledger
from audit.actions import Action, Actor, ObjectRef, Related
from kernel.ids import uuid7
from kernel.objects import ObjectStore
from learning import training
from learning.artifacts import UnsafeArtifact, check_adapter, directory_digest
from learning.evaluation import jobs as evaluations
from learning.models import JobState, TrainingJob
from release.models import Deployment, ModelVersion

REGISTER = training.REGISTER

_LINE = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")


class RegistrationRefused(ValueError):
    """The version cannot be registered; the sentence says why."""


@transaction.atomic
def register_base(
    *,
    project: Project,
    line: str,
    base_model: str,
    base_sha256: str,
    actor: Actor,
    now: datetime,
    served_name: str = "",
) -> ModelVersion:
    """Register a base model as version 1 of a line.

    `base_model` is its folder, `served_name` the name policy nodes give it: the folder's name unless told.
    Raises RegistrationRefused when the line has versions, or its name does not suit file names and headers.
    """
    if not _LINE.fullmatch(line):
        raise RegistrationRefused(
            f"{line!r} does not name a line: use lower-case letters, digits, '.', '_' and '-'"
        )
    Project.objects.select_for_update().get(pk=project.pk)
    if ModelVersion.objects.filter(project=project, line=line).exists():
        raise RegistrationRefused(f"{line} has a version 1")
    version = ModelVersion.objects.create(
        project=project,
        line=line,
        number=1,
        base_model=base_model,
        base_sha256=base_sha256,
        served_name=served_name or Path(base_model).name,
        created_at=now,
    )
    _record(version, actor=actor, now=now, related=[])
    return version


def register_or_refuse(*, job_id: UUID, now: datetime) -> ModelVersion | None:
    """Register what a training job made, or fail the job with the sentence that says why not; None then.

    A refusal is final: files that were not the trainer's once prove nothing when they look right later.
    """
    try:
        return register_from_job(job_id=job_id, now=now)
    except (RegistrationRefused, UnsafeArtifact) as error:
        with transaction.atomic():
            Project.objects.select_for_update(of=("self",)).get(training_jobs=job_id)
            if _due().filter(pk=job_id).exists():  # nobody registered or refused it meanwhile
                training.refuse_artifact(job_id=job_id, reason=str(error), now=now)
        return None


def register_from_job(*, job_id: UUID, now: datetime) -> ModelVersion:
    """Register what a training job made, once, and ask for its evaluation against the champion.

    Raises RegistrationRefused for a job that did not succeed, UnsafeArtifact for files that are not plain
    safetensors and JSON or not the ones the trainer reported.
    """
    job = TrainingJob.objects.select_related("project", "snapshot", "reward_spec").get(pk=job_id)
    existing = ModelVersion.objects.filter(job=job).first()
    if existing is not None:
        return existing
    if job.state != JobState.SUCCEEDED or not job.result:
        raise RegistrationRefused(f"training job {job.pk} is {job.state}: it made no adapter")
    store: ObjectStore = settings.OBJECT_STORE
    digest = str(job.result["adapter_sha256"])
    # Copied and verified before the lock is taken; what was verified is what is moved into place.
    draft = _verified_copy(
        store.path(f"jobs/{job.pk}/{job.result['adapter_dir']}"), digest, store=store, job=job
    )
    with transaction.atomic():
        Project.objects.select_for_update().get(pk=job.project_id)  # one at a time numbers versions
        existing = ModelVersion.objects.filter(job=job).first()
        if existing is not None:
            shutil.rmtree(draft)
            return existing
        if not _due().filter(pk=job.pk).exists():
            shutil.rmtree(draft)
            raise RegistrationRefused(f"training job {job.pk} was refused meanwhile")
        line = job.model_line
        number = _next_number(job.project, line)
        location = f"models/{line}/v{number}-{digest[:12]}"
        _move_into_place(draft, store.path(location), digest)
        version = ModelVersion.objects.create(
            project=job.project,
            line=line,
            number=number,
            base_model=job.base_model,
            base_sha256=job.base_sha256,
            adapter_path=location,
            adapter_sha256=digest,
            served_name=_served_name(line, number, digest),
            job=job,
            created_at=now,
        )
        actor = Actor.service("registry")
        related = [
            Related("training_job", "training_job", job.pk),
            Related("dataset", "snapshot", job.snapshot_id, job.snapshot.root),
            Related("reward_spec", "reward_spec", job.reward_spec_id, job.reward_spec.digest),
        ]
        _record(version, actor=actor, now=now, related=related)
        _request_evaluation(version, job, actor=actor, now=now)
    return version


def due_jobs() -> list[UUID]:
    """Training jobs that succeeded and have no model version yet."""
    return list(_due().order_by("finished_at").values_list("pk", flat=True))


def _due() -> QuerySet[TrainingJob]:
    return TrainingJob.objects.filter(state=JobState.SUCCEEDED, model_version=None)


def _request_evaluation(version: ModelVersion, job: TrainingJob, *, actor: Actor, now: datetime) -> None:
    deployment = (
        Deployment.objects.select_related("champion")
        .filter(project=version.project, alias=version.line)
        .first()
    )
    if deployment is None or deployment.champion.base_sha256 != version.base_sha256:
        return  # nobody to compare with
    evaluations.request(
        project=version.project,
        champion_id=deployment.champion_id,
        candidate_id=version.pk,
        champion_adapter=deployment.champion.adapter_path,
        candidate_adapter=version.adapter_path,
        base_model=version.base_model,
        environment=job.environment,
        reward_spec=job.reward_spec,
        seed=job.seed,
        actor=actor,
        now=now,
    )


def _next_number(project: Project, line: str) -> int:
    highest = ModelVersion.objects.filter(project=project, line=line).aggregate(highest=Max("number"))[
        "highest"
    ]
    return (highest or 0) + 1


def _served_name(line: str, number: int, digest: str) -> str:
    """The name with the digest's start; refuses one that stands for other weights already."""
    name = f"{line}-v{number}-{digest[:12]}"
    if ModelVersion.objects.filter(served_name=name).exclude(adapter_sha256=digest).exists():
        raise RegistrationRefused(f"{name} stands for other weights already")
    return name


def _verified_copy(source: Path, digest: str, *, store: ObjectStore, job: TrainingJob) -> Path:
    draft = store.path(f"models/.draft-{job.pk}-{uuid7()}")  # a name of its own: a refusal is final
    check_adapter(source)
    shutil.copytree(source, draft)
    try:
        check_adapter(draft)
        if directory_digest(draft) != digest:
            raise UnsafeArtifact(f"{source} is not the adapter that the trainer reported ({digest[:12]}…)")
    except UnsafeArtifact:
        shutil.rmtree(draft)
        raise
    return draft


def _move_into_place(draft: Path, folder: Path, digest: str) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() and directory_digest(folder) == digest:
        shutil.rmtree(draft)  # an earlier attempt came this far
        return
    draft.rename(folder)


def _record(version: ModelVersion, *, actor: Actor, now: datetime, related: list[Related]) -> None:
    ledger.record(
        Action.MODEL_REGISTERED,
        actor=actor,
        organization_id=version.project.organization_id,
        project_id=version.project_id,
        obj=ObjectRef("model_version", version.pk, version.adapter_sha256 or version.base_sha256),
        at=now,
        related=related,
        data={
            "version": version.name,
            "base_sha256": version.base_sha256,
            "served_name": version.served_name,
        },
    )
