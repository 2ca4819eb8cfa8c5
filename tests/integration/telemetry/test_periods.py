"""Months of bytes: made ahead, dropped whole when their retention is over, and the ledger says so."""

from datetime import UTC, date, datetime, timedelta

import pytest

from audit.models import Event
from kernel.ids import uuid7
from telemetry import periods
from telemetry.bodies import bodies_of
from telemetry.ingest import Ingester
from telemetry.models import Call, CallBody, Piece
from telemetry.records import BeginRecord, EndRecord
from telemetry.spool import Spool
from tests.fakes.bodies import keep_body

LONG = b'{"messages": ["' + b"x" * 3000 + b'"]}'


def test_months_are_made_ahead_and_nothing_is_dropped_without_a_retention(now):
    assert periods.sweep(now=now, retention_months=None) == []
    assert periods.kept() == [date(2026, 11, 1), date(2026, 12, 1), date(2027, 1, 1)]
    periods.sweep(now=now, retention_months=None)
    assert len(periods.kept()) == 3


@pytest.mark.parametrize("at", [datetime(1970, 1, 1, tzinfo=UTC), datetime(2026, 12, 31, 23, 59, tzinfo=UTC)])
def test_a_period_is_a_month_of_utc(at):
    assert periods.period_of(at).day == 1
    assert periods.period_of(at + timedelta(days=32)) != periods.period_of(at)


def test_a_dropped_month_takes_its_bytes_along_and_leaves_calls(make_call, tenant, stranger, now):
    old, kept = make_call([], at=-70 * 86400.0), make_call([], at=-35 * 86400.0)
    foreign = make_call([], at=-70 * 86400.0, tenant=stranger)
    for call in (old, kept, foreign):
        keep_body(call, LONG, b"{}")
    assert (CallBody.objects.count(), Piece.objects.count()) == (3, 3)

    assert periods.sweep(now=now, retention_months=1) == [date(2026, 9, 1)]
    assert periods.sweep(now=now, retention_months=1) == []

    assert bodies_of(tenant.project.id, [old.id, kept.id]).keys() == {kept.id}
    assert (CallBody.objects.count(), Piece.objects.count(), Call.objects.count()) == (1, 1, 3)
    events = Event.objects.filter(action="period.dropped").values_list("organization_id", "object_id")
    assert sorted(events) == sorted(
        [(tenant.organization.id, "2026-09"), (stranger.organization.id, "2026-09")]
    )


def test_a_call_of_any_date_finds_its_month_even_one_that_was_dropped_under_ingest(tmp_path, tenant, now):
    def relay(started_at):
        begin = BeginRecord(
            call_id=(call := uuid7()), project_id=tenant.project.id, api_key_id=tenant.key.id,
            started_at=int(started_at.timestamp() * 1e6), dialect="chat", method="POST", path="/v1/x", request=LONG,
        )  # fmt: skip
        spool.append(begin)
        spool.append(EndRecord(call_id=call, outcome="complete", ended_at=begin.started_at))
        ingester.ingest_once(now=now)
        return call

    spool, ingester = Spool(tmp_path), Ingester(tmp_path)
    long_ago = datetime(2001, 2, 3, tzinfo=UTC)
    calls = [
        relay(datetime(1970, 1, 1, tzinfo=UTC)),
        relay(datetime(9998, 12, 31, tzinfo=UTC)),
        relay(long_ago),
    ]
    periods.drop(date(2001, 2, 1), now=now)
    calls.append(relay(long_ago))
    spool.close()

    assert bodies_of(tenant.project.id, calls).keys() == {calls[0], calls[1], calls[3]}
