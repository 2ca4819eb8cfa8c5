"""From a real spool into PostgreSQL: exactly once, whatever is killed when, and every loss a row."""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import pytest
from django.db import connection

from audit.models import Event
from kernel import clock
from kernel.ids import uuid7
from telemetry import ingest, selectors, signals
from telemetry.bodies import bodies_of
from telemetry.ingest import Ingester
from telemetry.models import Call, CallBody, CaptureLoss, Signal, SpoolPosition
from telemetry.records import BeginRecord, EndRecord, Served, SignalRecord
from telemetry.shedding import Level
from telemetry.spool import MAX_PENDING_LOSSES, Spool, SpoolFull, segments

BEGAN_AT = 1_795_262_400_000_000
KIB = b"x" * 1024


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def spool(folder: Path) -> Iterator[Spool]:
    made = Spool(folder, "gateway")
    yield made
    if not made._is_closed:
        made.close()


def begin(tenant: Any, **changes: Any) -> BeginRecord:
    values: dict[str, Any] = {
        "call_id": uuid7(),
        "project_id": tenant.project.id,
        "api_key_id": tenant.key.id,
        "started_at": BEGAN_AT,
        "dialect": "chat",
        "method": "POST",
        "path": "/v1/chat/completions",
        "model_requested": "gpt-4o",
        "prefix_hash": b"p" * 32,
        "parent_hashes": (b"a" * 32, b"b" * 32),
        "request": b'{"model": "gpt-4o"}',
    }
    return BeginRecord(**values | changes)


def end(call_id: UUID, **changes: Any) -> EndRecord:
    values: dict[str, Any] = {
        "call_id": call_id,
        "outcome": "complete",
        "status_code": 200,
        "prompt_tokens": 12,
        "echo_hash": b"e" * 32,
        "ended_at": BEGAN_AT + 400_000,
        "response": b'{"choices": []}',
        "response_type": "application/json",
    }
    return EndRecord(**values | changes)


def relay(spool: Spool, tenant: Any, **changes: Any) -> UUID:
    """A whole call, as a gateway writes it."""
    record = begin(tenant, **changes)
    spool.append(record)
    spool.append(end(record.call_id))
    return record.call_id


def relay_or_lose(spool: Spool, tenant: Any) -> UUID | None:
    """A whole call of which a full spool takes nothing."""
    record = begin(tenant)
    for part in (record, end(record.call_id)):
        try:
            spool.append(part)
        except SpoolFull:
            continue
        return record.call_id
    return None


def rate(tenant: Any, **changes: Any) -> SignalRecord:
    values: dict[str, Any] = {
        "signal_id": uuid7(),
        "project_id": tenant.project.id,
        "api_key_id": tenant.key.id,
        "target_type": "call_id",
        "target": "x",
        "name": "resolved",
        "value": True,
        "observed_at": BEGAN_AT,
        "received_at": BEGAN_AT,
    }
    return SignalRecord(**values | changes)


def test_a_call_and_its_signal_arrive_as_they_were_written(spool, folder, tenant, now):
    call_id = relay(spool, tenant)
    spool.append(rate(tenant, target=str(call_id), value={"content": "as it should be"}))

    assert Ingester(folder).ingest_once(now=now) == 3

    call = Call.objects.get()
    assert (call.id, call.project_id, call.outcome, call.sequence) == (
        call_id,
        tenant.project.id,
        "complete",
        0,
    )
    assert [bytes(parent) for parent in call.parent_hashes] == [b"a" * 32, b"b" * 32]
    assert call.ended_at - call.started_at == timedelta(milliseconds=400)
    body = bodies_of(tenant.project.id, [call_id])[call_id]
    assert body.request == b'{"model": "gpt-4o"}'
    assert (body.response, body.response_type) == (b'{"choices": []}', "application/json")
    signal = Signal.objects.get()
    assert signal.value == {"content": "as it should be"}
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp() - %s BETWEEN '0 s' AND '1 min'", [signal.stored_at])
        assert cursor.fetchone() == (True,)  # by the database's clock, whatever the gateway's was


def test_a_call_appears_when_it_has_ended(spool, folder, tenant, now):
    open_call, ended_call = begin(tenant), begin(tenant)
    spool.append(open_call)
    spool.append(ended_call)
    spool.append(end(ended_call.call_id))
    ingester = Ingester(folder)
    ingester.ingest_once(now=now)
    assert list(Call.objects.values_list("id", flat=True)) == [ended_call.call_id]

    spool.append(end(open_call.call_id))
    ingester.ingest_once(now=now)
    assert Call.objects.count() == 2


def test_a_restart_at_any_point_neither_loses_nor_doubles(spool, folder, tenant, now, monkeypatch):
    monkeypatch.setattr(ingest, "CHUNK_RECORDS", 3)
    calls = [begin(tenant) for _ in range(8)]
    for first, second in zip(calls[::2], calls[1::2], strict=True):  # begins and ends interleave
        spool.append(first)
        spool.append(second)
        spool.append(end(second.call_id))
        spool.append(rate(tenant, target=str(second.call_id)))
        Ingester(folder).ingest_once(now=now)  # a new process each time: nothing is remembered
    for first in calls[::2]:
        spool.append(end(first.call_id))
        Ingester(folder).ingest_once(now=now)
        Ingester(folder).ingest_once(now=now)

    assert set(Call.objects.values_list("id", flat=True)) == {call.call_id for call in calls}
    assert (CallBody.objects.count(), Signal.objects.count(), CaptureLoss.objects.count()) == (8, 4, 0)


def test_a_crash_before_the_commit_leaves_nothing_and_loses_nothing(spool, folder, tenant, now, monkeypatch):
    call_id = relay(spool, tenant)

    def crash(**_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(
            SpoolPosition.objects, "update_or_create", crash
        )  # rows are copied, the position is not
        with pytest.raises(KeyboardInterrupt):
            Ingester(folder).ingest_once(now=now)
    assert not Call.objects.exists()

    Ingester(folder).ingest_once(now=now)
    assert [call.id for call in Call.objects.all()] == [call_id]


def test_the_same_segments_fed_twice_change_nothing(spool, folder, tenant, now):
    relay(spool, tenant)
    spool.append(rate(tenant))
    spool.close()
    copies = {segment.path: segment.path.read_bytes() for segment in segments(folder)}
    Ingester(folder).ingest_once(now=now)
    assert segments(folder) == []  # the boot is over, and everything of it is stored

    for path, content in copies.items():  # restored from a backup, say
        path.write_bytes(content)
    assert Ingester(folder).ingest_once(now=now) == 3
    assert (Call.objects.count(), Signal.objects.count()) == (1, 1)


def test_a_killed_gateway_leaves_calls_that_say_so(folder, tenant, now):
    spool = Spool(folder, "gateway")
    record = begin(tenant)
    spool.append(record)
    ingester = Ingester(folder)
    ingester.ingest_once(now=now)
    assert not Call.objects.exists()

    spool.close()  # its lock is free, as after kill -9
    ingester.ingest_once(now=now)
    call = Call.objects.get()
    assert (call.id, call.outcome, call.ended_at) == (record.call_id, "gateway_died", None)
    assert segments(folder) == []


def test_rotated_segments_go_once_nothing_in_them_is_needed(folder, tenant, now):
    spool = Spool(folder, "gateway", segment_bytes=4096)
    held = begin(tenant)
    spool.append(held)
    for _ in range(8):
        relay(spool, tenant, request=KIB)
    ingester = Ingester(folder)
    ingester.ingest_once(now=now)
    assert segments(folder)[0].number == 0  # the held call's begin lies there

    spool.append(end(held.call_id))
    ingester.ingest_once(now=now)
    assert len(segments(folder)) == 1
    assert Call.objects.count() == 9
    relay(spool, tenant)
    spool.close()
    Ingester(folder).ingest_once(now=now)  # a restart, with the early segments gone
    assert (Call.objects.count(), CaptureLoss.objects.count()) == (10, 0)


def test_a_full_spool_is_a_counted_loss_in_rows_and_ledger(folder, tenant, now):
    spool = Spool(folder, "gateway", max_bytes=6000)
    relay(spool, tenant)
    while spool.level < Level.EVERYTHING:
        with suppress(SpoolFull):
            spool.append(rate(tenant, value="y" * 200))
    lost = [relay_or_lose(spool, tenant) for _ in range(3)]
    spool.close()
    Ingester(folder).ingest_once(now=now)

    assert lost == [None] * 3
    loss = CaptureLoss.objects.get()
    # the signal that did not fit, then begin and end of each call
    assert (loss.count, loss.last_sequence - loss.first_sequence, loss.reason) == (7, 6, "spool_full")
    event = Event.objects.get(action="capture.lost")
    assert event.organization_id == tenant.organization.id
    assert Call.objects.count() == 1


def test_shed_bodies_are_told_in_the_calls_and_as_one_loss(folder, tenant, now):
    spool = Spool(folder, "gateway", max_bytes=100_000)
    whole = relay(spool, tenant, request=KIB)
    spool.append(rate(tenant, value="y" * 80_000))
    cut = [relay(spool, tenant, request=KIB) for _ in range(3)]
    spool.close()
    Ingester(folder).ingest_once(now=now)

    assert dict(Call.objects.values_list("id", "is_shed")) == {whole: False} | dict.fromkeys(cut, True)
    assert bodies_of(tenant.project.id, [whole, *cut]).keys() == {whole}
    loss = CaptureLoss.objects.get()
    assert (loss.first_sequence, loss.last_sequence, loss.count, loss.reason) == (3, 8, 6, "body_shed")
    assert selectors.lost_records() == 0
    assert Event.objects.filter(action="capture.lost").count() == 1


def test_gaps_that_one_record_explains_are_one_loss(folder, tenant, now, monkeypatch):
    monkeypatch.setattr("telemetry.spool.HOUSEKEEPING_INTERVAL_S", 3600.0)
    spool = Spool(folder, "gateway", max_bytes=2_000_000)
    while spool.level < Level.PASS_THROUGH:
        latest = spool.append(rate(tenant, value="y" * 10_000))
    for _ in range(MAX_PENDING_LOSSES * 2 + 20):
        with suppress(SpoolFull):
            spool.append(begin(tenant, dialect="", request=b""))
        spool.append(rate(tenant))
    spool.close()
    Ingester(folder).ingest_once(now=now)

    losses = CaptureLoss.objects.filter(reason="pass_through_shed")
    assert sum(losses.values_list("count", flat=True)) == MAX_PENDING_LOSSES * 2 + 20
    assert losses.count() == MAX_PENDING_LOSSES * 2
    assert losses.order_by("first_sequence")[0].first_sequence == latest + 1


def test_damage_inside_a_segment_costs_its_record_only(folder, tenant, now):
    spool = Spool(folder, "gateway")
    calls = [relay(spool, tenant) for _ in range(2)]
    damage_at = spool.position[1]
    calls.append(relay(spool, tenant))
    calls.append(relay(spool, tenant))
    spool.close()
    path = segments(folder)[0].path
    content = bytearray(path.read_bytes())
    content[damage_at : damage_at + 4] = b"\xff" * 4  # the length of a begin record
    path.write_bytes(content)

    Ingester(folder).ingest_once(now=now)

    assert set(Call.objects.values_list("id", flat=True)) == {calls[0], calls[1], calls[3]}
    assert CaptureLoss.objects.values_list("first_sequence", "count", "reason").get() == (4, 1, "damaged")
    assert segments(folder) == []


def test_who_answered_replaces_the_plan(spool, folder, tenant, now):
    planned, fallback, upstream = uuid7(), uuid7(), uuid7()
    record = begin(
        tenant, model_served="desk:planned", model_version_id=planned, deployment_id=planned, is_canary=True
    )
    spool.append(record)
    spool.append(
        end(
            record.call_id, served=Served(model_served="gpt-4o", model_version_id=fallback),
            attempts=3, upstream_id=upstream, cached_tokens=7, reasoning_tokens=5, cost_microusd=1_234,
            hidden=("usage", "logprobs"),
        )
    )  # fmt: skip
    Ingester(folder).ingest_once(now=now)

    call = Call.objects.get()
    assert (call.model_served, call.model_version_id, call.deployment_id, call.is_canary) == (
        "gpt-4o",
        fallback,
        None,
        False,
    )
    assert (call.attempts, call.upstream_id, call.hidden) == (3, upstream, ["usage", "logprobs"])
    assert (call.cached_tokens, call.reasoning_tokens, call.cost_microusd) == (7, 5, 1_234)


def test_a_torn_tail_is_a_loss_and_what_is_before_it_is_kept(folder, tenant, now):
    spool = Spool(folder, "gateway")
    relay(spool, tenant)
    relay(spool, tenant)
    spool.close()
    path = segments(folder)[0].path
    path.write_bytes(path.read_bytes()[:-5])

    Ingester(folder).ingest_once(now=now)

    assert sorted(Call.objects.values_list("outcome", flat=True)) == ["complete", "gateway_died"]
    assert CaptureLoss.objects.values_list("first_sequence", "reason").get() == (3, "torn")


def test_records_of_unknown_tenants_are_losses_and_the_rest_goes_on(spool, folder, tenant, stranger, now):
    relay(spool, tenant)
    relay(spool, tenant, project_id=uuid7())
    relay(spool, tenant, api_key_id=stranger.key.id)  # a key of another project
    spool.append(rate(tenant, project_id=uuid7()))
    relay(spool, tenant)

    Ingester(folder).ingest_once(now=now)

    assert Call.objects.count() == 2
    assert CaptureLoss.objects.filter(reason="unknown_project").count() == 3


def test_hostile_values_cost_at_most_their_own_record(spool, folder, tenant, now):
    odd = begin(tenant, model_requested="m" * 900 + "\x00", path="/v1/\x00", retry_count=10**9)
    spool.append(odd)
    spool.append(end(odd.call_id, prompt_tokens=10**15, outcome="complete", response_id="r" * 999))
    unknown = begin(tenant)
    spool.append(unknown)
    spool.append(end(unknown.call_id, outcome="no such outcome"))
    spool.append(rate(tenant, value={"text\x00": "a\x00b"}, name="n" * 300))
    spool.append(rate(tenant, target_type="moon"))

    Ingester(folder).ingest_once(now=now)

    assert Call.objects.get().path == "/v1/\ufffd"
    assert Signal.objects.get().value == {"text\ufffd": "a\ufffdb"}
    assert CaptureLoss.objects.filter(reason="malformed").count() == 2


def test_one_row_that_postgresql_refuses_does_not_take_the_others_along(spool, folder, tenant, now):
    relay(spool, tenant)
    relay(spool, tenant)
    relay(spool, tenant)
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE telemetry_call ADD CONSTRAINT no_third CHECK (sequence <> 2)")

    Ingester(folder).ingest_once(now=now)

    assert sorted(Call.objects.values_list("sequence", flat=True)) == [0, 4]
    assert CaptureLoss.objects.values_list("first_sequence", "reason").get() == (2, "refused")


def test_under_one_idempotency_key_the_first_content_counts_and_another_is_listed(spool, folder, tenant, now):
    first = rate(tenant, idempotency_key="ticket-7", value=True)
    other = rate(tenant, idempotency_key="ticket-7", value=False)
    for record in (first, first, other, other, rate(tenant, value=False)):
        spool.append(record)
    Ingester(folder).ingest_once(now=now)
    spool.append(other)
    Ingester(folder).ingest_once(now=now)
    assert sorted(Signal.objects.values_list("value", flat=True)) == [False, False, True]
    (listed,) = signals.misfits(tenant.project.id)
    assert (listed.id, listed.value) == (other.signal_id, False)
    assert "ticket-7 was used before" in listed.misfit


@pytest.mark.django_db(transaction=True)
def test_it_runs_until_told_to_stop_and_outlives_a_lost_connection(folder, tenant):
    spool = Spool(folder, "gateway")
    stop = threading.Event()
    thread = threading.Thread(target=ingest.run_forever, args=(stop,), kwargs={"folder": folder})
    thread.start()
    try:
        relay(spool, tenant)
        wait_for(lambda: Call.objects.count() == 1)
        with connection.cursor() as cursor:  # the ingester's connection is the other one
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
        relay(spool, tenant)
        wait_for(lambda: Call.objects.count() == 2)
    finally:
        stop.set()
        thread.join(10)
        spool.close()
    assert not thread.is_alive()


INGEST = """
import sys, threading
from pathlib import Path
import django
django.setup()
from telemetry import ingest
ingest.run_forever(threading.Event(), folder=Path(sys.argv[1]))
"""


@pytest.mark.django_db(transaction=True)
def test_kill_9_of_either_of_two_ingesters_at_any_moment_neither_loses_nor_doubles(folder, tenant, tmp_path):
    """One works, the other waits to take over; the working one is killed again and again while calls arrive."""
    database = connection.settings_dict
    environment = os.environ | {
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "DATABASE_URL": f"postgresql://{database['USER']}@/{database['NAME']}?host={quote(database['HOST'])}",
    }

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", INGEST, str(folder)], env=environment)

    spool, rng = Spool(folder, "gateway", segment_bytes=100_000), random.Random(5)
    sent: dict[UUID, bytes] = {}
    ingesters = [start(), start()]
    try:
        for _ in range(4):
            before = Call.objects.count()
            while Call.objects.count() < before + 50:
                request = b'{"messages": [%b]}' % b",".join([b'"%d"' % len(sent)] * rng.randrange(400))
                sent[relay(spool, tenant, request=request)] = request
            for ingester in ingesters:
                if rng.random() < 0.7:
                    ingester.kill()
                    ingester.wait(10)
            ingesters = [start() if ingester.poll() is not None else ingester for ingester in ingesters]
        wait_for(lambda: Call.objects.count() >= len(sent), 60)
    finally:
        for ingester in ingesters:
            ingester.kill()
            ingester.wait(10)
        spool.close()
    Ingester(folder).ingest_once(now=clock.now())

    assert set(Call.objects.values_list("id", flat=True)) == set(sent)
    assert {call_id: body.request for call_id, body in bodies_of(tenant.project.id, sent).items()} == sent
    assert (CaptureLoss.objects.count(), segments(folder)) == (0, [])


def wait_for(seen: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.02)
