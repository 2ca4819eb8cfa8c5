"""The menu: groups of pages with, beside two of them, how much waits or is lost."""

from typing import Any

from django.http import HttpRequest
from django.urls import reverse

from console import scope, selectors


def navigation(request: HttpRequest) -> list[dict[str, Any]]:
    """Unfold's sidebar for this viewer, in two queries."""
    user = scope.viewer(request)
    waiting, lost = selectors.waiting_for_decision(user), selectors.losses().calls
    released = [_page("Model versions", "deployed_code", "release_modelversion")]
    released.append(_page("Deployments", "alt_route", "release_deployment"))
    if user.is_superuser:  # policy nodes serve every organization
        released.append(_page("Policy nodes", "dns", "release_policynode"))
    return [
        _group(
            "",
            {"title": "Home", "icon": "home", "link": reverse("admin:index")},
            _page("Promotions", "how_to_vote", "release_promotion", badge=waiting, variant="warning"),
        ),
        _group(
            "Observed",
            _page("Runs", "forum", "telemetry_run"),
            _page("Calls", "swap_horiz", "telemetry_call"),
            _page("Signals", "thumbs_up_down", "telemetry_signal"),
            _page("Lost captures", "report", "telemetry_captureloss", badge=lost, variant="danger"),
        ),
        _group(
            "Learned",
            _page("Reward specs", "rule", "learning_rewardspecversion"),
            _page("Episodes", "play_lesson", "learning_episode"),
            _page("Snapshots", "inventory_2", "learning_datasetsnapshot"),
            _page("Training jobs", "model_training", "learning_trainingjob"),
            _page("Evaluations", "balance", "learning_evaluation"),
        ),
        _group("Released", *released),
        _group(
            "Routed",
            _page("Upstreams", "cloud", "gateway_upstream"),
            _page("Aliases", "call_split", "gateway_alias"),
            _page("Limits", "speed", "gateway_limit"),
        ),
        _group(
            "Ledger",
            _page("Events", "receipt_long", "audit_event"),
            _page("Checkpoints", "verified", "audit_ledgercheckpoint"),
        ),
        _group(
            "Organization",
            _page("Organizations", "apartment", "accounts_organization"),
            _page("Projects", "folder", "accounts_project"),
            _page("Members", "group", "accounts_member"),
            _page("API keys", "key", "accounts_apikey"),
        ),
    ]


def _group(title: str, *items: dict[str, Any]) -> dict[str, Any]:
    return {"title": title, "items": list(items)}


def _page(title: str, icon: str, table: str, badge: int = 0, variant: str = "") -> dict[str, Any]:
    item: dict[str, Any] = {"title": title, "icon": icon, "link": reverse(f"admin:{table}_changelist")}
    if badge:
        item |= {"badge": badge, "badge_variant": variant}
    return item
