"""Registering what a training job made: verified, numbered, once; and anything else is refused."""

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from accounts.models import User
from audit import selectors as ledger
from audit.actions import Actor
from learning.artifacts import UnsafeArtifact, directory_digest
from learning.models import Evaluation
from release import registry
from release.models import ModelVersion
from release.sweep import sweep

ADAPTER = "epoch-1/adapter"


@pytest.fixture
def job(company: Any, helpers: Any) -> Any:
    """A training job that succeeded, with its adapter where the trainer leaves it."""
    job = helpers.training_job(company.project, 7)
    digest = helpers.adapter(company.store.path(f"jobs/{job.pk}/{ADAPTER}"), content=b"weights")
    job.result = {"adapter_dir": ADAPTER, "adapter_sha256": digest, "steps": 80}
    job.save()
    return job


def folder(company: Any, job: Any) -> Any:
    return company.store.path(f"jobs/{job.pk}/{ADAPTER}")


def test_a_version_is_made_once_and_its_evaluation_asked_for(company: Any, job: Any) -> None:
    assert registry.due_jobs() == [job.pk]
    version = registry.register_from_job(job_id=job.pk, now=job.finished_at)
    digest = job.result["adapter_sha256"]
    assert (version.line, version.number, version.name) == ("desk", 3, "desk-v3")
    assert version.served_name == f"desk-v3-{digest[:12]}"
    assert version.adapter_path == f"models/desk/v3-{digest[:12]}"
    assert directory_digest(company.store.path(version.adapter_path)) == digest
    evaluation = Evaluation.objects.get(candidate_id=version.pk)
    assert (evaluation.champion_id, evaluation.champion_adapter) == (company.v1.pk, "")
    assert evaluation.candidate_adapter == version.adapter_path
    (event,) = ledger.events_of(type="model_version", id=version.pk)
    assert event.object.digest == digest
    assert {item.type for item in event.related} == {"training_job", "snapshot", "reward_spec"}
    assert registry.register_from_job(job_id=job.pk, now=job.finished_at) == version
    assert registry.due_jobs() == []
    assert Evaluation.objects.filter(candidate_id=version.pk).count() == 1
    assert not list(company.store.path("models").glob(".draft*"))


def test_an_attempt_that_died_after_the_move_is_finished_by_the_next(company: Any, job: Any) -> None:
    digest = job.result["adapter_sha256"]
    place = company.store.path(f"models/desk/v3-{digest[:12]}")
    place.mkdir(parents=True)
    for file in folder(company, job).iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    assert registry.register_from_job(job_id=job.pk, now=job.finished_at).number == 3


def test_a_job_that_did_not_succeed_makes_nothing(company: Any, job: Any) -> None:
    type(job).objects.filter(pk=job.pk).update(state="failed")
    assert registry.due_jobs() == []
    with pytest.raises(registry.RegistrationRefused, match="failed"):
        registry.register_from_job(job_id=job.pk, now=job.finished_at)


def _swap(path: Any) -> None:
    (path / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}other")


def _pickle(path: Any) -> None:
    (path / "optimizer.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")


def _link(path: Any) -> None:
    (path / "notes.md").symlink_to("/etc/hostname")


SPOILED = pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_swap, "is not the adapter that the trainer reported"),
        (_pickle, "optimizer.pt"),
        (_link, "notes.md"),
    ],
)


@SPOILED
def test_other_files_than_the_trainer_reported_are_refused(
    company: Any, job: Any, spoil: Any, sentence: str
) -> None:
    spoil(folder(company, job))
    with pytest.raises(UnsafeArtifact, match=sentence):
        registry.register_from_job(job_id=job.pk, now=job.finished_at)
    assert not ModelVersion.objects.filter(job=job).exists()
    assert not list(company.store.path("models").glob(".draft*"))


@SPOILED
def test_a_refusal_is_final_and_the_job_says_why(
    company: Any, job: Any, helpers: Any, spoil: Any, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(folder(company, job))
    for _ in range(3):
        sweep(now=job.finished_at)
    assert caplog.records == []
    assert registry.due_jobs() == []
    assert not ModelVersion.objects.filter(job=job).exists()
    job.refresh_from_db()
    assert job.state == "failed"
    assert sentence in job.error
    (event,) = ledger.events_of(type="training_job", id=job.pk)
    assert (event.action, event.actor.id, event.reason) == ("training.failed", "registry", job.error)
    root = Client()
    root.force_login(User.objects.create(username="root", is_superuser=True, is_staff=True))
    page = root.get(reverse("admin:learning_trainingjob_change", args=[job.pk]))
    assert sentence in page.content.decode()
    # A hint that comes late changes nothing, and the line is free for another attempt.
    assert registry.register_or_refuse(job_id=job.pk, now=job.finished_at) is None
    assert len(ledger.events_of(type="training_job", id=job.pk)) == 1
    assert helpers.training_job(company.project, 8, state="queued").model_line == job.model_line


def test_what_is_registered_is_not_refused_by_a_later_look(company: Any, job: Any) -> None:
    version = registry.register_or_refuse(job_id=job.pk, now=job.finished_at)
    _swap(folder(company, job))
    assert registry.register_or_refuse(job_id=job.pk, now=job.finished_at) == version
    job.refresh_from_db()
    assert job.state == "succeeded"


def test_a_base_is_version_one_of_its_line(company: Any) -> None:
    fields = {
        "project": company.project,
        "base_model": "/models/other-base",
        "base_sha256": "0" * 64,
        "actor": Actor.service("test"),
        "now": company.deployment.updated_at,
    }
    version = registry.register_base(line="other", **fields)
    assert (version.name, version.served_name, version.adapter_path) == ("other-v1", "other-base", "")
    with pytest.raises(registry.RegistrationRefused, match="version 1"):
        registry.register_base(line="other", **fields)
    for line in ("", "../evil", "Desk", "a b", "x" * 101):
        with pytest.raises(registry.RegistrationRefused, match="does not name a line"):
            registry.register_base(line=line, **fields)
