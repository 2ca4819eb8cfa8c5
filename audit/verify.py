"""Checking the whole ledger against itself, its signatures and checkpoints that somebody kept elsewhere.

Reads one snapshot of the database, so that writers and sealers at work are never mistaken for tampering. What
it cannot see alone: a ledger rewritten from end to end with the stolen signing key, and an old backup put
back whole. For those, give it a checkpoint that was kept outside (`kept`)."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from django.db import connection, transaction
from django.db.models import Exists, OuterRef, QuerySet

from audit import checkpoints
from audit.checkpoints import Checkpoint, CheckpointInvalid
from audit.ledger import microseconds, origin
from audit.merkle import EMPTY, Frontier
from audit.models import Event, Head, Leaf, LedgerCheckpoint, Pending
from kernel.merkle import leaf_hash

CHUNK = 2_000


class Tampering(StrEnum):
    """What was done to the ledger behind the product's back."""

    EVENT_EDITED = "event_edited"  # its bytes are not the ones that were sealed
    PROJECTION_EDITED = "projection_edited"  # a query column says something else than the bytes
    EVENT_DELETED = "event_deleted"
    EVENT_INSERTED = "event_inserted"  # never went through the ledger
    EVENT_MOVED = "event_moved"  # belongs to another organization's log
    REORDERED = "reordered"
    OBJECT_HISTORY_BROKEN = (
        "object_history_broken"  # an object's events are not 1, 2, 3, ... each naming the last
    )
    TRUNCATED = "truncated"  # fewer leaves than a checkpoint has signed
    CHECKPOINT_FORGED = "checkpoint_forged"  # its signature does not hold, or it is not what its row says
    HISTORY_REWRITTEN = "history_rewritten"  # the leaves agree with the events, and not with the signed root


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, and the first event it concerns, where there is one."""

    tampering: Tampering
    organization_id: UUID
    detail: str
    seq: int | None = None
    event_id: UUID | None = None
    action: str = ""

    def sentence(self) -> str:
        where = f" seq {self.seq}" if self.seq is not None else ""
        what = f" event {self.event_id} ({self.action or 'action unknown'})" if self.event_id else ""
        return f"{self.tampering}:{where}{what}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Report:
    """What was checked and what is wrong with it; the findings start with the earliest bad event."""

    organizations: int
    events: int
    """Events that were checked, sealed or not."""
    unsealed: int
    checkpoints: int
    findings: tuple[Finding, ...]

    @property
    def holds(self) -> bool:
        return not self.findings


def verify(*, public: bytes, kept: Sequence[str] = ()) -> Report:
    """Check every event, leaf and checkpoint of every organization.

    `public` is the raw Ed25519 key that checkpoints are signed with, `kept` are signed notes from outside.
    Must not be called inside a transaction: it opens one of its own at REPEATABLE READ.
    """
    with _one_snapshot():
        ids: set[UUID] = set()
        for table in (Event, Leaf, LedgerCheckpoint, Head, Pending):
            ids.update(table._default_manager.values_list("organization_id", flat=True).distinct())
        checks = [_Check(organization_id, public) for organization_id in sorted(ids)]
        for check in checks:
            check.run([note for note in kept if note.startswith(f"{origin(check.organization_id)}\n")])
    known = tuple(f"{origin(check.organization_id)}\n" for check in checks)
    strangers = [note for note in kept if not note.startswith(known)]
    return Report(
        organizations=len(checks),
        events=sum(check.events for check in checks),
        unsealed=sum(check.unsealed for check in checks),
        checkpoints=sum(check.checkpoints for check in checks),
        findings=(
            *(_unknown_log(note) for note in strangers),
            *(finding for check in checks for finding in sorted(check.findings, key=_earliest_first)),
        ),
    )


@contextmanager
def _one_snapshot() -> Iterator[None]:
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield


def _earliest_first(finding: Finding) -> tuple[bool, float]:
    # A wrong root only bounds the place; whatever names an event outright comes before it.
    bound = finding.tampering is Tampering.HISTORY_REWRITTEN
    return bound, float("inf") if finding.seq is None else finding.seq


def _unknown_log(note: str) -> Finding:
    name = note.partition("\n")[0]
    return Finding(
        Tampering.TRUNCATED, UUID(int=0), f"a kept checkpoint is of {name!r}, a log that is not here"
    )


class _Check:
    """The verification of one organization's log."""

    def __init__(self, organization_id: UUID, public: bytes) -> None:
        self.organization_id = organization_id
        self.public = public
        self.findings: list[Finding] = []
        self.events = self.unsealed = self.checkpoints = 0
        self._rewritten = False
        self._latest: dict[tuple[str, str], tuple[int, bytes]] = {}
        """Object -> number and leaf hash of its latest event so far."""

    def run(self, kept: Sequence[str]) -> None:
        signed = self._read_checkpoints(kept)
        size = self._check_leaves(signed)
        for checkpoint in signed:
            if checkpoint.size > size:
                self._find(
                    Tampering.TRUNCATED,
                    f"a checkpoint signs {checkpoint.size} leaves; {size} are here",
                    seq=size,
                )
                break
        self._check_unsealed()

    def _find(
        self,
        tampering: Tampering,
        detail: str,
        *,
        seq: int | None = None,
        event: Event | None = None,
        event_id: UUID | None = None,
    ) -> None:
        self.findings.append(
            Finding(
                tampering,
                self.organization_id,
                detail,
                seq,
                event.id if event else event_id,
                event.action if event else "",
            )
        )

    def _read_checkpoints(self, kept: Sequence[str]) -> list[Checkpoint]:
        """All checkpoints whose signature holds, by size."""
        signed = []
        for row in LedgerCheckpoint.objects.filter(organization_id=self.organization_id).order_by("size"):
            self.checkpoints += 1
            try:
                checkpoint = checkpoints.open_note(row.note, public=self.public)
            except CheckpointInvalid as error:
                self._find(
                    Tampering.CHECKPOINT_FORGED, f"checkpoint at size {row.size}: {error}", seq=row.size - 1
                )
                continue
            if checkpoint != Checkpoint(origin(self.organization_id), row.size, bytes(row.root)):
                self._find(
                    Tampering.CHECKPOINT_FORGED,
                    f"the row at size {row.size} is not what its note says",
                    seq=row.size - 1,
                )
            signed.append(checkpoint)
        for note in kept:
            try:
                signed.append(checkpoints.open_note(note, public=self.public))
            except CheckpointInvalid as error:
                self._find(Tampering.CHECKPOINT_FORGED, f"a kept checkpoint: {error}")
        return sorted(signed, key=lambda checkpoint: checkpoint.size)

    def _check_leaves(self, signed: Sequence[Checkpoint]) -> int:
        """Walk the tree from leaf 0, comparing its root at every signed size; returns how many leaves there
        are."""
        frontier, verified, row_id = EMPTY, 0, 0
        waiting = list(reversed(signed))
        leaves = Leaf.objects.filter(organization_id=self.organization_id).order_by("seq")
        for chunk in _chunks(leaves):
            events = Event.objects.in_bulk([leaf.event_id for leaf in chunk])
            for leaf in chunk:
                if leaf.seq != frontier.size:
                    self._find(
                        Tampering.EVENT_DELETED,
                        f"no leaf {frontier.size} before {leaf.seq}",
                        seq=frontier.size,
                    )
                    return int(leaves.count())  # what follows has shifted: no root can hold
                if leaf.id < row_id:
                    self._find(
                        Tampering.REORDERED,
                        "was sealed before its neighbour",
                        seq=leaf.seq,
                        event_id=leaf.event_id,
                    )
                row_id = leaf.id
                self._check_leaf(leaf, events.get(leaf.event_id))
                frontier = frontier.extend([bytes(leaf.hash)])
                while waiting and waiting[-1].size <= frontier.size:
                    checkpoint = waiting.pop()
                    if checkpoint.root == frontier.root():
                        verified = checkpoint.size
                    else:
                        self._find_rewritten(verified, checkpoint.size)
                        waiting.clear()  # every later root is wrong for the same reason
        self._check_head(frontier, signed)
        return frontier.size

    def _check_leaf(self, leaf: Leaf, event: Event | None) -> None:
        if event is None:
            self._find(Tampering.EVENT_DELETED, "sealed, and gone", seq=leaf.seq, event_id=leaf.event_id)
            return
        self._check_event(event, bytes(leaf.hash), seq=leaf.seq)

    def _check_event(self, event: Event, leaf: bytes, *, seq: int | None) -> None:
        self.events += 1
        body = bytes(event.body)
        if not leaf_hash(body) == leaf == bytes(event.leaf):
            self._find(Tampering.EVENT_EDITED, "its bytes do not hash to its leaf", seq=seq, event=event)
            self._latest[event.object_type, event.object_id] = event.object_seq, leaf
            return
        content = _read(body)
        if content is None:
            self._find(Tampering.EVENT_EDITED, "its bytes are not an event", seq=seq, event=event)
            return
        if content["log"] != origin(self.organization_id):
            self._find(Tampering.EVENT_MOVED, f"was written to {content['log']}", seq=seq, event=event)
            return
        wrong = [name for name, held in _projection(event).items() if held != _repeated(content, name)]
        if wrong:
            self._find(
                Tampering.PROJECTION_EDITED, f"{', '.join(wrong)} differ from its bytes", seq=seq, event=event
            )
        self._check_history(event, content, leaf, seq=seq)

    def _check_history(self, event: Event, content: dict[str, Any], leaf: bytes, *, seq: int | None) -> None:
        thing = content["object"]["type"], content["object"]["id"]
        number, previous = self._latest.get(thing, (0, b""))
        if content["object_seq"] != number + 1:
            # Something is out of place or missing; which of the two, the missing number tells.
            missing = Event.objects.filter(
                organization_id=self.organization_id,
                object_type=thing[0],
                object_id=thing[1],
                object_seq=number + 1,
            ).exists()
            kind = Tampering.REORDERED if missing else Tampering.OBJECT_HISTORY_BROKEN
            detail = f"event {content['object_seq']} of {thing[0]} {thing[1]} follows its event {number}"
            self._find(kind, detail, seq=seq, event=event)
        elif content.get("object_prev", "") != previous.hex():
            detail = f"the event of {thing[0]} {thing[1]} before it is not the one it names"
            self._find(Tampering.OBJECT_HISTORY_BROKEN, detail, seq=seq, event=event)
        self._latest[thing] = content["object_seq"], leaf

    def _check_head(self, frontier: Frontier, signed: Sequence[Checkpoint]) -> None:
        head = Head.objects.filter(organization_id=self.organization_id).first()
        held = (head.size, bytes(head.frontier)) if head else (0, b"")
        if held[0] > frontier.size:
            self._find(
                Tampering.TRUNCATED,
                f"the head counts {held[0]} leaves; {frontier.size} are here",
                seq=frontier.size,
            )
        elif held != (frontier.size, frontier.to_bytes()) and not self._rewritten:
            self._find(
                Tampering.HISTORY_REWRITTEN, "the head row is not the head of the leaves", seq=frontier.size
            )
        if frontier.size > max((checkpoint.size for checkpoint in signed), default=0):
            self._find(
                Tampering.EVENT_INSERTED, "leaves past the last signed checkpoint", seq=frontier.size - 1
            )

    def _find_rewritten(self, verified: int, size: int) -> None:
        self._rewritten = True
        leaf = Leaf.objects.filter(organization_id=self.organization_id, seq=verified).first()
        event = Event.objects.filter(id=leaf.event_id).first() if leaf else None
        detail = (
            f"the root at size {size} is not the signed one: a leaf from {verified} to {size - 1} was changed"
        )
        self._find(Tampering.HISTORY_REWRITTEN, detail, seq=verified, event=event)

    def _check_unsealed(self) -> None:
        pending = Pending.objects.filter(organization_id=self.organization_id).order_by("id")
        for chunk in _chunks(pending):
            events = Event.objects.in_bulk([row.event_id for row in chunk])
            for row in chunk:
                self.unsealed += 1
                event = events.get(row.event_id)
                if event is None:
                    self._find(Tampering.EVENT_DELETED, "removed before it was sealed", event_id=row.event_id)
                else:
                    self._check_event(event, bytes(event.leaf), seq=None)
        strangers = Event.objects.filter(
            ~Exists(Leaf.objects.filter(event_id=OuterRef("id"))),
            ~Exists(Pending.objects.filter(event_id=OuterRef("id"))),
            organization_id=self.organization_id,
        )
        for event in strangers.order_by("id"):
            self._find(Tampering.EVENT_INSERTED, "neither sealed nor waiting to be", event=event)


def _chunks(rows: QuerySet[Any]) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for row in rows.iterator(chunk_size=CHUNK):
        chunk.append(row)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _read(body: bytes) -> dict[str, Any] | None:
    """The members of an event; None when the bytes cannot have been written by `audit.ledger`."""
    try:
        content = json.loads(body)
        whole = {"id", "log", "action", "t", "actor", "object", "object_seq"} <= content.keys()
        whole = whole and {"type", "id"} <= content["actor"].keys() & content["object"].keys()
    except (ValueError, TypeError, AttributeError):
        return None
    return content if whole else None


def _projection(event: Event) -> dict[str, object]:
    """The query columns in the form of the body's members, by a path into the body."""
    return {
        "id": str(event.id),
        "log": origin(event.organization_id),
        "project": str(event.project_id) if event.project_id else "",
        "action": event.action,
        "t": microseconds(event.at),
        "actor.type": event.actor_type,
        "actor.id": event.actor_id,
        "actor.name": event.actor_name,
        "object.type": event.object_type,
        "object.id": event.object_id,
        "object_seq": event.object_seq,
        "reason": event.reason,
    }


def _repeated(content: dict[str, Any], path: str) -> object:
    value: Any = content
    for name in path.split("."):
        value = value.get(name, "")
    return value
