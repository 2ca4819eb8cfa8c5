"""Sealing: a place for each event, in business order, once; and no false alarm while many write and seal."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

import pytest
from django.conf import settings
from django.db import connection, transaction
from pytest_django import DjangoAssertNumQueries

from audit import checkpoints, ledger, sealer, selectors
from audit.actions import Action, Actor, ObjectRef
from audit.merkle import inclusion_proof, verify_inclusion
from audit.models import Leaf, LedgerCheckpoint, Pending
from audit.verify import verify
from kernel.ids import uuid7
from kernel.merkle import root

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
SEED = bytes(range(32))
PUBLIC = checkpoints.public_key(SEED)

pytestmark = pytest.mark.django_db(transaction=True)


def test_sealing_gives_places_and_a_signed_root(write: Callable[..., UUID], organization_id: UUID) -> None:
    events = [write(thing) for thing in ("a", "b", "a")]
    assert sealer.seal(organization_id=organization_id, now=NOW, seed=SEED) == 3
    leaves = list(Leaf.objects.order_by("seq"))
    assert [(leaf.seq, leaf.event_id) for leaf in leaves] == list(enumerate(events))
    assert Pending.objects.count() == 0
    hashes = [bytes(leaf.hash) for leaf in leaves]
    head = selectors.heads([organization_id])[organization_id]
    assert (head.size, head.root, head.unsealed) == (3, root(hashes).hex(), 0)
    point = checkpoints.open_note(head.note, public=PUBLIC)
    assert (point.origin, point.size, point.root) == (f"ratchet/{organization_id}", 3, root(hashes))
    proof = inclusion_proof(hashes, 1)
    assert verify_inclusion(hashes[1], index=1, size=3, proof=proof, root=point.root)


def test_heads_of_many_logs_take_two_queries(
    write: Callable[..., UUID],
    organization_id: UUID,
    monkeypatch: pytest.MonkeyPatch,
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    monkeypatch.setattr(sealer, "BATCH", 2)
    for _ in range(3):
        write()
    sealer.seal(organization_id=organization_id, now=NOW, seed=SEED)
    write()
    never = uuid7()
    with django_assert_num_queries(2):
        heads = selectors.heads([organization_id, never])
    assert [(heads[id].size, heads[id].unsealed) for id in (organization_id, never)] == [(3, 1), (0, 0)]
    assert heads[never] == selectors.HeadRow(0, "", "", None, 0)


def test_nothing_to_seal_makes_no_checkpoint(write: Callable[..., UUID], organization_id: UUID) -> None:
    assert sealer.seal_due(now=NOW) == 0
    write()
    assert sealer.seal_due(now=NOW) == 1
    assert sealer.seal_due(now=NOW) == 0
    note = LedgerCheckpoint.objects.get().note
    assert checkpoints.open_note(note, public=checkpoints.public_key(settings.KEYRING.ledger_seed)).size == 1


def test_batches_continue_one_tree(
    write: Callable[..., UUID], organization_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealer, "BATCH", 3)
    for _ in range(8):
        write()
    assert sealer.seal(organization_id=organization_id, now=NOW, seed=SEED) == 8
    assert list(LedgerCheckpoint.objects.order_by("size").values_list("size", flat=True)) == [3, 6, 8]
    assert verify(public=PUBLIC).holds


def test_a_second_sealer_passes_by(write: Callable[..., UUID], organization_id: UUID) -> None:
    write()
    sealer.seal(organization_id=organization_id, now=NOW, seed=SEED)
    write()
    counts: list[int] = []

    def seal() -> None:
        counts.append(sealer.seal(organization_id=organization_id, now=NOW, seed=SEED))
        connection.close()

    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM audit_head WHERE organization_id = %s FOR UPDATE", [organization_id])
        other = threading.Thread(target=seal)
        other.start()
        other.join(timeout=10)
    assert counts == [0]
    assert sealer.seal(organization_id=organization_id, now=NOW, seed=SEED) == 1


def test_a_transaction_that_began_first_and_committed_last_is_not_passed_over(
    write: Callable[..., UUID], organization_id: UUID
) -> None:
    wrote, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        with transaction.atomic():
            write("slow")
            wrote.set()
            go_on.wait(timeout=10)
        connection.close()

    late = threading.Thread(target=slow)
    late.start()
    assert wrote.wait(timeout=10)
    write("quick")
    assert sealer.seal(organization_id=organization_id, now=NOW, seed=SEED) == 1
    go_on.set()
    late.join(timeout=10)
    assert sealer.seal(organization_id=organization_id, now=NOW, seed=SEED) == 1
    assert verify(public=PUBLIC).holds


def test_no_false_alarm_while_many_write_and_seal() -> None:
    tenants = [uuid7(), uuid7()]
    writers_done = threading.Event()
    reports, problems = [], []

    def guarded(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except Exception as error:
                problems.append(error)
            finally:
                connection.close()

        return run

    def writer(number: int) -> Callable[[], None]:
        def work() -> None:
            for turn in range(60):
                with transaction.atomic():
                    for _ in range(1 + turn % 3):
                        ledger.record(
                            Action.CAPTURE_LOST,
                            actor=Actor.service("gateway"),
                            organization_id=tenants[turn % 2],
                            project_id=None,
                            obj=ObjectRef("spool", f"{number}-{turn % 4}"),
                            at=datetime.now(UTC),
                            data={"turn": turn},
                        )
                    if turn % 10 == 9:
                        transaction.set_rollback(True)

        return work

    def seal() -> None:
        while not writers_done.is_set():
            for tenant in tenants:
                sealer.seal(organization_id=tenant, now=datetime.now(UTC), seed=SEED)

    def check() -> None:
        while not writers_done.is_set():
            reports.append(verify(public=PUBLIC))

    writers = [threading.Thread(target=guarded(writer(number))) for number in range(6)]
    others = [threading.Thread(target=guarded(work)) for work in (seal, seal, check)]
    for thread in writers + others:
        thread.start()
    for thread in writers:
        thread.join(timeout=60)
    writers_done.set()
    for thread in others:
        thread.join(timeout=60)
    for tenant in tenants:
        sealer.seal(organization_id=tenant, now=NOW, seed=SEED)
    reports.append(verify(public=PUBLIC))
    assert problems == []
    assert [report.findings for report in reports if not report.holds] == []
    assert reports[-1].unsealed == 0
    assert reports[-1].events == sum(1 + turn % 3 for turn in range(60) if turn % 10 != 9) * 6
