"""The home page: what needs somebody, what is lost, how each project does, at a glance."""

from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.template.response import TemplateResponse

from console import scope, selectors
from kernel import clock


def show(request: HttpRequest, context: dict[str, Any]) -> TemplateResponse:
    """`/`: one band of warnings, then a card for each project; without projects, the next step."""
    user = scope.viewer(request)
    organizations = selectors.glance(user=user, now=clock.now())
    projects = [project for organization in organizations for project in organization.projects]
    page = {
        **context,
        "title": "Home",
        "losses": selectors.losses(),
        "organizations": organizations,
        "waiting": [row for project in projects for row in project.promotions if row.state == "proposed"],
        "is_moving": any(project.jobs or _moves(project) for project in projects),
        "has_traffic": any(project.calls for project in projects),
        "gateway_url": settings.ENVIRONMENT.gateway_url,
    }
    return TemplateResponse(request, "console/home.html", page)


def _moves(project: selectors.ProjectGlance) -> bool:
    return any(row.state in {"approved", "canary"} for row in project.promotions)
