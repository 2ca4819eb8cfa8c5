"""The page of a deployment: who answers, how it came to that, and the way back. One service call for each
POST."""

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.views.decorators.http import require_GET, require_POST

from accounts.selectors import role_of
from console import decisions, scope
from console.links import deployment_url
from kernel import clock
from kernel.states import IllegalTransition, StateChanged
from release import rollout
from release.models import Deployment, ModelVersion

Context = dict[str, Any]
"""What the site's frame around every page needs."""

REFUSALS = (IllegalTransition, StateChanged)


@require_GET
def show(request: HttpRequest, context: Context, deployment_id: UUID) -> HttpResponse:
    """`/deployments/<id>/`"""
    return _page(request, context, _visible(request, deployment_id))


@require_POST
def roll_back(request: HttpRequest, context: Context, deployment_id: UUID) -> HttpResponse:
    """`/deployments/<id>/roll-back/` with `reason`, and `to`: a version's name; the one before when it is
    empty."""
    deployment = _visible(request, deployment_id)
    reason, wanted = request.POST.get("reason", "").strip(), request.POST.get("to", "")
    choices = {version.name: version for version in _way_back(deployment)}
    if not reason:
        return _page(
            request,
            context,
            deployment,
            error="A rollback needs a reason: it goes into the ledger with your name.",
        )
    if wanted and wanted not in choices:
        return _page(request, context, deployment, error=f"{wanted} was never champion here.", reason=reason)
    try:
        rollout.roll_back(
            deployment=deployment,
            actor_user=scope.viewer(request),
            reason=reason,
            now=clock.now(),
            to=choices[wanted] if wanted else None,
        )
    except REFUSALS as error:
        return _page(
            request, context, _visible(request, deployment_id), error=f"Not done: {error}", reason=reason
        )
    deployment = _visible(request, deployment_id)
    messages.success(
        request, f"{deployment.champion} answers all of {deployment.alias} from the next call on."
    )
    return HttpResponseRedirect(deployment_url(deployment.pk))


def _visible(request: HttpRequest, deployment_id: UUID) -> Deployment:
    rows = Deployment.objects.select_related("project__organization", "champion", "canary")
    return get_object_or_404(scope.narrow(rows, scope.viewer(request), to="project"), pk=deployment_id)


def _way_back(deployment: Deployment) -> list[ModelVersion]:
    """Every version that was champion here and is not now, newest first."""
    return list(rollout.been_champion(deployment).exclude(pk=deployment.champion_id).order_by("-number"))


def _page(
    request: HttpRequest, context: Context, deployment: Deployment, *, error: str = "", reason: str = ""
) -> HttpResponse:
    viewer = scope.viewer(request)
    role = role_of(viewer, deployment.project.organization)
    return_to = _way_back(deployment)
    rows = deployment.promotions.select_related("candidate", "previous", "requested_by", "decided_by")
    page = {
        **context,
        "title": deployment.alias,
        "deployment": deployment,
        "promotions": rows.order_by("-created_at")[:50],
        "before": rollout.previous_champion(deployment),
        "return_to": return_to,
        "why_not": decisions.why_not_roll_back(role=role, has_way_back=bool(return_to or deployment.canary)),
        "canary_share": f"{deployment.canary_share:.0%}",
        "is_moving": deployment.canary_id is not None,
        "error": error,
        "reason": reason,
    }
    return TemplateResponse(request, "console/deployment.html", page, status=409 if error else 200)
