"""Tables of the ledger. Plain ids and no foreign keys: an event outlives what it speaks of.

Events, leaves and checkpoints are insert-only (`audit.guards`). That is a guard rail against mistakes; the
evidence is the signed checkpoint that somebody else keeps."""

from django.db import models
from django.db.models import Q

from kernel.ids import uuid7


class Event(models.Model):
    """One thing that happened. `body` is what is hashed; the other columns repeat parts of it for queries."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    organization_id = models.UUIDField()
    project_id = models.UUIDField(null=True)
    action = models.CharField(max_length=60)
    at = models.DateTimeField()
    actor_type = models.CharField(max_length=20)
    actor_id = models.CharField(max_length=200)
    actor_name = models.CharField(max_length=200, blank=True)
    object_type = models.CharField(max_length=60)
    object_id = models.CharField(max_length=200)
    object_seq = models.PositiveIntegerField()
    """1 for the object's first event, without a gap: shows that the history of one object is complete."""
    reason = models.TextField(blank=True)
    body = models.BinaryField()
    """The event itself: canonical JSON (RFC 8785) of the shape in `audit.ledger`."""
    leaf = models.BinaryField(max_length=32)
    """SHA-256(0x00 || body)."""

    class Meta:
        constraints = [
            # Two transactions that both think they write the object's next event collide here, loudly.
            models.UniqueConstraint(
                name="object_history_unique",
                fields=["organization_id", "object_type", "object_id", "object_seq"],
            ),
            models.CheckConstraint(name="object_seq_from_one", condition=Q(object_seq__gte=1)),
        ]
        indexes = [
            models.Index(fields=["organization_id", "-id"]),
            models.Index(fields=["project_id", "-id"]),
            models.Index(fields=["object_type", "object_id", "object_seq"]),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.object_type} {self.object_id}"


class Pending(models.Model):
    """An event that has no place in the tree yet. Ids grow within a transaction and along one object's
    history."""

    id = models.BigAutoField(primary_key=True)
    organization_id = models.UUIDField(db_index=True)
    event_id = models.UUIDField(unique=True)


class Leaf(models.Model):
    """The place of an event in its organization's tree."""

    id = models.BigAutoField(primary_key=True)
    organization_id = models.UUIDField()
    seq = models.BigIntegerField()
    """From 0, without a gap."""
    event_id = models.UUIDField(unique=True)
    hash = models.BinaryField(max_length=32)

    class Meta:
        constraints = [models.UniqueConstraint(name="leaf_seq_unique", fields=["organization_id", "seq"])]


class Head(models.Model):
    """The tree as it stands: whoever holds this row's lock is the organization's sealer."""

    organization_id = models.UUIDField(primary_key=True)
    size = models.BigIntegerField(default=0)
    frontier = models.BinaryField(default=b"")
    """Roots of the full subtrees, largest first, 32 bytes each: all that is needed to extend the tree."""
    updated_at = models.DateTimeField()


class LedgerCheckpoint(models.Model):
    """A signed statement of the tree's size and root, in C2SP's checkpoint format."""

    id = models.BigAutoField(primary_key=True)
    organization_id = models.UUIDField()
    size = models.BigIntegerField()
    root = models.BinaryField(max_length=32)
    note = models.TextField()
    created_at = models.DateTimeField()

    class Meta:
        # Two roots at one size would be two histories.
        constraints = [
            models.UniqueConstraint(name="checkpoint_size_unique", fields=["organization_id", "size"])
        ]

    def __str__(self) -> str:
        return f"{self.organization_id} at {self.size}"
