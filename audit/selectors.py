"""Reading the ledger: pages of events, the history of one object, the heads of logs, as frozen rows.

Does not check anything: `audit.verify` does."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import Count, OuterRef, QuerySet, Subquery

from audit.actions import Action, Actor, ObjectRef, Related
from audit.models import Event, Head, Leaf, LedgerCheckpoint, Pending


@dataclass(frozen=True, slots=True)
class EventRow:
    """One event, as its bytes say."""

    id: UUID
    seq: int | None
    """Its place in the organization's tree; None while it is not sealed."""
    organization_id: UUID
    project_id: UUID | None
    action: Action
    at: datetime
    actor: Actor
    object: ObjectRef
    object_seq: int
    reason: str
    related: tuple[Related, ...]
    data: Mapping[str, Any]
    leaf: str
    """Leaf hash, hex."""
    body: bytes


@dataclass(frozen=True, slots=True)
class HeadRow:
    """How far an organization's ledger is sealed."""

    size: int
    root: str
    """Hex; empty when nothing is sealed yet."""
    note: str
    """The latest signed checkpoint."""
    sealed_at: datetime | None
    unsealed: int


def events_page(
    *,
    organization_ids: Sequence[UUID],
    project_id: UUID | None = None,
    actions: Sequence[Action] = (),
    before: UUID | None = None,
    limit: int = 50,
) -> list[EventRow]:
    """The newest events first, older than the event `before`, in one query."""
    events = Event.objects.filter(organization_id__in=organization_ids)
    if project_id:
        events = events.filter(project_id=project_id)
    if actions:
        events = events.filter(action__in=actions)
    if before:
        events = events.filter(id__lt=before)
    return _rows(events.order_by("-id")[:limit])


def events_of(*, type: str, id: UUID | str) -> list[EventRow]:
    """The whole history of one object, oldest first, in one query."""
    return _rows(Event.objects.filter(object_type=type, object_id=str(id)).order_by("object_seq"))


def events_of_many(objects: Sequence[tuple[str, UUID | str]]) -> dict[tuple[str, str], list[EventRow]]:
    """The histories of several objects, oldest first, in one query; objects without events are absent."""
    wanted = {(type, str(id)) for type, id in objects}
    events = Event.objects.filter(object_id__in={id for _, id in wanted}).order_by("object_seq")
    histories: dict[tuple[str, str], list[EventRow]] = {}
    for row in _rows(events):
        key = row.object.type, str(row.object.id)
        if key in wanted:
            histories.setdefault(key, []).append(row)
    return histories


def heads(organization_ids: Sequence[UUID]) -> dict[UUID, HeadRow]:
    """Of each organization's log the latest checkpoint, and how many events wait for the next, in two
    queries."""
    waiting = Pending.objects.filter(organization_id__in=organization_ids).values_list("organization_id")
    unsealed: dict[UUID, int] = dict(waiting.annotate(Count("pk")).order_by())
    # One look into the index for each log: checkpoints are many, heads are few.
    own = LedgerCheckpoint.objects.filter(organization_id=OuterRef("organization_id")).order_by("-size")
    latest = Head.objects.filter(organization_id__in=organization_ids).values_list(
        Subquery(own.values("pk")[:1])
    )
    points = {row.organization_id: row for row in LedgerCheckpoint.objects.filter(pk__in=latest)}
    return {id: _head(points.get(id), unsealed.get(id, 0)) for id in organization_ids}


def _head(latest: LedgerCheckpoint | None, unsealed: int) -> HeadRow:
    if latest is None:
        return HeadRow(0, "", "", None, unsealed)
    return HeadRow(latest.size, bytes(latest.root).hex(), latest.note, latest.created_at, unsealed)


def _rows(events: QuerySet[Event]) -> list[EventRow]:
    seq = Subquery(Leaf.objects.filter(event_id=OuterRef("id")).values("seq")[:1])
    return [_row(event, event.seq) for event in events.annotate(seq=seq)]


def _row(event: Event, seq: int | None) -> EventRow:
    body = bytes(event.body)
    content = json.loads(body)
    return EventRow(
        id=event.id,
        seq=seq,
        organization_id=event.organization_id,
        project_id=event.project_id,
        action=Action(content["action"]),
        at=event.at,
        actor=Actor(**content["actor"]),
        object=ObjectRef(**content["object"]),
        object_seq=content["object_seq"],
        reason=content.get("reason", ""),
        related=tuple(Related(**item) for item in content.get("related", ())),
        data=content["data"],
        leaf=bytes(event.leaf).hex(),
        body=body,
    )
