"""Pages of the ledger. `audit.admin` knows its columns; here they get the console's look and its tenancy."""

from datetime import datetime
from typing import Any

from django.contrib.admin.utils import label_for_field, lookup_field
from django.http import HttpRequest

from accounts.models import Organization
from audit.admin import EventAdmin, LedgerCheckpointAdmin
from console.links import url_of
from console.records.base import Fact, RecordAdmin, moment, short, when

DIGESTS = {"leaf_hash", "root_hash", "actor_id", "organization_id"}


class LedgerEventAdmin(RecordAdmin, EventAdmin):
    """What happened, by whom, to what."""

    to = "organization_id"
    happened = when("at", "When")
    list_display = ("happened", *EventAdmin.list_display[1:])
    list_filter = EventAdmin.list_filter
    ordering = EventAdmin.ordering

    def facts(self, row: Any) -> list[Fact]:
        about = f"{row.object_type} {row.object_id}, its event number {row.object_seq}"
        return [*_facts(self, row, leave_out={"content"}), Fact("About", about, mono=True), _organization(row)]

    def detail(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        return {"title": row.action, "documents": [("The event as sealed", self.content(row))]}


class CheckpointAdmin(RecordAdmin, LedgerCheckpointAdmin):
    """Signed statements of a ledger's size and root."""

    to = "organization_id"
    signed = when("created_at", "Signed")
    list_display = ("signed", "size", "root_hash")
    list_filter = ()
    ordering = LedgerCheckpointAdmin.ordering

    def facts(self, row: Any) -> list[Fact]:
        return [*_facts(self, row, leave_out={"note", "organization_id"}), _organization(row)]

    def detail(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        return {
            "title": f"Checkpoint at {row.size} events",
            "documents": [("The signed note: keep a copy elsewhere, and check it with manage.py audit_verify", row.note)],
        }


def _facts(pages: Any, row: Any, *, leave_out: set[str]) -> list[Fact]:
    return [
        Fact(
            label_for_field(name, type(row), pages).capitalize(),
            _text(lookup_field(name, row, pages)[2]),
            mono=name in DIGESTS,
        )
        for name in pages.fields
        if name not in leave_out
    ]


def _text(value: object) -> object:
    return moment(value) if isinstance(value, datetime) else value


def _organization(row: Any) -> Fact:
    name = Organization.objects.filter(pk=row.organization_id).values_list("name", flat=True).first()
    return Fact("Organization", name or short(row.organization_id), href=url_of(Organization, row.organization_id))
