"""Feedback coverage and the bias that follows, in rows and in sentences."""

from datetime import timedelta

import pytest

from kernel.ids import uuid7
from telemetry import runs
from telemetry.coverage import coverage, wilson
from telemetry.models import Run, Signal

HI = {"role": "assistant", "content": "Hi."}
DAY = 86_400


@pytest.fixture
def live(make_call, tenant, now):
    """So many runs of one call each, of which the first few get feedback."""

    def work(
        count: int,
        *,
        rated: int,
        at: float = 0.0,
        name: str = "resolved",
        source: str = "feedback",
        **columns,
    ):
        number = Run.objects.count()
        answer = None if columns.get("outcome") == "upstream_error" else HI
        for index in range(count):
            message = {"role": "user", "content": f"{number + index}"}
            call = make_call([message], answer, at=at + index, **columns)
            if index < rated:
                Signal.objects.create(
                    id=uuid7(), project=tenant.project, target_type="call_id", target=str(call.id), name=name,
                    value=True, source=source, observed_at=now, received_at=now,
                )  # fmt: skip
        runs.stitch_pending(project_id=tenant.project.id, now=now + timedelta(days=9))
        for signal in Signal.objects.filter(run=None):
            signal.run_id = Run.objects.get(steps__calls__id=signal.target).id
            signal.save()

    return work


def look(tenant, now, **more):
    return coverage(tenant.project.id, now - timedelta(days=1), now + timedelta(days=9), **more)


def test_rows_by_metric_and_day(live, tenant, now, django_assert_num_queries):
    live(10, rated=4)
    live(5, rated=5, at=DAY, name="stars")
    live(5, rated=5, at=DAY, name="task")  # says nothing about how it went
    live(5, rated=5, at=DAY, source="review:maya")  # nobody chose to give it
    with django_assert_num_queries(3):
        found = look(tenant, now)
    assert (found.overall.runs, found.overall.with_feedback) == (25, 9)
    rows = {(row.name, str(row.day)): (row.rate.with_feedback, row.rate.runs) for row in found.metrics}
    assert rows == {
        ("resolved", "None"): (4, 25),
        ("resolved", "2026-11-21"): (4, 10),
        ("resolved", "2026-11-22"): (0, 15),
        ("stars", "None"): (5, 25),
        ("stars", "2026-11-21"): (0, 10),
        ("stars", "2026-11-22"): (5, 15),
    }
    assert look(tenant, now, name="stars").overall.with_feedback == 5


def test_a_clear_difference_becomes_a_sentence(live, tenant, now):
    live(40, rated=36, model_requested="gpt-4o")
    live(40, rated=4, model_requested="desk", outcome="upstream_error", at=100)
    live(4, rated=0, model_requested="rare", at=200)
    found = look(tenant, now)
    rows = {(row.feature, row.value): row for row in found.buckets}
    assert rows["model", "gpt-4o"].is_clear
    assert rows["error", "a failed call"].difference < -0.7
    assert not rows["model", "rare"].is_clear  # too few to say
    assert not rows["canary", "no canary"].is_clear  # there are no others
    assert found.sentences[0] == "40 of 84 runs have feedback: 48% (37% to 58%)."
    assert any(
        "error \u201ca failed call\u201d get feedback less often" in sentence for sentence in found.sentences
    )
    assert any("model \u201cgpt-4o\u201d get feedback more often" in sentence for sentence in found.sentences)


def test_no_difference_and_no_runs_are_said_too(live, tenant, stranger, now):
    live(60, rated=30)
    assert "No feature of a run shows" in look(tenant, now).sentences[1]
    assert look(stranger, now).sentences == ("There are no runs in this time.",)


def test_wilsons_interval_is_the_published_one():
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)  # Newcombe 1998, method 3
    assert wilson(0, 20)[0] == 0.0
