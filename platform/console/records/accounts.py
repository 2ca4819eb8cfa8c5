"""Pages of tenancy: organizations, projects, members, API keys. A key can be revoked here; it is never
shown."""

from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.views.decorators.http import require_POST

from accounts import selectors, services
from accounts.models import ApiKey, Member, Organization, Project
from console import scope
from console.links import url_of
from console.records.base import Fact, ProjectFilter, RecordAdmin, column, moment, when
from kernel import clock


class OrganizationAdmin(RecordAdmin):
    """Organizations the viewer is a member of."""

    to = "organization"
    created = when("created_at", "Since")
    list_display = ("name", "created")
    list_filter = ()
    search_fields = ("name",)
    ordering = ("name",)

    def get_queryset(self, request: HttpRequest) -> Any:
        return scope.organizations(scope.viewer(request))

    def facts(self, row: Any) -> list[Fact]:
        return [
            Fact("Name", row.name),
            Fact("Created", moment(row.created_at)),
            Fact("Organization id", row.pk, mono=True),
        ]

    def detail(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        projects = row.projects.order_by("name")
        members = row.members.select_related("user").order_by("user__username")
        return {
            "links": [
                ("Projects", [(project.name, url_of(Project, project.pk)) for project in projects]),
                ("Members", [(f"{m.user.username}, {m.role}", url_of(Member, m.pk)) for m in members]),
            ]
        }


class ProjectAdmin(RecordAdmin):
    """Projects: one agent product each."""

    to = "organization"
    created = when("created_at", "Since")
    list_display = ("name", "organization", "created")
    list_filter = ()
    list_select_related = ("organization",)
    search_fields = ("name",)
    ordering = ("organization__name", "name")

    def facts(self, row: Any) -> list[Fact]:
        return [
            Fact("Name", row.name),
            Fact("Organization", row.organization, href=url_of(Organization, row.organization_id)),
            Fact("Created", moment(row.created_at)),
            Fact("Project id", row.pk, mono=True),
        ]

    def detail(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        keys = row.api_keys.order_by("-created_at")
        return {"links": [("API keys", [(_key_line(key), url_of(ApiKey, key.pk)) for key in keys])]}


class MemberAdmin(RecordAdmin):
    """Members: who may do what in an organization."""

    to = "organization"
    created = when("created_at", "Since")
    list_display = ("user", "organization", "role", "created")
    list_filter = ("role",)
    list_select_related = ("user", "organization")
    ordering = ("organization__name", "user__username")

    def facts(self, row: Any) -> list[Fact]:
        role = row.role
        return [
            Fact("User", row.user.username),
            Fact("Organization", row.organization, href=url_of(Organization, row.organization_id)),
            Fact("Role", role),
            Fact(
                "May decide on promotions",
                "yes, except on their own requests" if selectors.can_approve(role) else "no",
            ),
            Fact(
                "May start training, revoke keys and roll back",
                "yes" if selectors.can_operate(role) else "no",
            ),
            Fact("Since", moment(row.created_at)),
        ]


class ApiKeyAdmin(RecordAdmin):
    """API keys by their first characters. Neither the key nor its digest leaves the database here."""

    detail_template = "console/api_key.html"
    created = when("created_at", "Since")
    list_display = ("name", "prefix_text", "project", "created", "status")
    list_filter = (ProjectFilter,)
    list_select_related = ("project",)
    search_fields = ("name", "prefix")
    ordering = ("-created_at",)

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).defer("digest")

    @column("Key", ordering="prefix")
    def prefix_text(self, row: ApiKey) -> str:
        return f"{row.prefix}…"

    @column("Status", label={"live": "success", "revoked": "danger"})
    def status(self, row: ApiKey) -> str:
        return "revoked" if row.revoked_at else "live"

    def facts(self, row: Any) -> list[Fact]:
        return [
            Fact("Name", row.name),
            Fact("Begins with", f"{row.prefix}…", mono=True),
            Fact("Project", row.project.name, href=url_of(Project, row.project_id)),
            Fact("Status", self.status(row)),
            Fact("Created", moment(row.created_at)),
            Fact("Revoked", moment(row.revoked_at)),
            Fact("Key id", row.pk, mono=True),
        ]

    def detail(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        role = selectors.role_of(scope.viewer(request), row.project.organization)
        return {"may_revoke": row.revoked_at is None and selectors.can_operate(role)}

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(require_POST(self.revoke))
        return [path("<path:object_id>/revoke/", view, name="api_key_revoke"), *super().get_urls()]

    def revoke(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Stop the key, if the viewer's role allows it."""
        key, user = self.visible(request, object_id), scope.viewer(request)
        role = selectors.role_of(user, key.project.organization)
        if not selectors.can_operate(role):
            raise PermissionDenied
        try:
            services.revoke_api_key(key=key, actor=selectors.actor_of(user, role), now=clock.now())
        except services.KeyRevoked as error:
            messages.error(request, f"{error}.")
        else:
            messages.success(request, f"Key {key.prefix}… is revoked: gateways refuse it from now on.")
        return HttpResponseRedirect(reverse("admin:accounts_apikey_change", args=[key.pk]))


def _key_line(key: ApiKey) -> str:
    return f"{key.name} ({key.prefix}…){', revoked' if key.revoked_at else ''}"
