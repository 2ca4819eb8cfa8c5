"""Routing from the command line: what scripts read, and which argument is named when something is wrong."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import transaction

from accounts import services as accounts
from accounts.models import Project, Role, User
from audit import selectors as ledger
from audit.actions import Actor
from gateway.models import Alias, Limit, Upstream
from gateway.snapshot import DatabaseSource
from kernel import clock

pytestmark = pytest.mark.django_db


def run(*arguments: str) -> Any:
    out = StringIO()
    call_command(*arguments, stdout=out)
    return json.loads(out.getvalue())


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("OPENAI_KEY", "sk-1")
    made = run(
        "create_project",
        "airline",
        "--upstream",
        "https://api.example.com/v1",
        "--upstream-key-env",
        "OPENAI_KEY",
    )
    return Project.objects.get(pk=made["project"])


def refused(words: str, *arguments: str) -> None:
    with pytest.raises(CommandError, match=words), transaction.atomic():
        run(*arguments)


def test_upstreams(project: Project) -> None:
    made = run(
        "set_upstream", "azure", "--url", "https://azure.example.com/openai/v1", "--credential-env", "OPENAI_KEY",
        "--auth", "api-key", "--priority", "1", "--serves", "chat,embeddings", "--idle-timeout", "2.5",
        "--max-retries", "0", "--no-asks-usage", "--price", "gpt=2.5,10,1.25", "--price", "org/x=1=1,2",
    )  # fmt: skip
    row = Upstream.objects.get(pk=made["upstream"])
    assert (row.auth, row.priority, row.serves, row.idle_timeout_s) == (
        "api-key",
        1,
        ["chat", "embeddings"],
        2.5,
    )
    assert (row.max_retries, row.asks_usage) == (0, False)
    assert row.prices["gpt"] == {"input": 2.5, "output": 10, "cached_input": 1.25}
    run(
        "set_upstream",
        "azure",
        "--serves",
        "all",
        "--idle-timeout",
        "default",
        "--price",
        "gpt=none",
        "--no-enabled",
    )
    row.refresh_from_db()
    assert (row.serves, row.idle_timeout_s, list(row.prices), row.is_enabled) == (
        [],
        None,
        ["org/x=1"],
        False,
    )
    assert (row.max_retries, row.auth) == (0, "api-key")
    upstreams = DatabaseSource().load().projects[project.pk].upstreams
    assert [(upstream.name, upstream.credential) for upstream in upstreams] == [("provider", "sk-1")]
    assert run("remove_upstream", "azure")["removed"] == made["upstream"]
    refused("NAME: airline has no upstream 'azure'", "remove_upstream", "azure")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["new"], "^--url: "),
        (["provider", "--url", "ftp://x/v1"], "^--url: it must begin with"),
        (
            ["provider", "--url", "https://other.example.com/v1"],
            "^--credential-env: the stored one is not for",
        ),
        (["provider", "--credential-env", "NOT_SET"], "NOT_SET is not set"),
        (["a/b", "--url", "https://x/v1"], "^NAME: "),
        (["provider", "--serves", "telepathy"], "^--serves: 'telepathy' is none of chat, "),
        (["provider", "--priority", "-1"], "^--priority: "),
        (["provider", "--idle-timeout", "0"], "^--idle-timeout: "),
        (["provider", "--idle-timeout", "soon"], "--idle-timeout: 'soon' is neither"),
        (["provider", "--price", "gpt=1"], "--price: 'gpt=1' is not MODEL="),
        (["provider", "--price", "gpt=-1,1"], "^--price gpt.input: "),
        (["provider", "--as", "nobody"], "^--as: nobody is called 'nobody'"),
    ],
)
def test_a_wrong_argument_is_named(project: Project, arguments: list[str], words: str) -> None:
    before = list(Upstream.objects.values())
    refused(words, "set_upstream", *arguments)
    assert list(Upstream.objects.values()) == before


def test_aliases(project: Project, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    run("deploy", "desk", "--base", str(tmp_path))
    run("set_upstream", "openai", "--url", "https://api.example.com/v1")
    made = run("set_alias", "smart", "openai/org/gpt@2024=3", "deployment:desk=1@1")
    assert made["targets"] == ["openai/org/gpt@2024=3", "deployment:desk=1@1"]
    assert run("set_alias", "smart", *made["targets"])["targets"] == made["targets"]
    refused("^NAME: openai is a target of smart", "remove_upstream", "openai")
    refused("^TARGET: the project has no upstream 'none'", "set_alias", "smart", "none=1")
    for text in ("openai", "openai=", "=1", "openai=-1", "openai=1@x"):
        refused("is not TARGET=WEIGHT", "set_alias", "smart", text)
    assert run("remove_alias", "smart")["removed"] == made["alias"]
    assert not Alias.objects.exists()
    refused("NAME: airline has no alias 'smart'", "remove_alias", "smart")


def test_limits(project: Project) -> None:
    key = project.api_keys.get()
    made = run("set_limit", "requests", "100", "--window", "60")
    assert (made["of"], made["is"]) == ("airline", "100 requests in 60 s")
    of_key = run("set_limit", "tokens", "5000", "--window", "60", "--key", key.prefix)
    assert Limit.objects.get(pk=of_key["limit"]).api_key == key
    refused("^AMOUNT: ", "set_limit", "requests", "0", "--window", "60")
    refused("^--window: ", "set_limit", "requests", "1", "--window", "0")
    refused("^--key: 0 keys", "set_limit", "requests", "1", "--window", "60", "--key", "rk_none")
    refused("MEASURE: airline has no limit", "remove_limit", "tokens", "--window", "60")
    assert run("remove_limit", "requests", "--window", "60")["removed"] == made["limit"]
    assert run("remove_limit", "tokens", "--window", "60", "--key", key.prefix)["removed"] == of_key["limit"]


def test_a_person_is_recorded_with_their_reason_and_only_admins_may(project: Project) -> None:
    for name, role in (("ada", Role.ADMIN), ("omar", Role.APPROVER)):
        accounts.add_member(
            organization=project.organization,
            user=User.objects.create(username=name),
            role=role,
            actor=Actor.service("test"),
            now=clock.now(),
        )
    limit = ["set_limit", "requests", "1", "--window", "60"]
    made = run(*limit, "--as", "ada", "--reason", "a loop")
    (event,) = ledger.events_of(type="limit", id=made["limit"])
    assert (event.actor.name, event.actor.role, event.reason) == ("ada", "admin", "a loop")
    for command in (
        limit,
        ["remove_limit", *limit[1:2], *limit[3:]],
        ["set_alias", "smart", "provider=1"],
        ["set_upstream", "provider", "--priority", "1"],
        ["remove_upstream", "provider"],
    ):
        refused("^--as: omar may not do this in Default: role approver", *command, "--as", "omar")
