"""Signals find their runs by any of four names, early or late, and the latest observation counts."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from kernel.ids import uuid7
from telemetry import runs, signals
from telemetry.models import Run, Signal

HELLO = {"role": "user", "content": "Hello"}
HI = {"role": "assistant", "content": "Hi."}
LATER = timedelta(minutes=3)


@pytest.fixture
def observe(tenant, now) -> Callable[..., Signal]:
    def make(
        target_type: str,
        target: object,
        name: str = "resolved",
        value: Any = True,
        *,
        at: float = 0.0,
        **columns,
    ):
        return Signal.objects.create(
            **{
                "id": uuid7(),
                "project": tenant.project,
                "api_key": tenant.key,
                "target_type": target_type,
                "target": str(target),
                "name": name,
                "value": value,
                "observed_at": now + timedelta(seconds=at),
                "received_at": now,
                "stored_at": now,
            }
            | columns
        )

    return make


@pytest.fixture
def settle(tenant, now) -> Callable[[], int]:
    def work() -> int:
        runs.stitch_pending(project_id=tenant.project.id, now=now + LATER)
        return signals.join_pending(project_id=tenant.project.id, now=now + LATER)

    return work


def test_every_name_of_a_run_leads_to_it(make_call, observe, settle, tenant):
    call = make_call([HELLO], HI, response_id="chatcmpl-1", run_name="ticket-7", run_hint=uuid7())
    settle()
    run = Run.objects.get()
    given = [
        observe("call_id", str(call.id).upper()),
        observe("response_id", "chatcmpl-1"),
        observe("run_id", run.id),
        observe("run_id", "ticket-7"),
    ]
    unknown = [
        observe("run_id", uuid7()),
        observe("call_id", "no uuid"),
        observe("response_id", "chatcmpl-2"),
    ]
    assert settle() == 4
    assert all(Signal.objects.get(id=signal.id).run == run for signal in given)
    assert {row.id for row in signals.unmatched(tenant.project.id)} == {signal.id for signal in unknown}


def test_a_told_id_leads_to_the_run_that_the_stitcher_chose(make_call, observe, settle):
    make_call([HELLO], HI, run_hint=uuid7())
    told = uuid7()  # another gateway process did not know the run, and told a fresh id
    second = make_call([HELLO, HI, HELLO], HI, at=1, run_hint=told)
    signal = observe("run_id", told)
    settle()
    second.refresh_from_db()
    signal.refresh_from_db()
    assert signal.run_id == second.step.run_id != told


def test_feedback_before_the_call_waits_for_it(make_call, observe, settle):
    call_id = uuid7()
    observe("call_id", call_id)
    assert settle() == 0
    make_call([HELLO], HI, id=call_id)
    assert settle() == 1
    assert Run.objects.get().revision == 2  # one for the call, one for the signal


def test_another_projects_names_lead_nowhere(make_call, observe, settle, stranger, now):
    theirs = make_call(
        [HELLO], HI, tenant=stranger, response_id="chatcmpl-1", run_name="ticket-7", run_hint=uuid7()
    )
    runs.stitch_pending(project_id=stranger.project.id, now=now + LATER)
    theirs.refresh_from_db()
    observe("call_id", theirs.id)
    observe("response_id", "chatcmpl-1")
    observe("run_id", "ticket-7")
    observe("run_id", theirs.run_hint)
    observe("run_id", theirs.step.run_id)
    assert settle() == 0


def test_the_latest_observation_counts_and_nothing_is_edited(make_call, observe, settle, now):
    call = make_call([HELLO], HI)
    observe("call_id", call.id, value=False, at=10)
    observe("call_id", call.id, value=True, at=60)
    observe("call_id", call.id, value=False, at=30)  # arrives last, was observed earlier
    observe("call_id", call.id, name="quality", value=0.2, step=0)
    settle()
    run = Run.objects.get()
    assert signals.run_signals([run.id]) == {run.id: {"resolved": True}}
    assert [(row.name, row.step) for row in signals.latest_signals([run.id], now=now)[run.id]] == [
        ("quality", 0),
        ("resolved", None),
    ]
    assert Signal.objects.count() == 4


def test_the_signal_task_groups_runs(make_call, observe, settle):
    calls = [
        make_call([HELLO, {"role": "user", "content": str(number)}], HI, at=number) for number in range(3)
    ]
    for call in calls[:2]:
        observe("call_id", call.id, name="task", value="airline-4")
    settle()
    observe("call_id", calls[0].id, name="task", value="airline-5", at=60)
    settle()
    assert sorted(Run.objects.values_list("task_key", flat=True)) == ["", "airline-4", "airline-5"]
