"""Pages of the ledger: events and checkpoints of the viewer's organizations, as they were sealed.

Only `audit` imports the ledger's tables: `console.admin` hands them to these pages by name."""

import json
from typing import Any

from django.http import HttpRequest

from accounts.models import Organization
from console.links import url_of
from console.records.base import Fact, RecordAdmin, column, moment, pretty, short, when


class EventAdmin(RecordAdmin):
    """What happened, by whom, to what."""

    to = "organization_id"
    happened = when("at", "When")
    list_display = ("happened", "action", "who", "what", "reason")
    list_filter = ("action", "actor_type")
    search_fields = ("object_id", "actor_name")
    search_help_text = "id of what it is about, or who did it"
    ordering = ("-id",)

    @column("Who")
    def who(self, row: Any) -> str:
        return row.actor_name or f"{row.actor_type} {short(row.actor_id)}"

    @column("About")
    def what(self, row: Any) -> str:
        return f"{row.object_type.replace('_', ' ')} {short(row.object_id)}, its event {row.object_seq}"

    def facts(self, row: Any) -> list[Fact]:
        return [
            Fact("Action", row.action),
            Fact("When", moment(row.at)),
            Fact("Who", f"{self.who(row)} ({row.actor_type})"),
            Fact("Reason", row.reason),
            _organization(row),
            Fact("About", f"{row.object_type} {row.object_id}", mono=True),
            Fact("Event of this object", f"number {row.object_seq}, counted from 1 without a gap"),
            Fact("Leaf (SHA-256)", bytes(row.leaf).hex(), mono=True),
            Fact("Event id", row.pk, mono=True),
        ]

    def detail(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        return {
            "title": row.action,
            "documents": [("The event as hashed", pretty(json.loads(bytes(row.body))))],
        }


class CheckpointAdmin(RecordAdmin):
    """Signed statements of a ledger's size and root."""

    to = "organization_id"
    signed = when("created_at", "Signed")
    list_display = ("signed", "size", "root_text")
    list_filter = ()
    ordering = ("-id",)

    @column("Root (SHA-256)")
    def root_text(self, row: Any) -> str:
        return bytes(row.root).hex()

    def facts(self, row: Any) -> list[Fact]:
        return [
            Fact("Events under it", row.size),
            Fact("Signed", moment(row.created_at)),
            _organization(row),
            Fact("Root (SHA-256)", self.root_text(row), mono=True),
        ]

    def detail(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        heading = "The signed note: keep a copy elsewhere, and check it with manage.py audit_verify"
        return {"title": f"Checkpoint at {row.size} events", "documents": [(heading, row.note)]}


def _organization(row: Any) -> Fact:
    name = Organization.objects.filter(pk=row.organization_id).values_list("name", flat=True).first()
    return Fact(
        "Organization", name or short(row.organization_id), href=url_of(Organization, row.organization_id)
    )
