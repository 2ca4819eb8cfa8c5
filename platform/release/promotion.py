"""Who answers an alias, and the only functions that may change it: propose, approve, reject, canary,
champion, back.

Every move is a compare-and-set with its audit event in one transaction, taken under the deployment's lock, so
that two people, guards or workers never both win. Does not measure or load anything: `canary.decide` judges
the numbers that are brought here, `release.serving` talks to policy nodes."""

from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet

from accounts.models import Project, Role, User
from accounts.selectors import actor_of, can_approve, can_operate, role_of
from audit import ledger
from audit.actions import JSON, Action, Actor, ObjectRef, Related
from kernel.notify import ROUTES_CHANGED, notify
from kernel.queueing import TaskRef, enqueue_on_commit
from kernel.states import IllegalTransition, StateChanged, move
from learning.evaluation.jobs import evidence_digest
from learning.models import Evaluation, EvaluationVerdict, JobState
from release import canary, serving, traffic
from release.models import PROMOTION_OPEN, Deployment, ModelVersion, Promotion, PromotionState

START_CANARY = TaskRef("release.start_canary")

S = PromotionState
TRANSITIONS: dict[PromotionState, frozenset[PromotionState]] = {
    S.PROPOSED: frozenset({S.APPROVED, S.REJECTED}),
    S.APPROVED: frozenset({S.CANARY, S.REJECTED}),
    S.CANARY: frozenset({S.CHAMPION, S.ROLLED_BACK}),
    S.CHAMPION: frozenset({S.ROLLED_BACK}),
    S.ROLLED_BACK: frozenset({S.CHAMPION}),  # only for one that has been champion: see `roll_back`
    S.REJECTED: frozenset(),
}

GUARD = Actor.rule("canary-guard")


class Refused(IllegalTransition):
    """The move is not open to this person, or not on this evidence; the sentence says why."""


@transaction.atomic
def create_deployment(
    *, project: Project, alias: str, champion: ModelVersion, actor: Actor, now: datetime
) -> Deployment:
    """Let an alias answer with its first champion, version 1 of its line. Raises Refused when the alias
    exists."""
    if champion.number != 1 or champion.job_id is not None:
        raise Refused(f"an alias begins with its base model, not with {champion}")
    deployment, made = Deployment.objects.get_or_create(
        project=project, alias=alias, defaults={"champion": champion, "updated_at": now}
    )
    if not made:
        raise Refused(f"{alias} is deployed already, with {deployment.champion}")
    ledger.record(
        Action.DEPLOYMENT_CREATED,
        actor=actor,
        organization_id=project.organization_id,
        project_id=project.pk,
        obj=ObjectRef("deployment", deployment.pk),
        at=now,
        related=[Related("champion", "model_version", champion.pk, champion.base_sha256)],
        data={"alias": alias, "champion": champion.name, "generation": deployment.generation},
    )
    notify(ROUTES_CHANGED)
    return deployment


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
        actor = _person(requested_by, deployment, can_operate, "propose")
        evaluation = Evaluation.objects.get(pk=evaluation.pk)
        _require_reason(reason)
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
        _record(Action.PROMOTION_PROPOSED, promotion, actor=actor, now=now, reason=reason)
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
    reasons = evaluation.evidence.get("reasons") or ["The gate passed."]
    try:
        return propose(evaluation=evaluation, requested_by=requester, reason=" ".join(reasons), now=now)
    except Refused:
        return None  # another promotion is open, or the champion changed: a person decides what next


def approve(*, promotion: Promotion, approver: User, reason: str, now: datetime) -> Promotion:
    """Say yes to a proposed promotion: its canary starts as soon as a node serves the candidate.

    The approver is another person than the requester, may approve in the organization, and gives a reason;
    the evidence and the champion are the ones that the proposal was made on. Raises Refused,
    IllegalTransition.
    """
    with transaction.atomic():
        promotion, deployment = _locked(promotion.pk)
        actor = _decider(approver, promotion, deployment, "approve", reason)
        _require_current(promotion, deployment)
        move(
            promotion,
            S.APPROVED,
            table=TRANSITIONS,
            now=now,
            decided_by=approver,
            decided_reason=reason,
            decided_at=now,
        )
        _record(Action.PROMOTION_APPROVED, promotion, actor=actor, now=now, reason=reason)
        enqueue_on_commit(START_CANARY, promotion_id=str(promotion.pk))
    return promotion


def reject(*, promotion: Promotion, approver: User, reason: str, now: datetime) -> Promotion:
    """Say no, also to an approved promotion whose canary has not begun. Raises Refused, IllegalTransition."""
    with transaction.atomic():
        promotion, deployment = _locked(promotion.pk)
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
        _record(Action.PROMOTION_REJECTED, promotion, actor=actor, now=now, reason=reason)
    return promotion


def start_canary(*, promotion_id: UUID, now: datetime) -> bool:
    """Let the candidate of an approved promotion answer its share of runs; True when it does.

    False while no node serves and answers with it: the promotion waits and its `verdict` says for what.
    """
    promotion = Promotion.objects.select_related("candidate").get(pk=promotion_id)
    if promotion.state != S.APPROVED:
        return promotion.state == S.CANARY
    # Asked outside the transaction: an answer can take seconds, and the deployment's lock must not be held so
    # long.
    obstacle = serving.why_not_ready(promotion.candidate)
    with transaction.atomic():
        promotion, deployment = _locked(promotion_id)
        if promotion.state != S.APPROVED:
            return promotion.state == S.CANARY
        obstacle = obstacle or _why_not_current(promotion, deployment)
        if obstacle:
            Promotion.objects.filter(pk=promotion.pk, state=S.APPROVED).exclude(verdict=obstacle).update(
                verdict=obstacle, updated_at=now
            )
            return False
        move(promotion, S.CANARY, table=TRANSITIONS, now=now, canary_started_at=now, verdict="")
        _answer(deployment, canary=promotion.candidate, share=promotion.canary_share, now=now)
        _record(
            Action.CANARY_STARTED,
            promotion,
            on=deployment,
            actor=Actor.service("release"),
            now=now,
            data={"share": f"{promotion.canary_share:.4f}", "min_calls": promotion.canary_min_calls},
        )
    return True


def judge_canary(*, promotion_id: UUID, now: datetime) -> canary.Verdict | None:
    """Look at a canary's traffic and do what the guard decides; None when there is no canary to judge."""
    promotion = Promotion.objects.select_related("deployment").get(pk=promotion_id)
    if promotion.state != S.CANARY:
        return None
    window = traffic.window(promotion)
    verdict = canary.decide(window, canary.Limits(min_calls=promotion.canary_min_calls))
    if verdict.action is canary.Action.WAIT:
        Promotion.objects.filter(pk=promotion.pk, state=S.CANARY).exclude(verdict=verdict.sentence).update(
            verdict=verdict.sentence, updated_at=now
        )
        return verdict
    with transaction.atomic():
        promotion, deployment = _locked(promotion_id)
        if promotion.state != S.CANARY:
            return None  # a person was quicker
        if verdict.action is canary.Action.ABORT:
            _abort(promotion, deployment, actor=GUARD, reason=verdict.sentence, now=now, window=window)
            return verdict
        move(
            promotion,
            S.CHAMPION,
            table=TRANSITIONS,
            now=now,
            verdict=verdict.sentence,
            champion_at=now,
            finished_at=now,
        )
        _answer(deployment, champion=promotion.candidate, now=now)
        _record(
            Action.CHAMPION_CHANGED,
            promotion,
            on=deployment,
            actor=GUARD,
            now=now,
            reason=verdict.sentence,
            data={**_figures(window), "generation": deployment.generation},
        )
    return verdict


def roll_back(
    *, deployment: Deployment, actor_user: User, reason: str, now: datetime, to: ModelVersion | None = None
) -> ModelVersion:
    """Undo the latest change of who answers, or put a version back that has been champion here before.

    While a canary runs it is aborted, and that is all unless `to` names another champion. Going forward again
    is the same call with the version that was left. Returns who is champion then. Raises Refused.
    """
    with transaction.atomic():
        deployment = Deployment.objects.select_for_update().select_related("project").get(pk=deployment.pk)
        actor = _person(actor_user, deployment, can_operate, "roll back")
        _require_reason(reason)
        running = deployment.promotions.filter(state=S.CANARY).select_related("candidate").first()
        if running is not None:
            _abort(running, deployment, actor=actor, reason=reason, now=now)
            if to is None or to.pk == deployment.champion_id:
                return deployment.champion
        left, target = deployment.champion, to or previous_champion(deployment)
        if target is None:
            raise Refused(f"{deployment} has had no champion before {left}")
        if target.pk == left.pk:
            raise Refused(f"{left} is champion of {deployment} already")
        if not been_champion(deployment).filter(pk=target.pk).exists():
            raise Refused(
                f"{target} has never been champion of {deployment}: only an approved promotion can make it so"
            )
        made_left, made_target = _promotion_of(deployment, left), _promotion_of(deployment, target)
        if made_left is not None and made_left.state == S.CHAMPION:
            move(made_left, S.ROLLED_BACK, table=TRANSITIONS, now=now, verdict=f"Rolled back to {target}.")
        if made_target is not None and made_target.state == S.ROLLED_BACK:
            move(made_target, S.CHAMPION, table=TRANSITIONS, now=now, verdict="Restored.")
        _answer(deployment, champion=target, now=now)
        ledger.record(
            Action.CHAMPION_RESTORED,
            actor=actor,
            organization_id=deployment.project.organization_id,
            project_id=deployment.project_id,
            obj=ObjectRef("deployment", deployment.pk),
            at=now,
            reason=reason,
            related=[
                Related("champion", "model_version", target.pk, target.adapter_sha256 or target.base_sha256),
                Related("left", "model_version", left.pk, left.adapter_sha256 or left.base_sha256),
                *([Related("promotion", "promotion", made_target.pk)] if made_target else []),
            ],
            data={
                "alias": deployment.alias,
                "champion": target.name,
                "left": left.name,
                "generation": deployment.generation,
            },
        )
    return target


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


def due(state: PromotionState) -> list[UUID]:
    """Promotions in a state that workers move on."""
    return list(Promotion.objects.filter(state=state).order_by("updated_at").values_list("pk", flat=True))


def been_champion(deployment: Deployment) -> QuerySet[ModelVersion]:
    """The versions that have been champion here: by an approved promotion, or from the deployment's
    beginning."""
    made = Promotion.objects.filter(deployment=deployment, champion_at__isnull=False)
    return ModelVersion.objects.filter(
        Q(pk__in=made.values("candidate")) | Q(pk__in=made.values("previous")) | Q(pk=deployment.champion_id)
    )


def previous_champion(deployment: Deployment) -> ModelVersion | None:
    """The champion before the present one, by the promotion that made the present one."""
    made = _promotion_of(deployment, deployment.champion)
    return made.previous if made else None


def _promotion_of(deployment: Deployment, version: ModelVersion) -> Promotion | None:
    """The promotion by which `version` last became champion here."""
    return (
        Promotion.objects.filter(deployment=deployment, candidate=version, champion_at__isnull=False)
        .select_related("previous")
        .order_by("-champion_at")
        .first()
    )


def _locked(promotion_id: UUID) -> tuple[Promotion, Deployment]:
    """The promotion as it stands, with its deployment locked. Always in this order, so that nobody
    deadlocks."""
    deployment_id = Promotion.objects.values_list("deployment_id", flat=True).get(pk=promotion_id)
    deployment = Deployment.objects.select_for_update().get(pk=deployment_id)
    promotion = Promotion.objects.select_related("project", "candidate", "previous", "evaluation").get(
        pk=promotion_id
    )
    return promotion, deployment


def _answer(
    deployment: Deployment,
    *,
    now: datetime,
    champion: ModelVersion | None = None,
    canary: ModelVersion | None = None,
    share: float = 0.0,
) -> None:
    """The only write of who answers: champion (the same one when None), canary and its share, one generation
    on."""
    changed = Deployment.objects.filter(pk=deployment.pk, generation=deployment.generation).update(
        champion=champion or deployment.champion_id,
        canary=canary,
        canary_share=share,
        generation=F("generation") + 1,
        updated_at=now,
    )
    if changed != 1:
        raise StateChanged(f"deployment {deployment} changed meanwhile")
    deployment.champion = champion or deployment.champion
    deployment.canary, deployment.canary_share = canary, share
    deployment.generation += 1
    notify(ROUTES_CHANGED)


def _abort(
    promotion: Promotion,
    deployment: Deployment,
    *,
    actor: Actor,
    reason: str,
    now: datetime,
    window: canary.Window | None = None,
) -> None:
    move(promotion, S.ROLLED_BACK, table=TRANSITIONS, now=now, verdict=reason, finished_at=now)
    _answer(deployment, now=now)
    _record(
        Action.CANARY_ABORTED,
        promotion,
        on=deployment,
        actor=actor,
        now=now,
        reason=reason,
        data={**(_figures(window) if window else {}), "generation": deployment.generation},
    )


def _figures(window: canary.Window) -> dict[str, JSON]:
    return {
        "canary_calls": window.canary.calls,
        "canary_errors": window.canary.errors,
        "champion_calls": window.champion.calls,
        "champion_errors": window.champion.errors,
    }


def _person(user: User, deployment: Deployment, may: Callable[[Role | None], bool], verb: str) -> Actor:
    """The user as actor, if their role allows it. Raises Refused."""
    role = role_of(user, deployment.project.organization)
    if not may(role):
        raise Refused(
            f"{user.username} may not {verb} in {deployment.project.organization}: role {role or 'none'}"
        )
    return actor_of(user, role)


def _decider(user: User, promotion: Promotion, deployment: Deployment, verb: str, reason: str) -> Actor:
    actor = _person(user, deployment, can_approve, verb)
    if user.pk == promotion.requested_by_id:
        raise Refused(f"{user.username} requested this promotion: somebody else must {verb} it")
    _require_reason(reason)
    return actor


def _require_reason(reason: str) -> None:
    if not reason.strip():
        raise Refused("a decision needs a reason")


def _require_current(promotion: Promotion, deployment: Deployment) -> None:
    if obstacle := _why_not_current(promotion, deployment):
        raise Refused(obstacle)


def _why_not_current(promotion: Promotion, deployment: Deployment) -> str:
    """Why the proposal no longer describes what it would change; empty when it does."""
    if promotion.evidence_digest != evidence_digest(promotion.evaluation.evidence):
        return "the evidence changed after the promotion was proposed: reject it and evaluate again"
    if promotion.previous_id != deployment.champion_id:
        return f"{promotion.previous} is not champion of {deployment} any more: reject it and evaluate again"
    return ""


def _record(
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
