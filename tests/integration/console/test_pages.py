"""What every page keeps to: nothing foreign, nothing executable, nothing secret, nothing editable, few
queries."""

import re
from collections.abc import Callable

import pytest
from django.test import Client
from django.urls import NoReverseMatch, reverse
from pytest_django import DjangoAssertNumQueries

from accounts.models import ApiKey, User
from accounts.services import create_organization, create_project
from console.admin import PAGES
from console.links import list_url
from gateway.models import Upstream
from tests.browser.scene import CREDENTIAL, HOSTILE, SETUP, Scene, write_run

SignIn = Callable[[User], Client]
LOADED = re.compile(
    r"""(?:src|href|action|formaction)\s*=\s*["']?\s*((?:https?:)?//[^"'\s>]+)""", re.IGNORECASE
)


def all_pages(scene: Scene) -> list[str]:
    pages = [
        "/",
        *(
            f"/promotions/{row.pk}/"
            for row in (scene.proposed, scene.approved, scene.canary, scene.champion, scene.rejected)
        ),
    ]
    for model in PAGES:
        name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
        pages += [
            reverse(f"{name}_changelist"),
            reverse(f"{name}_change", args=[model._default_manager.last().pk]),
        ]
    return [*pages, f"/telemetry/run/{scene.hostile_run.pk}/", f"/deployments/{scene.deployment.pk}/"]


def test_every_page_is_sealed(scene: Scene, signed_in: SignIn) -> None:
    root = signed_in(scene.root)
    secrets = [scene.airline_key, scene.desk_key]
    secrets += [bytes(key.digest).hex() for key in ApiKey.objects.all()]
    secrets += [CREDENTIAL, *(bytes(upstream.credential).hex() for upstream in Upstream.objects.all())]
    for page in all_pages(scene):
        answer = root.get(page, follow=True)
        html = answer.content.decode()
        assert answer.status_code == 200, page
        assert LOADED.findall(html) == [], page
        assert HOSTILE not in html, page
        assert "<img src=x" not in html, page
        assert not any(secret in html for secret in secrets), page


def test_records_of_fact_have_no_page_that_changes_them() -> None:
    for model in PAGES:
        for action, arguments in [("add", []), ("delete", [1]), ("history", [1])]:
            with pytest.raises(NoReverseMatch):
                reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{action}", args=arguments)


def test_a_detail_page_takes_no_changes(scene: Scene, signed_in: SignIn) -> None:
    page = f"/accounts/project/{scene.desk.pk}/"
    assert signed_in(scene.root).post(page, {"name": "owned"}).status_code == 405
    scene.desk.refresh_from_db()
    assert scene.desk.name == "support-desk"


def test_losses_are_loud_and_a_decision_is_asked_for(scene: Scene, signed_in: SignIn) -> None:
    html = signed_in(scene.omar).get("/").content.decode()
    assert "3 calls could not be captured" in html
    assert "waits for a decision" in html
    assert "outcome known for" in html


def test_signals_that_found_nothing_can_be_listed_alone(scene: Scene, signed_in: SignIn) -> None:
    omar = signed_in(scene.omar)
    names = re.compile(r'data-label="name">(\w+)<')
    assert set(names.findall(omar.get("/telemetry/signal/?joined=no").content.decode())) == {"csat"}
    assert set(names.findall(omar.get("/telemetry/signal/?joined=yes").content.decode())) == {
        "comment",
        "reward",
    }


def test_a_run_says_who_answered_and_how_sure_each_link_is(scene: Scene, signed_in: SignIn) -> None:
    run = scene.airline.runs.get(confidence=0.5)
    html = signed_in(scene.vera).get(f"/telemetry/run/{run.pk}/").content.decode()
    assert "the request repeats an answer that several runs share, confidence 50" in html
    assert "gpt-4o-2024-08-06" in html
    assert html.count("Hi, I need to cancel my flight") == 1  # each step shows only what is new in it


def test_the_home_pages_queries_do_not_grow_with_its_content(
    scene: Scene, signed_in: SignIn, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    root = signed_in(scene.root)  # sees every organization
    with django_assert_max_num_queries(14):
        root.get("/")
    for number in range(3):
        organization = create_organization(name=f"Further {number}", actor=SETUP, now=scene.now)
        create_project(organization=organization, name="desk", actor=SETUP, now=scene.now)
    for number in range(5):
        write_run(
            scene.desk,
            [{"role": "assistant", "content": "hi"}],
            task=f"t{number}",
            reward=1.0,
            started=scene.now,
        )
    with django_assert_max_num_queries(14):
        assert "Further 2" in root.get("/").content.decode()


def test_lists_read_a_page_in_few_queries(
    scene: Scene, signed_in: SignIn, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    root = signed_in(scene.root)
    for model in PAGES:
        with django_assert_max_num_queries(12):
            root.get(list_url(model))


def test_the_review_page_reads_in_few_queries(
    scene: Scene, signed_in: SignIn, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    omar = signed_in(scene.omar)
    for row in (scene.proposed, scene.canary):
        with django_assert_max_num_queries(20):
            omar.get(f"/promotions/{row.pk}/")


def test_routing_is_told_in_words(scene: Scene, signed_in: SignIn) -> None:
    vera = signed_in(scene.vera)
    aliases = vera.get("/gateway/alias/").content.decode()
    assert "openai/gpt-4o=9, azure/gpt-4o=1@1" in aliases
    upstream = scene.desk.upstreams.get(name="azure")
    html = vera.get(f"/gateway/upstream/{upstream.pk}/").content.decode()
    for words in (
        "stored, sent as bearer",
        "the installation&#x27;s",
        "smart-of-support-desk",
        "cached_input",
    ):
        assert words in html
    limits = vera.get("/gateway/limit/").content.decode()
    assert "600 requests in 60 s" in limits
    assert "50 USD in 86400 s" in limits
    assert "the whole project" in limits
