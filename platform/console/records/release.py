"""Pages of release: model versions, deployments, promotions, policy nodes."""

from typing import Any

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect

from console import scope
from console.links import deployment_url, promotion_url, url_of
from console.records.base import STATE_LABELS, Fact, ProjectFilter, RecordAdmin, column, moment, when
from learning.models import TrainingJob
from release.models import Deployment, ModelVersion, PolicyNode, Promotion


class ModelVersionAdmin(RecordAdmin):
    """Model versions: immutable, the base itself or the base with one adapter."""

    registered = when("created_at", "Registered")
    list_display = ("__str__", "kind", "served_name", "registered", "project")
    list_filter = (ProjectFilter, "line")
    list_select_related = ("project",)
    search_fields = ("line", "served_name", "adapter_sha256")
    ordering = ("-created_at",)

    @column("Kind")
    def kind(self, row: ModelVersion) -> str:
        return "base with adapter" if row.adapter_path else "base model"

    def facts(self, row: Any) -> list[Fact]:
        return [
            Fact("Version", str(row)),
            Fact("Project", row.project.name),
            Fact("Kind", self.kind(row)),
            Fact("Made by", row.job or "", href=url_of(TrainingJob, row.job_id) if row.job_id else ""),
            Fact("Registered", moment(row.created_at)),
            Fact("Served as", row.served_name, mono=True),
            Fact("Adapter SHA-256", row.adapter_sha256, mono=True),
            Fact("Base model SHA-256", row.base_sha256, mono=True),
            Fact("Version id", row.pk, mono=True),
        ]

    def detail(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        promotions = row.promotions.order_by("-created_at")
        lines = [
            (f"{p.state.replace('_', ' ')}, asked {p.created_at:%d %b %Y}", promotion_url(p.pk))
            for p in promotions
        ]
        return {"links": [("Promotions", lines)]}


class DeploymentAdmin(RecordAdmin):
    """Deployments: who answers each alias. Their detail page holds the way back."""

    changed = when("updated_at", "Changed")
    list_display = ("alias", "champion", "canary_text", "generation", "changed", "project")
    list_select_related = ("champion", "canary", "project")
    search_fields = ("alias",)
    ordering = ("project__name", "alias")

    @column("Canary")
    def canary_text(self, row: Deployment) -> str:
        return f"{row.canary} on {row.canary_share:.0%} of runs" if row.canary else "-"

    def detail_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return HttpResponseRedirect(deployment_url(self.visible(request, object_id).pk))


class PromotionAdmin(RecordAdmin):
    """Promotions. Their detail page is the review page."""

    asked, finished = when("created_at", "Asked"), when("finished_at", "Finished")
    list_display = ("asked", "alias", "change", "state_label", "requested_by", "decided_by", "finished")
    list_filter = (ProjectFilter, "state")
    list_select_related = ("deployment", "candidate", "previous", "requested_by", "decided_by")
    ordering = ("-created_at",)

    @column("Alias", ordering="deployment__alias")
    def alias(self, row: Promotion) -> str:
        return row.deployment.alias

    @column("Change")
    def change(self, row: Promotion) -> str:
        return f"{row.previous} → {row.candidate}"

    @column("State", label=STATE_LABELS, ordering="state")
    def state_label(self, row: Promotion) -> str:
        return row.state

    def detail_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return HttpResponseRedirect(promotion_url(self.visible(request, object_id).pk))


class PolicyNodeAdmin(RecordAdmin):
    """Policy nodes serve the whole installation, so only the people who run it see them."""

    seen = when("seen_at", "Last seen")
    list_display = ("name", "base_url", "serves", "seen")
    list_filter = ()
    ordering = ("name",)

    def get_queryset(self, request: HttpRequest) -> Any:
        nodes = PolicyNode.objects.all()
        return nodes if scope.viewer(request).is_superuser else nodes.none()

    @column("Models loaded")
    def serves(self, row: PolicyNode) -> int:
        return len(row.loaded)

    def facts(self, row: Any) -> list[Fact]:
        return [
            Fact("Name", row.name),
            Fact("Address", row.base_url, mono=True),
            Fact("Last seen", moment(row.seen_at) or "never"),
            Fact("Base model", row.base_model, mono=True),
            Fact("Base model SHA-256", row.base_sha256, mono=True),
            Fact("Loaded", ", ".join(str(name) for name in row.loaded) or "nothing yet", mono=True),
        ]
