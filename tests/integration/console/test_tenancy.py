"""Strangers see nothing: every table's list and detail, every own page, every route of the API."""

from collections.abc import Callable

from django.db.models import Model
from django.test import Client
from django.urls import reverse

from accounts.models import User
from audit import selectors as ledger
from console.admin import PAGES
from release.models import PolicyNode
from telemetry.models import CaptureLoss, Run
from tests.browser.scene import Scene

SignIn = Callable[[User], Client]
OF_THE_INSTALLATION = {CaptureLoss, PolicyNode}
TENANT_TABLES = [model for model in PAGES if model not in OF_THE_INSTALLATION]


def pages_of(model: type[Model]) -> tuple[str, list[str]]:
    name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
    rows = [*model._default_manager.order_by("pk")[:15], *model._default_manager.order_by("-pk")[:15]]
    return reverse(f"{name}_changelist"), [reverse(f"{name}_change", args=[row.pk]) for row in rows]


def test_a_stranger_sees_none_of_an_organizations_rows(scene: Scene, signed_in: SignIn) -> None:
    sam, root = signed_in(scene.sam), signed_in(scene.root)
    for model in TENANT_TABLES:
        list_page, details = pages_of(model)
        found = {page: sam.get(page, follow=True) for page in details}
        own = {page for page, answer in found.items() if answer.status_code == 200}
        assert {answer.status_code for answer in found.values()} <= {200, 404}, model
        assert len(own) < len(details), model
        for page in own:  # whatever sam reaches is of Globex
            assert not any(
                name in found[page].content for name in (b"Northwind", b"airline-desk", b"maya")
            ), page
        shown = sam.get(list_page).content
        assert not any(page.encode() in shown for page in set(details) - own), model
        assert root.get(details[0], follow=True).status_code == 200, model


def test_a_stranger_finds_no_decision_and_no_lever(scene: Scene, signed_in: SignIn) -> None:
    sam, omar = signed_in(scene.sam), signed_in(scene.omar)
    review, deployment = f"/promotions/{scene.proposed.pk}/", f"/deployments/{scene.deployment.pk}/"
    assert omar.get(review).status_code == omar.get(deployment).status_code == 200
    assert sam.get(review).status_code == sam.get(deployment).status_code == 404
    for path in (f"{review}approve/", f"{review}reject/", f"{deployment}roll-back/"):
        assert sam.post(path, {"reason": "mine now"}).status_code == 404
    key = scene.desk.api_keys.get()
    assert sam.post(reverse("admin:api_key_revoke", args=[key.pk])).status_code == 404
    key.refresh_from_db()
    assert key.revoked_at is None


def test_the_home_page_and_its_filters_name_own_projects_only(scene: Scene, signed_in: SignIn) -> None:
    sam = signed_in(scene.sam)
    home, runs = sam.get("/").content.decode(), sam.get("/telemetry/run/").content.decode()
    assert "globex-secret" in home
    assert "globex-secret" in runs
    assert "Northwind Air" not in home
    assert "airline-desk" not in home + runs
    others = sam.get(f"/telemetry/run/?project={scene.airline.pk}").content.decode()
    assert reverse("admin:telemetry_run_change", args=[scene.hostile_run.pk]) not in others


def test_nobody_enters_without_signing_in(scene: Scene, client: Client) -> None:
    for page in ("/", f"/promotions/{scene.proposed.pk}/", "/telemetry/run/"):
        answer = client.get(page)
        assert (answer.status_code, answer["location"].split("?")[0]) == (302, "/login/")


def test_only_the_installations_people_see_policy_nodes(scene: Scene, signed_in: SignIn) -> None:
    page = reverse("admin:release_policynode_change", args=[PolicyNode.objects.get().pk])
    assert signed_in(scene.root).get(page).status_code == 200
    assert signed_in(scene.omar).get(page).status_code == 404


def test_a_key_reads_its_own_project_only(scene: Scene, client: Client) -> None:
    mine = {"authorization": f"Bearer {scene.airline_key}"}
    theirs = Run.objects.filter(project=scene.strangers).get()
    assert client.get(f"/api/runs/{theirs.pk}", headers=mine).status_code == 404
    assert client.get(f"/api/training-jobs/{scene.running_job.pk}", headers=mine).status_code == 404
    assert client.get(f"/api/promotions/{scene.proposed.pk}", headers=mine).status_code == 404
    assert client.get("/api/promotions", headers=mine).json()["items"] == []
    ids = {item["id"] for item in client.get("/api/runs?limit=2000", headers=mine).json()["items"]}
    assert ids == {str(pk) for pk in scene.airline.runs.values_list("pk", flat=True)}
    ledger_pages = ledger.events_page(organization_ids=[scene.organization.pk], limit=1)
    assert ledger_pages  # the ledger is not part of the API: `manage.py explain` reads it
