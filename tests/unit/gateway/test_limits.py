"""Counting against limits: windows, what counts when, and what is worth telling others."""

from uuid import uuid4

import pytest

from gateway.limits import Counters, Exceeded, Limit, Measure

NOW_S = 1_800_000_030.0
"""Half a minute into a minute."""


def limit(measure: Measure, amount: int, window_s: int = 60, subject: str = "project") -> Limit:
    return Limit(id=uuid4(), subject=subject, measure=measure, amount=amount, window_s=window_s)


def test_requests_are_counted_as_they_are_let_through() -> None:
    counters, three = Counters(), [limit(Measure.REQUESTS, 3)]
    assert [counters.refuse(three, NOW_S) for _ in range(3)] == [None] * 3
    assert counters.refuse(three, NOW_S) == Exceeded(three[0], 30)
    assert counters.refuse(three, NOW_S + 29.9) == Exceeded(three[0], 1)
    assert counters.refuse(three, NOW_S + 30) is None


@pytest.mark.parametrize(
    ("measure", "used"), [(Measure.TOKENS, {"tokens": 100}), (Measure.MICROUSD, {"microusd": 100})]
)
def test_tokens_and_money_are_checked_against_what_is_spent(measure: Measure, used: dict[str, int]) -> None:
    counters, hundred = Counters(), [limit(measure, 100)]
    for _ in range(3):
        assert counters.refuse(hundred, NOW_S) is None
    counters.charge(hundred, now_s=NOW_S, **{"tokens": 0, "microusd": 0, **used})
    assert counters.refuse(hundred, NOW_S) == Exceeded(hundred[0], 30)


def test_the_limit_that_stands_longest_is_named_and_a_refused_call_counts_nowhere() -> None:
    hour, minute = limit(Measure.REQUESTS, 2, 3600), limit(Measure.REQUESTS, 1, subject="API key")
    counters = Counters()
    assert counters.refuse([minute, hour], NOW_S) is None
    assert counters.refuse([minute, hour], NOW_S) == Exceeded(minute, 30)
    assert counters.refuse([minute, hour], NOW_S + 30) is None
    refusal = counters.refuse([minute, hour], NOW_S + 30)
    assert refusal is not None
    assert refusal.limit == hour


def test_what_others_counted_counts_and_is_never_unlearnt_within_a_window() -> None:
    counters, ten = Counters(), limit(Measure.REQUESTS, 10)
    counters.refuse([ten], NOW_S)
    ((_, window),) = counters.due(NOW_S)
    counters.heard(ten, window, own=1, others=9)
    assert counters.refuse([ten], NOW_S) == Exceeded(ten, 30)
    counters.heard(ten, window, own=1, others=0)
    assert counters.refuse([ten], NOW_S) == Exceeded(ten, 30)
    assert counters.refuse([ten], NOW_S + 30) is None


def test_only_what_was_touched_is_due_until_it_is_told_in_full() -> None:
    counters, ten = Counters(), limit(Measure.REQUESTS, 10)
    assert counters.due(NOW_S) == []
    counters.refuse([ten], NOW_S)
    ((_, window),) = counters.due(NOW_S)
    counters.refuse([ten], NOW_S)
    counters.heard(ten, window, own=1, others=0)
    assert counters.due(NOW_S) == [(ten, window)]
    counters.heard(ten, window, own=2, others=0)
    assert counters.due(NOW_S) == []
    counters.refuse([ten], NOW_S)
    assert counters.due(NOW_S + 30) == []


def test_a_limit_names_itself() -> None:
    assert str(limit(Measure.TOKENS, 5000)) == "project: 5000 tokens in 60 s"
    assert str(limit(Measure.MICROUSD, 2_500_000, 3600, "API key")) == "API key: 2.5 USD in 3600 s"
