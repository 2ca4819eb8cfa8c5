"""Decisions over HTTP: who may, with what, and what the page says when not."""

from collections.abc import Callable

import pytest
from django.test import Client

from accounts.models import User
from audit import selectors as ledger
from release.models import Promotion
from tests.browser.scene import PASSWORD, Scene

SignIn = Callable[[User], Client]
WHY = "The gate passed and the worst flips are harmless."


def state(promotion: Promotion) -> str:
    return Promotion.objects.values_list("state", flat=True).get(pk=promotion.pk)


@pytest.mark.parametrize(("verb", "after"), [("approve", "approved"), ("reject", "rejected")])
def test_an_approver_decides(scene: Scene, signed_in: SignIn, verb: str, after: str) -> None:
    page = f"/promotions/{scene.proposed.pk}/"
    answer = signed_in(scene.omar).post(f"{page}{verb}/", {"reason": WHY})
    assert (answer.status_code, answer["location"]) == (302, page)
    assert state(scene.proposed) == after
    latest = ledger.events_of(type="promotion", id=scene.proposed.pk)[-1]
    assert (latest.actor.name, latest.actor.role, latest.reason) == ("omar", "approver", WHY)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("maya", "Not done: maya may not approve in Northwind Air: role operator"),
        ("vera", "Not done: vera may not approve in Northwind Air: role viewer"),
        ("root", "Not done: root may not approve in Northwind Air: role none"),
    ],
)
def test_others_are_refused_in_a_sentence(scene: Scene, signed_in: SignIn, name: str, sentence: str) -> None:
    answer = signed_in(getattr(scene, name)).post(
        f"/promotions/{scene.proposed.pk}/approve/", {"reason": WHY}
    )
    assert answer.status_code == 409
    assert sentence in answer.content.decode()
    assert state(scene.proposed) == "proposed"


def test_a_decision_needs_a_reason(scene: Scene, signed_in: SignIn) -> None:
    omar = signed_in(scene.omar)
    for verb in ("approve", "reject"):
        answer = omar.post(f"/promotions/{scene.proposed.pk}/{verb}/", {"reason": "  "})
        assert answer.status_code == 409
        assert "A decision needs a reason" in answer.content.decode()
    assert state(scene.proposed) == "proposed"


def test_a_second_decision_comes_too_late(scene: Scene, signed_in: SignIn) -> None:
    omar = signed_in(scene.omar)
    omar.post(f"/promotions/{scene.proposed.pk}/reject/", {"reason": WHY})
    answer = omar.post(f"/promotions/{scene.proposed.pk}/approve/", {"reason": "On second thoughts"})
    assert answer.status_code == 409
    assert "Not done" in answer.content.decode()
    assert state(scene.proposed) == "rejected"


def test_evidence_that_changed_is_shown_and_stops_an_approval(scene: Scene, signed_in: SignIn) -> None:
    omar, page = signed_in(scene.omar), f"/promotions/{scene.proposed.pk}/"
    assert "evidence changed" not in omar.get(page).content.decode()
    evaluation = scene.proposed.evaluation
    evaluation.evidence["difference"] = "0.9000"
    evaluation.save()
    assert (
        "The evidence changed after the promotion was proposed: reject it" in omar.get(page).content.decode()
    )
    assert omar.post(f"{page}approve/", {"reason": WHY}).status_code == 409
    assert state(scene.proposed) == "proposed"


def test_an_approved_promotion_can_be_stopped_before_its_canary(scene: Scene, signed_in: SignIn) -> None:
    omar, page = signed_in(scene.omar), f"/promotions/{scene.approved.pk}/"
    shown = omar.get(page).content.decode()
    assert "you can still reject it" in shown
    assert f"{page}approve/" not in shown
    assert omar.post(f"{page}reject/", {"reason": WHY}).status_code == 302
    assert state(scene.approved) == "rejected"


def test_rolling_back_and_forward_by_name(scene: Scene, signed_in: SignIn) -> None:
    maya, lever = signed_in(scene.maya), f"/deployments/{scene.deployment.pk}/roll-back/"
    for wanted in ("", "billing-v2", "billing-v1"):
        assert maya.post(lever, {"reason": "drill", "to": wanted}).status_code == 302
        scene.deployment.refresh_from_db()
        assert scene.deployment.champion.name == (wanted or "billing-v1")
    answer = maya.post(lever, {"reason": "drill", "to": "returns-v2"})
    assert answer.status_code == 409
    assert "returns-v2 was never champion here." in answer.content.decode()


def test_a_canary_can_be_ended_from_its_deployment(scene: Scene, signed_in: SignIn) -> None:
    maya, page = signed_in(scene.maya), f"/deployments/{scene.canary.deployment_id}/"
    assert "end the canary, refunds v1 stays" in maya.get(page).content.decode()
    assert maya.post(f"{page}roll-back/", {"reason": "Too slow."}).status_code == 302
    assert state(scene.canary) == "rolled_back"
    assert "There is no earlier version to go back to." in maya.get(page).content.decode()


def test_a_viewer_cannot_roll_back(scene: Scene, signed_in: SignIn) -> None:
    vera = signed_in(scene.vera)
    assert (
        "Your role is viewer. Operators" in vera.get(f"/deployments/{scene.deployment.pk}/").content.decode()
    )
    answer = vera.post(f"/deployments/{scene.deployment.pk}/roll-back/", {"reason": "because"})
    assert answer.status_code == 409
    scene.deployment.refresh_from_db()
    assert scene.deployment.champion == scene.champion.candidate


def test_decisions_are_posts_with_a_token(scene: Scene) -> None:
    browser = Client(enforce_csrf_checks=True)
    page = f"/promotions/{scene.proposed.pk}/"
    token = browser.get("/login/").cookies["csrftoken"].value
    browser.post("/login/", {"username": "omar", "password": PASSWORD, "csrfmiddlewaretoken": token})
    assert browser.get(f"{page}approve/").status_code == 405
    assert browser.post(f"{page}approve/", {"reason": WHY}).status_code == 403
    token = browser.get(page).cookies["csrftoken"].value
    answer = browser.post(f"{page}approve/", {"reason": WHY, "csrfmiddlewaretoken": token})
    assert answer.status_code == 302
    assert state(scene.proposed) == "approved"


def test_keys_are_revoked_by_those_who_operate(scene: Scene, signed_in: SignIn, client: Client) -> None:
    key = scene.desk.api_keys.get()
    page, lever = f"/accounts/apikey/{key.pk}/", f"/accounts/apikey/{key.pk}/revoke/"
    header = {"authorization": f"Bearer {scene.desk_key}"}
    assert client.get("/api/summary", headers=header).status_code == 200
    assert signed_in(scene.vera).post(lever).status_code == 403
    assert signed_in(scene.maya).get(lever).status_code == 405
    assert "Revoke this key" in signed_in(scene.maya).get(page).content.decode()
    assert signed_in(scene.maya).post(lever).status_code == 302
    assert client.get("/api/summary", headers=header).status_code == 401
    assert ledger.events_of(type="api_key", id=key.pk)[-1].actor.name == "maya"
