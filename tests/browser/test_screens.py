"""Every page of the console, opened by people who work with it; each leaves a screenshot in
$RATCHET_HOME/screenshots."""

from django.urls import reverse

from console.admin import PAGES
from tests.browser.conftest import Visitor
from tests.browser.scene import Scene


def test_every_page_opens(visitor: Visitor, scene: Scene) -> None:
    visitor.page.set_viewport_size({"width": 1440, "height": 1150})
    visitor.open("/login/")
    visitor.shoot("00-sign-in")
    visitor.sign_in("root")
    visitor.shoot("01-home")
    for model in PAGES:
        name = f"{model._meta.app_label}_{model._meta.model_name}"
        visitor.open(reverse(f"admin:{name}_changelist"))
        visitor.shoot(f"list-{name}", whole=False)
        row = model._default_manager.last()
        visitor.open(reverse(f"admin:{name}_change", args=[row.pk]))
        visitor.shoot(f"one-{name}")
    visitor.open(f"/telemetry/run/{scene.hostile_run.pk}/")
    visitor.shoot("run-hostile")
    visitor.open(f"/deployments/{scene.deployment.pk}/")
    visitor.shoot("deployment-with-a-way-back")
    for name in ("proposed", "approved", "canary", "champion", "rejected"):
        visitor.open(f"/promotions/{getattr(scene, name).pk}/")
        visitor.shoot(f"promotion-{name}")
    visitor.page.emulate_media(color_scheme="dark")
    visitor.open(f"/promotions/{scene.canary.pk}/")
    visitor.shoot("promotion-dark")
