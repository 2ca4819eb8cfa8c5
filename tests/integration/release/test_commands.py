"""The command line: what scripts read from it, and which argument it names when something is wrong."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction

from accounts import keys
from accounts.models import ApiKey, Member, Project
from audit import sealer
from learning.environments.registry import get_environment
from release import rollout
from release.models import Deployment


def run(*arguments: str) -> Any:
    """Run a command; its answer, parsed when it is JSON."""
    out = StringIO()
    call_command(*arguments, stdout=out)
    text = out.getvalue()
    return json.loads(text) if text.startswith("{") else text


@pytest.mark.django_db
class TestBeginnings:
    def test_create_project(self, settings: Any) -> None:
        answer = run("create_project", "airline", "--upstream", "https://api.openai.com/v1")
        project = Project.objects.get(pk=answer["project"])
        assert (project.name, project.organization.name) == ("airline", "Default")
        assert keys.well_formed(answer["api_key"])
        assert answer["base_url"] == f"{settings.ENVIRONMENT.gateway_url}/v1"
        with pytest.raises(CommandError, match="NAME: Default has a project 'airline'"):
            run("create_project", "airline")
        with pytest.raises(CommandError, match="--upstream: "), transaction.atomic():
            run("create_project", "other", "--upstream", "ftp://nowhere")
        with pytest.raises(CommandError, match="NOT_SET"):
            run("create_project", "other", "--upstream-key-env", "NOT_SET")
        assert Project.objects.count() == 1

    def test_create_member(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SECRET", "correct horse battery")
        answer = run("create_member", "a@example.com", "--role", "approver", "--password-env", "SECRET")
        assert answer == {"user": "a@example.com", "organization": "Default", "role": "approver"}
        user = Member.objects.get().user
        assert user.check_password("correct horse battery")
        with pytest.raises(CommandError, match="EMAIL_OR_NAME: a@example"):
            run("create_member", "a@example.com", "--role", "admin")
        monkeypatch.setenv("SECRET", "short")
        with pytest.raises(CommandError, match="--password-env"), transaction.atomic():
            run("create_member", "b", "--role", "admin", "--password-env", "SECRET")
        with pytest.raises(CommandError, match="--role"):
            run("create_member", "b", "--role", "king")
        assert Member.objects.count() == 1

    def test_keys(self) -> None:
        run("create_project", "airline")
        made = run("create_key", "--name", "ci")
        assert run("revoke_key", made["api_key"])["key"] == made["key"]
        assert ApiKey.objects.get(pk=made["key"]).revoked_at is not None
        with pytest.raises(CommandError, match="PREFIX"):
            run("revoke_key", made["prefix"])
        with pytest.raises(CommandError, match="PREFIX: 0 keys"):
            run("revoke_key", "rk_nothing")

    def test_the_project_is_named_when_there_are_several(self) -> None:
        with pytest.raises(CommandError, match="--project: say which one; there are none"):
            run("create_key")
        first = run("create_project", "airline")
        run("create_project", "desk")
        with pytest.raises(CommandError, match="several"):
            run("create_key")
        assert run("create_key", "--project", first["project"])["prefix"]
        assert run("create_key", "--project", "desk")["prefix"]
        with pytest.raises(CommandError, match="no project is called 'dsek'"):
            run("create_key", "--project", "dsek")
        run("create_project", "desk", "--organization", "Other")
        with pytest.raises(CommandError, match="several projects are called 'desk'"):
            run("create_key", "--project", "desk")

    def test_deploy(self, tmp_path: Path) -> None:
        run("create_project", "airline")
        base = tmp_path / "tiny"
        base.mkdir()
        with pytest.raises(CommandError, match=r"--base: no config\.json"):
            run("deploy", "desk", "--base", str(base))
        (base / "config.json").write_text("{}")
        (base / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
        answer = run("deploy", "desk", "--base", str(base), "--node", "http://127.0.0.1:9999")
        assert (answer["champion"], answer["node"]) == ("desk-v1", "http://127.0.0.1:9999")
        assert Deployment.objects.get().champion.served_name == "tiny"
        with pytest.raises(CommandError, match="ALIAS: desk has a version 1"):
            run("deploy", "desk", "--base", str(base))
        with pytest.raises(CommandError, match="--node"), transaction.atomic():
            run("deploy", "other", "--base", str(base), "--node", "localhost")


class TestPromotion:
    def test_by_hand_from_proposal_to_rollback_and_forward(self, company: Any, node: Any) -> None:
        by = ["--project", "desk", "--reason", "because"]
        proposed = run("propose", "desk", "--as", "maya", *by)
        assert (proposed["state"], proposed["candidate"]) == ("proposed", "desk-v2")
        with pytest.raises(CommandError, match="not proposed: desk has an open promotion"):
            run("propose", "desk", "--as", "maya", *by)
        with pytest.raises(CommandError, match="not approved: maya may not approve"):
            run("promote", "desk", "--as", "maya", *by)
        assert run("promote", "desk", "--as", "omar", *by)["state"] == "approved"
        with pytest.raises(CommandError, match="no promotion of desk waits"):
            run("promote", "desk", "--as", "omar", *by)
        rollout.start_canary(promotion_id=proposed["promotion"], now=company.deployment.updated_at)
        company.calls(50, by=company.v2)
        rollout.judge_canary(promotion_id=proposed["promotion"], now=company.deployment.updated_at)
        assert run("rollback", "desk", "--as", "maya", *by)["champion"] == "desk-v1"
        assert run("rollback", "desk", "--as", "maya", "--to", "v2", *by)["champion"] == "desk-v2"
        with pytest.raises(CommandError, match="no version 'v9'"):
            run("rollback", "desk", "--as", "maya", "--to", "v9", *by)
        with pytest.raises(CommandError, match="not rolled back: viewer may not"):
            run("rollback", "desk", "--as", "viewer", *by)
        assert "desk-v2: champion of desk" in run("explain", "desk")
        assert run("explain", "desk-v2", "--json")["subject"] == "desk-v2"
        with pytest.raises(CommandError, match="ALIAS_OR_VERSION"):
            run("explain", "nothing")

    def test_reject(self, company: Any) -> None:
        by = ["desk", "--project", "desk", "--reason", "because"]
        run("propose", "--as", "maya", *by)
        with pytest.raises(CommandError, match="not rejected: a decision needs a reason"):
            run("reject", "desk", "--as", "omar", "--reason", " ")
        assert run("reject", "--as", "omar", *by)["state"] == "rejected"
        with pytest.raises(CommandError, match="--as: nobody is called 'nobody'"):
            run("propose", "--as", "nobody", *by)
        with pytest.raises(CommandError, match="ALIAS: desk has no deployment 'other'"):
            run("propose", "other", "--as", "maya", "--reason", "x")


class TestLearning:
    def test_publish_reward(self, company: Any, tmp_path: Path) -> None:
        file = tmp_path / "reward.yaml"
        file.write_text(
            "schema: 2\nname: airline\noutcome: {reward: {signal: reward, weight: 1, missing: none}}\n"
        )
        answer = run("publish_reward", "--project", "desk", "--file", str(file))
        assert (answer["reward_spec"], answer["version"]) == ("airline", 1)
        file.write_text(file.read_text() + "bonus: 1\n")
        with pytest.raises(CommandError, match="--file: bonus"):
            run("publish_reward", "--project", "desk", "--file", str(file))
        with pytest.raises(CommandError, match="--file"):
            run("publish_reward", "--project", "desk", "--file", str(tmp_path / "none"))

    def test_freeze_and_train_name_what_is_wrong(self, company: Any) -> None:
        with pytest.raises(CommandError, match="NAME: "):
            run("freeze_snapshot", "week-1")
        train = ["train", "desk", "--environment", "support_desk"]
        with pytest.raises(CommandError, match="--snapshot: desk has none called 'x'"):
            run(*train, "--snapshot", "x", "--as", "maya")
        with pytest.raises(CommandError, match="--as: viewer may not train"):
            run(*train, "--snapshot", "week-1", "--as", "viewer")
        with pytest.raises(CommandError, match="--config"):
            run(*train, "--snapshot", "week-1", "--as", "maya", "--config", "[1]")

    def test_train(self, company: Any) -> None:
        snapshot = company.v2.job.snapshot
        snapshot.manifest = {"task_keys": get_environment("support_desk").task_ids("train", 40)}
        snapshot.save()
        train = ["train", "desk", "--snapshot", "week-1", "--as", "maya", "--seed", "3"]
        with pytest.raises(CommandError, match="--environment"):
            run(*train, "--environment", "chess")
        answer = run(*train, "--environment", "support_desk", "--config", '{"steps": 2}')
        job = company.project.training_jobs.get(pk=answer["job"])
        assert (job.requested_by, job.config, job.seed) == ("maya", {"steps": 2}, 3)
        assert job.base_sha256 == company.v1.base_sha256
        with pytest.raises(CommandError, match="ALIAS: desk has an open training job"), transaction.atomic():
            run(*train, "--environment", "support_desk")


@pytest.mark.django_db(transaction=True)
class TestAuditVerify:
    def test_an_untouched_ledger_exits_with_0(self, tmp_path: Path, settings: Any) -> None:
        run("create_project", "airline")
        sealer.seal_due(now=Project.objects.get().created_at)
        assert "The ledger holds: 3 events, 1 signed checkpoints" in run("audit_verify")
        answer = run("audit_verify", "--json")
        assert (answer["ok"], answer["events"], answer["problems"]) == (True, 3, [])
        with pytest.raises(CommandError, match="--checkpoint"):
            run("audit_verify", "--checkpoint", str(tmp_path / "none"))

    def test_one_changed_byte_exits_with_1_and_is_named(self, capsys: pytest.CaptureFixture[str]) -> None:
        made = run("create_project", "airline")
        sealer.seal_due(now=Project.objects.get().created_at)
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("ALTER TABLE audit_event DISABLE TRIGGER audit_event_append_only")
            cursor.execute(
                "UPDATE audit_event SET body = set_byte(body, 60, get_byte(body, 60) # 1)"
                " WHERE object_id = %s RETURNING id",
                [made["project"]],
            )
            event_id = cursor.fetchone()[0]
            cursor.execute("ALTER TABLE audit_event ENABLE ALWAYS TRIGGER audit_event_append_only")
        out = StringIO()
        with pytest.raises(SystemExit) as exit_:
            call_command("audit_verify", "--json", stdout=out)
        assert exit_.value.code == 1
        problem = json.loads(out.getvalue())["problems"][0]
        assert (problem["tampering"], problem["event"]) == ("event_edited", str(event_id))
        out = StringIO()
        with pytest.raises(SystemExit):
            call_command("audit_verify", stdout=out)
        assert f"seq 1 event {event_id} (project.created)" in out.getvalue()
        assert "THE LEDGER WAS TAMPERED WITH" in out.getvalue()
