"""Reads of one project: what they hold, what they leave out, what they cost."""

import json
from datetime import timedelta

import pytest

from kernel.ids import uuid7
from telemetry import runs, selectors, signals
from telemetry.models import CaptureLoss, Signal
from tests.fakes.bodies import keep_body

HELLO = {"role": "user", "content": "Hello"}
HI = {"role": "assistant", "content": "Hi."}
LATER = timedelta(minutes=3)


@pytest.fixture
def history(make_call, tenant, stranger, now):
    """Three runs of two turns each, one of them with feedback; and a stranger's run."""
    calls = []
    for number in range(3):
        opening = [{"role": "system", "content": f"Case {number}"}, HELLO]
        for turn, messages in enumerate((opening, [*opening, HI, HELLO])):
            call = make_call(messages, HI, at=10 * number + turn)
            body = json.dumps({"messages": messages}).encode()
            answer = b'data: {"choices": [{"index": 0, "delta": {"content": "Hi."}}]}\n\ndata: [DONE]\n\n'
            keep_body(call, body, answer, "text/event-stream")
            calls.append(call)
    make_call([HELLO], HI, at=99, tenant=stranger)
    Signal.objects.create(
        id=uuid7(), project=tenant.project, target_type="call_id", target=str(calls[0].id),
        name="task", value="t-1", observed_at=now, received_at=now, stored_at=now,
    )  # fmt: skip
    for project in (tenant.project, stranger.project):
        runs.stitch_pending(project_id=project.id, now=now + LATER)
        signals.join_pending(project_id=project.id, now=now + LATER)
    return calls


def test_runs_come_newest_first_page_by_page_in_two_queries(history, tenant, django_assert_num_queries):
    with django_assert_num_queries(2):
        page = selectors.runs_page(project=tenant.project, limit=2)
    rest = selectors.runs_page(project=tenant.project, limit=2, after=(page[-1].started_at, page[-1].id))
    assert [row.call_count for row in page + rest] == [2, 2, 2]
    assert page[0].started_at > page[1].started_at > rest[0].started_at
    assert rest[0].signals == {"task": "t-1"}
    assert rest[0].task_key == "t-1"


def test_calls_carry_their_run_in_one_query(history, tenant, django_assert_num_queries):
    with django_assert_num_queries(1):
        page = selectors.calls_page(project=tenant.project)
    assert len(page) == 6
    assert len({row.run_id for row in page}) == 3
    assert [row.step_index for row in page[:2]] == [1, 0]


def test_a_run_in_detail(history, tenant, stranger, now, django_assert_num_queries):
    run_id = selectors.runs_page(project=tenant.project)[-1].id
    with django_assert_num_queries(8):
        detail = selectors.run_detail(project=tenant.project, run_id=run_id, now=now)
    assert detail is not None
    assert [(step.index, step.parent_index, len(step.calls)) for step in detail.steps] == [
        (0, None, 1),
        (1, 0, 1),
    ]
    assert [message["role"] for message in detail.messages] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    assert detail.steps[1].answer == HI
    assert [signal.name for signal in detail.signals] == ["task"]
    assert selectors.run_detail(project=stranger.project, run_id=run_id, now=now) is None


def test_counts_and_losses(history, tenant, stranger, now):
    CaptureLoss.objects.create(
        process="gateway-1",
        boot="b",
        first_sequence=3,
        last_sequence=5,
        count=3,
        reason="spool_full",
        recorded_at=now,
    )
    found = selectors.counts(project=tenant.project)
    assert (found.calls, found.unstitched_calls, found.runs, found.runs_with_signals) == (6, 0, 3, 1)
    assert (found.signals, found.unmatched_signals) == (1, 0)
    assert selectors.counts(project=stranger.project).calls == 1
    assert [group.runs for group in selectors.task_groups(project=tenant.project)] == [1]
    assert selectors.lost_records() == 3
    assert selectors.losses()[0].reason == "spool_full"
