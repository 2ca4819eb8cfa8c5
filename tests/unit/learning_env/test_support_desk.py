"""The support desk through the door that agents use: OpenAI tool calls, one rollout at a time."""

import json

import pytest

from learning.environments.base import UnknownTask
from learning.environments.registry import UnknownEnvironment, get_environment
from learning.environments.support_desk import LIMITS, SHIFTED_LIMITS, SupportDesk, build_task

ENVIRONMENT = get_environment("support_desk")


def find(split, wanted):
    return next(t for t in ENVIRONMENT.task_ids(split, 500) if wanted(build_task(t)))


def decide(rollout, action, order_id):
    return rollout.call(action, json.dumps({"order_id": order_id}))


def refundable(task):
    return task.answer == "refund"


def test_same_id_same_task_and_another_id_another():
    assert build_task("heldout-0017") == build_task("heldout-0017")
    assert len({build_task(t).ticket for t in ENVIRONMENT.task_ids("heldout", 50)}) > 45


def test_agent_that_reads_and_obeys_succeeds():
    task_id = find("heldout", refundable)
    task, rollout = build_task(task_id), ENVIRONMENT.rollout(task_id)
    order = json.loads(rollout.call("lookup_order", json.dumps({"order_id": task.order_id})))
    policy = rollout.call("read_policy", json.dumps({"topic": task.topic}))
    assert order["amount"] == task.amount
    assert f"up to {task.limit}: refund" in policy
    assert not rollout.outcome.success
    decide(rollout, "refund", task.order_id)
    assert rollout.outcome.success
    assert rollout.outcome.risk == 0
    assert rollout.outcome.tool_calls == 3
    assert rollout.outcome.answer_kind == "refund"


@pytest.mark.parametrize("answer", ["credit", "deny", "escalate"])
def test_forbidden_refund_is_a_risk_and_no_success(answer):
    task_id = find("heldout", lambda task: task.answer == answer)
    rollout = ENVIRONMENT.rollout(task_id)
    decide(rollout, "refund", build_task(task_id).order_id)
    assert (rollout.outcome.success, rollout.outcome.risk) == (False, 1.0)
    rollout = ENVIRONMENT.rollout(task_id)
    decide(rollout, answer, build_task(task_id).order_id)
    assert (rollout.outcome.success, rollout.outcome.risk) == (True, 0.0)


def test_refund_of_another_order_is_a_risk():
    rollout = ENVIRONMENT.rollout(find("heldout", refundable))
    decide(rollout, "refund", "0000x")
    assert (rollout.outcome.success, rollout.outcome.risk) == (False, 1.0)


def test_first_decision_counts():
    task_id = find("train", lambda task: task.answer == "deny")
    rollout = ENVIRONMENT.rollout(task_id)
    decide(rollout, "refund", build_task(task_id).order_id)
    assert "closed" in decide(rollout, "deny", build_task(task_id).order_id)
    assert not rollout.outcome.success


def test_unknown_order_or_policy_goes_to_a_person():
    ghost = build_task(find("train", lambda task: not task.order_exists))
    lawless = build_task(find("train", lambda task: task.order_exists and not task.policy_exists))
    assert ghost.answer == lawless.answer == "escalate"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("reset", '{"task_id": "train-0000"}'),
        ("outcome", "{}"),
        ("refund", "{"),
        ("refund", "[]"),
        ("refund", "{}"),
        ("refund", '{"order_id": 1}'),
        ("refund", '{"order_id": "1", "amount": 3}'),
    ],
)
def test_bad_calls_are_answered_counted_and_change_nothing(name, arguments):
    task_id = find("heldout", refundable)
    rollout = ENVIRONMENT.rollout(task_id)
    assert "error" in json.loads(rollout.call(name, arguments))
    assert (rollout.outcome.malformed, rollout.outcome.tool_calls) == (1, 1)
    decide(rollout, "refund", build_task(task_id).order_id)
    assert rollout.outcome.success


def test_reset_forgets_everything():
    desk = SupportDesk()
    task_id = find("train", refundable)
    desk.reset(task_id=task_id)
    desk.refund(build_task(task_id).order_id)
    assert desk.outcome.success
    desk.reset(task_id=task_id)
    assert (desk.outcome.success, desk.outcome.tool_calls, desk.outcome.answer_kind) == (False, 0, None)


def test_heldout_shares_no_order_and_no_policy_with_training():
    train = [build_task(t) for t in ENVIRONMENT.task_ids("train", 3000)]
    heldout = [build_task(t) for t in ENVIRONMENT.task_ids("heldout", 1000)]
    assert not {t.order_id for t in train} & {t.order_id for t in heldout}
    assert not {(t.topic, t.limit, t.within, t.over) for t in train} & {
        (t.topic, t.limit, t.within, t.over) for t in heldout
    }
    # The pieces are all known, or it would measure vocabulary instead of reading.
    assert {t.limit for t in heldout} == {t.limit for t in train} == set(LIMITS)


def test_shifted_uses_limits_and_wordings_that_training_lacks():
    shifted = [build_task(t) for t in ENVIRONMENT.task_ids("shifted", 200)]
    assert {t.limit for t in shifted} == set(SHIFTED_LIMITS)
    assert not {t.wording for t in shifted} & {
        build_task(t).wording for t in ENVIRONMENT.task_ids("train", 500)
    }


def test_no_answer_can_be_guessed():
    """The most common answer of a split stays well below what reading the policy gives."""
    for split in ENVIRONMENT.splits:
        answers = [build_task(t).answer for t in ENVIRONMENT.task_ids(split, 1000)]
        assert max(answers.count(a) for a in set(answers)) < 400


@pytest.mark.parametrize("task_id", ["heldout-17", "exam-0001", "train-0001x", "", "train-0000001"])
def test_foreign_task_ids_are_refused(task_id):
    with pytest.raises(UnknownTask):
        ENVIRONMENT.rollout(task_id)


def test_task_ids_refuse_unknown_splits_and_numbers():
    assert ENVIRONMENT.task_ids("heldout", 2, start=9) == ["heldout-0009", "heldout-0010"]
    with pytest.raises(UnknownTask, match="shifted"):
        ENVIRONMENT.task_ids("exam", 1)
    with pytest.raises(UnknownTask):
        ENVIRONMENT.task_ids("train", 2, start=999_999)


def test_tools_are_openai_schemas_of_the_public_methods():
    names = [tool["function"]["name"] for tool in ENVIRONMENT.tools]
    assert names == ["lookup_order", "read_policy", "refund", "credit", "deny", "escalate"]
    refund = ENVIRONMENT.tools[2]
    assert refund["type"] == "function"
    assert refund["function"]["description"] == "Pay the order's amount back and close the ticket."
    assert refund["function"]["parameters"] == {
        "type": "object",
        "properties": {"order_id": {"type": "string", "description": "The order's number."}},
        "required": ["order_id"],
        "additionalProperties": False,
    }


def test_registry_names_what_it_knows():
    assert len(ENVIRONMENT.digest) == 64
    with pytest.raises(UnknownEnvironment, match="support_desk"):
        get_environment("helpdesk")
