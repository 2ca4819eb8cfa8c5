"""Pages of routing: upstreams, aliases, limits. Their tables are the gateway's, which the console does not import, so
rows come without types here. No page holds a credential, not even a sealed one."""

from typing import Any

from django.db.models import Q
from django.http import HttpRequest

from accounts.models import ApiKey, Project
from console.links import url_of
from console.records.base import Fact, RecordAdmin, column, moment, pretty, when


class UpstreamAdmin(RecordAdmin):
    """Upstreams: the providers of each project, in the order in which they are tried."""

    changed = when("updated_at", "Changed")
    list_display = ("name", "base_url", "priority", "serves_text", "status", "changed", "project")
    list_select_related = ("project",)
    search_fields = ("name", "base_url")
    ordering = ("project__name", "priority", "name")

    def get_queryset(self, request: HttpRequest) -> Any:
        rows = super().get_queryset(request).defer("credential")
        return rows.annotate(has_credential=~Q(credential=b""))

    @column("Serves")
    def serves_text(self, row: Any) -> str:
        return ", ".join(row.serves) or "everything"

    @column("Status", label={"on": "success", "off": "warning"})
    def status(self, row: Any) -> str:
        return "on" if row.is_enabled else "off"

    def facts(self, row: Any) -> list[Fact]:
        return [
            Fact("Name", row.name),
            Fact("Project", row.project.name, href=url_of(Project, row.project_id)),
            Fact("Status", self.status(row)),
            Fact("Base URL", row.base_url, mono=True),
            Fact("Credential", f"stored, sent as {row.auth}" if row.has_credential else "none"),
            Fact("Priority", row.priority),
            Fact("Serves", self.serves_text(row)),
            Fact("Connect timeout", _timeout(row.connect_timeout_s)),
            Fact("First-byte timeout", _timeout(row.first_byte_timeout_s)),
            Fact("Idle timeout", _timeout(row.idle_timeout_s)),
            Fact("Retries", row.max_retries),
            Fact("Asked for usage of streams", "yes" if row.asks_usage else "no"),
            Fact("Created", moment(row.created_at)),
            Fact("Changed", moment(row.updated_at)),
            Fact("Upstream id", row.pk, mono=True),
        ]

    def detail(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        targets = row.alias_targets.select_related("alias").order_by("alias__name")
        aliases = {target.alias.name: url_of(type(target.alias), target.alias_id) for target in targets}
        prices = pretty(row.prices) if row.prices else "none set: calls through it cost nothing here"
        return {
            "links": [("Aliases that point to it", list(aliases.items()))],
            "documents": [("Prices, US dollars per million tokens", prices)],
        }


class AliasAdmin(RecordAdmin):
    """Aliases: model names that stand for other places."""

    changed = when("updated_at", "Changed")
    list_display = ("name", "targets_text", "changed", "project")
    list_select_related = ("project",)
    search_fields = ("name",)
    ordering = ("project__name", "name")

    def get_queryset(self, request: HttpRequest) -> Any:
        rows = super().get_queryset(request)
        return rows.prefetch_related("targets__upstream", "targets__deployment")

    @column("Targets")
    def targets_text(self, row: Any) -> str:
        return ", ".join(str(target) for target in _in_order(row.targets.all()))

    def facts(self, row: Any) -> list[Fact]:
        return [
            Fact("Name", row.name),
            Fact("Project", row.project.name, href=url_of(Project, row.project_id)),
            Fact("Created", moment(row.created_at)),
            Fact("Changed", moment(row.updated_at)),
            Fact("Alias id", row.pk, mono=True),
        ]

    def detail(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        return {"links": [("Targets", [_target_line(target) for target in _in_order(row.targets.all())])]}


class LimitAdmin(RecordAdmin):
    """Limits: how much a project, or one of its keys, may use in a window."""

    changed = when("updated_at", "Changed")
    list_display = ("__str__", "subject", "changed", "project")
    list_select_related = ("project", "api_key")
    ordering = ("project__name", "measure", "window_s")

    @column("Of")
    def subject(self, row: Any) -> str:
        return str(row.api_key) if row.api_key else "the whole project"

    def facts(self, row: Any) -> list[Fact]:
        return [
            Fact("Limit", str(row)),
            Fact("Of", self.subject(row), href=url_of(ApiKey, row.api_key_id) if row.api_key else ""),
            Fact("Project", row.project.name, href=url_of(Project, row.project_id)),
            Fact("Created", moment(row.created_at)),
            Fact("Changed", moment(row.updated_at)),
            Fact("Limit id", row.pk, mono=True),
        ]


def _timeout(seconds: float | None) -> str:
    return "the installation's" if seconds is None else f"{seconds:g} s"


def _in_order(targets: Any) -> list[Any]:
    return sorted(targets, key=lambda target: (target.priority, -target.weight, target.place))


def _target_line(target: Any) -> tuple[str, str]:
    """A target in words, and the page of what it points to."""
    place = target.upstream or target.deployment
    return f"{target.place}, weight {target.weight}, priority {target.priority}", url_of(
        type(place), place.pk
    )
