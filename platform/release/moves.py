"""What every move of a promotion is made of: the table of states, the lock, who may, and the event.

Moves nothing by itself: people's decisions are `release.promotion`, who answers is `release.rollout`."""

from collections.abc import Callable, Mapping
from datetime import datetime
from uuid import UUID

from accounts.models import Role, User
from accounts.selectors import actor_of, role_of
from audit import ledger
from audit.actions import JSON, Action, Actor, ObjectRef, Related
from kernel.states import IllegalTransition
from learning.evaluation.jobs import evidence_digest
from release.models import Deployment, Promotion, PromotionState

S = PromotionState
TRANSITIONS: Mapping[PromotionState, frozenset[PromotionState]] = {
    S.PROPOSED: frozenset({S.APPROVED, S.REJECTED}),
    S.APPROVED: frozenset({S.CANARY, S.REJECTED}),
    S.CANARY: frozenset({S.CHAMPION, S.ROLLED_BACK}),
    S.CHAMPION: frozenset({S.ROLLED_BACK}),
    S.ROLLED_BACK: frozenset({S.CHAMPION}),  # only for one that has been champion: see `rollout.roll_back`
    S.REJECTED: frozenset(),
}


class Refused(IllegalTransition):
    """The move is not open to this person, or not on this evidence; the sentence says why."""


def locked(promotion_id: UUID) -> tuple[Promotion, Deployment]:
    """The promotion as it stands, with its deployment locked. Always in this order, so that nobody
    deadlocks."""
    deployment_id = Promotion.objects.values_list("deployment_id", flat=True).get(pk=promotion_id)
    deployment = Deployment.objects.select_for_update().get(pk=deployment_id)
    promotion = Promotion.objects.select_related("project", "candidate", "previous", "evaluation").get(
        pk=promotion_id
    )
    return promotion, deployment


def authorized(user: User, deployment: Deployment, may: Callable[[Role | None], bool], verb: str) -> Actor:
    """The user as actor, if their role allows it. Raises Refused."""
    role = role_of(user, deployment.project.organization)
    if not may(role):
        raise Refused(
            f"{user.username} may not {verb} in {deployment.project.organization}: role {role or 'none'}"
        )
    return actor_of(user, role)


def require_reason(reason: str) -> None:
    """Raises Refused for a decision without one."""
    if not reason.strip():
        raise Refused("a decision needs a reason")


def why_not_current(promotion: Promotion, deployment: Deployment) -> str:
    """Why the proposal no longer describes what it would change; empty when it does."""
    if promotion.evidence_digest != evidence_digest(promotion.evaluation.evidence):
        return "the evidence changed after the promotion was proposed: reject it and evaluate again"
    if promotion.previous_id != deployment.champion_id:
        return f"{promotion.previous} is not champion of {deployment} any more: reject it and evaluate again"
    return ""


def record(
    action: Action,
    promotion: Promotion,
    *,
    actor: Actor,
    now: datetime,
    reason: str = "",
    on: Deployment | None = None,
    data: dict[str, JSON] | None = None,
) -> None:
    """An event of the promotion, or of the deployment that it changes."""
    candidate, previous = promotion.candidate, promotion.previous
    ledger.record(
        action,
        actor=actor,
        organization_id=promotion.project.organization_id,
        project_id=promotion.project_id,
        obj=ObjectRef("deployment", on.pk)
        if on
        else ObjectRef("promotion", promotion.pk, promotion.evidence_digest),
        at=now,
        reason=reason,
        related=[
            Related(
                "candidate", "model_version", candidate.pk, candidate.adapter_sha256 or candidate.base_sha256
            ),
            Related(
                "previous", "model_version", previous.pk, previous.adapter_sha256 or previous.base_sha256
            ),
            Related("evaluation", "evaluation", promotion.evaluation_id, promotion.evidence_digest),
            Related("promotion", "promotion", promotion.pk)
            if on
            else Related("deployment", "deployment", promotion.deployment_id),
        ],
        data={
            "alias": promotion.deployment.alias,
            "candidate": candidate.name,
            "previous": previous.name,
            **(data or {}),
        },
    )
