"""Reward specs and scores: what is refused and by what name, and what an episode is worth and why."""

import json
import math
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning.rewards.facts import Facts, Observed
from learning.rewards.fields import InvalidRewardSpec
from learning.rewards.scoring import score, waterfall_from_json, waterfall_to_json
from learning.rewards.spec import SUPPORT_DESK, RewardSpec
from learning.rewards.steps import StepFacts, steps_from_messages

YAML = Path(__file__).parents[3] / "platform/demo/data/support_desk_reward.yaml"


def document(**changes):
    return {**SUPPORT_DESK.to_dict(), **changes}


def desk(signals, steps):
    return score(SUPPORT_DESK, Facts.of(signals, steps))


def spec(**sections):
    outcome = {"csat": {"signal": "csat", "weight": 1.0, "missing": "skip"}}
    return RewardSpec.parse({"schema": 2, "name": "any", "outcome": outcome, **sections})


def assert_adds_up(result):
    """As decimals, as a person would add up what is printed."""
    parts = sum((Decimal(repr(part)) for part in result.parts.values()), Decimal(0))
    assert sum((entry.amount for entry in result.waterfall), Decimal(0)) == parts
    if result.total is not None:
        assert parts == Decimal(repr(result.total))
    for name, part in result.parts.items():
        of_part = [entry.amount for entry in result.waterfall if entry.part == name]
        assert sum(of_part, Decimal(0)) == Decimal(repr(part))


def test_yaml_and_dict_give_the_same_spec_and_digest():
    parsed = RewardSpec.from_yaml(YAML.read_text())
    assert parsed == SUPPORT_DESK == RewardSpec.parse(SUPPORT_DESK.to_dict())
    assert parsed.digest == SUPPORT_DESK.digest
    dearer = document(cost={"model calls": {"fact": "model_calls", "weight": 0.03}})
    assert RewardSpec.parse(dearer).digest != SUPPORT_DESK.digest


def test_the_order_of_keys_means_nothing():
    given = document()
    shuffled = {key: given[key] for key in sorted(given, reverse=True)}
    shuffled["step"] = dict(reversed(given["step"].items()))
    assert RewardSpec.parse(shuffled) == SUPPORT_DESK


OUTCOME = {"signal": "csat", "weight": 1.0, "missing": "none"}


def outcome(**changes):
    return {"outcome": {"csat": {key: v for key, v in {**OUTCOME, **changes}.items() if v is not ...}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bonus": 1}, r"^bonus: unknown key; known: clip, cost"),
        ({"schema": 1}, r"^schema: must be 2, got 1"),
        ({"schema": None}, r"^schema: must be 2"),
        ({"name": None}, r"^name: must be text"),
        ({"outcome": {}}, r"^outcome: must have at least one term"),
        ({"outcome": []}, r"^outcome: must be a mapping, got a list"),
        ({"outcome": {"csat": 1}}, r"^outcome\.csat: must be a mapping"),
        ({"outcome": {True: OUTCOME}}, r"^outcome\.True: names are text; put True in quotes"),
        (outcome(weight=...), r"^outcome\.csat\.weight: missing"),
        (outcome(weight=True), r"^outcome\.csat\.weight: must be a number"),
        (outcome(weight=math.nan), r"^outcome\.csat\.weight: must be from"),
        (outcome(weight=1e7), r"^outcome\.csat\.weight: must be from"),
        (outcome(signal=""), r"^outcome\.csat\.signal: must be text"),
        (
            outcome(signal=...),
            r"^outcome\.csat: must read exactly one of signal, fact, judge, own; it names none",
        ),
        (outcome(judge="kind"), r"^outcome\.csat: must read exactly one of"),
        (outcome(missing=...), r"^outcome\.csat\.missing: missing; say none"),
        (outcome(missing=0), r"^outcome\.csat\.missing: must be none"),
        (outcome(missing={"count_as": 0}), r"^outcome\.csat\.missing\.because: missing; say why"),
        (outcome(not_final="maybe"), r"^outcome\.csat\.not_final: must be one of wait, use"),
        (outcome(clip=[1, 0]), r"^outcome\.csat\.clip: the lowest, 1, is above the highest, 0"),
        (outcome(clip=3), r"^outcome\.csat\.clip: must be two numbers"),
        (outcome(values={"good": "1"}), r"^outcome\.csat\.values\.good: must be a number"),
        (outcome(sha256="0"), r"^outcome\.csat\.sha256: unknown key"),
        ({"outcome": {"x": {"fact": "tokens", "weight": 1}}}, r"^outcome\.x\.fact: what happened on the way"),
        (
            {"outcome": {"x": {"judge": "K!", "weight": 1, "missing": "skip"}}},
            r"^outcome\.x\.judge: must be a judge",
        ),
        (
            {"outcome": {"x": {"own": "mine", "weight": 1, "missing": "skip"}}},
            r"^outcome\.x\.sha256: missing; sha256 of the source",
        ),
        (
            {"cost": {"x": {"fact": "model_call", "weight": 1}}},
            r"^cost\.x\.fact: must be one of model_calls,",
        ),
        ({"cost": {"x": {"fact": "tokens", "weight": -1}}}, r"^cost\.x\.weight: must be from 0"),
        (
            {"cost": {"x": {"fact": "tokens", "weight": 1, "missing": "skip"}}},
            r"^cost\.x\.missing: unknown key",
        ),
        ({"cost": {"x": {"fact": "tokens", "weight": 1, "per": 0}}}, r"^cost\.x\.per: must be from"),
        ({"clip": ["a", 1]}, r"^clip\[0\]: must be a number"),
        ({"shaping": {}}, r"^shaping\.potential: missing"),
        ({"shaping": {"potential": {"x": {"weight": 1}}}}, r"^shaping\.potential\.x: must read either"),
        (
            {"shaping": {"discount": 2, "potential": {"x": {"fact": "tokens", "weight": 1}}}},
            r"^shaping\.discount: must be from 0 to 1",
        ),
        ({"veto": {"x": {"reward": -1, "because": "b"}}}, r"^veto\.x\.when: missing"),
        (
            {"veto": {"x": {"when": {"signal": "s"}, "reward": -1, "because": "b"}}},
            r"^veto\.x\.when: must hold exactly one of equals, at_least, at_most",
        ),
        (
            {"veto": {"x": {"when": {"signal": "s", "equals": False}, "reward": -1}}},
            r"^veto\.x\.because: missing",
        ),
        (
            {
                "clip": [0, 1],
                "veto": {"x": {"when": {"signal": "s", "equals": 1}, "reward": -1, "because": "b"}},
            },
            r"^veto\.x\.reward: -1 lies outside clip, 0 to 1",
        ),
    ],
)
def test_documents_are_refused_with_the_field_named(changes, message):
    RewardSpec.parse(document())
    with pytest.raises(InvalidRewardSpec, match=message):
        RewardSpec.parse(document(**changes))


@pytest.mark.parametrize(
    "text", ["", "- 1", "name: [", "just text", "name: a\nname: b", "{1: {2: 3}}", "a: &a [*a]", "[" * 2000]
)
def test_texts_that_are_no_spec_are_refused(text):
    with pytest.raises(InvalidRewardSpec):
        RewardSpec.from_yaml(text)


@pytest.mark.parametrize(
    ("signals", "steps", "reward"),
    [
        ({"resolved": True, "risk": 0.0}, [StepFacts()], 0.98),
        ({"resolved": True}, [StepFacts()] * 3, 0.94),
        ({"resolved": False, "risk": True}, [StepFacts(malformed=1), StepFacts(repeated=2)], -0.84),
        ({"resolved": 0.5, "risk": 0.2}, [StepFacts(model_calls=3, tool_calls=2, tokens=900)], 0.34),
        ({"risk": 1.0}, [StepFacts()], None),
        ({"resolved": None}, [], None),
    ],
)
def test_the_support_desk_pays_what_it_always_did(signals, steps, reward):
    """outcome - 0.02 a model call - 0.5 * risk - 0.2 a malformed and 0.05 a repeated tool call."""
    result = desk(signals, steps)
    assert result.total == reward
    assert_adds_up(result)


def test_missing_outcome_is_not_zero():
    result = desk({"risk": 0.0}, [StepFacts(), StepFacts(malformed=1)])
    assert result.total is None
    assert "outcome" not in result.parts
    assert result.missing == ("resolved",)
    assert [e.why for e in result.waterfall if e.term == "resolved"] == ["resolved is not known: no reward"]


def test_unreported_risk_costs_nothing_and_is_listed():
    result = desk({"resolved": True}, [StepFacts()])
    assert (result.total, result.missing) == (0.98, ("risk",))
    assert [e.why for e in result.waterfall if e.term == "harm"] == ["risk is not known: left out"]


def test_a_stated_number_stands_in_and_says_why():
    stated = {"count_as": 0.5, "because": "half of those who say nothing are content"}
    counted = spec(outcome={"csat": {"signal": "csat", "weight": 2.0, "missing": stated}})
    silent = score(counted, Facts.of({}, []))
    assert (silent.total, silent.missing) == (1.0, ("csat",))
    assert "half of those who say nothing" in silent.waterfall[0].why
    assert score(counted, Facts.of({"csat": 0.0}, [])).total == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300, 10**400, "yes", {"messages": []}, None])
def test_a_value_that_is_no_number_is_not_known(value):
    assert desk({"resolved": 1}, []).total == 1.0
    result = desk({"resolved": value}, [])
    assert (result.total, result.missing) == (None, ("resolved", "risk"))


def test_labels_count_as_what_the_spec_says():
    rated = spec(
        outcome={
            "rating": {
                "signal": "rating",
                "weight": 2,
                "missing": "none",
                "values": {"good": 1, "poor": -0.5},
            }
        }
    )
    assert score(rated, Facts.of({"rating": "good"}, [])).total == 2.0
    assert score(rated, Facts.of({"rating": "poor"}, [])).total == -1.0
    unknown = score(rated, Facts.of({"rating": "superb"}, []))
    assert (unknown.total, unknown.missing) == (None, ("rating",))
    assert unknown.waterfall[0].why == "rating is 'superb', which has no number in values: no reward"


def test_terms_and_rewards_are_held_within_their_bounds():
    bounded = spec(
        outcome={"csat": {"signal": "csat", "weight": 10, "missing": "none", "clip": [0, 4]}},
        cost={"tokens": {"fact": "tokens", "weight": 1, "per": 1000, "clip": [0, 0.5]}},
        clip=[-1, 3],
    )
    result = score(bounded, Facts.of({"csat": 1}, [StepFacts(tokens=400), StepFacts(tokens=900)]))
    assert result.parts == {"outcome": 4.0, "cost": -0.5, "risk": 0.0, "step": 0.0, "clip": -0.5}
    assert result.total == 3.0
    assert [str(entry.amount.normalize()) for entry in result.waterfall if entry.term == "tokens"] == [
        "-0.4",
        "-0.9",
        "0.8",
    ]
    assert_adds_up(result)


def test_a_value_that_may_still_change_is_waited_for_or_used():
    facts = Facts([Observed("csat", 1.0, is_final=False)], [])
    waiting = score(spec(outcome={"csat": OUTCOME}), facts)
    using = score(spec(outcome={"csat": {**OUTCOME, "not_final": "use"}}), facts)
    assert (waiting.total, waiting.not_final, waiting.missing) == (None, ("csat",), ())
    assert "waiting" in waiting.waterfall[0].why
    assert (using.total, using.not_final) == (1.0, ("csat",))


def test_step_terms_read_signals_of_steps_with_their_evidence():
    seen = ("Step 1 called refund: error 500",)
    facts = Facts(
        [
            Observed("tool_error", 1.0, None, source="derived"),
            Observed("tool_error", 1.0, 1, source="derived", evidence=seen),
            Observed("csat", 1.0),
        ],
        [StepFacts(), StepFacts()],
    )
    errors = spec(step={"tool error": {"signal": "tool_error", "weight": -0.25, "missing": "none"}})
    result = score(errors, facts)
    assert result.total == 0.75
    assert [step.step for step in result.steps] == [0.0, -0.25]
    assert [entry.evidence for entry in result.waterfall if entry.part == "step"] == [seen]
    # Looked at and found nowhere is known; not looked at is not.
    assert score(errors, Facts.of({"tool_error": 0.0, "csat": 1}, [StepFacts()])).total == 1.0
    assert score(errors, Facts.of({"csat": 1}, [StepFacts()])).total is None


VETO = {
    "not resolved": {
        "when": {"signal": "verified_resolved", "equals": False},
        "reward": -1.0,
        "because": "the order system says so",
    }
}


def test_a_verified_failure_beats_every_term():
    vetoed = spec(
        outcome={"kind": {"judge": "kind", "weight": 5.0, "missing": "none"}},
        cost={"calls": {"fact": "model_calls", "weight": 0.1}},
        veto=VETO,
    )
    kind, steps = {"judge:kind": 1.0}, [StepFacts()]
    free = score(vetoed, Facts.of({**kind, "verified_resolved": True}, steps))
    failed = score(vetoed, Facts.of({**kind, "verified_resolved": False}, steps))
    assert (free.total, free.veto) == (4.9, "")
    assert (failed.total, failed.veto, failed.parts["veto"]) == (-1.0, "not resolved", -5.9)
    assert failed.waterfall[-1].why == "verified_resolved is false: the order system says so"
    # A count of zero is not the statement that it failed, and silence vetoes nothing.
    assert score(vetoed, Facts.of({**kind, "verified_resolved": 0}, steps)).veto == ""
    assert score(vetoed, Facts.of(kind, steps)).total == 4.9
    # A failure that is verified is known, whatever else is not.
    assert score(vetoed, Facts.of({"verified_resolved": False}, steps)).total == -1.0
    for result in (free, failed):
        assert_adds_up(result)


def test_a_veto_waits_for_what_may_still_change():
    vetoed = spec(veto=VETO)
    facts = Facts([Observed("csat", 1.0), Observed("verified_resolved", False, is_final=False)], [])
    result = score(vetoed, facts)
    assert (result.total, result.veto, result.not_final) == (None, "", ("verified_resolved",))


def test_a_pinned_judge_is_no_other_judge():
    pinned = spec(outcome={"kind": {"judge": "kind@0123456789ab", "weight": 1.0, "missing": "none"}})
    same = Facts([Observed("judge:kind", 1.0, source="judge:kind@0123456789ab")], [])
    other = Facts([Observed("judge:kind", 1.0, source="judge:kind@ba9876543210")], [])
    barred = Facts([Observed("judge:kind", None, evidence=("kappa 0.40 is below 0.60",))], [])
    assert score(pinned, same).total == 1.0
    assert score(pinned, other).total is None
    assert "by judge:kind@ba9876543210" in score(pinned, other).waterfall[0].why
    assert score(pinned, barred).waterfall[0].evidence == ("kappa 0.40 is below 0.60",)


numbers = st.floats(-1e6, 1e6)
weights = st.floats(0, 1000)
steps = st.lists(
    st.builds(
        StepFacts,
        tool_calls=st.integers(0, 9),
        malformed=st.integers(0, 9),
        repeated=st.integers(0, 9),
        tokens=st.integers(0, 100_000),
    ),
    max_size=12,
)


@given(weights, weights, weights, weights, numbers, st.booleans(), st.booleans(), steps)
def test_waterfalls_add_up_exactly(a, b, c, d, csat, risk, is_verified, steps):
    everything = spec(
        outcome={"csat": {"signal": "csat", "weight": a, "missing": "none", "clip": [-a, a]}},
        cost={
            "calls": {"fact": "model_calls", "weight": b},
            "tokens": {"fact": "tokens", "weight": b, "per": 1000, "clip": [0, 1]},
        },
        risk={"harm": {"signal": "risk", "weight": c, "missing": "none"}},
        step={"malformed": {"fact": "malformed", "weight": -d}},
        shaping={"discount": 0.9, "potential": {"tools": {"fact": "tool_calls", "weight": d}}},
        veto=VETO,
        clip=[-100, 100],
    )
    signals = {"csat": csat, "risk": risk, "verified_resolved": is_verified}
    result = score(everything, Facts.of(signals, steps))
    assert result.total is not None
    assert_adds_up(result)
    assert (
        waterfall_from_json(json.loads(json.dumps(waterfall_to_json(result.waterfall)))) == result.waterfall
    )


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
