"""Giving committed events their place in the tree and signing the result.

Works from the pending rows, not from "ids after the last one seen": a transaction that began early and
committed late is therefore never passed over. The lock on the head row makes one sealer at a time of each
organization; any number of sealers may run. Does not look at what events say."""

from datetime import datetime
from uuid import UUID

from django.conf import settings
from django.db import transaction

from audit import checkpoints
from audit.checkpoints import Checkpoint
from audit.ledger import origin
from audit.merkle import Frontier
from audit.models import Event, Head, Leaf, LedgerCheckpoint, Pending

BATCH = 5_000
"""Events under one checkpoint at most, so that one transaction stays small."""


def seal_due(*, now: datetime) -> int:
    """Seal what is pending in every organization that no other sealer is busy with; the number of events
    sealed."""
    due = Pending.objects.order_by("organization_id").values_list("organization_id", flat=True).distinct()
    return sum(seal(organization_id=item, now=now, seed=settings.KEYRING.ledger_seed) for item in list(due))


def seal(*, organization_id: UUID, now: datetime, seed: bytes) -> int:
    """Seal all that is pending in one organization, in batches; 0 when another sealer is at it.

    `seed` is the Ed25519 seed (32 bytes) that signs.
    """
    sealed = 0
    while batch := _seal_batch(organization_id=organization_id, now=now, seed=seed):
        sealed += batch
    return sealed


@transaction.atomic
def _seal_batch(*, organization_id: UUID, now: datetime, seed: bytes) -> int:
    Head.objects.bulk_create([Head(organization_id=organization_id, updated_at=now)], ignore_conflicts=True)
    head = Head.objects.select_for_update(skip_locked=True).filter(organization_id=organization_id).first()
    if head is None:
        return 0
    pending = list(Pending.objects.filter(organization_id=organization_id).order_by("id")[:BATCH])
    if not pending:
        return 0
    hashes = {
        event_id: bytes(leaf)
        for event_id, leaf in Event.objects.filter(id__in=[row.event_id for row in pending]).values_list(
            "id", "leaf"
        )
    }
    frontier = Frontier.from_bytes(head.size, bytes(head.frontier))
    # An event that was removed before it was sealed keeps its pending row: `audit.verify` reports it.
    rows = [row for row in pending if row.event_id in hashes]
    if not rows:
        return 0
    leaves = [
        Leaf(organization_id=organization_id, seq=seq, event_id=row.event_id, hash=hashes[row.event_id])
        for seq, row in enumerate(rows, start=head.size)
    ]
    frontier = frontier.extend(hashes[row.event_id] for row in rows)
    checkpoint = Checkpoint(origin(organization_id), frontier.size, frontier.root())
    Leaf.objects.bulk_create(leaves)
    LedgerCheckpoint.objects.create(
        organization_id=organization_id,
        size=checkpoint.size,
        root=checkpoint.root,
        note=checkpoints.sign(checkpoint, seed=seed),
        created_at=now,
    )
    Head.objects.filter(organization_id=organization_id).update(
        size=frontier.size, frontier=frontier.to_bytes(), updated_at=now
    )
    Pending.objects.filter(id__in=[row.id for row in rows]).delete()
    return len(rows)
