"""People's decisions on a promotion: propose, approve, reject.

Every decision is a compare-and-set with its audit event in one transaction, taken under the deployment's
lock, so that two people never both win. Changes nobody's answers: an approved promotion is carried out by
`release.rollout`."""

from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.db.models import Exists, OuterRef

from accounts.models import User
from accounts.selectors import can_approve, can_operate
from audit.actions import Action, Actor
from kernel.queueing import TaskRef, enqueue_on_commit
from kernel.states import move
from learning.evaluation.jobs import evidence_digest
from learning.models import Evaluation, EvaluationVerdict, JobState
from release.models import PROMOTION_OPEN, Deployment, ModelVersion, Promotion, PromotionState
from release.moves import TRANSITIONS, Refused, authorized, locked, record, require_reason, why_not_current

START_CANARY = TaskRef("release.start_canary")
"""Argument `promotion_id`: sent when a promotion has been approved."""

S = PromotionState


def propose(
    *,
    evaluation: Evaluation,
    requested_by: User,
    reason: str,
    now: datetime,
    canary_share: float = 0.25,
    canary_min_calls: int = 50,
) -> Promotion:
    """Ask that an evaluation's candidate become champion. Only a passed gate can be asked for. Raises
    Refused."""
    candidate = ModelVersion.objects.select_related("project").get(pk=evaluation.candidate_id)
    with transaction.atomic():
        deployment = Deployment.objects.select_for_update().get(
            project=candidate.project_id, alias=candidate.line
        )
        actor = authorized(requested_by, deployment, can_operate, "propose")
        evaluation = Evaluation.objects.get(pk=evaluation.pk)
        require_reason(reason)
        if evaluation.state != JobState.SUCCEEDED or evaluation.verdict != EvaluationVerdict.PASS:
            raise Refused(
                f"{candidate}: its evaluation did not pass (verdict: {evaluation.verdict or 'none yet'})"
            )
        if evaluation.champion_id != deployment.champion_id:
            raise Refused(
                f"{candidate} was compared with a version that is not champion of {deployment} any more"
            )
        if deployment.promotions.filter(state__in=PROMOTION_OPEN).exists():
            raise Refused(f"{deployment} has an open promotion: decide on that first")
        if not 0.0 < canary_share <= 1.0:
            raise Refused(f"the canary's share must be above 0 and at most 1, not {canary_share}")
        promotion = Promotion.objects.create(
            project=candidate.project,
            deployment=deployment,
            candidate=candidate,
            previous_id=deployment.champion_id,
            evaluation=evaluation,
            evidence_digest=evidence_digest(evaluation.evidence),
            canary_share=canary_share,
            canary_min_calls=canary_min_calls,
            requested_by=requested_by,
            requested_reason=reason,
            created_at=now,
            updated_at=now,
        )
        record(Action.PROMOTION_PROPOSED, promotion, actor=actor, now=now, reason=reason)
    return promotion


def offer(*, evaluation_id: UUID, now: datetime) -> Promotion | None:
    """Propose on behalf of whoever requested the training job, if the gate passed and nothing stands in the
    way.

    Called by a worker whenever an evaluation has ended; asking twice changes nothing.
    """
    evaluation = Evaluation.objects.get(pk=evaluation_id)
    promotion = Promotion.objects.filter(evaluation=evaluation).first()
    if promotion is not None:
        return promotion
    candidate = ModelVersion.objects.select_related("job").filter(pk=evaluation.candidate_id).first()
    if evaluation.verdict != EvaluationVerdict.PASS or candidate is None or candidate.job is None:
        return None
    requester = User.objects.filter(username=candidate.job.requested_by).first()
    if requester is None:
        return None
    reason = f"The gate passed on {evaluation.task_count} held-out tasks."
    try:
        return propose(evaluation=evaluation, requested_by=requester, reason=reason, now=now)
    except Refused:
        return None  # another promotion is open, or the champion changed: a person decides what next


def approve(*, promotion: Promotion, approver: User, reason: str, now: datetime) -> Promotion:
    """Say yes to a proposed promotion: its canary starts as soon as a node serves the candidate.

    The approver is another person than the requester, may approve in the organization, and gives a reason;
    the evidence and the champion are the ones that the proposal was made on. Raises Refused,
    IllegalTransition.
    """
    with transaction.atomic():
        promotion, deployment = locked(promotion.pk)
        actor = _decider(approver, promotion, deployment, "approve", reason)
        if obstacle := why_not_current(promotion, deployment):
            raise Refused(obstacle)
        move(
            promotion,
            S.APPROVED,
            table=TRANSITIONS,
            now=now,
            decided_by=approver,
            decided_reason=reason,
            decided_at=now,
        )
        record(Action.PROMOTION_APPROVED, promotion, actor=actor, now=now, reason=reason)
        enqueue_on_commit(START_CANARY, promotion_id=str(promotion.pk))
    return promotion


def reject(*, promotion: Promotion, approver: User, reason: str, now: datetime) -> Promotion:
    """Say no, also to an approved promotion whose canary has not begun. Raises Refused, IllegalTransition."""
    with transaction.atomic():
        promotion, deployment = locked(promotion.pk)
        actor = _decider(approver, promotion, deployment, "reject", reason)
        move(
            promotion,
            S.REJECTED,
            table=TRANSITIONS,
            now=now,
            decided_by=approver,
            decided_reason=reason,
            decided_at=now,
            finished_at=now,
        )
        record(Action.PROMOTION_REJECTED, promotion, actor=actor, now=now, reason=reason)
    return promotion


def due_offers() -> list[UUID]:
    """Evaluations that passed, of versions that a job made, that nobody has proposed yet and that could
    be."""
    current = Deployment.objects.filter(champion=OuterRef("champion_id"))
    made = ModelVersion.objects.filter(pk=OuterRef("candidate_id"), job__isnull=False)
    rows = Evaluation.objects.filter(
        Exists(current),
        Exists(made),
        state=JobState.SUCCEEDED,
        verdict=EvaluationVerdict.PASS,
        promotions=None,
    )
    return list(rows.order_by("finished_at").values_list("pk", flat=True))


def _decider(user: User, promotion: Promotion, deployment: Deployment, verb: str, reason: str) -> Actor:
    actor = authorized(user, deployment, can_approve, verb)
    if user.pk == promotion.requested_by_id:
        raise Refused(f"{user.username} requested this promotion: somebody else must {verb} it")
    require_reason(reason)
    return actor
