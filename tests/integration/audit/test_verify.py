"""Somebody with the database's superuser password changes the ledger: verification fails and says what and
where.

Every test seals the same twelve events (seq 0 to 11, checkpoints at 4, 8 and 12) of three objects, each with
four."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import pytest
from django.db import connection, transaction

from audit import checkpoints, sealer
from audit.actions import Action
from audit.ledger import canonical
from audit.models import Event, LedgerCheckpoint
from audit.verify import Report, Tampering, verify
from kernel.ids import uuid7
from kernel.merkle import leaf_hash

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
SEED = bytes(range(32))
PUBLIC = checkpoints.public_key(SEED)

pytestmark = pytest.mark.django_db(transaction=True)


@dataclass
class Ledger:
    """A sealed ledger, its events in order, and an insider's SQL prompt."""

    organization_id: UUID
    events: list[UUID]

    def tamper(self, *statements: str, **values: object) -> None:
        """Run SQL with the guards switched off; `{3}` stands for the id of the event at seq 3."""
        tables = ("audit_event", "audit_leaf", "audit_ledgercheckpoint")
        with transaction.atomic(), connection.cursor() as cursor:
            for table in tables:
                cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER {table}_append_only")
            for statement in statements:
                text = statement.format(*(f"'{event_id}'" for event_id in self.events), **values)
                cursor.execute(text)
                assert cursor.rowcount > 0, f"changed nothing: {text}"
            for table in tables:
                cursor.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_append_only")

    def check(self, **options: object) -> Report:
        return verify(public=PUBLIC, **options)  # type: ignore[arg-type]


@pytest.fixture
def ledger(write: Callable[..., UUID], organization_id: UUID) -> Ledger:
    events = []
    for turn in range(4):
        for thing in ("a", "b", "c"):
            events.append(write(thing, reason=f"turn {turn}"))
            if len(events) % 4 == 0:
                sealer.seal(organization_id=organization_id, now=NOW, seed=SEED)
    return Ledger(organization_id, events)


def test_an_untouched_ledger_holds(ledger: Ledger, write: Callable[..., UUID]) -> None:
    write("a")
    report = ledger.check()
    assert report.holds, report.findings
    assert (report.organizations, report.events, report.unsealed, report.checkpoints) == (1, 13, 1, 3)


def test_an_empty_ledger_holds() -> None:
    assert verify(public=PUBLIC).holds


@dataclass(frozen=True)
class Case:
    """SQL of an insider; the class that must be named first, at which seq, and whether with the event's
    id."""

    statements: tuple[str, ...]
    tampering: Tampering
    seq: int | None
    event: int | None


FLIP = "UPDATE audit_event SET body = set_byte(body, 40, get_byte(body, 40) # 1) WHERE id = {5}"
CASES = {
    "one byte": Case((FLIP,), Tampering.EVENT_EDITED, 5, 5),
    "one byte under replica role": Case(
        ("ALTER TABLE audit_event DISABLE TRIGGER ALL", FLIP), Tampering.EVENT_EDITED, 5, 5
    ),
    "byte and its column hash": Case(
        (FLIP, "UPDATE audit_event SET leaf = sha256('\\x00'::bytea || body) WHERE id = {5}"),
        Tampering.EVENT_EDITED,
        5,
        5,
    ),
    "the reason's column": Case(
        ("UPDATE audit_event SET reason = 'was asked to' WHERE id = {7}",), Tampering.PROJECTION_EDITED, 7, 7
    ),
    "the actor's column": Case(
        ("UPDATE audit_event SET actor_name = 'bob' WHERE id = {7}",), Tampering.PROJECTION_EDITED, 7, 7
    ),
    "back-dating the column": Case(
        ("UPDATE audit_event SET at = at - interval '1 day' WHERE id = {0}",),
        Tampering.PROJECTION_EDITED,
        0,
        0,
    ),
    "the tenant's column": Case(
        ("UPDATE audit_event SET organization_id = gen_random_uuid() WHERE id = {2}",),
        Tampering.PROJECTION_EDITED,
        2,
        2,
    ),
    "an event removed": Case(("DELETE FROM audit_event WHERE id = {3}",), Tampering.EVENT_DELETED, 3, 3),
    "an event and its leaf removed": Case(
        ("DELETE FROM audit_event WHERE id = {3}", "DELETE FROM audit_leaf WHERE event_id = {3}"),
        Tampering.EVENT_DELETED,
        3,
        None,
    ),
    "two places swapped": Case(
        (
            "UPDATE audit_leaf SET seq = 100 WHERE event_id = {1}",
            "UPDATE audit_leaf SET seq = 1 WHERE event_id = {2}",
            "UPDATE audit_leaf SET seq = 2 WHERE event_id = {1}",
        ),
        Tampering.REORDERED,
        2,
        1,
    ),
    "two events of one object swapped": Case(
        (
            "UPDATE audit_leaf SET seq = 100 WHERE event_id = {3}",
            "UPDATE audit_leaf SET seq = 3 WHERE event_id = {6}",
            "UPDATE audit_leaf SET seq = 6 WHERE event_id = {3}",
        ),
        Tampering.REORDERED,
        3,
        6,
    ),
    "the tail cut off": Case(
        (
            "DELETE FROM audit_event WHERE id IN ({10}, {11})",
            "DELETE FROM audit_leaf WHERE event_id IN ({10}, {11})",
        ),
        Tampering.TRUNCATED,
        10,
        None,
    ),
    "the tail and its checkpoint cut off": Case(
        (
            "DELETE FROM audit_event WHERE id IN ({8}, {9}, {10}, {11})",
            "DELETE FROM audit_leaf WHERE seq >= 8",
            "DELETE FROM audit_ledgercheckpoint WHERE size = 12",
        ),
        Tampering.TRUNCATED,
        8,
        None,
    ),
    "a checkpoint's row": Case(
        ("UPDATE audit_ledgercheckpoint SET root = sha256('x') WHERE size = 8",),
        Tampering.CHECKPOINT_FORGED,
        7,
        None,
    ),
    "a checkpoint's note": Case(
        ("UPDATE audit_ledgercheckpoint SET note = replace(note, E'\\n8\\n', E'\\n9\\n') WHERE size = 8",),
        Tampering.CHECKPOINT_FORGED,
        7,
        None,
    ),
    "an event put in beside the ledger": Case(
        (
            "INSERT INTO audit_event SELECT gen_random_uuid(), organization_id, project_id, action, at,"
            " actor_type, actor_id, actor_name, object_type, 'new', 1, reason, body, leaf"
            " FROM audit_event WHERE id = {0}",
        ),
        Tampering.EVENT_INSERTED,
        None,
        None,
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_tampering_is_found_and_named(ledger: Ledger, case: Case) -> None:
    ledger.tamper(*[text for text in case.statements if "TRIGGER" not in text])
    report = ledger.check()
    assert not report.holds
    first = report.findings[0]
    assert (first.tampering, first.seq) == (case.tampering, case.seq), report.findings
    if case.event is not None:
        assert first.event_id == ledger.events[case.event]
        assert str(first.event_id) in first.sentence()
    if case.tampering is Tampering.EVENT_EDITED:
        assert first.action == Action.PROMOTION_APPROVED


def test_an_edit_that_fixes_every_hash_it_can_is_bounded_by_the_signed_roots(ledger: Ledger) -> None:
    fix = "sha256('\\x00'::bytea || body)"
    ledger.tamper(
        FLIP,
        f"UPDATE audit_event SET leaf = {fix} WHERE id = {{5}}",
        "UPDATE audit_leaf SET hash = (SELECT leaf FROM audit_event WHERE id = {5}) WHERE event_id = {5}",
    )
    kinds = {finding.tampering: finding for finding in ledger.check().findings}
    rewritten = kinds[Tampering.HISTORY_REWRITTEN]
    assert (rewritten.seq, "a leaf from 4 to 7" in rewritten.detail) == (4, True)


def test_an_event_moved_to_another_tenants_log(ledger: Ledger) -> None:
    ledger.tamper(
        "UPDATE audit_leaf SET organization_id = '{other}', seq = 0 WHERE event_id = {0}", other=uuid7()
    )
    kinds = {finding.tampering for finding in ledger.check().findings}
    assert Tampering.EVENT_MOVED in kinds


def test_an_event_removed_before_it_was_sealed(ledger: Ledger, write: Callable[..., UUID]) -> None:
    event_id = write("a")
    ledger.tamper(f"DELETE FROM audit_event WHERE id = '{event_id}'")
    (finding,) = ledger.check().findings
    assert (finding.tampering, finding.event_id) == (Tampering.EVENT_DELETED, event_id)
    # The sealer neither stumbles over the hole nor hides it.
    write("b")
    assert sealer.seal(organization_id=ledger.organization_id, now=NOW, seed=SEED) == 1
    assert ledger.check().findings == (finding,)


def test_a_checkpoint_signed_with_another_key(ledger: Ledger) -> None:
    row = LedgerCheckpoint.objects.get(size=8)
    point = checkpoints.open_note(row.note, public=PUBLIC)
    note = checkpoints.sign(point, seed=bytes(32))
    ledger.tamper("UPDATE audit_ledgercheckpoint SET note = '{note}' WHERE size = 8", note=note)
    (finding,) = ledger.check().findings
    assert finding.tampering is Tampering.CHECKPOINT_FORGED


def test_a_whole_history_rewritten_with_the_stolen_key_is_caught_by_a_checkpoint_kept_outside(
    ledger: Ledger, write: Callable[..., UUID]
) -> None:
    kept = LedgerCheckpoint.objects.get(size=12).note
    with transaction.atomic(), connection.cursor() as cursor:
        for table in ("audit_event", "audit_leaf", "audit_ledgercheckpoint", "audit_pending", "audit_head"):
            cursor.execute(f"TRUNCATE {table}")
    for _ in range(12):
        write("a", reason="nothing to see")
    sealer.seal(organization_id=ledger.organization_id, now=NOW, seed=SEED)
    assert ledger.check().holds  # alone, the database cannot know
    (finding,) = ledger.check(kept=[kept]).findings
    assert finding.tampering is Tampering.HISTORY_REWRITTEN


def test_a_kept_checkpoint_of_an_honest_ledger_holds_and_a_forged_one_does_not(ledger: Ledger) -> None:
    kept = LedgerCheckpoint.objects.get(size=8).note
    assert ledger.check(kept=[kept]).holds
    assert not ledger.check(kept=[kept.replace("\n8\n", "\n7\n")]).holds
    stranger = checkpoints.sign(checkpoints.Checkpoint("ratchet/nobody", 1, bytes(32)), seed=SEED)
    (finding,) = ledger.check(kept=[stranger]).findings
    assert "a log that is not here" in finding.detail


def test_a_well_made_event_cannot_be_slipped_into_an_objects_history(ledger: Ledger) -> None:
    body = canonical({"v": 1, "log": f"ratchet/{ledger.organization_id}", "data": {}})
    row = Event.objects.get(id=ledger.events[9])
    ledger.tamper(
        "UPDATE audit_event SET body = decode('{body}', 'base64'), leaf = decode('{leaf}', 'base64')"
        " WHERE id = {9}",
        body=base64.b64encode(body).decode(),
        leaf=base64.b64encode(leaf_hash(body)).decode(),
    )
    first = ledger.check().findings[0]
    assert (first.tampering, first.event_id) == (Tampering.EVENT_EDITED, row.id)
