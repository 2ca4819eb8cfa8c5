"""Which values fit a metric, and what a person is told about those that do not."""

from typing import Any

import pytest

from telemetry.metrics import ANYTHING, Kind, Level, Metric, Rules, misfit

ANSWER = {"role": "assistant", "content": "It is on its way."}
CALL = {"type": "function", "function": {"name": "look", "arguments": "{}"}}
RULES = Rules(
    {
        metric.name: metric
        for metric in (
            Metric(name="resolved", kind=Kind.BOOLEAN),
            Metric(name="stars", kind=Kind.NUMBER, minimum=1, maximum=5),
            Metric(name="minutes", kind=Kind.NUMBER, minimum=0),
            Metric(name="mood", kind=Kind.LABEL, labels=("good", "bad")),
            Metric(name="remark", kind=Kind.TEXT),
            Metric(name="better", kind=Kind.DEMONSTRATION),
            Metric(name="fix", kind=Kind.CORRECTION),
            Metric(name="helpful", kind=Kind.BOOLEAN, level=Level.STEP),
            Metric(name="slow", kind=Kind.BOOLEAN, level=Level.CALL),
        )
    }
)
STRICT = Rules(RULES.metrics, is_strict=True)


def wrong(name: str, value: Any, *, step: int | None = None, to: str = "run_id", rules: Rules = RULES) -> str:
    """The field that is wrong, and what is said about it; empty when the signal fits."""
    found = misfit(rules, name=name, value=value, step=step, target_type=to)
    return f"{found.param}: {found.message}" if found else ""


@pytest.mark.parametrize(
    ("name", "fitting", "others", "words"),
    [
        ("resolved", [True, False], [1, 0.0, "true", ANSWER], "true or false"),
        ("stars", [1, 5, 2.5], [0, 5.1, True, "3", float("nan"), float("inf")], "a number from 1 to 5"),
        ("minutes", [0, 1e6], [-1, 2.0**54], "a number of at least 0"),
        ("mood", ["good"], ["Good", "", True, 1], "one of good, bad"),
        ("remark", ["fine"], ["", "  ", 1, False], "text that is not empty"),
        ("task", ["airline-4"], [4, True], "text that is not empty"),
        ("closed", [True], ["yes"], "true or false"),
        ("external_key", ["ticket-4711"], ["x" * 201], "at most 200 characters"),
    ],
)
def test_values_of_each_kind(name: str, fitting: list[Any], others: list[Any], words: str) -> None:
    assert [wrong(name, value) for value in fitting] == [""] * len(fitting)
    for value in others:
        assert wrong(name, value).startswith(f"value: `value` of `{name}` must be ")
        assert words in wrong(name, value)


@pytest.mark.parametrize("name", ["better", "demonstration", "anything"])
def test_an_object_is_an_assistant_message(name: str) -> None:
    for value in (ANSWER, {**ANSWER, "content": None, "tool_calls": [CALL]}):
        assert wrong(name, value) == ""
    for value in (
        {"role": "user", "content": "Hi"},
        {"content": "Hi"},
        {"role": "assistant"},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": 7},
        {"role": "assistant", "content": "Hi", "tool_calls": {}},
        {"role": "assistant", "tool_calls": [{"function": {"name": "look"}}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": {}}}]},
    ):
        assert wrong(name, value).startswith("value: ")


@pytest.mark.parametrize("name", ["fix", "correction"])
def test_a_correction_names_what_it_corrects(name: str) -> None:
    assert wrong(name, ANSWER).startswith("step: ")
    assert wrong(name, ANSWER, step=0) == ""
    assert wrong(name, ANSWER, to="call_id") == ""
    assert wrong(name, "not a message", step=0).startswith("value: ")


def test_a_signal_is_about_what_its_metric_is_about() -> None:
    assert wrong("resolved", True, step=2).startswith("step: ")
    assert wrong("helpful", True).startswith("step: ")
    assert wrong("helpful", True, step=2) == wrong("helpful", True, to="response_id") == ""
    assert wrong("slow", True, step=2).startswith("call_id: ")
    assert wrong("slow", True, to="call_id") == ""


def test_names_that_are_not_declared_are_taken_unless_the_project_is_strict() -> None:
    assert wrong("reward", 0.5) == wrong("reward", "x", rules=ANYTHING) == ""
    assert "it has better, closed, external_key, fix," in wrong("reward", 0.5, rules=STRICT)
    assert wrong("task", "t", rules=STRICT) == wrong("resolved", True, rules=STRICT) == ""
