"""Training jobs seen through in a process of their own: leases, take-over, cancelling, what comes back."""

import json
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from audit.models import Event
from kernel import clock, states
from learning import leases, processes, selectors, snapshots, training
from learning.artifacts import directory_digest
from learning.environments.registry import get_environment
from learning.episodes import due as episodes
from learning.models import TrainingJob

BASE = "b" * 64
GOOD = f"""
(folder / "adapter").mkdir()
weights = (8).to_bytes(8, "little") + b"{{}}      "
(folder / "adapter" / "adapter_model.safetensors").write_bytes(weights)
(folder / "adapter" / "adapter_config.json").write_text('{{"peft_type": "LORA", "r": 4}}')
from learning.artifacts import directory_digest
progress(step=1, steps=2, reward=0.1)
time.sleep(float(document["config"].get("seconds", 0)))
progress(step=2, steps=2, reward=0.5)
finish(steps=2, seconds=0.1, adapter_dir="adapter", adapter_sha256=directory_digest(folder / "adapter"),
       base_sha256="{BASE}")
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "POLL_INTERVAL_S", 0.02)
    monkeypatch.setattr(processes, "RENEW_INTERVAL_S", 0.05)


@pytest.fixture
def request_job(live_run, project, reward_spec, maya, now) -> Callable[..., TrainingJob]:
    def make(tasks: int = 20, **changes: Any) -> TrainingJob:
        for number in range(tasks):
            live_run(f"train-{number:04d}", at=10 * number, signals={"resolved": True})
        episodes.build_due(project_id=project.id, now=now)
        snapshot = snapshots.freeze(project=project, name="week", actor=maya, now=now)
        values: dict[str, Any] = {
            "project": project,
            "snapshot": snapshot,
            "model_line": "support-desk",
            "base_model": "/models/base",
            "base_sha256": BASE,
            "environment": "support_desk",
            "config": {},
            "seed": 7,
            "actor": maya,
            "now": now,
        }
        return training.request_job(**values | changes)

    return make


@pytest.fixture
def job(request_job) -> TrainingJob:
    return request_job()


def actions() -> list[str]:
    return list(
        Event.objects.filter(object_type="training_job")
        .order_by("object_seq")
        .values_list("action", flat=True)
    )


def test_a_job_is_trained_and_its_adapter_verified(job, trainer, store, project):
    training.run_job(job_id=job.id, owner="worker-1", trainer=trainer(GOOD))

    job.refresh_from_db()
    assert (job.state, job.error) == ("succeeded", "")
    folder = store.path(training.location(job.id, 1))
    document = json.loads((folder / "job.json").read_text())
    assert document["tasks"] == [f"train-{number:04d}" for number in range(20)]
    assert document["environment_digest"] == get_environment("support_desk").digest
    assert job.progress == {"step": 2, "steps": 2, "reward": 0.5}
    assert (
        directory_digest(store.path(f"jobs/{job.id}/{job.result['adapter_dir']}"))
        == job.result["adapter_sha256"]
    )
    assert actions() == ["training.requested", "training.started", "training.succeeded"]
    lineage = selectors.lineage(project=project, job_id=job.id)
    assert lineage is not None
    assert lineage.snapshot.root == job.snapshot.root


def test_the_trainer_is_told_nothing_of_databases_and_keys(job, trainer, store, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://secret")
    monkeypatch.setenv("REDIS_URL", "redis://secret")
    monkeypatch.setenv("RATCHET_HOME", "/secret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    seen = trainer("(folder / 'env.json').write_text(json.dumps(dict(os.environ)))\n" + GOOD)
    training.run_job(job_id=job.id, owner="worker-1", trainer=seen)
    environment = json.loads((store.path(training.location(job.id, 1)) / "env.json").read_text())
    assert "secret" not in json.dumps(environment)
    assert environment["OMP_NUM_THREADS"] == "2"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (GOOD.replace(BASE, "c" * 64), "the job is for bbb"),
        (GOOD.replace('directory_digest(folder / "adapter")', "'0' * 64"), "reported 000"),
        (GOOD.replace("adapter_model.safetensors", "adapter_model.bin"), "adapter_model"),
        (GOOD.replace('adapter_dir="adapter"', 'adapter_dir="../../../.."'), "outside"),
        ("sys.exit('no memory left')", "no memory left"),
        ("finish(status='failed', error={'type': 'Bad', 'message': 'config.steps: too many'})", "too many"),
    ],
)  # fmt: skip
def test_a_bad_end_is_a_failed_job_with_a_sentence(job, trainer, body, sentence):
    training.run_job(job_id=job.id, owner="worker-1", trainer=trainer(body))
    job.refresh_from_db()
    assert (job.state, job.result) == ("failed", None)
    assert sentence in job.error
    assert actions()[-1] == "training.failed"


def test_a_refused_adapter_fails_its_job_for_good_and_frees_the_line(job, trainer, maya, now):
    with pytest.raises(states.IllegalTransition):
        training.refuse_artifact(job_id=job.id, reason="too early", now=now)
    training.run_job(job_id=job.id, owner="worker-1", trainer=trainer(GOOD))
    training.refuse_artifact(job_id=job.id, reason="optimizer.pt is a pickled file", now=now)
    job.refresh_from_db()
    assert (job.state, job.error) == ("failed", "optimizer.pt is a pickled file")
    assert actions()[-2:] == ["training.succeeded", "training.failed"]
    with pytest.raises(states.IllegalTransition):
        training.refuse_artifact(job_id=job.id, reason="again", now=now)
    again = training.request_job(
        project=job.project,
        snapshot=job.snapshot,
        model_line=job.model_line,
        base_model=job.base_model,
        base_sha256=job.base_sha256,
        environment=job.environment,
        config={},
        seed=8,
        actor=maya,
        now=now,
    )
    assert again.state == "queued"


def test_too_few_tasks_are_refused_with_reasons(request_job):
    with pytest.raises(training.JobRefused, match="at least 20 different tasks"):
        request_job(tasks=3)
    assert not TrainingJob.objects.exists()


def test_a_lease_is_one_owners_until_it_runs_out(job, now):
    first = leases.lease(TrainingJob, job.id, owner="a", now=now)
    assert first is not None
    assert leases.lease(TrainingJob, job.id, owner="b", now=now + leases.TTL / 2) is None

    late = now + leases.TTL + timedelta(seconds=1)
    assert leases.due(TrainingJob, now=late) == [job.id]
    second = leases.lease(TrainingJob, job.id, owner="b", now=late)
    assert second is not None
    assert second.epoch == first.epoch + 1
    with pytest.raises(leases.LeaseLost):
        leases.renew(TrainingJob, first, now=late)
    assert leases.renew(TrainingJob, second, now=late).epoch == second.epoch


def test_a_zombie_publishes_nothing(job, trainer):
    """Its lease was taken over while it trained; it ends, and changes nothing."""
    slow = trainer(GOOD.replace('document["config"].get("seconds", 0)', "0.5"))

    def overtake(model: Any, held: Any, **_: Any) -> Any:
        TrainingJob.objects.filter(id=job.id).update(lease_epoch=held.epoch + 1, lease_owner="worker-2")
        return renew(model, held, **_)

    renew = leases.renew
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leases, "renew", overtake)
        training.run_job(job_id=job.id, owner="worker-1", trainer=slow)
    job.refresh_from_db()
    assert (job.state, job.lease_owner, job.result) == ("running", "worker-2", None)
    assert actions() == ["training.requested", "training.started"]


def test_a_zombie_with_a_whole_result_publishes_nothing_either(job, trainer, monkeypatch):
    """Overtaken at the last moment, between the check of its files and its last write."""
    check = training._check

    def overtake(*arguments: Any) -> None:
        check(*arguments)
        TrainingJob.objects.filter(id=job.id).update(lease_epoch=2, lease_owner="worker-2")

    monkeypatch.setattr(training, "_check", overtake)
    training.run_job(job_id=job.id, owner="worker-1", trainer=trainer(GOOD))
    job.refresh_from_db()
    assert (job.state, job.lease_owner, job.result) == ("running", "worker-2", None)
    assert actions() == ["training.requested", "training.started"]


def test_a_job_that_kills_its_workers_is_given_up(job, trainer):
    TrainingJob.objects.filter(id=job.id).update(lease_epoch=leases.MAX_EPOCHS)
    training.run_job(job_id=job.id, owner="worker-1", trainer=trainer(GOOD))
    job.refresh_from_db()
    assert job.state == "failed"
    assert "died" in job.error


@pytest.mark.django_db(transaction=True)
def test_two_workers_race_and_one_trains(job, trainer, store):
    command = trainer(GOOD)
    threads = [run_in_thread(job, owner, command) for owner in ("worker-1", "worker-2")]
    for thread in threads:
        thread.join(30)
    job.refresh_from_db()
    assert (job.state, job.lease_epoch) == ("succeeded", 1)
    assert [path.name for path in store.path(f"jobs/{job.id}").iterdir()] == ["epoch-1"]


@pytest.mark.django_db(transaction=True)
def test_cancelling_kills_the_process(job, trainer, store, maya, tmp_path: Path):
    thread = run_in_thread(
        job, "worker-1", trainer("(folder / 'pid').write_text(str(os.getpid()))\ntime.sleep(60)\n")
    )
    pid_file = store.path(training.location(job.id, 1)) / "pid"
    wait_for(lambda: pid_file.exists() and bool(pid_file.read_text()))
    job.refresh_from_db()
    training.cancel(job=job, actor=maya, reason="wrong snapshot", now=clock.now())
    thread.join(15)
    assert not thread.is_alive()
    assert not Path(f"/proc/{pid_file.read_text()}").exists()
    job.refresh_from_db()
    assert (job.state, job.error) == ("cancelled", "wrong snapshot")


def run_in_thread(job: TrainingJob, owner: str, command: list[str]) -> threading.Thread:
    def work() -> None:
        training.run_job(job_id=job.id, owner=owner, trainer=command)
        connection.close()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def wait_for(seen: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.02)
