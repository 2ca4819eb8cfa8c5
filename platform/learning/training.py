"""Training jobs: what a snapshot supports, asking for a job, and seeing it through in a process of its own.

The algorithms are the trainer's (`workers.trainer`), which has no database; registering what it made is
`release`'s. A job is a row with a lease: messages only hint at it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction

from accounts.models import Project
from audit import ledger
from audit.actions import JSON, Action, Actor, ObjectRef, Related
from kernel import clock, states
from kernel.objects import ObjectStore
from kernel.queueing import TaskRef, enqueue_on_commit, send
from learning import leases, processes
from learning.artifacts import UnsafeArtifact, check_adapter, directory_digest
from learning.environments.base import Environment, UnknownTask, parse_task_id
from learning.environments.registry import get_environment
from learning.leases import Lease, LeaseLost
from learning.models import DatasetSnapshot, JobState, TrainingJob

TRAIN = TaskRef("learning.train", queue="gpu")
"""Argument `job_id`."""
REGISTER = TaskRef("release.register")
"""Argument `job_id`: sent when a job has succeeded."""

TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    **leases.TRANSITIONS,
    JobState.SUCCEEDED: frozenset({JobState.FAILED}),  # only by `refuse_artifact`
}

MIN_TASKS = 20
"""Fewer different tasks than this teach a policy the tasks, not the work."""
SPLIT = "train"
_ACTOR = Actor.service("trainer")


class JobRefused(ValueError):
    """The snapshot does not support the training that was asked for; the sentences say why."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a snapshot supports."""

    algorithm: str | None
    """`grpo`; None when nothing is supported."""
    tasks: tuple[str, ...]
    """The snapshot's tasks that the environment can play, sorted."""
    reasons: tuple[str, ...]
    """Why, in sentences with what was measured."""


def plan(snapshot: DatasetSnapshot, environment: Environment) -> Plan:
    """Choose an algorithm for the snapshot, or none.

    GRPO compares several rollouts of one task by the current policy. A snapshot's own episodes were
    answered once each and by other policies, so they supply the tasks, and the environment the rollouts."""
    named = sorted(set(snapshot.manifest["task_keys"]))
    tasks = tuple(key for key in named if _is_training_task(key, environment))
    measured = (
        f"{snapshot.episode_count} episodes name {len(named)} different tasks;"
        f" {len(tasks)} of them are training tasks of {environment.name}."
    )
    if len(tasks) < MIN_TASKS:
        return Plan(
            algorithm=None,
            tasks=tasks,
            reasons=(
                measured,
                f"On-policy training needs at least {MIN_TASKS} different tasks that the environment plays.",
                "Send the signal `task` with each run, with a task id that the environment knows.",
            ),
        )
    return Plan(
        algorithm="grpo",
        tasks=tasks,
        reasons=(
            measured,
            "The environment plays them, so rollouts are on-policy and are compared within their task: GRPO.",
        ),
    )


@transaction.atomic
def request_job(
    *,
    project: Project,
    snapshot: DatasetSnapshot,
    model_line: str,
    base_model: str,
    base_sha256: str,
    environment: str,
    config: Mapping[str, Any],
    seed: int,
    actor: Actor,
    now: datetime,
) -> TrainingJob:
    """Ask for one training of `model_line` from `snapshot`.

    Raises JobRefused, UnknownEnvironment, or IntegrityError when the line has an open job."""
    if snapshot.project_id != project.id:
        raise JobRefused("The snapshot belongs to another project.")
    place = get_environment(environment)
    chosen = plan(snapshot, place)
    if chosen.algorithm is None:
        raise JobRefused(" ".join(chosen.reasons))
    job = TrainingJob.objects.create(
        project=project,
        model_line=model_line,
        snapshot=snapshot,
        reward_spec=snapshot.reward_spec,
        algorithm=chosen.algorithm,
        base_model=base_model,
        base_sha256=base_sha256,
        environment=environment,
        environment_digest=place.digest,
        config=dict(config),
        plan=asdict(chosen),
        requested_by=actor.name or actor.id,
        seed=seed,
        created_at=now,
        updated_at=now,
    )
    _record(
        Action.TRAINING_REQUESTED,
        job,
        actor=actor,
        now=now,
        data={"model_line": model_line, "algorithm": job.algorithm, "base_sha256": base_sha256, "seed": seed},
    )
    enqueue_on_commit(TRAIN, job_id=str(job.id))
    return job


@transaction.atomic
def cancel(*, job: TrainingJob, actor: Actor, reason: str, now: datetime) -> None:
    """Call a job off; its process is killed at its next sign of life. Raises IllegalTransition or
    StateChanged."""
    states.move(job, JobState.CANCELLED, table=leases.TRANSITIONS, now=now, finished_at=now, error=reason)
    _record(Action.TRAINING_FAILED, job, actor=actor, now=now, data={"cancelled": True}, reason=reason)


@transaction.atomic
def refuse_artifact(*, job_id: UUID, reason: str, now: datetime) -> None:
    """Fail a job that had succeeded, because what it made cannot be registered; `reason` is its error then.

    Raises IllegalTransition for a job that did not succeed, StateChanged when another process was faster."""
    job = TrainingJob.objects.get(pk=job_id)
    states.move(job, JobState.FAILED, table=TRANSITIONS, now=now, error=reason)
    _record(
        Action.TRAINING_FAILED,
        job,
        actor=Actor.service("registry"),
        now=now,
        data={"refused": True},
        reason=reason[:1000],
    )


def run_job(*, job_id: UUID, owner: str, trainer: Sequence[str] = processes.TRAINER) -> None:
    """See a job through, if it waits for a worker. Reads the clock itself, because it takes minutes.

    `owner` names the calling process; `trainer` is the command that trains."""
    held = leases.lease(TrainingJob, job_id, owner=owner, now=clock.now())
    if held is None:
        return
    try:
        job = _start(held)
        if held.epoch > leases.MAX_EPOCHS:
            raise processes.ProcessFailed(
                f"{leases.MAX_EPOCHS} workers died on this job; it is not tried again"
            )
        folder = _write_documents(job, held)
        result = processes.run(TrainingJob, held, command="train", folder=folder, trainer=trainer)
        _check(job, result, folder)
    except LeaseLost:
        return  # another process has the job, or nobody wants it any more
    except (processes.ProcessFailed, UnsafeArtifact) as error:
        _fail(held, str(error))
        return
    _succeed(held, result)


def location(job_id: UUID, epoch: int) -> str:
    """The folder of one attempt at a job, below the object store's root: documents, progress, log,
    adapter."""
    return f"jobs/{job_id}/epoch-{epoch}"


def sweep(*, now: datetime) -> None:
    """Hint again at every job that waits for a worker."""
    for job_id in leases.due(TrainingJob, now=now):
        send(TRAIN, job_id=str(job_id))


def _is_training_task(key: str, environment: Environment) -> bool:
    if SPLIT not in environment.splits:
        return False
    try:
        parse_task_id(key, (SPLIT,))
    except UnknownTask:
        return False
    return True


@transaction.atomic
def _start(held: Lease) -> TrainingJob:
    job = leases.lock_held(TrainingJob, held)
    _record(Action.TRAINING_STARTED, job, actor=_ACTOR, now=clock.now(), data={"epoch": held.epoch})
    return job


def _write_documents(job: TrainingJob, held: Lease) -> Path:
    document = {
        "schema": 1,
        "job_id": str(job.id),
        "algorithm": job.algorithm,
        "base_model": job.base_model,
        "environment": job.environment,
        "environment_digest": job.environment_digest,
        "tasks": job.plan["tasks"],
        "reward_spec": job.reward_spec.document,
        "config": job.config,
        "seed": job.seed,
        "shuffle_rewards": False,
    }
    store: ObjectStore = settings.OBJECT_STORE
    content = json.dumps(document, indent=1).encode()
    return store.write(f"{location(job.id, held.epoch)}/job.json", content).parent


def _check(job: TrainingJob, result: Mapping[str, Any], folder: Path) -> None:
    """Hold the result against the job and the files. Raises ProcessFailed or UnsafeArtifact."""
    if result.get("base_sha256") != job.base_sha256:
        raise processes.ProcessFailed(
            f"the trainer read base model {result.get('base_sha256')}, and the job is for {job.base_sha256}"
        )
    adapter = (folder / str(result.get("adapter_dir"))).resolve()
    if not adapter.is_relative_to(folder.resolve()):
        raise UnsafeArtifact("the adapter lies outside the job's folder")
    check_adapter(adapter)
    digest = directory_digest(adapter)
    if digest != result.get("adapter_sha256"):
        raise UnsafeArtifact(
            f"the adapter's digest is {digest}, and the trainer reported {result.get('adapter_sha256')}"
        )


@transaction.atomic
def _succeed(held: Lease, result: Mapping[str, Any]) -> None:
    try:
        job = leases.lock_held(TrainingJob, held)
    except LeaseLost:
        return
    now = clock.now()
    # Relative to the job's folder, so that the attempt that counts is part of the path.
    kept = {**result, "adapter_dir": f"epoch-{held.epoch}/{result['adapter_dir']}"}
    leases.finish(job, JobState.SUCCEEDED, now=now, result=kept)
    _record(
        Action.TRAINING_SUCCEEDED,
        job,
        actor=_ACTOR,
        now=now,
        data={
            "epoch": held.epoch,
            "adapter_sha256": str(result["adapter_sha256"]),
            "steps": int(result["steps"]),
        },
    )
    enqueue_on_commit(REGISTER, job_id=str(job.id))


@transaction.atomic
def _fail(held: Lease, error: str) -> None:
    try:
        job = leases.lock_held(TrainingJob, held)
    except LeaseLost:
        return
    now = clock.now()
    leases.finish(job, JobState.FAILED, now=now, error=error)
    _record(
        Action.TRAINING_FAILED, job, actor=_ACTOR, now=now, data={"epoch": held.epoch}, reason=error[:1000]
    )


def _record(
    action: Action,
    job: TrainingJob,
    *,
    actor: Actor,
    now: datetime,
    data: Mapping[str, JSON],
    reason: str = "",
) -> None:
    ledger.record(
        action,
        actor=actor,
        organization_id=job.project.organization_id,
        project_id=job.project_id,
        obj=ObjectRef("training_job", job.id),
        at=now,
        reason=reason,
        related=[
            Related("dataset", "snapshot", job.snapshot_id, job.snapshot.root),
            Related("reward_spec", "reward_spec", job.reward_spec_id, job.reward_spec.digest),
        ],
        data=data,
    )
