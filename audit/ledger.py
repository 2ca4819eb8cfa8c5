"""Writing to the ledger: one event, inside the transaction of the change it describes.

An event, version 1, is canonical JSON (RFC 8785) with these members, absent when they would be empty except
where said:

    v            1
    id           UUIDv7 of the event
    log          origin of the organization's log; binds the event to its tenant
    project      project id
    action, av   noun.verbed, and the version of that action's `data`
    t            when, in microseconds since 1970 (UTC)
    actor        {type, id, name?, role?}
    object       {type, id, digest?}
    object_seq   which event of that object this is, from 1
    object_prev  hex leaf hash of the object's event before it
    related      [{rel, type, id, digest?}]
    reason       what the person gave as reason
    data         {...}, always there
    cause        ids of the events that led to this one

Does not sequence or sign: `audit.sealer` does, after the commit, so that no business transaction waits for
another."""

import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import rfc8785
from django.db import transaction

from audit.actions import JSON, Action, Actor, ObjectRef, Related
from audit.models import Event, Pending
from kernel.ids import uuid7
from kernel.merkle import leaf_hash

MAX_EVENT_BYTES = 65_535
"""C2SP tile bundles write an entry's length in 16 bits; an event holds digests, not payloads."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class NotInTransaction(RuntimeError):
    """An event was recorded outside the transaction of the change it describes."""


class EventRefused(ValueError):
    """The event cannot be written in one way only, or is too large."""


def origin(organization_id: UUID) -> str:
    """The name of an organization's log: first line of its checkpoints, and inside each of its events."""
    return f"ratchet/{organization_id}"


def microseconds(at: datetime) -> int:
    """Exact microseconds since 1970; a float of seconds would lose the last digit."""
    return (at - _EPOCH) // timedelta(microseconds=1)


def record(
    action: Action,
    *,
    actor: Actor,
    organization_id: UUID,
    project_id: UUID | None,
    obj: ObjectRef,
    at: datetime,
    reason: str = "",
    related: Sequence[Related] = (),
    data: Mapping[str, JSON] | None = None,
    cause: Sequence[UUID] = (),
) -> UUID:
    """Add one event to the organization's ledger and return its id; it commits or rolls back with the change.

    The caller holds a lock on the object's row, or creates it: two writers of one object's history would
    collide.

    Raises NotInTransaction, and EventRefused for a float, an integer past 2**53 or more than MAX_EVENT_BYTES.
    """
    if not transaction.get_connection().in_atomic_block:
        raise NotInTransaction(f"{action} must be recorded inside the transaction of its change")
    event_id, object_id, reason = uuid7(), str(obj.id), unicodedata.normalize("NFC", reason)
    previous = (
        Event.objects.filter(organization_id=organization_id, object_type=obj.type, object_id=object_id)
        .order_by("-object_seq")
        .values_list("object_seq", "leaf")
        .first()
    )
    object_seq = previous[0] + 1 if previous else 1
    body = canonical(
        {
            "v": 1,
            "id": str(event_id),
            "log": origin(organization_id),
            **_present("project", str(project_id) if project_id else ""),
            "action": action.value,
            "av": 1,
            "t": microseconds(at),
            "actor": {
                "type": actor.type,
                "id": actor.id,
                **_present("name", actor.name),
                **_present("role", actor.role),
            },
            "object": {"type": obj.type, "id": object_id, **_present("digest", obj.digest)},
            "object_seq": object_seq,
            **_present("object_prev", bytes(previous[1]).hex() if previous else ""),
            **_present("related", [_related(item) for item in related]),
            **_present("reason", reason),
            "data": data or {},
            **_present("cause", [str(item) for item in cause]),
        }
    )
    Event.objects.create(
        id=event_id,
        organization_id=organization_id,
        project_id=project_id,
        action=action.value,
        at=at,
        actor_type=actor.type,
        actor_id=actor.id,
        actor_name=actor.name,
        object_type=obj.type,
        object_id=object_id,
        object_seq=object_seq,
        reason=reason,
        body=body,
        leaf=leaf_hash(body),
    )
    Pending.objects.create(organization_id=organization_id, event_id=event_id)
    return event_id


def canonical(value: JSON) -> bytes:
    """The one way to write `value`, RFC 8785 without floats. Raises EventRefused."""
    _refuse_floats(value)
    try:
        body = rfc8785.dumps(value)
    except rfc8785.CanonicalizationError as error:
        raise EventRefused(str(error)) from error
    if len(body) > MAX_EVENT_BYTES:
        raise EventRefused(f"an event of {len(body)} bytes; the most is {MAX_EVENT_BYTES}")
    return body


def _refuse_floats(value: JSON | float) -> None:
    if isinstance(value, float):
        raise EventRefused(f"{value!r} is a float: write it as a decimal string or a scaled integer")
    if isinstance(value, Mapping):
        for item in value.values():
            _refuse_floats(item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            _refuse_floats(item)


def _present(name: str, value: JSON) -> dict[str, JSON]:
    return {name: value} if value else {}


def _related(item: Related) -> dict[str, JSON]:
    return {"rel": item.rel, "type": item.type, "id": str(item.id), **_present("digest", item.digest)}
