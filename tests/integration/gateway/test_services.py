"""Upstreams, aliases and limits through their services: what is stored, refused and told to the ledger."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction

from accounts import services as accounts
from accounts.models import Project
from audit import selectors as ledger
from audit.actions import Actor
from gateway import services
from gateway.models import Alias, AliasTarget, Limit, Upstream
from gateway.services import InvalidAlias, InvalidLimit, TargetSetting
from gateway.upstream_settings import InvalidUpstream
from kernel.notify import ROUTES_CHANGED

NOW = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)
LATER = datetime(2026, 11, 24, 9, 45, tzinfo=UTC)
BY: dict[str, Any] = {"actor": Actor.service("test"), "now": NOW}
SECRET = "sk-very-secret"
URL = "https://api.example.com/v1"


@pytest.fixture
def project(db: None) -> Project:
    organization = accounts.create_organization(name="Acme", **BY)
    return accounts.create_project(organization=organization, name="desk", **BY)


def set_upstream(project: Project, name: str = "openai", **fields: Any) -> Upstream:
    return services.set_upstream(
        project=project, name=name, **{"base_url": URL, "credential": SECRET, **BY, **fields}
    )


def events(row: Upstream | Alias | Limit) -> list[tuple[str, Any]]:
    kind = row._meta.model_name or ""
    return [(event.action.value, event.data) for event in ledger.events_of(type=kind, id=row.pk)]


def test_an_upstream_is_made_and_changed_field_by_field(project: Project) -> None:
    prices = {"gpt": {"input": 2.5, "output": 10}}
    row = set_upstream(project, prices=prices, serves=["chat", "responses"], idle_timeout_s=2.5)
    sealed = bytes(row.credential)
    assert SECRET.encode() not in sealed
    services.set_upstream(project=project, name="openai", credential=None, priority=3, **{**BY, "now": LATER})
    row.refresh_from_db()
    assert (row.base_url, row.priority, row.serves, row.idle_timeout_s) == (
        URL,
        3,
        ["chat", "responses"],
        2.5,
    )
    assert row.prices == {"gpt": {"input": 2.5, "output": 10, "cached_input": None}}
    assert bytes(row.credential) == sealed
    assert (row.created_at, row.updated_at) == (NOW, LATER)
    assert Upstream.objects.count() == 1
    (_, first), (action, second) = events(row)
    assert action == "upstream.set"
    assert (first["priority"], second["priority"]) == (0, 3)
    assert second["prices"] == {"gpt": {"input": "2.5", "output": "10.0", "cached_input": None}}
    assert second["has_credential"] is True


def test_no_credential_reaches_the_ledger(project: Project) -> None:
    services.remove_upstream(upstream=set_upstream(project), **BY)
    with connection.cursor() as cursor:
        cursor.execute("SELECT string_agg(convert_from(body, 'UTF8') || e::text, '') FROM audit_event e")
        text = cursor.fetchone()[0]
    assert "api.example.com" in text
    assert SECRET not in text


def test_a_new_origin_demands_the_credential_anew(project: Project) -> None:
    row = set_upstream(project)
    change: dict[str, Any] = {"project": project, "name": "openai", **BY}
    services.set_upstream(credential=None, base_url="https://api.example.com/v2", **change)
    for elsewhere in (
        "https://eu.example.com/v1",
        "http://api.example.com/v1",
        "https://api.example.com:8443/v1",
    ):
        with (
            pytest.raises(InvalidUpstream, match=r"^credential: the stored one is not for http"),
            transaction.atomic(),
        ):
            services.set_upstream(credential=None, base_url=elsewhere, **change)
    row.refresh_from_db()
    assert row.base_url == "https://api.example.com/v2"
    services.set_upstream(credential="sk-eu", base_url="https://eu.example.com/v1", **change)
    services.set_upstream(credential="", base_url="https://us.example.com/v1", **change)
    row.refresh_from_db()
    assert (row.base_url, bytes(row.credential)) == ("https://us.example.com/v1", b"")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"base_url": "ftp://x/v1"}, "base_url"),
        ({"base_url": "https://user:sk-very-secret@x/v1"}, "base_url"),
        ({"base_url": "https://bücher.example.com/v1"}, "base_url"),
        ({"credential": "sk\n"+"x"}, "credential"),
        ({"auth": "basic"}, "auth"),
        ({"priority": -1}, "priority"),
        ({"serves": ["chat", "telepathy"]}, "serves"),
        ({"connect_timeout_s": 0}, "connect_timeout_s"),
        ({"idle_timeout_s": float("nan")}, "idle_timeout_s"),
        ({"max_retries": 99}, "max_retries"),
        ({"prices": {"gpt": {"input": 1}}}, "prices.gpt.output"),
        ({"prices": {"gpt": {"input": -1, "output": 1}}}, "prices.gpt.input"),
        ({"prices": {"gpt": {"input": 1, "output": 1, "per": 1}}}, "prices.gpt.per"),
        ({"colour": "blue"}, "colour"),
        ({"name": ""}, "name"),
        ({"name": "a/b"}, "name"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_and_nothing_is_stored(project: Project, fields: Any, field: str) -> None:
    with pytest.raises(InvalidUpstream) as raised, transaction.atomic():
        set_upstream(project, **fields)
    assert str(raised.value).startswith(f"{field}: ")
    assert SECRET not in str(raised.value)
    assert not Upstream.objects.exists()


def test_a_first_url_is_needed(project: Project) -> None:
    with pytest.raises(InvalidUpstream, match=r"^base_url: "), transaction.atomic():
        services.set_upstream(project=project, name="openai", credential=None, priority=1, **BY)


def test_an_alias_is_its_targets_and_an_upstream_in_use_stays(project: Project) -> None:
    openai, azure = set_upstream(project), set_upstream(project, "azure")
    targets = [
        TargetSetting(upstream="openai", model="gpt-mini", weight=9),
        TargetSetting(upstream="azure", weight=1, priority=1),
    ]
    alias = services.set_alias(project=project, name="smart", targets=targets, **BY)
    assert {str(target) for target in alias.targets.all()} == {"openai/gpt-mini=9", "azure=1@1"}
    with pytest.raises(InvalidUpstream, match=r"^name: openai is a target of smart"), transaction.atomic():
        services.remove_upstream(upstream=openai, **BY)
    same = services.set_alias(project=project, name="smart", targets=targets[1:], reason="cheaper", **BY)
    assert same == alias
    services.remove_upstream(upstream=openai, **BY)
    services.remove_alias(alias=alias, **BY)
    services.remove_upstream(upstream=azure, **BY)
    assert not AliasTarget.objects.exists()
    assert [action for action, _ in events(alias)] == ["alias.set", "alias.set", "alias.removed"]
    assert events(alias)[1][1]["targets"] == [{"target": "azure", "weight": 1, "priority": 1}]
    assert ledger.events_of(type="alias", id=alias.pk)[1].reason == "cheaper"


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ([], "at least one"),
        ([TargetSetting(upstream="nobody")], "no upstream 'nobody'"),
        ([TargetSetting(upstream="theirs")], "no upstream 'theirs'"),
        ([TargetSetting(deployment="nothing")], "no deployment 'nothing'"),
        ([TargetSetting()], "an upstream or a deployment"),
        ([TargetSetting(upstream="openai", deployment="x")], "an upstream or a deployment"),
        ([TargetSetting(deployment="x", model="y")], "takes no model name"),
        ([TargetSetting(upstream="openai", weight=0)], "a weight must be"),
        ([TargetSetting(upstream="openai", priority=-1)], "a priority must be"),
        ([TargetSetting(upstream="openai"), TargetSetting(upstream="openai", weight=2)], "twice"),
    ],
)
def test_a_target_that_cannot_be_is_refused(
    project: Project, targets: list[TargetSetting], words: str
) -> None:
    set_upstream(project)
    other = accounts.create_project(organization=project.organization, name="other", **BY)
    set_upstream(other, "theirs")
    with pytest.raises(InvalidAlias, match=f"^targets: .*{words}"), transaction.atomic():
        services.set_alias(project=project, name="smart", targets=targets, **BY)
    assert not Alias.objects.exists()


def test_limits_are_of_a_project_or_of_one_of_its_keys(project: Project) -> None:
    key, _ = accounts.create_api_key(project=project, name="ci", **BY)

    def limit(**more: Any) -> Limit:
        fields = {"api_key": None, "measure": "requests", "amount": 100, "window_s": 60}
        return services.set_limit(project=project, **{**fields, **BY, **more})

    whole, of_key = limit(), limit(api_key=key)
    assert limit(amount=50) == whole
    assert limit(window_s=3600) not in (whole, of_key)
    assert Limit.objects.count() == 3
    services.remove_limit(limit=whole, **BY)
    expected = {"api_key": None, "measure": "requests", "window_s": 60}
    with pytest.raises(Limit.DoesNotExist), transaction.atomic():
        services.remove_limit(limit=whole, **BY)
    assert events(whole) == [
        ("limit.set", {**expected, "amount": 100}),
        ("limit.set", {**expected, "amount": 50}),
        ("limit.removed", {**expected, "amount": 50}),
    ]
    other = accounts.create_project(organization=project.organization, name="other", **BY)
    stranger, _ = accounts.create_api_key(project=other, name="ci", **BY)
    for field, more in [
        ("measure", {"measure": "wishes"}),
        ("amount", {"amount": 0}),
        ("amount", {"amount": 2**60}),
        ("window_s", {"window_s": 0}),
        ("window_s", {"window_s": 10**9}),
        ("api_key", {"api_key": stranger}),
    ]:
        with pytest.raises(InvalidLimit, match=f"^{field}: "), transaction.atomic():
            limit(**more)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE gateway_upstream SET name = ''",
        "UPDATE gateway_upstream SET auth = 'basic'",
        "UPDATE gateway_upstream SET idle_timeout_s = 0",
        "UPDATE gateway_upstream SET name = 'openai'",
        "UPDATE gateway_aliastarget SET weight = 0",
        "UPDATE gateway_aliastarget SET upstream_id = NULL",
        "UPDATE gateway_limit SET amount = 0",
        "UPDATE gateway_limit SET measure = 'wishes'",
        "UPDATE gateway_limit SET window_s = 60",
    ],
)
def test_the_database_holds_the_rules_as_well(project: Project, change: str) -> None:
    set_upstream(project)
    set_upstream(project, "azure")
    services.set_alias(project=project, name="smart", targets=[TargetSetting(upstream="openai")], **BY)
    for window_s in (60, 3600):
        services.set_limit(project=project, api_key=None, measure="tokens", amount=1, window_s=window_s, **BY)
    with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(change)


@pytest.mark.django_db(transaction=True)
def test_gateways_hear_of_every_change_at_its_commit() -> None:
    organization = accounts.create_organization(name="Acme", **BY)
    project = accounts.create_project(organization=organization, name="desk", **BY)
    with connection.cursor() as cursor:
        cursor.execute(f"LISTEN {ROUTES_CHANGED}")
    wire = connection.connection
    made: dict[str, Any] = {}
    targets = [TargetSetting(upstream="openai")]
    changes: list[Callable[[], Any]] = [
        lambda: made.update(upstream=set_upstream(project)),
        lambda: made.update(alias=services.set_alias(project=project, name="smart", targets=targets, **BY)),
        lambda: made.update(
            limit=services.set_limit(
                project=project, api_key=None, measure="tokens", amount=1, window_s=60, **BY
            )
        ),
        lambda: services.remove_limit(limit=made["limit"], **BY),
        lambda: services.remove_alias(alias=made["alias"], **BY),
        lambda: services.remove_upstream(upstream=made["upstream"], **BY),
    ]
    for change in changes:
        change()
        assert len(list(wire.notifies(timeout=2, stop_after=1))) == 1
    with connection.cursor() as cursor:
        cursor.execute(f"UNLISTEN {ROUTES_CHANGED}")
