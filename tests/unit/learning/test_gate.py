"""The gate's verdicts, on made-up results of both arms."""

import json
from dataclasses import replace

import pytest

from learning.evaluation.gate import GatePolicy, TaskResult, decide


def arm(successes: list[bool], **changes: float) -> list[TaskResult]:
    plain = TaskResult(task_id="", success=True, reward=0.0, risk=0.0, model_calls=2, tool_calls=1)
    return [
        replace(plain, task_id=f"heldout-{number:04d}", success=success, reward=float(success), **changes)
        for number, success in enumerate(successes)
    ]


HALF = [number % 2 == 0 for number in range(200)]
MOST = [number % 5 != 0 for number in range(200)]


def test_better_beyond_chance_passes():
    verdict = decide(arm(HALF), arm(MOST))
    assert verdict.verdict == "pass"
    assert float(verdict.figures["ci95"][0]) > 0
    assert verdict.figures["better"] - verdict.figures["worse"] == 60
    assert "80.0%" in verdict.reasons[0]
    assert "+30.0 points" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("champion", "candidate", "outcome", "sentence"),
    [
        (arm(MOST), arm(HALF), "fail", "does not solve more tasks"),
        (arm(HALF), arm(HALF), "fail", "does not solve more tasks"),
        (arm(HALF), arm(MOST, risk=0.1), "fail", "more harm"),
        (arm(HALF), arm(MOST, model_calls=3), "fail", "costs too much"),
        (arm(HALF[:60]), arm(MOST[:60]), "not_enough_evidence", "Only 60 tasks"),
        (arm(HALF), arm([*HALF[:-1], True]), "not_enough_evidence", "chance alone"),
    ],
)
def test_anything_else_does_not_and_says_why(champion, candidate, outcome, sentence):
    verdict = decide(champion, candidate)
    assert verdict.verdict == outcome
    assert sentence in verdict.reasons[0]


def test_the_worst_flips_come_first():
    champion, candidate = arm(HALF), arm(MOST)
    candidate[30] = replace(candidate[30], risk=0.9)  # wrong, and harmful: the champion had solved it
    worst = decide(champion, candidate, GatePolicy(max_risk_increase=1.0)).figures["worst"]
    assert worst[0]["task_id"] == "heldout-0030"
    assert len(worst) == 10
    assert all(flip["champion"]["success"] and not flip["candidate"]["success"] for flip in worst)


def test_the_figures_hold_no_float_and_the_same_seed_gives_the_same():
    figures = decide(arm(HALF), arm(MOST), seed=3).figures
    assert "." not in json.dumps(figures["policy"]["resamples"])
    json.loads(json.dumps(figures), parse_float=lambda text: pytest.fail(f"a float: {text}"))
    assert figures == decide(arm(HALF), arm(MOST), seed=3).figures


def test_results_about_different_tasks_are_refused():
    with pytest.raises(ValueError, match="same tasks"):
        decide(arm(HALF), arm(HALF[:-1]))
    with pytest.raises(ValueError, match="at least one"):
        decide([], [])
