"""Shaping pays for getting nearer and changes no order of episodes; the checker catches what would."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning.rewards.facts import Facts, Observed
from learning.rewards.scoring import score
from learning.rewards.shaping import Shaping, prove
from learning.rewards.spec import RewardSpec
from learning.rewards.steps import StepFacts

PLAIN = {
    "schema": 2,
    "name": "desk",
    "outcome": {"resolved": {"signal": "resolved", "weight": 1.0, "missing": "none"}},
    "cost": {"calls": {"fact": "model_calls", "weight": 0.1}},
}
POTENTIAL = {
    "looked up": {"fact": "tool_calls", "weight": 0.3, "clip": [0, 0.6]},
    "progress": {"signal": "progress", "weight": 0.5, "start": 0.25},
}


def shaping(discount=1.0):
    return Shaping.parse({"discount": discount, "potential": POTENTIAL}, "shaping")


def facts(tool_calls, progress=(), resolved=True):
    signals = [Observed("resolved", resolved)]
    signals += [Observed("progress", value, step) for step, value in enumerate(progress) if value is not None]
    return Facts(signals, [StepFacts(tool_calls=count) for count in tool_calls])


def test_each_step_is_paid_for_what_it_brought_nearer():
    # Before the steps the potential is 0.125, 0.3 + 0.125, 0.6 + 0.5; after the last, 0.
    amounts = shaping().amounts(facts([1, 2, 0], [None, 1.0]))
    assert amounts == [300_000_000, 675_000_000, -1_100_000_000]
    assert shaping().amounts(facts([])) == []


episodes = st.builds(
    facts,
    st.lists(st.integers(0, 5), min_size=1, max_size=15),
    st.lists(st.one_of(st.none(), st.floats(-10, 10)), max_size=15),
    st.booleans(),
)


@given(episodes, st.floats(0, 1))
def test_returns_change_only_by_the_ends_of_the_potential(episode, discount):
    document = {**PLAIN, "shaping": {"discount": discount, "potential": POTENTIAL}}
    plain, shaped = score(RewardSpec.parse(PLAIN), episode), score(RewardSpec.parse(document), episode)
    given = [entry.nano for entry in shaped.waterfall if entry.part == "shaping"]
    amounts = shaping(discount).amounts(episode)
    assert given == [amount for amount in amounts if amount]
    proof = prove(shaping(discount), episode, amounts)
    assert proof.holds
    # The same for every episode, so no two of them change places.
    assert shaped.total == pytest.approx(plain.total - 0.125)
    assert shaped.parts["shaping"] == -0.125


@given(episodes, st.data())
def test_the_checker_catches_an_amount_that_is_not_the_potentials(episode, data):
    amounts = shaping().amounts(episode)
    assert prove(shaping(), episode, amounts).holds
    step = data.draw(st.integers(0, len(amounts) - 1))
    amounts[step] += data.draw(st.integers(1, 10**9))
    bent = prove(shaping(), episode, amounts)
    assert not bent.holds
    assert bent.strayed == (step,)
    assert bent.added != bent.ends


def test_the_checker_catches_amounts_that_add_up_in_the_wrong_places():
    amounts = shaping().amounts(facts([1, 1, 1]))
    swapped = prove(shaping(), facts([1, 1, 1]), [amounts[1], amounts[2], amounts[0]])
    assert swapped.added == swapped.ends
    assert not swapped.holds
    assert not prove(shaping(), facts([1, 1, 1]), amounts[:2]).holds
