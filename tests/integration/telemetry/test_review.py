"""Runs drawn at random for people to label, and what their labels say about feedback."""

from datetime import timedelta
from uuid import uuid4

import pytest

from audit import selectors as ledger
from audit.actions import Actor
from kernel.ids import uuid7
from telemetry import declarations, review, runs, signals
from telemetry.metrics import Kind, Level, Metric
from telemetry.models import Review, Run, Signal

MAYA = Actor.user(id=1, name="maya", role="admin")
HI = {"role": "assistant", "content": "Hi."}


@pytest.fixture
def close_runs(make_call, tenant, now):
    """So many runs, all closed an hour after their only call."""

    def work(count: int, *, at: float = 0.0) -> None:
        for number in range(count):
            make_call([{"role": "user", "content": f"{at} {number}"}], HI, at=at + number / 1000)
        later = now + timedelta(seconds=at + 3600)
        runs.stitch_pending(project_id=tenant.project.id, now=later)
        runs.close_idle(now=later)

    return work


def set_share(tenant, share, now):
    declarations.set_signal_settings(project=tenant.project, review_share=share, actor=MAYA, now=now)


def test_the_draw_is_a_share_decided_by_the_salt_alone():
    ids = [uuid4() for _ in range(4000)]
    drawn = {i for i in ids if review.is_drawn(i, salt=b"s" * 32, share=0.1)}
    assert 300 < len(drawn) < 500
    assert drawn == {i for i in reversed(ids) if review.is_drawn(i, salt=b"s" * 32, share=0.1)}
    assert drawn < {i for i in ids if review.is_drawn(i, salt=b"s" * 32, share=0.3)}
    assert drawn != {i for i in ids if review.is_drawn(i, salt=b"t" * 32, share=0.1)}
    assert all(review.is_drawn(i, salt=b"s" * 32, share=1.0) for i in ids)
    assert not any(review.is_drawn(i, salt=b"s" * 32, share=0.0) for i in ids)


def test_runs_are_drawn_once_when_they_close(close_runs, tenant, stranger, now):
    close_runs(20)
    set_share(tenant, 0.5, now + timedelta(hours=2))
    assert review.draw_due(now=now + timedelta(hours=2)) == 0  # they had closed before
    close_runs(40, at=10_000)
    later = now + timedelta(seconds=10_000, hours=1, minutes=1)
    count = review.draw_due(now=later)
    assert 8 < count < 32
    assert review.draw_due(now=later + timedelta(minutes=1)) == 0
    assert len(review.waiting(tenant.project.id)) == count == Review.objects.count()
    assert review.waiting(stranger.project.id) == []


def test_a_label_is_a_signal_of_a_person(close_runs, tenant, stranger, now):
    close_runs(1)
    set_share(tenant, 1.0, now)
    review.draw_due(now=now + timedelta(hours=1))
    run = Run.objects.get()
    values = {"resolved": True, "remark": "Polite, and \u201cright\u201d."}
    review.label(project=tenant.project, run_id=run.id, values=values, person=MAYA, now=now)
    rows = signals.latest_signals([run.id], now=now)[run.id]
    assert {row.name: (row.value, row.source) for row in rows} == {
        name: (value, "review:maya") for name, value in values.items()
    }
    assert Run.objects.get().revision == run.revision + 1
    assert review.waiting(tenant.project.id) == []
    (event,) = ledger.events_of(type="run", id=run.id)
    assert (event.action, event.data["names"]) == ("run.reviewed", ["remark", "resolved"])
    assert b"Polite" not in event.body
    with pytest.raises(Run.DoesNotExist):
        review.label(project=stranger.project, run_id=run.id, values=values, person=MAYA, now=now)


def test_a_label_that_does_not_fit_is_refused_whole(close_runs, tenant, now):
    close_runs(1)
    for metric in (
        Metric(name="resolved", kind=Kind.BOOLEAN),
        Metric(name="helpful", kind=Kind.BOOLEAN, level=Level.STEP),
    ):
        declarations.declare(project=tenant.project, metric=metric, actor=MAYA, now=now)
    run_id = Run.objects.get().id
    for values, words in [
        ({}, "^values: "),
        ({"remark": "fine", "resolved": "yes"}, "^resolved: .*true or false"),
        ({"helpful": True}, "^helpful: it is about a step"),
    ]:
        with pytest.raises(review.InvalidLabel, match=words):
            review.label(project=tenant.project, run_id=run_id, values=values, person=MAYA, now=now)
    assert not Signal.objects.exists()


def test_agreement_of_feedback_with_reviewers(close_runs, tenant, now):
    close_runs(8)
    set_share(tenant, 1.0, now)
    review.draw_due(now=now + timedelta(hours=1))
    given = [(True, True)] * 3 + [(False, False)] * 2 + [(True, False), (None, True), (True, None)]
    for run, (feedback, label) in zip(Run.objects.order_by("id"), given, strict=True):
        if feedback is not None:
            Signal.objects.create(
                id=uuid7(), project=tenant.project, target_type="run_id", target=str(run.id), run=run,
                name="resolved", value=feedback, observed_at=now, received_at=now,
            )  # fmt: skip
        if label is not None:
            review.label(
                project=tenant.project, run_id=run.id, values={"resolved": label}, person=MAYA, now=now
            )
    found = review.agreement(tenant.project.id, "resolved")
    assert (found.runs, found.equal) == (6, 5)
    # Observed 5/6; by chance 4/6 * 3/6 + 2/6 * 3/6 = 1/2.
    assert found.kappa == pytest.approx((5 / 6 - 1 / 2) / (1 / 2))
    assert review.agreement(tenant.project.id, "stars").kappa is None


def test_kappa_where_chance_explains_all():
    assert review.cohens_kappa([(True, True)] * 5) is None
    assert review.cohens_kappa([(1, 1.0), (0, 0)]) == 1.0
    assert review.cohens_kappa([(True, False), (False, True)]) == -1.0
