"""Stitching in the database: recorded runs, out-of-order arrival, retries, names, told ids."""

import random
from collections import defaultdict
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from kernel.ids import uuid7
from telemetry import runs
from telemetry.models import Call, Run, RunState, Step

SYSTEM = {"role": "system", "content": "You help."}
HELLO = {"role": "user", "content": "Hello"}
HI = {"role": "assistant", "content": "Hi, what do you need?"}
ASK = {"role": "user", "content": "A refund."}
DONE = {"role": "assistant", "content": "Done."}
LATER = timedelta(minutes=3)


def run_of(call):
    call.refresh_from_db()
    return call.step.run


@pytest.mark.parametrize("width", [8, 32])
def test_recorded_runs_are_found_whole_and_unmixed(airline_traffic, tenant, now, width):
    traffic = airline_traffic(width, 7)
    Call.objects.bulk_create(traffic.calls)

    assert runs.stitch_pending(project_id=tenant.project.id, now=now + LATER) == 1163

    found = defaultdict(set)
    for call in Call.objects.select_related("step"):
        found[call.step.run_id].add(traffic.truth[call.id])
    assert len(found) == 100
    assert [numbers for numbers in found.values() if len(numbers) > 1] == []
    assert all(call.step.run_id == call.run_hint for call in Call.objects.select_related("step"))
    assert Run.objects.get(id=max(found, key=lambda run_id: len(found[run_id]))).confidence <= 1.0


def test_order_of_arrival_does_not_matter(airline_traffic, tenant, now):
    traffic = airline_traffic(8, 3)
    calls = list(traffic.calls)
    random.Random(1).shuffle(calls)
    for begin in range(0, len(calls), 200):
        Call.objects.bulk_create(calls[begin : begin + 200])
        runs.stitch_pending(project_id=tenant.project.id, now=now)  # nobody's grace is over
    runs.stitch_pending(project_id=tenant.project.id, now=now)
    for _ in range(60):  # a parent that came later than its child gets its place in the next pass
        if not runs.stitch_pending(project_id=tenant.project.id, now=now):
            break

    found = defaultdict(set)
    for call in Call.objects.exclude(step=None).select_related("step"):
        found[call.step.run_id].add(traffic.truth[call.id])
    assert not Call.objects.filter(step=None).exists()
    assert len(found) == 100
    assert [numbers for numbers in found.values() if len(numbers) > 1] == []


def place(tenant, now):
    return runs.stitch_pending(project_id=tenant.project.id, now=now)


def test_equal_openings_are_strangers_and_echoes_join(make_call, tenant, now):
    opening = [SYSTEM, HELLO]
    one, other = (
        make_call(opening, HI),
        make_call(opening, {"role": "assistant", "content": "Good day."}, at=1),
    )
    next_turn = make_call([*opening, HI, ASK], DONE, at=2)
    place(tenant, now + LATER)
    assert run_of(one) == run_of(next_turn) != run_of(other)
    steps = Step.objects.filter(run=run_of(one)).order_by("index")
    assert [(step.reason, step.confidence) for step in steps] == [("opening", 1.0), ("echo", 1.0)]
    assert steps[1].parent == steps[0]


def test_runs_that_are_equal_word_for_word_say_so(make_call, tenant, now):
    opening = [SYSTEM, HELLO]
    openings = [make_call(opening, HI, at=at) for at in (0, 1)]
    continued = [make_call([*opening, HI, ASK], DONE, at=at) for at in (2, 3)]
    place(tenant, now + LATER)
    assert {run_of(call) for call in continued} == {run_of(call) for call in openings}
    assert {call.step.confidence for call in continued} == {0.5}
    assert {run.confidence for run in Run.objects.all()} == {0.5}


def test_a_told_run_settles_the_choice_among_equals(make_call, tenant, now):
    opening = [SYSTEM, HELLO]
    told = [uuid7(), uuid7()]
    openings = [make_call(opening, HI, at=at, run_hint=told[at]) for at in (0, 1)]
    continued = make_call([*opening, HI, ASK], DONE, at=2, run_hint=told[1])
    place(tenant, now + LATER)
    assert [run_of(call).id for call in openings] == told
    assert run_of(continued).id == told[1]


def test_a_fork_stays_in_its_run(make_call, tenant, now):
    opening = [SYSTEM, HELLO]
    first = make_call(opening, HI)
    branches = [
        make_call([*opening, HI, {"role": "user", "content": text}], DONE, at=at)
        for at, text in ((1, "a"), (2, "b"))
    ]
    place(tenant, now + LATER)
    assert {run_of(call) for call in branches} == {run_of(first)}
    assert {call.step.parent for call in branches} == {first.step}


def test_retries_are_calls_of_one_step(make_call, tenant, now):
    opening = [SYSTEM, HELLO]
    elsewhere = make_call(opening, HI, at=0)
    attempts = [make_call(opening, None, at=1), make_call(opening, None, at=2, retry_count=1)]
    attempts.append(make_call(opening, HI, at=3, retry_count=2))
    place(tenant, now + LATER)
    assert len({run_of(call) for call in attempts} | {run_of(elsewhere)}) == 2
    assert len({call.step for call in attempts}) == 1
    run = run_of(attempts[0])
    assert (run.step_count, run.call_count, run.confidence) == (1, 3, 1.0)


def test_a_named_run_holds_what_carries_its_name(make_call, tenant, stranger, now):
    named = [make_call([HELLO], HI, at=at, run_name="ticket-7") for at in (0, 5)]
    named.append(make_call(at=6, run_name="ticket-7"))
    same_name_elsewhere = make_call([HELLO], HI, at=7, tenant=stranger, run_name="ticket-7")
    place(tenant, now + LATER)
    place(stranger, now + LATER)
    assert len({run_of(call) for call in named}) == 1
    assert run_of(named[0]).name == "ticket-7"
    assert {step.reason for step in Step.objects.filter(run=run_of(named[0]))} == {"named"}
    assert run_of(same_name_elsewhere) != run_of(named[0])


def test_an_echo_does_not_cross_api_keys(make_call, tenant, stranger, now):
    opening = [SYSTEM, HELLO]
    ours = make_call(opening, HI)
    theirs = make_call([*opening, HI, ASK], DONE, at=1, tenant=stranger)
    place(tenant, now + LATER)
    place(stranger, now + LATER)
    assert run_of(ours) != run_of(theirs)
    assert theirs.step.reason == "orphan"


def test_calls_without_messages_stand_alone(make_call, tenant, now):
    calls = [make_call(at=at) for at in (0, 1)]
    place(tenant, now + LATER)
    assert len({run_of(call) for call in calls}) == 2
    assert {call.step.reason for call in calls} == {"single"}


def test_a_call_from_a_clock_that_ran_ahead_does_not_wait(make_call, tenant, now):
    child = make_call([SYSTEM, HELLO, HI, ASK], DONE, at=3600)
    assert place(tenant, now) == 1
    assert run_of(child)


def test_a_child_waits_for_its_parent_and_not_for_ever(make_call, tenant, now):
    opening = [SYSTEM, HELLO]
    child = make_call([*opening, HI, ASK], DONE, at=1)
    soon = now + timedelta(seconds=2)
    assert place(tenant, soon) == 0
    parent = make_call(opening, HI)  # its gateway's spool was slower
    assert place(tenant, soon) == 2
    assert run_of(child) == run_of(parent)

    orphan = make_call([HELLO, {"role": "assistant", "content": "An example."}, ASK], DONE, at=10)
    assert place(tenant, now + timedelta(seconds=11)) == 0
    assert place(tenant, now + timedelta(seconds=14)) == 1
    orphan.refresh_from_db()
    assert (orphan.step.reason, orphan.step.confidence) == ("orphan", 0.5)


def test_a_run_that_two_gateways_told_alike_keeps_its_id_whichever_spool_comes_first(make_call, tenant, now):
    """Each of the two answered a run that is equal to the other's, word for word."""
    opening, told = [SYSTEM, HELLO], [uuid7(), uuid7()]
    soon = now + timedelta(seconds=4)
    children = [
        make_call([*opening, HI, ASK], DONE, at=2 + turn, run_hint=told[turn], process=f"gateway-{2 - turn}")
        for turn in (0, 1)
    ]
    assert place(tenant, soon) == 0
    parents = [
        make_call(opening, HI, at=turn, run_hint=told[turn], process=f"gateway-{1 + turn}") for turn in (0, 1)
    ]
    assert place(tenant, soon) == 4
    assert [run_of(call).id for call in parents] == [run_of(call).id for call in children] == told


def test_a_late_call_makes_a_new_revision_of_a_closed_run(make_call, tenant, now):
    opening = [SYSTEM, HELLO]
    call = make_call(opening, HI)
    place(tenant, now + LATER)
    run = run_of(call)
    assert runs.close_idle(now=now + timedelta(minutes=9)) == 0
    assert runs.close_idle(now=now + timedelta(minutes=11)) == 1
    make_call([*opening, HI, ASK], DONE, at=700)
    place(tenant, now + timedelta(hours=1))
    again = Run.objects.get(id=run.id)
    assert (again.state, again.revision, again.call_count) == (RunState.CLOSED, run.revision + 1, 2)


def test_a_batch_costs_the_same_queries_however_long_it_is(airline_traffic, tenant, now):
    traffic = airline_traffic(8, 1)
    costs = []
    for part in (traffic.calls[:20], traffic.calls[20:420]):
        Call.objects.bulk_create(part)
        with CaptureQueriesContext(connection) as queries:
            place(tenant, now + LATER)
        costs.append(len(queries))
    assert max(costs) <= 12


def test_projects_with_something_to_do_are_due(make_call, tenant, stranger, now):
    make_call([HELLO], HI)
    assert runs.due_projects() == [tenant.project.id]
    place(tenant, now + LATER)
    assert runs.due_projects() == []


def test_a_told_id_may_be_sent_back_as_the_name(make_call, tenant, stranger, now):
    first = make_call([HELLO], HI, at=0)
    runs.stitch_pending(project_id=tenant.project.id, now=now + LATER)
    told = str(run_of(first).id)
    second = make_call([ASK], DONE, at=5, run_name=told)
    elsewhere = make_call([ASK], DONE, at=5, run_name=told, tenant=stranger)

    runs.stitch_pending(project_id=tenant.project.id, now=now + LATER)
    runs.stitch_pending(project_id=stranger.project.id, now=now + LATER)

    assert run_of(second) == run_of(first)
    assert run_of(elsewhere) != run_of(first)


def test_housekeeping_is_nobodys_turn(make_call, tenant, now):
    listing = make_call(at=0, dialect="", method="GET", path="/v1/files")
    turn = make_call(at=1, dialect="", method="POST", path="/v1/responses")

    runs.stitch_pending(project_id=tenant.project.id, now=now + LATER)

    listing.refresh_from_db()
    assert listing.step is None
    assert listing.stitched_at is not None
    assert run_of(turn).call_count == 1
