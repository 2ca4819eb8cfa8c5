"""The ledger in the console: events and checkpoints, to read only."""

import json

from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest
from unfold.admin import ModelAdmin

from audit.models import Event, LedgerCheckpoint


class ReadOnlyAdmin(ModelAdmin):
    """Shows rows and offers no way to add, change or remove one."""

    show_full_result_count = False  # an exact count of a large table takes longer than the page

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


@admin.register(Event)
class EventAdmin(ReadOnlyAdmin):
    list_display = ("at", "action", "actor_type", "actor_name", "object_type", "object_id", "object_seq")
    list_filter = ("action", "actor_type")
    search_fields = ("object_id", "actor_name")
    ordering = ("-id",)
    fields = ("at", "action", "actor_type", "actor_id", "actor_name", "reason", "content", "leaf_hash")

    @admin.display(description="event as sealed")
    def content(self, event: Event) -> str:
        body = bytes(event.body)
        try:
            return json.dumps(json.loads(body), indent=2, ensure_ascii=False)
        except ValueError:  # somebody edited it; the page must still open
            return repr(body)

    @admin.display(description="leaf (SHA-256)")
    def leaf_hash(self, event: Event) -> str:
        return bytes(event.leaf).hex()


@admin.register(LedgerCheckpoint)
class LedgerCheckpointAdmin(ReadOnlyAdmin):
    list_display = ("created_at", "organization_id", "size", "root_hash")
    ordering = ("-id",)
    fields = ("organization_id", "size", "root_hash", "note", "created_at")

    @admin.display(description="root (SHA-256)")
    def root_hash(self, checkpoint: LedgerCheckpoint) -> str:
        return bytes(checkpoint.root).hex()
