"""Reward specs: what is accepted, what is refused and by what name, and that parts always add up."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning.rewards.spec import SUPPORT_DESK, InvalidRewardSpec, RewardSpec, score
from learning.rewards.steps import StepFacts, steps_from_messages

YAML = """
name: support-desk
outcome: {signal: resolved, weight: 1.0}
cost: {per_model_call: 0.02}
risk: {signal: risk, weight: 0.5}
step: {malformed: 0.2, repeated: 0.05}
"""


def document(**changes):
    return {**SUPPORT_DESK.to_dict(), **changes}


def test_yaml_and_dict_give_the_same_spec_and_digest():
    spec = RewardSpec.from_yaml(YAML)
    assert spec == SUPPORT_DESK == RewardSpec.parse(SUPPORT_DESK.to_dict())
    assert spec.digest == SUPPORT_DESK.digest
    assert RewardSpec.parse(document(cost={"per_model_call": 0.03})).digest != SUPPORT_DESK.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bonus": 1}, r"^bonus: unknown key"),
        ({"cost": {"per_call": 1}}, r"^cost\.per_call: unknown key"),
        ({"outcome": {"weight": 1}}, r"^outcome\.signal: missing"),
        ({"outcome": {"signal": ""}}, r"^outcome\.signal: must be text"),
        ({"outcome": []}, r"^outcome: must be a mapping"),
        ({"risk": {"signal": "risk", "weight": -1}}, r"^risk\.weight: .*not below 0"),
        ({"risk": {"signal": "risk", "weight": math.nan}}, r"^risk\.weight: must be finite"),
        ({"step": {"malformed": True}}, r"^step\.malformed: must be a number"),
        ({"step": {"malformed": "1"}}, r"^step\.malformed: must be a number"),
        ({"schema": 2}, r"^schema: 2"),
        ({"name": None}, r"^name: must be text"),
    ],
)
def test_documents_are_refused_with_the_field_named(changes, message):
    RewardSpec.parse(document())
    with pytest.raises(InvalidRewardSpec, match=message):
        RewardSpec.parse(document(**changes))


@pytest.mark.parametrize("text", ["", "- 1", "name: [", "just text"])
def test_texts_that_are_no_spec_are_refused(text):
    with pytest.raises(InvalidRewardSpec):
        RewardSpec.from_yaml(text)


def test_missing_outcome_is_not_zero():
    steps = [StepFacts(), StepFacts(malformed=1)]
    known = score(SUPPORT_DESK, {"resolved": False, "risk": 0.0}, steps)
    unknown = score(SUPPORT_DESK, {"resolved": None, "risk": 0.0}, steps)
    assert known.total == pytest.approx(-0.24)
    assert unknown.total is None
    assert "outcome" not in unknown.parts
    assert unknown.missing == ("resolved",)


def test_unreported_risk_costs_nothing_and_is_listed():
    result = score(SUPPORT_DESK, {"resolved": True}, [StepFacts()])
    assert result.total == pytest.approx(0.98)
    assert result.missing == ("risk",)


def test_each_part_says_what_it_is_for():
    spec = RewardSpec.parse(
        document(
            cost={"per_model_call": 0.1, "per_tool_call": 0.01, "per_1k_tokens": 1},
            outcome={"signal": "csat"},
        )
    )
    steps = [StepFacts(tool_calls=2, tokens=500), StepFacts(malformed=1, repeated=2)]
    result = score(spec, {"csat": 0.5, "risk": True}, steps)
    assert result.parts == pytest.approx({"outcome": 0.5, "cost": -0.72, "risk": -0.5, "step": -0.3})
    assert result.steps[0].cost == pytest.approx(-0.62)
    assert result.steps[1].penalty == pytest.approx(-0.3)


@pytest.mark.parametrize("value", [math.nan, math.inf, "yes"])
def test_signals_that_are_no_numbers_are_refused(value):
    with pytest.raises(ValueError, match="resolved"):
        score(SUPPORT_DESK, {"resolved": value}, [])


weights = st.floats(0, 1e6)
facts = st.builds(
    StepFacts,
    tool_calls=st.integers(0, 9),
    malformed=st.integers(0, 9),
    repeated=st.integers(0, 9),
    tokens=st.integers(0, 100_000),
)


@given(weights, weights, weights, weights, st.floats(-1e6, 1e6), st.booleans(), st.lists(facts, max_size=12))
def test_parts_add_up_exactly(a, b, c, d, outcome, risk, steps):
    spec = RewardSpec.parse(
        {
            "name": "any",
            "outcome": {"signal": "o", "weight": a},
            "cost": {"per_model_call": b, "per_1k_tokens": b},
            "risk": {"signal": "r", "weight": c},
            "step": {"malformed": d, "repeated": d},
        }
    )
    result = score(spec, {"o": outcome, "r": risk}, steps)
    assert result.total == sum(result.parts.values())
    assert result.parts["cost"] == sum(step.cost for step in result.steps)
    assert result.parts["step"] == sum(step.penalty for step in result.steps)


def assistant(content="", *calls):
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in calls],
    }


def test_steps_are_counted_from_messages():
    tools = [
        {
            "type": "function",
            "function": {
                "name": "refund",
                "parameters": {"properties": {"order_id": {"type": "string"}}, "required": ["order_id"]},
            },
        }
    ]
    messages = [
        {"role": "user", "content": "Order 1: <tool_call> me"},
        assistant("", ("refund", '{"order_id": "1"}'), ("refund", "{")),
        {"role": "tool", "content": "ok"},
        assistant("", ("refund", {"order_id": "1"}), ("pay", "{}")),
        assistant('<tool_call>{"name": "refund"'),
        assistant("Done."),
    ]
    steps = steps_from_messages(messages, tools=tools)
    assert [(s.tool_calls, s.malformed, s.repeated) for s in steps] == [
        (2, 1, 0),
        (2, 1, 1),
        (0, 1, 0),
        (0, 0, 0),
    ]
    # Without the schemas only what cannot be parsed is malformed.
    assert [s.malformed for s in steps_from_messages(messages)] == [1, 0, 1, 0]
