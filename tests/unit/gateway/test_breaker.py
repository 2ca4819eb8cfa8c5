"""Circuit breakers: when they open, who probes, and that they never take the last way away."""

from uuid import uuid4

import pytest

from gateway.breaker import Breakers, State
from gateway.routing import Destination


def destination(name: str) -> Destination:
    return Destination(base_url=f"https://{name}.example.com/v1", auth=None, upstream_id=uuid4(), name=name)


A, B = destination("a"), destination("b")


@pytest.fixture
def breakers() -> Breakers:
    return Breakers(failures_to_open=3, cool_down_s=10)


def fail(breakers: Breakers, place: Destination, times: int, now_s: float) -> None:
    for _ in range(times):
        breakers.begin(place, now_s)
        breakers.failed(place, now_s)


def order(breakers: Breakers, now_s: float) -> list[str]:
    return [place.name for place in breakers.order([A, B], now_s)]


def state(breakers: Breakers, name: str, now_s: float) -> State:
    return next(state for _, known, state in breakers.states(now_s) if known == name)


def test_failures_in_a_row_open_it_and_a_success_between_them_does_not(breakers: Breakers) -> None:
    assert order(breakers, 0) == ["a", "b"]
    fail(breakers, A, 2, 0)
    breakers.succeeded(A)
    fail(breakers, A, 2, 0)
    assert (order(breakers, 0), state(breakers, "a", 0)) == (["a", "b"], State.CLOSED)
    fail(breakers, A, 1, 0)
    assert (order(breakers, 0), state(breakers, "a", 0)) == (["b", "a"], State.OPEN)


def test_one_call_probes_after_the_cool_down_and_its_success_closes_it(breakers: Breakers) -> None:
    fail(breakers, A, 3, 0)
    assert order(breakers, 9.9) == ["b", "a"]
    assert (order(breakers, 10), state(breakers, "a", 10)) == (["a", "b"], State.HALF_OPEN)
    breakers.begin(A, 10)
    assert (order(breakers, 10), state(breakers, "a", 10)) == (["b", "a"], State.HALF_OPEN)
    breakers.succeeded(A)
    assert (order(breakers, 10), state(breakers, "a", 10)) == (["a", "b"], State.CLOSED)
    fail(breakers, A, 2, 11)
    assert state(breakers, "a", 11) is State.CLOSED


def test_a_failed_probe_starts_the_cool_down_again(breakers: Breakers) -> None:
    fail(breakers, A, 3, 0)
    fail(breakers, A, 1, 12)
    assert (state(breakers, "a", 12), order(breakers, 21.9)) == (State.OPEN, ["b", "a"])
    assert order(breakers, 22) == ["a", "b"]


def test_a_probe_that_nobody_reports_on_does_not_block_the_next(breakers: Breakers) -> None:
    fail(breakers, A, 3, 0)
    breakers.begin(A, 10)
    assert order(breakers, 19.9) == ["b", "a"]
    assert order(breakers, 20) == ["a", "b"]


def test_late_failures_of_calls_from_before_do_not_put_the_probe_off(breakers: Breakers) -> None:
    fail(breakers, A, 3, 0)
    breakers.failed(A, 9)
    assert order(breakers, 10) == ["a", "b"]


def test_with_all_open_none_is_left_out_and_the_one_due_first_goes_first(breakers: Breakers) -> None:
    fail(breakers, B, 3, 0)
    fail(breakers, A, 3, 1)
    assert order(breakers, 2) == ["b", "a"]
    assert breakers.order([A], 2) == [A]
    breakers.begin(B, 2)
    assert order(breakers, 2) == ["a", "b"]


def test_upstreams_of_the_same_name_in_other_projects_are_others(breakers: Breakers) -> None:
    fail(breakers, A, 3, 0)
    assert breakers.order([destination("a"), B], 0)[0].name == "a"
