"""The trainer as the product starts it: a process, a folder with a document, a result."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from learning.artifacts import check_adapter, directory_digest
from learning.environments.registry import get_environment
from learning.rewards.scoring import PARTS
from learning.rewards.spec import SUPPORT_DESK
from workers.trainer import base_model

BASE = Path(__file__).parents[3] / "deploy" / "models" / "support-desk-base"
ENVIRONMENT = get_environment("support_desk")
COMMON = {
    "schema": 1,
    "base_model": str(BASE),
    "environment": "support_desk",
    "reward_spec": SUPPORT_DESK.to_dict(),
    "seed": 3,
}
JOB = {
    **COMMON,
    "job_id": "job",
    "algorithm": "grpo",
    "tasks": ENVIRONMENT.task_ids("train", 8),
    "config": {"steps": 2, "prompts_per_step": 2, "generations": 4},
}
EVALUATION = {
    **COMMON,
    "evaluation_id": "evaluation",
    "tasks": ENVIRONMENT.task_ids("heldout", 24),
    "arms": [{"name": "champion", "adapter": None}],
}


def start(command, folder, document):
    folder.mkdir(exist_ok=True)
    (folder / ("job.json" if command == "train" else "evaluation.json")).write_text(json.dumps(document))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with (folder / "log.txt").open("wb") as log:
        arguments = [sys.executable, "-m", "workers.trainer", command, str(folder)]
        return subprocess.Popen(arguments, stdout=log, stderr=log, env=environment)


def carry_out(command, folder, document):
    code = start(command, folder, document).wait(timeout=120)
    return code, json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    code, result = carry_out("train", folder, JOB)
    assert (code, result["status"], result["error"]) == (0, "succeeded", None), (
        folder / "log.txt"
    ).read_text()
    return folder, result


def test_training_leaves_an_adapter_a_result_and_its_progress(trained):
    folder, result = trained
    adapter = folder / result["adapter_dir"]
    check_adapter(adapter)
    assert sorted(path.name for path in adapter.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert str(BASE) not in (adapter / "adapter_config.json").read_text()
    assert result["adapter_sha256"] == directory_digest(adapter)
    assert result["base_sha256"] == directory_digest(BASE)
    assert (result["algorithm"], result["steps"], result["seed"]) == ("grpo", 2, 3)
    assert {"torch", "transformers", "trl", "peft"} <= set(result["libraries"])
    lines = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    assert [(line["step"], line["steps"]) for line in lines] == [(1, 2), (2, 2)]
    assert lines[1]["time_left_s"] == 0
    parts = sum(lines[0][f"reward_{name}"] for name in PARTS)
    assert lines[0]["reward"] == pytest.approx(parts, abs=1e-4)


def test_the_same_job_gives_the_same_adapter(trained, tmp_path):
    _, again = carry_out("train", tmp_path / "again", JOB)
    assert again["adapter_sha256"] == trained[1]["adapter_sha256"]


def test_evaluation_plays_every_arm_on_the_same_tasks_and_random_numbers(trained, tmp_path):
    folder, _ = trained
    arms = [
        {"name": "champion", "adapter": None},
        {"name": "candidate", "adapter": str(folder / "adapter")},
        {"name": "champion-again", "adapter": None},
    ]
    code, result = carry_out("evaluate", tmp_path / "evaluation", {**EVALUATION, "arms": arms})
    assert (code, result["status"]) == (0, "succeeded")
    assert {tuple(row["task_id"] for row in rows) for rows in result["arms"].values()} == {
        tuple(EVALUATION["tasks"])
    }
    # An adapter that is not asked for leaves the base exactly as it was, and equal arms play equally.
    assert result["arms"]["champion"] == result["arms"]["champion-again"]
    row = result["arms"]["candidate"][0]
    assert isinstance(row["success"], bool)
    assert row["model_calls"] >= 1
    for row in result["arms"]["champion"]:
        expected = row["success"] - 0.02 * row["model_calls"] - 0.5 * row["risk"] - 0.2 * row["malformed"]
        assert row["reward"] <= expected + 1e-9  # repeated calls cost a little more
    last = json.loads((tmp_path / "evaluation" / "progress.jsonl").read_text().splitlines()[-1])
    assert last["step"] == last["steps"] == 3 * 24


def test_the_base_model_is_good_enough_to_learn_from_and_no_better(tmp_path):
    tasks = ENVIRONMENT.task_ids("heldout", 300)
    _, result = carry_out("evaluate", tmp_path / "base", {**EVALUATION, "tasks": tasks})
    rows = result["arms"]["champion"]
    assert 0.28 < sum(row["success"] for row in rows) / len(rows) < 0.52
    assert sum(path.stat().st_size for path in BASE.iterdir()) < 4_000_000


def test_the_builder_still_makes_what_is_shipped(tmp_path):
    """Everything but the weights, which take minutes: tokenizer, chat template, configuration."""
    base_model.build(tmp_path, clean_steps=1, careless_steps=1)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"):
        assert (tmp_path / name).read_bytes() == (BASE / name).read_bytes(), name
    assert (tmp_path / "model.safetensors").stat().st_size == (BASE / "model.safetensors").stat().st_size


def pickled_adapter(folder):
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1}')
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({}))


@pytest.mark.parametrize(
    ("command", "changes", "message"),
    [
        ("train", {"surprise": 1}, "unknown key 'surprise'"),
        ("train", {"base_model": "nowhere"}, "no such folder"),
        ("evaluate", {"arms": [{"name": "a", "adapter": "adapter"}]}, "pickled"),
        ("evaluate", {"tasks": "all"}, "tasks: must be a list"),
    ],
)
def test_what_cannot_be_carried_out_ends_with_one_sentence_and_code_2(tmp_path, command, changes, message):
    folder = tmp_path / "refused"
    (folder / "adapter").mkdir(parents=True)
    pickled_adapter(folder / "adapter")
    code, result = carry_out(command, folder, {**(JOB if command == "train" else EVALUATION), **changes})
    assert (code, result["status"]) == (2, "failed")
    assert message in result["error"]["message"]
    assert "\n" not in result["error"]["message"]


def test_sigterm_stops_training_with_a_result_and_no_adapter(tmp_path):
    folder = tmp_path / "stopped"
    process = start("train", folder, {**JOB, "config": {**JOB["config"], "steps": 5000}})
    deadline = time.monotonic() + 60
    progress = folder / "progress.jsonl"
    while not (progress.exists() and progress.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["error"]["type"]) == ("failed", "Stopped")
    assert not (folder / "adapter").exists()
