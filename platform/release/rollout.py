"""Who answers an alias, and the only functions that may change it: deployed, canary, champion, back.

Every change is a compare-and-set with its audit event in one transaction, taken under the deployment's lock,
so that two people, guards or workers never both win. Decides no promotion (`release.promotion`), and does not
measure or load anything: `canary.decide` judges the numbers that are brought here, `release.serving` talks to
policy nodes."""

from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.db.models import F, Q, QuerySet

from accounts.models import Project, User
from accounts.selectors import can_operate
from audit import ledger
from audit.actions import JSON, Action, Actor, ObjectRef, Related
from kernel.notify import ROUTES_CHANGED, notify
from kernel.states import StateChanged, move
from release import canary, serving, traffic
from release.models import Deployment, ModelVersion, Promotion, PromotionState
from release.moves import TRANSITIONS, Refused, authorized, locked, record, require_reason, why_not_current

S = PromotionState
GUARD = Actor.rule("canary-guard")


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
        promotion, deployment = locked(promotion_id)
        if promotion.state != S.APPROVED:
            return promotion.state == S.CANARY
        obstacle = obstacle or why_not_current(promotion, deployment)
        if obstacle:
            Promotion.objects.filter(pk=promotion.pk, state=S.APPROVED).exclude(verdict=obstacle).update(
                verdict=obstacle, updated_at=now
            )
            return False
        move(promotion, S.CANARY, table=TRANSITIONS, now=now, canary_started_at=now, verdict="")
        _answer(deployment, canary=promotion.candidate, share=promotion.canary_share, now=now)
        record(
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
        promotion, deployment = locked(promotion_id)
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
        record(
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
        actor = authorized(actor_user, deployment, can_operate, "roll back")
        require_reason(reason)
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
            move(made_left, S.ROLLED_BACK, table=TRANSITIONS, now=now)
        if made_target is not None and made_target.state == S.ROLLED_BACK:
            move(made_target, S.CHAMPION, table=TRANSITIONS, now=now)
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
    """End a canary; `window` is what the guard saw, when it is the guard that does."""
    verdict = reason if window else promotion.verdict
    move(promotion, S.ROLLED_BACK, table=TRANSITIONS, now=now, verdict=verdict, finished_at=now)
    _answer(deployment, now=now)
    record(
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
