"""Signals find their runs by any of four names, early or late, and the latest observation counts."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from audit.actions import Actor
from kernel.ids import uuid7
from telemetry import declarations, runs, signals, windows
from telemetry.metrics import Kind, Level, Metric
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


MAYA = Actor.user(id=1, name="maya", role="admin")
WEEKS = timedelta(weeks=7)


@pytest.fixture
def declare(tenant, now) -> Callable[..., Any]:
    def work(name: str, kind: Kind = Kind.BOOLEAN, **fields: Any):
        metric = Metric(name=name, kind=kind, **fields)
        return declarations.declare(project=tenant.project, metric=metric, actor=MAYA, now=now)

    return work


def run_of(signal: Signal) -> Run | None:
    return Signal.objects.get(id=signal.id).run


def test_a_signal_waits_for_months_and_costs_nothing_meanwhile(
    make_call, observe, settle, tenant, now, django_assert_num_queries
):
    call_id, told = uuid7(), uuid7()
    early = [
        observe("call_id", call_id, stored_at=now - WEEKS * 20),
        observe("run_id", told, stored_at=now - WEEKS * 20),
        observe("run_id", "ticket-7", stored_at=now - WEEKS * 20),
        observe("response_id", "chatcmpl-1", stored_at=now - WEEKS * 20),
        observe("external_key", "T-1", stored_at=now - WEEKS * 20),
    ]
    assert runs.due_projects() == [tenant.project.id]
    assert settle() == 0
    assert runs.due_projects() == []
    for number in range(50):
        observe("call_id", uuid7(), sought_at=now, name=f"lost {number}")
    with django_assert_num_queries(5):  # two of the transaction, the lock, what is new, whether there is more
        signals.join_pending(project_id=tenant.project.id, now=now)

    make_call(
        [HELLO],
        HI,
        id=call_id,
        run_hint=told,
        run_name="ticket-7",
        response_id="chatcmpl-1",
        external_key="T-1",
    )
    assert settle() == 5
    assert {run_of(signal) for signal in early} == {Run.objects.get()}


def test_the_projects_own_key_leads_to_the_newest_run_that_had_begun(make_call, observe, settle, stranger):
    for at, external_key in ((0, "T-1"), (100, "T-1"), (200, "T-1"), (100, "T-2")):
        make_call([{"role": "user", "content": f"{at} {external_key}"}], HI, at=at, external_key=external_key)
    make_call([HELLO], HI, at=120, external_key="T-1", tenant=stranger)
    given = {
        at: observe("external_key", "T-1", at=at, name=f"at {at}")
        for at in (-50, 10, 150, WEEKS.total_seconds())
    }
    settle()
    began = {
        at: (run_of(signal).started_at - signal.observed_at).total_seconds() + at
        for at, signal in given.items()
    }
    assert began == {-50: 0, 10: 0, 150: 100, WEEKS.total_seconds(): 200}


def test_a_key_may_be_given_by_a_signal_and_wakes_those_that_wait_for_it(make_call, observe, settle):
    call = make_call([HELLO], HI)
    early = observe("external_key", "T-1", name="reopened")
    assert settle() == 0
    observe("call_id", call.id, name="external_key", value="T-1")
    assert settle() == 2
    late = observe("external_key", "T-1", name="resolved", at=WEEKS.total_seconds())
    assert settle() == 1
    assert run_of(early) == run_of(late) == Run.objects.get()


def test_a_late_signal_is_a_new_revision(make_call, observe, settle):
    make_call([HELLO], HI, external_key="T-1")
    settle()
    before = Run.objects.get().revision
    observe("external_key", "T-1", name="reopened", at=WEEKS.total_seconds())
    settle()
    assert Run.objects.get().revision == before + 1


def test_a_signal_supersedes_the_one_it_names_whenever_they_were_observed(
    make_call, observe, settle, stranger
):
    call = make_call([HELLO], HI)
    wrong = observe("call_id", call.id, value=False, at=60)
    settle()
    observe("call_id", call.id, name="other", value=True, supersedes=wrong.id)
    observe("call_id", call.id, value=True, supersedes=wrong.id, project=stranger.project)
    settle()
    run = Run.objects.get()
    assert (
        signals.run_signals([run.id])[run.id]["resolved"] is False
    )  # another name's, another project's: not theirs
    right = observe("call_id", call.id, value=True, at=10, supersedes=wrong.id)
    settle()
    assert signals.run_signals([run.id])[run.id]["resolved"] is True
    assert Run.objects.get().revision > run.revision
    observe("call_id", call.id, value=False, at=5, supersedes=right.id)
    settle()
    assert signals.run_signals([run.id])[run.id]["resolved"] is False
    assert Signal.objects.count() == 5


def test_contradictions_are_kept_and_listed_and_the_latest_counts(
    make_call, observe, settle, tenant, stranger, now
):
    call = make_call([HELLO], HI)
    observe("call_id", call.id, value=True, at=10)
    observe("call_id", call.id, value=False, at=20)
    observe("call_id", call.id, value=True, at=10, name="polite")
    observe("call_id", call.id, value=True, at=20, name="polite")
    corrected = observe("call_id", call.id, value=1, at=10, name="stars")
    observe("call_id", call.id, value=5, at=20, name="stars", supersedes=corrected.id)
    settle()
    (found,) = signals.contradictions(tenant.project.id, since=now)
    assert (found.name, found.step, [row.value for row in found.rows]) == ("resolved", None, [False, True])
    assert signals.run_signals([found.run_id])[found.run_id]["resolved"] is False
    assert signals.contradictions(stranger.project.id, since=now) == []
    assert signals.contradictions(tenant.project.id, since=now + timedelta(days=1)) == []


def test_what_does_not_fit_is_kept_marked_and_never_counted(make_call, observe, settle, declare, tenant):
    """Before the declaration, and after it through a gateway that had not heard of it."""
    call = make_call([HELLO], HI)
    before = observe("call_id", call.id, value="yes", at=50)
    observe("call_id", call.id, value=True, at=10)
    settle()
    run = Run.objects.get()
    assert signals.run_signals([run.id])[run.id] == {"resolved": "yes"}
    declare("resolved")
    assert signals.run_signals([run.id])[run.id] == {"resolved": True}
    assert Run.objects.get().revision == run.revision + 1
    after = observe("call_id", call.id, value=0.5, at=70)
    settle()
    assert signals.run_signals([run.id])[run.id] == {"resolved": True}
    assert [(row.id, row.misfit) for row in signals.misfits(tenant.project.id)] == [
        (signal.id, "`value` of `resolved` must be true or false.") for signal in (after, before)
    ]
    assert run_of(after) == run


def test_a_metric_of_steps_finds_the_step_of_the_call(make_call, observe, settle, declare, now):
    make_call([HELLO], HI)
    second = make_call([HELLO, HI, HELLO], HI, at=1, response_id="chatcmpl-2")
    declare("helpful", level=Level.STEP)
    observe("response_id", "chatcmpl-2", name="helpful")
    observe("call_id", second.id, name="correction", value={**HI, "content": "Good day."})
    observe("call_id", second.id, name="resolved")
    settle()
    run = Run.objects.get()
    rows = signals.latest_signals([run.id], now=now)[run.id]
    assert {row.name: row.step for row in rows} == {"helpful": 1, "correction": 1, "resolved": None}


def test_windows_close_one_after_the_other_and_each_closing_is_a_revision(
    make_call, observe, settle, declare, tenant, now
):
    declare("resolved", window_s=3600)
    declare("reopened", window_s=86_400)
    call = make_call([HELLO], HI)
    for name in ("resolved", "reopened", "risk"):
        observe("call_id", call.id, name=name)
    settle()
    run = Run.objects.get()
    latest = run.latest_call_at

    def finals(at) -> set[str]:
        return {row.name for row in signals.latest_signals([run.id], now=at)[run.id] if row.is_final}

    hour, day = latest + timedelta(hours=1), latest + timedelta(days=1)
    assert (run.is_mature, run.matures_at) == (False, hour)
    assert finals(now) == {"risk"}
    assert windows.mature_due(now=hour - timedelta(seconds=1)) == 0
    assert windows.mature_due(now=hour) == 1
    assert windows.mature_due(now=hour) == 0
    after = Run.objects.get()
    assert (after.is_mature, after.matures_at, after.revision) == (False, day, run.revision + 1)
    assert finals(hour) == {"risk", "resolved"}
    assert windows.mature_due(now=day) == 1
    grown = Run.objects.get()
    assert (grown.is_mature, grown.matures_at, grown.revision) == (True, None, run.revision + 2)
    assert finals(day) == {"risk", "resolved", "reopened"}


def test_a_late_call_opens_the_windows_again(make_call, settle, declare, tenant, now):
    declare("resolved", window_s=3600)
    make_call([HELLO], HI)
    settle()
    assert windows.mature_due(now=now + timedelta(hours=2)) == 1
    make_call([HELLO, HI, HELLO], HI, at=7200)
    runs.stitch_pending(project_id=tenant.project.id, now=now + timedelta(hours=2, minutes=3))
    run = Run.objects.get()
    assert (run.is_mature, run.matures_at) == (False, run.latest_call_at + timedelta(hours=1))


def test_runs_without_windows_are_mature_and_a_new_window_opens_the_recent_ones(
    make_call, settle, declare, tenant, now
):
    make_call([HELLO], HI, run_name="new")
    make_call([HELLO], HI, at=-86_400 * 30, run_name="old")
    settle()
    assert set(Run.objects.values_list("is_mature", "matures_at")) == {(True, None)}
    declare("resolved", window_s=86_400)
    assert dict(Run.objects.values_list("name", "is_mature")) == {"new": False, "old": True}
    declare("resolved", window_s=0)  # a change of mind
    assert windows.mature_due(now=now) == 1
    assert set(Run.objects.values_list("is_mature", "matures_at")) == {(True, None)}
