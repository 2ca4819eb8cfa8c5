"""Stitching in the database: recorded runs, out-of-order arrival, retries, names, told ids."""

import random
from collections import defaultdict
from datetime import timedelta
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from kernel.ids import uuid7
from telemetry import runs
from telemetry.models import Call, Run, RunState, Step
from telemetry.stitching import MAX_TRACE_ROOTS

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
    assert (again.state, again.revision, again.call_count) == (RunState.OPEN, run.revision + 1, 2)
    assert (again.closed_at, again.reopened_at) == (None, now + timedelta(hours=1))


def test_a_response_that_is_named_is_continued(make_call, tenant, now):
    first = make_call([SYSTEM, HELLO], HI, dialect="responses", response_id="resp_1")
    other = make_call([SYSTEM, HELLO], HI, at=1, dialect="responses", response_id="resp_2")
    past = {"role": "previous_response", "content": "resp_1"}
    second = make_call([past, ASK], DONE, at=2, dialect="responses", response_id="resp_3", continues="resp_1")
    third = make_call([ASK], DONE, at=3, dialect="responses", continues="resp_3")
    unknown = make_call([ASK], DONE, at=4, dialect="responses", continues="resp_9")
    place(tenant, now + LATER)
    assert run_of(first) == run_of(second) == run_of(third) != run_of(other)
    assert (second.step.reason, second.step.confidence, second.step.parent) == ("continued", 1.0, first.step)
    assert run_of(unknown).confidence == 0.5
    assert unknown.step.reason == "orphan"


def test_a_call_waits_for_the_response_that_it_names(make_call, tenant, now):
    child = make_call([ASK], DONE, at=1, dialect="responses", continues="resp_1")
    assert place(tenant, now + timedelta(seconds=2)) == 0
    parent = make_call([SYSTEM, HELLO], HI, dialect="responses", response_id="resp_1")
    assert place(tenant, now + timedelta(seconds=2)) == 2
    assert run_of(child) == run_of(parent)


def calls_tool(call_id: str, arguments: str = "{}") -> dict[str, Any]:
    function = {"name": "look_up", "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": call_id, "type": "function", "function": function}],
    }


def result(call_id: str, text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": text}


SUMMARY = {"role": "user", "content": "What happened so far: the customer asked for a refund."}


MINTED = "call_9f8e7d6c5b4a39281"


def minted(number: int) -> str:
    return f"call_{uuid5(NAMESPACE_OID, str(number)).hex[:24]}"


def words(number: int) -> dict[str, Any]:
    return {"role": "assistant", "content": f"Your refund number {number} is on its way to your bank. " * 2}


@pytest.mark.parametrize("said", [[calls_tool(MINTED)], [words(1), words(2)]])
def test_a_history_that_was_summed_up_or_cut_still_tells_its_run(make_call, tenant, now, said):
    history = [SYSTEM, HELLO]
    for at, answer in enumerate(said):
        latest = make_call(history, answer, at=at)
        history = [*history, answer, ASK]
    cut = make_call([SYSTEM, SUMMARY, *said, ASK], HI, at=5)
    place(tenant, now + LATER)
    assert run_of(cut) == run_of(latest)
    assert (cut.step.reason, cut.step.confidence, cut.step.parent) == ("repeat", 0.7, latest.step)


def test_an_answer_that_is_pasted_into_openings_as_an_example_joins_none_of_them(make_call, tenant, now):
    make_call([SYSTEM, HELLO], words(1))
    openings = [make_call([SYSTEM, ASK, words(1), ASK], DONE, at=1 + at) for at in range(3)]
    place(tenant, now + LATER)
    assert {call.step.reason for call in openings if run_of(call)} == {"orphan"}
    assert len({run_of(call) for call in openings}) == 3


def test_a_tool_call_that_is_pasted_into_openings_as_an_example_joins_none_of_them(make_call, tenant, now):
    asks = calls_tool(MINTED)
    first = make_call([SYSTEM, HELLO], asks)
    make_call([SYSTEM, HELLO, asks, result(MINTED, "{}")], DONE, at=1)
    example = [asks, result(MINTED, "{}"), HI, ASK]
    openings = [make_call([SYSTEM, *example[:length]], DONE, at=2 + length) for length in (2, 4)]
    place(tenant, now + LATER)
    assert not {run_of(call) for call in openings} & {run_of(first)}


def test_a_cut_history_that_ends_with_a_short_answer_still_tells_its_run(make_call, tenant, now):
    asks = calls_tool(MINTED)
    make_call([SYSTEM, HELLO], asks)
    latest = make_call([SYSTEM, HELLO, asks, result(MINTED, "{}")], HI, at=1)
    place(tenant, now + LATER)
    cut = make_call([SUMMARY, asks, result(MINTED, "{}"), HI, ASK], DONE, at=9)
    place(tenant, now + 2 * LATER)
    assert run_of(cut) == run_of(latest)
    assert cut.step.parent == latest.step


def test_ids_of_tool_calls_that_are_counted_prove_nothing(make_call, tenant, now):
    first = make_call([SYSTEM, HELLO], calls_tool("call_0"))
    stranger = make_call([SUMMARY, calls_tool("call_0"), ASK], DONE, at=1)
    place(tenant, now + LATER)
    assert run_of(stranger) != run_of(first)


def test_a_child_whose_clock_ran_hours_behind_finds_its_parent(make_call, tenant, now):
    opening = [SYSTEM, HELLO]
    parent = make_call(opening, HI, at=3 * 3600)
    child = make_call([*opening, HI, ASK], DONE, at=1)
    place(tenant, now + timedelta(days=1))
    assert run_of(child) == run_of(parent)
    assert (child.step.reason, child.step.parent) == ("echo", parent.step)


def test_one_response_id_of_two_runs_says_that_it_is_unsure(make_call, tenant, now):
    twins = [
        make_call([SYSTEM, text], HI, dialect="responses", response_id="resp_1") for text in (HELLO, ASK)
    ]
    child = make_call([ASK], DONE, at=1, dialect="responses", continues="resp_1")
    place(tenant, now + LATER)
    assert run_of(child) in {run_of(twin) for twin in twins}
    assert child.step.confidence == 0.5


def test_what_may_be_said_in_any_run_joins_nobody(make_call, tenant, now):
    """Short words, and long ones that two runs have said."""
    template = {
        "role": "assistant",
        "content": "Welcome to our airline! I am glad to help you with your booking.",
    }
    said = [
        make_call([SYSTEM, HELLO], HI),
        *(make_call([SYSTEM, opening], template) for opening in (HELLO, ASK)),
    ]
    strangers = [make_call([SUMMARY, answer, ASK], DONE, at=1) for answer in (HI, template)]
    place(tenant, now + LATER)
    assert not {run_of(call) for call in strangers} & {run_of(call) for call in said}
    assert {call.step.reason for call in strangers} == {"orphan"}


def test_an_edited_answer_leaves_the_newest_untouched_one_to_tell(make_call, tenant, now):
    said, edited = calls_tool(MINTED), {"role": "assistant", "content": "What we wish it had said."}
    first = make_call([SYSTEM, HELLO], said)
    turn = [SYSTEM, HELLO, said, result(MINTED, "{}")]
    second = make_call(turn, HI, at=1)
    third = make_call([*turn, edited, ASK], DONE, at=2)
    changed = make_call([SYSTEM, ASK, *turn[2:], edited, ASK], DONE, at=3)
    place(tenant, now + LATER)
    assert {run_of(call) for call in (second, third)} == {run_of(first)}
    assert (third.step.reason, third.step.confidence) == ("echo", 0.8)
    assert run_of(changed) != run_of(first)
    assert (
        changed.step.reason == "orphan"
    )  # neither its past nor its last answer is ours: it may be an example


def test_the_last_words_of_sub_agents_make_their_runs_children_of_the_step_that_sent_them(
    make_call, tenant, now
):
    asks = calls_tool("call_1") | {
        "tool_calls": [calls_tool(name)["tool_calls"][0] for name in ("call_1", "call_2")]
    }
    words = [
        {"role": "assistant", "content": f"Hotel number {number} is free on that night. " * 3}
        for number in (1, 2)
    ]
    parent = make_call([SYSTEM, HELLO], asks)
    children = [make_call([SUMMARY, ASK], words[number], at=1 + number) for number in (0, 1)]
    stranger = make_call([SYSTEM, ASK], {"role": "assistant", "content": "Nothing to do with it. " * 4}, at=1)
    results = [result(f"call_{number + 1}", words[number]["content"]) for number in (0, 1)]
    back = make_call([SYSTEM, HELLO, asks, *results], DONE, at=5)
    place(tenant, now + LATER)
    assert run_of(back) == run_of(parent)
    assert [run_of(child).parent_step for child in children] == [parent.step, parent.step]
    assert run_of(stranger).parent_step is None
    assert len({run_of(call) for call in [parent, *children, stranger]}) == 4


def test_a_sub_agent_that_is_found_late_is_a_new_revision_of_its_run(make_call, tenant, now):
    asks, words = (
        calls_tool("call_1"),
        {"role": "assistant", "content": "The hotel is free on that night. " * 3},
    )
    parent, child = make_call([SYSTEM, HELLO], asks), make_call([ASK], words, at=1)
    place(tenant, now + LATER)
    revision = run_of(child).revision
    make_call([SYSTEM, HELLO, asks, result("call_1", words["content"])], DONE, at=9)
    place(tenant, now + 2 * LATER)
    parent.refresh_from_db()
    run = run_of(child)
    assert (run.parent_step, run.revision) == (parent.step, revision + 1)


def test_a_trace_joins_what_nothing_else_joins_until_it_is_no_run(make_call, tenant, stranger, now):
    one = [make_call([SYSTEM, HELLO], HI, trace_id="a" * 32), make_call(at=1, trace_id="a" * 32)]
    other = make_call([SYSTEM, HELLO], HI, at=2, trace_id="b" * 32)
    elsewhere = make_call([SYSTEM, HELLO], HI, at=2, trace_id="a" * 32, tenant=stranger)
    place(tenant, now + LATER)
    place(stranger, now + LATER)
    assert len({run_of(call) for call in one}) == 1
    assert len({run_of(call) for call in [one[0], other, elsewhere]}) == 3
    assert (one[1].step.reason, one[1].step.parent) == ("trace", None)
    batch = [make_call([HELLO], HI, at=10 + at, trace_id="c" * 32) for at in range(MAX_TRACE_ROOTS + 5)]
    place(tenant, now + 2 * LATER)
    assert len({run_of(call) for call in batch}) == 6


def test_two_thousand_calls_of_one_run_cost_what_they_cost(make_call, tenant, now):
    history, calls = [SYSTEM, HELLO], []
    for turn in range(2000):
        answer = calls_tool(minted(turn))
        # A real history would make this test's own hashing quadratic; runs see hashes only.
        calls.append(make_call([*history[-40:]], answer, at=turn))
        history += [answer, result(minted(turn), "{}")]
    with CaptureQueriesContext(connection) as queries:
        place(tenant, now + timedelta(days=1))
    assert len({run_of(call) for call in calls}) == 1
    assert len(queries) < 4 * 20


def test_a_batch_costs_the_same_queries_however_long_it_is(airline_traffic, tenant, now):
    traffic = airline_traffic(8, 1)
    costs = []
    for part in (traffic.calls[:20], traffic.calls[20:420]):
        Call.objects.bulk_create(part)
        with CaptureQueriesContext(connection) as queries:
            place(tenant, now + LATER)
        costs.append(len(queries))
    assert max(costs) <= 14


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
