"""Writing events: in the business transaction or not at all, in one canonical form, never changed again."""

import hashlib
import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

import pytest
from django.db import Error, IntegrityError, connection, transaction

from audit import ledger, selectors
from audit.actions import Action, Actor, ObjectRef
from audit.models import Event, Pending

NOW = datetime(2026, 11, 21, 9, 30, 0, 123456, tzinfo=UTC)
Write = Callable[..., UUID]


@pytest.mark.django_db
def test_an_event_says_what_was_recorded(write: Write, organization_id: UUID) -> None:
    event_id = write("p1", reason="Größe geprüft")
    (row,) = selectors.events_of(type="promotion", id="p1")
    assert row.id == event_id
    assert (row.action, row.reason, row.seq, row.object_seq) == (
        Action.PROMOTION_APPROVED,
        "Größe geprüft",
        None,
        1,
    )
    assert row.actor == Actor.user(id=7, name="ann", role="approver")
    assert row.data == {"n": 1, "score": "0.78"}
    content = json.loads(row.body)
    assert content["t"] == 1795253400123456
    assert content["log"] == f"ratchet/{organization_id}"
    assert row.leaf == hashlib.sha256(b"\x00" + row.body).hexdigest()
    assert Pending.objects.filter(event_id=event_id, organization_id=organization_id).count() == 1


@pytest.mark.django_db
def test_an_objects_events_are_numbered_and_name_the_one_before(write: Write) -> None:
    for _ in range(3):
        write("p1")
        write("p2")
    rows = selectors.events_of(type="promotion", id="p1")
    assert [row.object_seq for row in rows] == [1, 2, 3]
    contents = [json.loads(row.body) for row in rows]
    assert "object_prev" not in contents[0]
    assert [content["object_prev"] for content in contents[1:]] == [row.leaf for row in rows[:-1]]


@pytest.mark.django_db(transaction=True)
def test_no_event_outside_a_transaction(organization_id: UUID) -> None:
    def record() -> UUID:
        return ledger.record(
            Action.CAPTURE_LOST,
            actor=Actor.service("gateway"),
            organization_id=organization_id,
            project_id=None,
            obj=ObjectRef("spool", "a"),
            at=NOW,
        )

    with pytest.raises(ledger.NotInTransaction):
        record()
    with transaction.atomic():
        record()
    assert Event.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_an_event_goes_when_its_change_rolls_back(write: Write) -> None:
    with transaction.atomic():
        write()
        transaction.set_rollback(True)
    assert Event.objects.count() == Pending.objects.count() == 0


@pytest.mark.django_db
@pytest.mark.parametrize("value", [0.5, [1.0], {"a": {"b": 2.0}}, 2**53, "\ud800", "x" * 70_000])
def test_what_cannot_be_written_in_one_way_is_refused(organization_id: UUID, value: object) -> None:
    with pytest.raises(ledger.EventRefused), transaction.atomic():
        ledger.record(
            Action.CAPTURE_LOST,
            actor=Actor.service("gateway"),
            organization_id=organization_id,
            project_id=None,
            obj=ObjectRef("spool", "a"),
            at=NOW,
            data={"value": value},  # type: ignore[dict-item]
        )
    assert Event.objects.count() == 0


@pytest.mark.django_db
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_event SET reason = 'better'",
        "DELETE FROM audit_event",
        "SET LOCAL session_replication_role = replica; DELETE FROM audit_event",
    ],
)
def test_events_can_be_neither_changed_nor_removed(write: Write, statement: str) -> None:
    write()
    with pytest.raises(Error, match="append-only"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)
    assert Event.objects.get().reason == "because"


@pytest.mark.django_db
def test_the_guards_stand_on_all_three_tables() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT tgrelid::regclass::text, tgname, tgenabled FROM pg_trigger"
            " WHERE tgname LIKE 'audit_%' AND NOT tgisinternal"
        )
        triggers = {
            (table, name.removeprefix(f"{table}_")): enabled for table, name, enabled in cursor.fetchall()
        }
    for table in ("audit_event", "audit_leaf", "audit_ledgercheckpoint"):
        assert triggers[table, "append_only"] == "A"
        assert (
            table,
            "no_truncate",
        ) in triggers  # switched off by tests/conftest.py, which must empty tables


@pytest.mark.django_db(transaction=True)
def test_two_writers_of_one_object_without_its_lock_collide_loudly(write: Write) -> None:
    write()
    outcomes: list[str] = []
    with transaction.atomic():
        write()
        other = threading.Thread(target=lambda: outcomes.append(_try(write)))
        other.start()
        # The other one has read number 1 as the latest, and waits on the unique index for us to decide.
        _wait_for_blocked()
    other.join()
    assert outcomes == ["collided"]
    assert [row.object_seq for row in selectors.events_of(type="promotion", id="t1")] == [1, 2]


def _try(write: Write) -> str:
    try:
        write()
    except IntegrityError:
        return "collided"
    finally:
        connection.close()
    return "written"


def _wait_for_blocked() -> None:
    with connection.cursor() as cursor:
        for _ in range(1000):
            cursor.execute("SELECT pg_sleep(0.01), count(*) FROM pg_locks WHERE NOT granted")
            if cursor.fetchone()[1]:
                return
    raise AssertionError("the other writer never waited")
