"""The review page of a promotion: what would change, why, what the gate saw, and the decision.

Shows and hands over: `release.promotion` decides whether a decision stands. One service call for each
POST."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.views.decorators.http import require_GET, require_POST

from accounts.selectors import role_of
from audit import selectors as ledger
from audit.selectors import EventRow
from console import decisions, evidence, scope
from console.links import promotion_url
from kernel import clock
from kernel.states import IllegalTransition, StateChanged
from release import promotion as promotions
from release.models import Promotion, PromotionState
from release.moves import why_not_current
from release.selectors import history
from release.traffic import window

Context = dict[str, Any]
"""What the site's frame around every page needs."""

STAGES = (
    (PromotionState.PROPOSED, "Proposed"),
    (PromotionState.APPROVED, "Approved"),
    (PromotionState.CANARY, "Canary"),
    (PromotionState.CHAMPION, "Champion"),
)
"""The way forward; rejection and rollback end it early."""

VERBS = {
    PromotionState.PROPOSED: "would replace",
    PromotionState.APPROVED: "is about to be tried against",
    PromotionState.CANARY: "is being tried against",
    PromotionState.CHAMPION: "replaced",
    PromotionState.REJECTED: "was to replace",
    PromotionState.ROLLED_BACK: "was taken back in favour of",
}


@require_GET
def show(request: HttpRequest, context: Context, promotion_id: UUID) -> HttpResponse:
    """`/promotions/<id>/`"""
    return _page(request, context, _visible(request, promotion_id))


@require_POST
def approve(request: HttpRequest, context: Context, promotion_id: UUID) -> HttpResponse:
    """`/promotions/<id>/approve/` with `reason`."""
    return _decide(
        request, context, promotion_id, promotions.approve, "Approved. The canary starts in a moment."
    )


@require_POST
def reject(request: HttpRequest, context: Context, promotion_id: UUID) -> HttpResponse:
    """`/promotions/<id>/reject/` with `reason`."""
    return _decide(request, context, promotion_id, promotions.reject, "Rejected. The champion stays.")


def _decide(
    request: HttpRequest, context: Context, promotion_id: UUID, service: Callable[..., object], done: str
) -> HttpResponse:
    promotion = _visible(request, promotion_id)
    reason = request.POST.get("reason", "").strip()
    if not reason:
        return _page(
            request,
            context,
            promotion,
            error="A decision needs a reason: it goes into the ledger with your name.",
        )
    try:
        service(promotion=promotion, approver=scope.viewer(request), reason=reason, now=clock.now())
    except REFUSALS as error:
        return _page(
            request, context, _visible(request, promotion_id), error=f"Not done: {error}", reason=reason
        )
    messages.success(request, done)
    return HttpResponseRedirect(promotion_url(promotion.pk))


REFUSALS = (IllegalTransition, StateChanged)


def _visible(request: HttpRequest, promotion_id: UUID) -> Promotion:
    rows = Promotion.objects.select_related(
        "project__organization", "deployment__champion", "deployment__canary", "candidate__job__snapshot",
        "candidate__job__reward_spec", "previous", "evaluation__reward_spec", "requested_by", "decided_by",
    )  # fmt: skip
    return get_object_or_404(scope.narrow(rows, scope.viewer(request), to="project"), pk=promotion_id)


def _page(
    request: HttpRequest, context: Context, promotion: Promotion, *, error: str = "", reason: str = ""
) -> HttpResponse:
    viewer = scope.viewer(request)
    role = role_of(viewer, promotion.project.organization)
    traffic = window(promotion) if promotion.state == PromotionState.CANARY else None
    is_champion = promotion.deployment.champion_id == promotion.candidate_id
    page = {
        **context,
        "title": f"{promotion.candidate} for {promotion.deployment.alias}",
        "promotion": promotion,
        "evidence": evidence.read(promotion.evaluation.evidence),
        "stale": why_not_current(promotion, promotion.deployment)
        if promotion.state in decisions.DECIDABLE
        else "",
        "stages": _stages(promotion),
        "is_moving": promotion.state in {PromotionState.APPROVED, PromotionState.CANARY},
        "why_not": decisions.why_not_decide(promotion, viewer=viewer, role=role),
        "why_not_back": decisions.why_not_roll_back(role=role, has_way_back=True),
        "can_go_back": is_champion or promotion.state == PromotionState.CANARY,
        "can_stop": promotion.state == PromotionState.APPROVED,
        "canary_share": f"{promotion.canary_share:.0%}",
        "champion_share": f"{1 - promotion.canary_share:.0%}",
        "traffic": traffic,
        "canary_percent": min(100, 100 * traffic.canary.calls / max(1, promotion.canary_min_calls))
        if traffic
        else 0,
        "verb": VERBS[PromotionState(promotion.state)],
        "history": _history(promotion),
        "error": error,
        "reason": reason,
    }
    return TemplateResponse(request, "console/promotion.html", page, status=409 if error else 200)


def _stages(promotion: Promotion) -> list[tuple[str, str]]:
    """Each stage with `done`, `here` or `ahead`; a promotion that ended early stays where it was."""
    order = [state for state, _ in STAGES]
    if promotion.state in order:
        at = order.index(PromotionState(promotion.state))
    elif promotion.canary_started_at:
        at = order.index(PromotionState.CANARY)
    else:
        at = order.index(PromotionState.PROPOSED)
    return [
        (label, "here" if index == at else "done" if index < at else "ahead")
        for index, (_, label) in enumerate(STAGES)
    ]


def _history(promotion: Promotion) -> list[EventRow]:
    """What the ledger says about this promotion and what it rests on, oldest first."""
    rests_on = [("evaluation", promotion.evaluation_id), ("model_version", promotion.candidate_id)]
    if promotion.candidate.job_id:
        rests_on.append(("training_job", promotion.candidate.job_id))
    earlier = [event for events in ledger.events_of_many(rests_on).values() for event in events]
    return sorted([*earlier, *history(promotion)], key=lambda event: (event.at, event.id))
