"""Evaluations: champion and candidate on the same held-out tasks, in a trainer process, then the gate's
verdict.

What the figures allow is `gate.decide`'s; what happens after a verdict is `release`'s."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import rfc8785
from django.conf import settings
from django.db import transaction

from accounts.models import Project
from audit import ledger
from audit.actions import JSON, Action, Actor, ObjectRef, Related
from kernel import clock
from kernel.objects import ObjectStore
from kernel.queueing import TaskRef, enqueue_on_commit, send
from learning import leases, processes
from learning.environments.registry import get_environment
from learning.evaluation.gate import GatePolicy, TaskResult, Verdict, decide
from learning.leases import Lease, LeaseLost
from learning.models import Evaluation, JobState, RewardSpecVersion

EVALUATE = TaskRef("learning.evaluate", queue="gpu")
"""Argument `evaluation_id`."""
OFFER = TaskRef("release.offer")
"""Argument `evaluation_id`: sent when a verdict is there."""

SPLIT = "heldout"
ARMS = ("champion", "candidate")
_ACTOR = Actor.service("evaluator")


@transaction.atomic
def request(
    *,
    project: Project,
    champion_id: UUID,
    candidate_id: UUID,
    champion_adapter: str,
    candidate_adapter: str,
    base_model: str,
    environment: str,
    reward_spec: RewardSpecVersion,
    task_count: int = 300,
    seed: int,
    actor: Actor,
    now: datetime,
) -> Evaluation:
    """Ask for one comparison. Adapters are folders below the object store's root; empty is the base model
    itself."""
    evaluation = Evaluation.objects.create(
        project=project,
        champion_id=champion_id,
        candidate_id=candidate_id,
        champion_adapter=champion_adapter,
        candidate_adapter=candidate_adapter,
        base_model=base_model,
        environment=environment,
        environment_digest=get_environment(environment).digest,
        reward_spec=reward_spec,
        task_count=task_count,
        seed=seed,
        created_at=now,
        updated_at=now,
    )
    _record(
        Action.EVALUATION_REQUESTED,
        evaluation,
        actor=actor,
        now=now,
        data={"environment": environment, "tasks": task_count, "seed": seed},
    )
    enqueue_on_commit(EVALUATE, evaluation_id=str(evaluation.id))
    return evaluation


def run_evaluation(*, evaluation_id: UUID, owner: str, trainer: Sequence[str] = processes.TRAINER) -> None:
    """See an evaluation through, if it waits for a worker. Reads the clock itself, because it takes
    minutes."""
    held = leases.lease(Evaluation, evaluation_id, owner=owner, now=clock.now())
    if held is None:
        return
    evaluation = Evaluation.objects.select_related("reward_spec").get(id=evaluation_id)
    try:
        if held.epoch > leases.MAX_EPOCHS:
            raise processes.ProcessFailed(
                f"{leases.MAX_EPOCHS} workers died on this evaluation; it is not tried again"
            )
        tasks = get_environment(evaluation.environment).task_ids(SPLIT, evaluation.task_count)
        folder = _write_document(evaluation, held, tasks)
        result = processes.run(Evaluation, held, command="evaluate", folder=folder, trainer=trainer)
        verdict = _judge(result, tasks, seed=evaluation.seed)
    except LeaseLost:
        return  # another process has it
    except (processes.ProcessFailed, ValueError) as error:
        _fail(held, str(error))
        return
    _complete(held, verdict, seconds=result.get("seconds"))


def location(evaluation_id: UUID, epoch: int) -> str:
    """The folder of one attempt, below the object store's root."""
    return f"evaluations/{evaluation_id}/epoch-{epoch}"


def evidence_digest(evidence: Mapping[str, Any]) -> str:
    """What an approval is bound to: sha256 (hex) of the evidence in RFC 8785's canonical JSON."""
    return hashlib.sha256(rfc8785.dumps(dict(evidence))).hexdigest()


def sweep(*, now: datetime) -> None:
    """Hint again at every evaluation that waits for a worker."""
    for evaluation_id in leases.due(Evaluation, now=now):
        send(EVALUATE, evaluation_id=str(evaluation_id))


def _write_document(evaluation: Evaluation, held: Lease, tasks: Sequence[str]) -> Path:
    store: ObjectStore = settings.OBJECT_STORE
    adapters = (evaluation.champion_adapter, evaluation.candidate_adapter)
    document = {
        "schema": 1,
        "evaluation_id": str(evaluation.id),
        "base_model": evaluation.base_model,
        "arms": [
            {"name": name, "adapter": str(store.path(adapter)) if adapter else None}
            for name, adapter in zip(ARMS, adapters, strict=True)
        ],
        "environment": evaluation.environment,
        "environment_digest": evaluation.environment_digest,
        "tasks": list(tasks),
        "reward_spec": evaluation.reward_spec.document,
        "seed": evaluation.seed,
    }
    content = json.dumps(document, indent=1).encode()
    return store.write(f"{location(evaluation.id, held.epoch)}/evaluation.json", content).parent


def _judge(result: Mapping[str, Any], tasks: Sequence[str], *, seed: int) -> Verdict:
    """The gate's verdict on a result. Raises ValueError for one that does not hold both arms on exactly
    these tasks."""
    arms = result.get("arms")
    if not isinstance(arms, dict):
        raise ValueError("the trainer's result has no arms")
    champion, candidate = ([TaskResult.read(row) for row in arms.get(name, [])] for name in ARMS)
    if [row.task_id for row in champion] != list(tasks):
        raise ValueError("the trainer's result is not about the tasks that were asked for")
    return decide(champion, candidate, GatePolicy(), seed=seed)


@transaction.atomic
def _complete(held: Lease, verdict: Verdict, *, seconds: object) -> None:
    try:
        evaluation = leases.lock_held(Evaluation, held)
    except LeaseLost:
        return
    now = clock.now()
    digest = evidence_digest(verdict.figures)
    leases.finish(
        evaluation,
        JobState.SUCCEEDED,
        now=now,
        verdict=verdict.verdict,
        evidence=verdict.figures,
        evidence_digest=digest,
        result={"seconds": seconds},
    )
    _record(
        Action.EVALUATION_COMPLETED,
        evaluation,
        actor=_ACTOR,
        now=now,
        data={
            "verdict": verdict.verdict.value,
            "difference": verdict.figures["difference"],
            "epoch": held.epoch,
        },
    )
    enqueue_on_commit(OFFER, evaluation_id=str(evaluation.id))


@transaction.atomic
def _fail(held: Lease, error: str) -> None:
    try:
        evaluation = leases.lock_held(Evaluation, held)
    except LeaseLost:
        return
    now = clock.now()
    leases.finish(evaluation, JobState.FAILED, now=now, error=error)
    _record(
        Action.EVALUATION_COMPLETED,
        evaluation,
        actor=_ACTOR,
        now=now,
        data={"verdict": "none", "epoch": held.epoch},
        reason=error[:1000],
    )


def _record(
    action: Action,
    evaluation: Evaluation,
    *,
    actor: Actor,
    now: datetime,
    data: Mapping[str, JSON],
    reason: str = "",
) -> None:
    ledger.record(
        action,
        actor=actor,
        organization_id=evaluation.project.organization_id,
        project_id=evaluation.project_id,
        obj=ObjectRef("evaluation", evaluation.id, evaluation.evidence_digest),
        at=now,
        reason=reason,
        related=[
            Related("champion", "model_version", evaluation.champion_id),
            Related("candidate", "model_version", evaluation.candidate_id),
            Related("reward_spec", "reward_spec", evaluation.reward_spec_id, evaluation.reward_spec.digest),
        ],
        data=data,
    )
