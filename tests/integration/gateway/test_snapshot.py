"""What a gateway loads of the database: every kind of route and limit, in few queries, and never somebody else's
credential."""

import logging
from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import connection
from pytest_django import DjangoAssertNumQueries

from accounts import services as accounts
from accounts.models import Project
from audit.actions import Actor
from gateway import services
from gateway.limits import Limit, Measure
from gateway.routing import AliasTarget, CredentialUnreadable, Price, ProjectRoutes, Timeouts, plan
from gateway.services import TargetSetting
from gateway.snapshot import DatabaseSource, Snapshot

BY: dict[str, Any] = {
    "actor": Actor.service("test"),
    "now": datetime(2026, 11, 24, 9, 30, tzinfo=UTC),
}
URL = "https://api.example.com/v1"


def make_project(name: str) -> Project:
    organization = accounts.create_organization(name=name, **BY)
    return accounts.create_project(organization=organization, name="desk", **BY)


def set_upstream(project: Project, name: str, **fields: Any) -> Any:
    return services.set_upstream(
        project=project, name=name, **{"base_url": URL, "credential": "sk-1", **BY, **fields}
    )


def load() -> Snapshot:
    return DatabaseSource().load()


@pytest.mark.django_db
def test_everything_that_a_project_has_is_there_by_priority(settings: Any) -> None:
    project, empty = make_project("Acme"), make_project("Empty")
    second = set_upstream(project, "second", priority=2, connect_timeout_s=1.5, auth="api-key")
    first = set_upstream(
        project, "first", credential="", serves=["chat"], prices={"gpt": {"input": 1, "output": 2}}
    )
    set_upstream(project, "off", is_enabled=False)
    targets = [
        TargetSetting(upstream="first", model="gpt", weight=3),
        TargetSetting(upstream="second", priority=1),
    ]
    services.set_alias(project=project, name="smart", targets=targets, **BY)
    key, _ = accounts.create_api_key(project=project, name="ci", **BY)
    of_key = services.set_limit(project=project, api_key=key, measure="microusd", amount=5, window_s=60, **BY)
    of_project = services.set_limit(
        project=project, api_key=None, measure="requests", amount=7, window_s=10, **BY
    )
    snapshot = load()
    assert empty.pk not in snapshot.projects
    routes = snapshot.projects[project.pk]
    assert [upstream.name for upstream in routes.upstreams] == ["first", "second"]
    plain, other = routes.upstreams
    assert (plain.id, plain.credential, plain.serves) == (first.pk, "", ("chat",))
    assert plain.prices == {"gpt": Price(input=1, output=2)}
    environment = settings.ENVIRONMENT
    assert (other.id, other.credential, other.auth) == (second.pk, "sk-1", "api-key")
    assert other.timeouts == Timeouts(
        connect_s=1.5, first_byte_s=environment.first_byte_timeout_s, idle_s=environment.idle_timeout_s
    )
    assert plain.timeouts.connect_s == environment.connect_timeout_s
    assert set(routes.aliases["smart"]) == {
        AliasTarget(weight=3, upstream_id=first.pk, model="gpt"),
        AliasTarget(weight=1, priority=1, upstream_id=second.pk),
    }
    assert snapshot.limits == {
        key.pk: (Limit(id=of_key.pk, subject="API key", measure=Measure.MICROUSD, amount=5, window_s=60),),
        project.pk: (
            Limit(id=of_project.pk, subject="project", measure=Measure.REQUESTS, amount=7, window_s=10),
        ),
    }


@pytest.mark.django_db
def test_the_queries_do_not_grow_with_what_is_loaded(
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    source = DatabaseSource()
    for number in range(3):
        project = make_project(f"Acme {number}")
        accounts.create_api_key(project=project, name="ci", **BY)
        for name in ("a", "b"):
            set_upstream(project, name)
            services.set_alias(
                project=project, name=f"to-{name}", targets=[TargetSetting(upstream=name)], **BY
            )
        with django_assert_num_queries(9):
            assert len(source.load().projects) == number + 1


def routes_after(project: Project, change: str, *values: object) -> ProjectRoutes:
    with connection.cursor() as cursor:
        cursor.execute(change, values)
        assert cursor.rowcount == 1
    return load().projects[project.pk]


def planned(routes: ProjectRoutes) -> list[str]:
    return [
        place.name for place in plan(routes, model="gpt", dialect="chat", run_id="r", defaults=Timeouts())
    ]


@pytest.mark.django_db
def test_a_url_edited_behind_the_products_back_never_gets_the_credential(
    caplog: pytest.LogCaptureFixture,
) -> None:
    project = make_project("Acme")
    set_upstream(project, "openai")
    same_origin = routes_after(project, "UPDATE gateway_upstream SET base_url = %s", f"{URL}/beta")
    assert same_origin.upstreams[0].credential == "sk-1"
    with caplog.at_level(logging.ERROR):
        routes = routes_after(
            project, "UPDATE gateway_upstream SET base_url = %s", "https://evil.example.com/v1"
        )
    assert routes.upstreams[0].credential is None
    assert "its credential cannot be read for https://evil.example.com/v1" in caplog.text
    assert "sk-1" not in caplog.text
    with pytest.raises(CredentialUnreadable, match="'openai'"):
        planned(routes)


@pytest.mark.django_db
def test_a_credential_copied_to_another_project_or_upstream_opens_nothing_new() -> None:
    project, thief = make_project("Acme"), make_project("Thief")
    set_upstream(project, "openai")
    set_upstream(thief, "mine", credential="sk-thief", base_url="https://evil.example.com/v1")
    copy = (
        "UPDATE gateway_upstream SET credential ="
        " (SELECT credential FROM gateway_upstream WHERE name = 'openai'), base_url = %s WHERE name = 'mine'"
    )
    for base_url in ("https://evil.example.com/v1", URL):
        assert routes_after(thief, copy, base_url).upstreams[0].credential is None
    moved = routes_after(thief, "UPDATE gateway_upstream SET project_id = %s WHERE name = 'openai'", thief.pk)
    assert [upstream.credential for upstream in moved.upstreams] == [None, None]


@pytest.mark.django_db
def test_an_unreadable_credential_is_complained_about_once(caplog: pytest.LogCaptureFixture) -> None:
    project = make_project("Acme")
    set_upstream(project, "openai")
    set_upstream(project, "azure", priority=1)
    source = DatabaseSource()
    with connection.cursor() as cursor:
        cursor.execute("UPDATE gateway_upstream SET base_url = 'http://x/v1' WHERE name = 'openai'")
    with caplog.at_level(logging.ERROR):
        assert planned(source.load().projects[project.pk]) == ["azure"]
        source.load()
    assert caplog.text.count("its credential cannot be read") == 1
    set_upstream(project, "openai", base_url="http://x/v1", credential="sk-2")
    assert planned(source.load().projects[project.pk]) == ["openai", "azure"]
