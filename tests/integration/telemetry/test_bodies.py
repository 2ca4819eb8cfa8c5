"""Stored bytes through their one door: exact, scoped, in two queries, and damage never shown as content."""

import json
from datetime import timedelta

import pytest

from telemetry.bodies import bodies_of
from telemetry.chains import Chains
from telemetry.models import CallBody, Piece
from telemetry.periods import ensure, period_of
from telemetry.records import BeginRecord
from telemetry.rows import CallRow, copy_bodies

SYSTEM = {"role": "system", "content": "You are kind. " * 200}


@pytest.fixture
def conversation(make_call, tenant, now):
    """Calls of one run, with what was sent and answered."""
    ensure(period_of(now))
    history = [SYSTEM, {"role": "user", "content": "Where is my lamp?"}]
    exchanges, rows = {}, []
    for turn in range(5):
        call = make_call(history, at=turn)
        sent = json.dumps({"messages": history}).encode()
        answered = json.dumps({"choices": [{"message": {"content": f"Answer {turn}"}}]}).encode()
        exchanges[call.id] = sent, answered
        begin = BeginRecord(
            call_id=call.id, project_id=tenant.project.id, api_key_id=tenant.key.id, started_at=0, dialect="chat",
            method="POST", path="/v1/chat/completions", request=sent,
        )  # fmt: skip
        rows.append(CallRow(turn, b"", period_of(now), begin, answered, "application/json"))
        history = [
            *history,
            {"role": "assistant", "content": f"Answer {turn}"},
            {"role": "user", "content": "And?"},
        ]
    copy_bodies(rows, Chains())
    return exchanges


def test_all_come_back_in_two_queries(conversation, tenant, django_assert_num_queries):
    with django_assert_num_queries(2):
        bodies = bodies_of(tenant.project.id, conversation)
        assert {call_id: (body.request, body.response) for call_id, body in bodies.items()} == conversation
    assert {body.response_type for body in bodies.values()} == {"application/json"}
    assert (CallBody.objects.count(), Piece.objects.count()) == (5, 1)
    last = list(conversation)[-1]
    assert bodies_of(tenant.project.id, [last])[last].request == conversation[last][0]


def test_a_stranger_finds_nothing_and_no_calls_cost_no_query(
    conversation, tenant, stranger, django_assert_num_queries
):
    assert bodies_of(stranger.project.id, conversation) == {}
    with django_assert_num_queries(0):
        assert bodies_of(tenant.project.id, []) == {}


def test_what_does_not_come_out_as_it_went_in_is_left_out(conversation, tenant, caplog):
    calls = list(conversation)
    CallBody.objects.filter(call_id=calls[3]).update(request_sha256=b"\x00" * 32)
    assert set(bodies_of(tenant.project.id, calls)) == set(calls) - {calls[3]}
    CallBody.objects.filter(call_id=calls[2]).update(data=b"damaged")
    assert set(bodies_of(tenant.project.id, calls)) == set(calls[:2])
    Piece.objects.all().update(data=b"damaged")
    assert bodies_of(tenant.project.id, calls) == {}
    assert "damaged" in caplog.text
    assert "lamp" not in caplog.text


def test_bytes_are_found_by_the_month_in_which_a_call_began(make_call, tenant, now):
    ensure(period_of(now))
    call = make_call([SYSTEM], at=timedelta(days=40).total_seconds())
    assert bodies_of(tenant.project.id, [call.id]) == {}
