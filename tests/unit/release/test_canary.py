"""The canary guard's verdicts: abort wins, doubt waits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from release.canary import Action, Arm, Limits, Window, decide, error_rate_at_least

LIMITS = Limits(min_calls=50)


@pytest.mark.parametrize(
    ("champion", "canary", "action"),
    [
        pytest.param(Arm(0, 0), Arm(0, 0), Action.WAIT, id="nothing yet"),
        pytest.param(Arm(150, 0), Arm(49, 0), Action.WAIT, id="one call short"),
        pytest.param(Arm(150, 0), Arm(50, 0), Action.PROMOTE, id="enough, no errors"),
        pytest.param(Arm(0, 0), Arm(50, 0), Action.PROMOTE, id="a share of 1 leaves the champion none"),
        pytest.param(Arm(150, 0), Arm(50, 1), Action.PROMOTE, id="within the allowed excess"),
        pytest.param(Arm(150, 0), Arm(50, 2), Action.WAIT, id="too many to promote, too few to be sure"),
        pytest.param(Arm(150, 0), Arm(2, 2), Action.WAIT, id="two errors prove nothing"),
        pytest.param(Arm(150, 0), Arm(3, 3), Action.ABORT, id="all fail: no need to wait for fifty"),
        pytest.param(Arm(150, 0), Arm(60, 10), Action.ABORT, id="clearly worse, though enough calls"),
        pytest.param(Arm(150, 75), Arm(60, 30), Action.PROMOTE, id="a bad provider hits both alike"),
        pytest.param(Arm(150, 15), Arm(60, 40), Action.ABORT, id="much worse than a bad champion"),
        pytest.param(Arm(100, 0, 500), Arm(60, 0, 4000), Action.ABORT, id="much slower"),
        pytest.param(Arm(100, 0, 500), Arm(60, 0, 1400), Action.PROMOTE, id="slower within the ratio"),
        pytest.param(Arm(100, 0, 10), Arm(60, 0, 100), Action.PROMOTE, id="ten times slower, 90 ms: noise"),
        pytest.param(
            Arm(10, 0, 500), Arm(60, 0, 9000), Action.PROMOTE, id="too few calls to compare latency"
        ),
        pytest.param(Arm(100, 0, None), Arm(60, 0, None), Action.PROMOTE, id="no latency known"),
    ],
)
def test_verdicts(champion: Arm, canary: Arm, action: Action) -> None:
    verdict = decide(Window(champion, canary), LIMITS)
    assert verdict.action is action, verdict.sentence
    assert verdict.sentence


ARMS = st.builds(
    lambda calls, share, p95: Arm(calls, round(calls * share), p95),
    st.integers(0, 2000),
    st.floats(0, 1),
    st.none() | st.floats(0, 60_000),
)


@given(ARMS, ARMS)
def test_never_promotes_what_fails_clearly_more_often_or_has_too_few_calls(
    champion: Arm, canary: Arm
) -> None:
    verdict = decide(Window(champion, canary), LIMITS)
    if verdict.action is Action.PROMOTE:
        assert canary.calls >= LIMITS.min_calls
        assert canary.error_rate <= champion.error_rate + LIMITS.max_error_excess


@given(st.integers(1, 1000), st.floats(0, 1))
def test_the_bound_lies_below_the_share_and_closes_in(calls: int, share: float) -> None:
    errors = round(calls * share)
    bound = error_rate_at_least(errors, calls)
    assert 0 <= bound <= errors / calls + 1e-9
    assert error_rate_at_least(errors * 100, calls * 100) >= bound - 1e-9


def test_known_wilson_bound() -> None:
    # Wilson score interval for 3 of 3 at 95 %: 0.4385 to 1.
    assert error_rate_at_least(3, 3) == pytest.approx(0.4385, abs=1e-3)
