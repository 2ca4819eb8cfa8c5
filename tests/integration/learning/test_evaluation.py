"""An evaluation from request to verdict, with a far side in place of the trainer."""

import json

import pytest

from audit.models import Event
from kernel.ids import uuid7
from learning.evaluation import jobs
from learning.models import Evaluation

PLAY = """
def row(task, success):
    return {"task_id": task, "success": success, "reward": float(success), "risk": 0.0, "model_calls": 2,
            "tool_calls": 1, "malformed": 0, "answer_kind": "refund"}
tasks = document["tasks"]
arms = {"champion": [row(t, i % 2 == 0) for i, t in enumerate(tasks)],
        "candidate": [row(t, i % 5 != 0) for i, t in enumerate(tasks)]}
progress(step=len(tasks), steps=len(tasks))
"""


@pytest.fixture
def evaluation(project, reward_spec, maya, now) -> Evaluation:
    return jobs.request(
        project=project,
        champion_id=uuid7(),
        candidate_id=uuid7(),
        champion_adapter="",
        candidate_adapter="models/desk/v2",
        base_model="/models/base",
        environment="support_desk",
        reward_spec=reward_spec,
        task_count=200,
        seed=7,
        actor=maya,
        now=now,
    )


def test_a_better_candidate_passes_with_evidence(evaluation, trainer, store):
    jobs.run_evaluation(
        evaluation_id=evaluation.id, owner="worker-1", trainer=trainer(PLAY + "finish(arms=arms)")
    )

    evaluation.refresh_from_db()
    document = json.loads((store.path(jobs.location(evaluation.id, 1)) / "evaluation.json").read_text())
    assert document["arms"] == [
        {"name": "champion", "adapter": None},
        {"name": "candidate", "adapter": str(store.path("models/desk/v2"))},
    ]
    assert set(document["tasks"]) == {f"heldout-{number:04d}" for number in range(200)}
    assert (evaluation.state, evaluation.verdict) == ("succeeded", "pass")
    evidence = evaluation.evidence
    assert (evidence["champion"]["success"], evidence["candidate"]["success"]) == ("0.5000", "0.8000")
    assert evidence["difference"] == "0.3000"
    assert evidence["worst"][0]["champion"]["success"] is True
    assert jobs.evidence_digest(evidence) == evaluation.evidence_digest
    body = json.loads(bytes(Event.objects.get(action="evaluation.completed").body))
    assert body["object"]["digest"] == evaluation.evidence_digest
    assert body["data"]["verdict"] == "pass"


@pytest.mark.parametrize(
    "body",
    [
        "finish(arms={'champion': arms['champion']})",
        "finish(arms={k: v[:-1] for k, v in arms.items()})",
        "finish()",
    ],
)
def test_a_result_about_other_tasks_is_no_result(evaluation, trainer, body):
    jobs.run_evaluation(evaluation_id=evaluation.id, owner="worker-1", trainer=trainer(PLAY + body))
    evaluation.refresh_from_db()
    assert (evaluation.state, evaluation.verdict, evaluation.evidence) == ("failed", "", {})
    assert evaluation.error
