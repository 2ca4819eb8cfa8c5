"""The report climbs a rung only where everything below it holds, and says what is missing."""

from dataclasses import replace

from learning.readiness import NEEDS, Figures, Rung, report

PLENTY = Figures(
    episodes=1000, opted_out=0, rewarded=900, recent=900, positive=500, verified=900, deviation=0.4,
    deviation_within=0.3, groups=50, varied_groups=40, steps=5000, own_steps=5000,
)  # fmt: skip


def test_plenty_of_own_attempts_supports_reinforcement_learning():
    found = report(PLENTY)
    assert (found.supports, found.missing) == (Rung.RL, ())


def test_answers_of_other_models_end_below_reinforcement_learning():
    found = report(replace(PLENTY, own_steps=0))
    assert found.supports == Rung.KTO
    assert found.missing == (
        "Steps answered by a model of yours, with token ids: 0%, and 50% are needed. Serve a model of your own"
        " for these runs: answers of others cannot be weighed token by token.",
    )


def test_without_failures_only_imitation_is_left():
    assert report(replace(PLENTY, positive=880)).supports == Rung.SFT


def test_nothing_at_all_is_a_matter_of_the_prompt():
    nothing = Figures(0, 0, 0, 0, 0, 0, 0.0, 0.0, 0, 0, 0, 0)
    found = report(nothing)
    assert found.supports == Rung.PROMPT_FIRST
    assert len(found.missing) == sum(need[0] == Rung.SFT for need in NEEDS)
