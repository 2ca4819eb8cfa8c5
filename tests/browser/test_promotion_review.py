"""What people do with a promotion in a browser: read the evidence, decide with a reason, learn why they may
not, go back."""

import pytest
from playwright.sync_api import expect

from release.models import Promotion
from tests.browser.conftest import Visitor
from tests.browser.scene import Scene

WHY = "Gate passed; the worst flips are escalations, which cost minutes and not money."


def test_an_approver_finds_reads_and_approves(visitor: Visitor, scene: Scene) -> None:
    page = visitor.page
    visitor.sign_in("omar")
    page.get_by_role("link", name="waits for a decision").click()
    expect(page.get_by_text("held-out tasks;").first).to_be_visible()
    expect(page.get_by_role("img", name="95 % interval")).to_be_visible()
    expect(page.get_by_role("heading", name="Worst first")).to_be_visible()
    page.get_by_label("Reason").fill(WHY)
    visitor.shoot("review-approver")
    page.get_by_role("button", name="Approve").click()
    expect(page.get_by_text("Approved. The canary starts in a moment.")).to_be_visible()
    expect(page.get_by_role("list", name="Stages").locator("[aria-current=step]")).to_have_text("Approved")
    expect(page.locator(".rc-history li", has_text="promotion.approved")).to_contain_text(WHY)
    visitor.shoot("review-approved")
    row = Promotion.objects.get(pk=scene.proposed.pk)
    assert (row.state, row.decided_by, row.decided_reason) == ("approved", scene.omar, WHY)


def test_a_rejection_needs_a_reason(visitor: Visitor, scene: Scene) -> None:
    page = visitor.page
    visitor.sign_in("omar")
    visitor.open(f"/promotions/{scene.proposed.pk}/")
    page.get_by_role("button", name="Reject").click()
    assert page.get_by_label("Reason").evaluate("field => field.validity.valueMissing")
    assert Promotion.objects.get(pk=scene.proposed.pk).state == "proposed"
    page.get_by_label("Reason").fill("Three refunds to the wrong person are three too many.")
    page.get_by_role("button", name="Reject").click()
    expect(page.get_by_text("Rejected. The champion stays.")).to_be_visible()
    visitor.shoot("review-rejected")
    assert Promotion.objects.get(pk=scene.proposed.pk).state == "rejected"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("maya", "You requested this promotion, so somebody else has to decide on it."),
        ("vera", "Your role is viewer. Approvers and admins decide."),
        ("root", "You have no role in this organization. Its approvers and admins decide."),
    ],
)
def test_those_who_may_not_decide_are_told_why(
    visitor: Visitor, scene: Scene, name: str, sentence: str
) -> None:
    visitor.sign_in(name)
    visitor.open(f"/promotions/{scene.proposed.pk}/")
    expect(visitor.page.get_by_text(sentence)).to_be_visible()
    expect(visitor.page.get_by_role("button", name="Approve")).to_have_count(0)
    visitor.shoot(f"review-{name}")


def test_rolling_back_from_the_deployment(visitor: Visitor, scene: Scene) -> None:
    page = visitor.page
    visitor.sign_in("omar")
    visitor.open(f"/deployments/{scene.deployment.pk}/")
    page.get_by_label("Reason").fill("Complaints about tone since noon.")
    visitor.shoot("deployment-roll-back")
    page.get_by_role("button", name="Roll back").click()
    expect(page.get_by_text("billing v1 answers all of billing")).to_be_visible()
    visitor.shoot("deployment-rolled-back")
    scene.deployment.refresh_from_db()
    assert scene.deployment.champion == scene.champion.previous


def test_a_running_job_moves_without_a_reload(visitor: Visitor, scene: Scene) -> None:
    page = visitor.page
    visitor.sign_in("vera")
    visitor.open(f"/learning/trainingjob/{scene.running_job.pk}/")
    expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "56")
    scene.running_job.progress = {"step": 71, "steps": 100, "reward": 0.66}
    scene.running_job.save()
    expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "71", timeout=10_000)


def test_hostile_text_stays_text(visitor: Visitor, scene: Scene) -> None:
    visitor.sign_in("vera")
    for path in (f"/telemetry/run/{scene.hostile_run.pk}/", "/telemetry/run/", "/telemetry/signal/"):
        visitor.open(path)
        assert visitor.page.title() != "owned"
        assert visitor.page.locator("img[onerror]").count() == 0
