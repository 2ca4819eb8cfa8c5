"""What every list and detail page of the console shares: read-only, narrowed to the viewer, one look.

A record of fact has no add, change or delete page at all: the site offers its list and its detail, and
changes go
through services. Does not know any table; `console.records.*` do."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

from django.contrib.admin import SimpleListFilter
from django.contrib.admin.utils import unquote
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.views.decorators.http import require_GET
from unfold.admin import ModelAdmin
from unfold.decorators import display
from unfold.paginator import InfinitePaginator

from console import scope
from console.links import list_url

Method = TypeVar("Method", bound=Callable[..., object])

STATE_LABELS = {
    "open": "info",
    "closed": "",
    "queued": "",
    "running": "info",
    "succeeded": "success",
    "failed": "danger",
    "cancelled": "",
    "complete": "success",
    "upstream_error": "danger",
    "upstream_cut": "danger",
    "unreachable": "danger",
    "client_gone": "warning",
    "gateway_died": "danger",
    "pass": "success",
    "fail": "danger",
    "not_enough_evidence": "warning",
    "proposed": "warning",
    "approved": "info",
    "rejected": "danger",
    "canary": "info",
    "champion": "success",
    "rolled_back": "danger",
}
"""The colour of each state, everywhere it is shown; the word itself always stands beside the colour."""


@dataclass(frozen=True)
class Fact:
    """One line of a detail page."""

    label: str
    value: object
    href: str = ""
    mono: bool = False
    """Digests and ids read better in a fixed width."""


def short(value: object) -> str:
    """The last characters of an id: UUIDv7s of one moment begin alike, so the end tells them apart."""
    return f"…{str(value)[-8:]}"


def clipped(text: str, length: int = 40) -> str:
    """A stranger's text, no longer than a column takes."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def pretty(value: object) -> str:
    """JSON as a person reads it. The template escapes it."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def column(
    title: str, *, ordering: str = "", label: Mapping[str, str] | None = None
) -> Callable[[Method], Method]:
    """A list's column; `label` colours its values. Unfold's own decorator, with types."""
    decorate: Callable[[Method], Method] = display(description=title, ordering=ordering or None, label=label)
    return decorate


def moment(at: datetime | None) -> str:
    """A time to the second, in UTC, which every page says."""
    return f"{at.astimezone(UTC):%-d %b %Y, %H:%M:%S} UTC" if at else ""


def when(field: str, title: str) -> Callable[[Any, Any], str]:
    """A list's column that shows a time and sorts by it."""

    @column(title, ordering=field)
    def shown(self: Any, row: Any) -> str:
        at = getattr(row, field)
        # No-break spaces: a time on two lines doubles the height of every row.
        return f"{at.astimezone(UTC):%-d %b %H:%M:%S}".replace(" ", "\u00a0") if at else "-"

    return shown


def seconds(start: datetime | None, end: datetime | None) -> str:
    """A duration in words; empty while it is not known."""
    if start is None or end is None:
        return ""
    total = (end - start).total_seconds()
    if total < 1:
        return f"{total * 1000:.0f} ms"
    if total < 120:
        return f"{total:.1f} s"
    return f"{total / 60:.0f} min" if total < 7200 else f"{total / 3600:.1f} h"


class ProjectFilter(SimpleListFilter):
    """Filter by project; offers only the projects that the viewer sees."""

    title = "project"
    parameter_name = "project"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Sequence[tuple[str, str]]:
        rows = scope.projects(scope.viewer(request)).order_by("organization__name", "name")
        return [(str(pk), name) for pk, name in rows.values_list("pk", "name")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if not self.value():
            return queryset
        wanted = scope.one_project(scope.viewer(request), str(self.value()))
        return queryset.filter(project_id=wanted) if wanted else queryset.none()


class RecordAdmin(ModelAdmin):  # type: ignore[misc]  # unfold ships no types
    """A table that people read and nobody edits here."""

    to = "project"
    """The lookup from a row to the project or organization that owns it."""
    detail_template = "console/record.html"
    list_filter: Sequence[Any] = (ProjectFilter,)
    list_per_page = 50
    show_full_result_count = False
    list_disable_select_all = True
    list_filter_sheet = False
    actions = None
    paginator = InfinitePaginator  # counting a table of millions takes longer than reading a page of it

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return scope.narrow(super().get_queryset(request), scope.viewer(request), to=self.to)

    def facts(self, row: Any) -> list[Fact]:
        """The lines at the top of the detail page."""
        raise NotImplementedError

    def detail(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """What the detail template needs beside the facts."""
        return {}

    def get_urls(self) -> list[URLPattern]:
        """The list and the detail page, and no others."""
        name = f"{self.opts.app_label}_{self.opts.model_name}"
        view = self.admin_site.admin_view
        return [
            path("", view(self.changelist_view), name=f"{name}_changelist"),
            path("<path:object_id>/", view(require_GET(self.detail_view)), name=f"{name}_change"),
        ]

    def detail_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """One row. 404 for one that does not exist and for one that belongs to strangers, alike."""
        row = self.visible(request, object_id)
        context = {
            **self.admin_site.each_context(request),
            "title": str(row),
            "up": (self.opts.verbose_name_plural, list_url(self.model)),
            "row": row,
            "facts": self.facts(row),
            **self.detail(request, row),
        }
        return TemplateResponse(request, self.detail_template, context)

    def visible(self, request: HttpRequest, object_id: str) -> Any:
        """The row if the viewer sees it. Raises Http404."""
        try:
            row = self.get_queryset(request).filter(pk=unquote(object_id)).first()
        except (ValidationError, ValueError):
            row = None
        if row is None:
            raise Http404(f"no {self.opts.verbose_name} {object_id}")
        return row

    def has_module_permission(self, request: HttpRequest) -> bool:
        return True

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return True

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


def is_uuid(text: str) -> bool:
    """Whether a search term may be compared with an id column."""
    try:
        UUID(text)
    except ValueError:
        return False
    return True
