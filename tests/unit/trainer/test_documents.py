"""job.json and evaluation.json: parsed once, refused in one sentence that names the field. Without torch."""

import json
import os
import subprocess
import sys

import pytest

from learning.rewards.spec import SUPPORT_DESK
from workers.trainer.documents import BadDocument, JobConfig, read_evaluation, read_job, write_result

JOB = {
    "schema": 1,
    "job_id": "job-1",
    "algorithm": "grpo",
    "base_model": "base",
    "environment": "support_desk",
    "tasks": ["train-0000", "train-0001"],
    "reward_spec": SUPPORT_DESK.to_dict(),
    "config": {"steps": 3, "learning_rate": 1},
    "seed": 4,
}
EVALUATION = {
    "schema": 1,
    "evaluation_id": "evaluation-1",
    "base_model": "/models/base",
    "arms": [{"name": "champion", "adapter": None}, {"name": "candidate", "adapter": "a"}],
    "environment": "support_desk",
    "tasks": ["heldout-0000"],
    "reward_spec": SUPPORT_DESK.to_dict(),
    "seed": 0,
}


@pytest.fixture
def read(tmp_path):
    def read(document, name="job.json", reader=read_job):
        (tmp_path / name).write_text(json.dumps(document))
        return reader(tmp_path)

    return read


def test_a_job_is_read_into_types(read, tmp_path):
    job = read(JOB)
    assert job.config == JobConfig(steps=3, learning_rate=1.0)
    assert isinstance(job.config.learning_rate, float)
    assert job.reward_spec == SUPPORT_DESK
    assert job.base_model == tmp_path / "base"
    assert job.shuffle_rewards is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": 1}, "job.json: unknown key 'extra'"),
        ({"schema": 2}, "schema: must be 1"),
        ({"algorithm": "ppo"}, "algorithm: 'ppo'"),
        ({"job_id": ""}, "job_id: must be text"),
        ({"environment": "chess"}, "environment: unknown environment 'chess'"),
        ({"environment_digest": "0"}, "environment_digest: '0'"),
        ({"tasks": []}, "tasks: must be a list"),
        ({"tasks": ["exam-0001"]}, "tasks: task id 'exam-0001'"),
        ({"reward_spec": {}}, "reward_spec.schema: must be 2"),
        ({"seed": -1}, "seed: must be a whole number"),
        ({"seed": True}, "seed: must be a whole number"),
        ({"shuffle_rewards": 1}, "shuffle_rewards: must be true or false"),
        ({"config": {"rank": 3}}, "config: unknown key 'rank'"),
        ({"config": {"steps": 1.5}}, "config.steps: must be a whole number"),
        ({"config": {"steps": 0}}, "config.steps: must be between 1 and"),
        ({"config": []}, "config: must be an object"),
    ],
)
def test_bad_jobs_are_refused_with_the_field_named(read, changes, message):
    with pytest.raises(BadDocument) as refused:
        read({**JOB, **changes})
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_files_that_are_no_document_are_refused(tmp_path, text):
    with pytest.raises(BadDocument, match=r"job\.json"):
        read_job(tmp_path)
    (tmp_path / "job.json").write_text(text)
    with pytest.raises(BadDocument, match=r"job\.json"):
        read_job(tmp_path)


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ([], "at least one arm"),
        ([{"name": "a", "adapter": None}, {"name": "a", "adapter": None}], "must differ"),
        ([{"name": "a/b", "adapter": None}], "is no name"),
        ([{"name": "a", "adapter": 3}], "must be a path or null"),
        ([{"name": "a", "model": "x"}], "unknown key 'model'"),
    ],
)
def test_arms_are_checked(read, arms, message):
    evaluation = read(EVALUATION, "evaluation.json", read_evaluation)
    assert [arm.name for arm in evaluation.arms] == ["champion", "candidate"]
    with pytest.raises(BadDocument, match=message):
        read({**EVALUATION, "arms": arms}, "evaluation.json", read_evaluation)


def test_the_matching_environment_digest_is_accepted(read):
    digest = read(JOB).environment.digest
    assert read({**JOB, "environment_digest": digest}).environment.digest == digest


def test_results_replace_each_other_whole(tmp_path):
    write_result(tmp_path, {"status": "failed"})
    write_result(tmp_path, {"status": "succeeded"})
    assert json.loads((tmp_path / "result.json").read_text()) == {"status": "succeeded"}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_documents_and_learning_need_neither_torch_nor_django():
    program = (
        "import sys, workers.trainer.documents, learning.artifacts, learning.evaluation.bootstrap\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'django', 'psycopg')))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", program], check=False, env=environment).returncode == 0
