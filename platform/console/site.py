"""The console's site: unfold's admin with a home page of its own, open to every member instead of staff only.

Owns who may enter and which address leads where; what a page shows is in `console.records` and
`console.pages`."""

from collections.abc import Callable
from typing import Any

from django.contrib.auth.forms import AuthenticationForm
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, URLResolver, path
from unfold.forms import AuthenticationForm as UnfoldAuthenticationForm
from unfold.sites import UnfoldAdminSite

from accounts.models import User
from console.pages import deployment, home, promotion


class SignInForm(UnfoldAuthenticationForm):  # type: ignore[misc]  # unfold ships no types
    """Name and password. Membership decides what a person sees, so Django's `is_staff` is not asked for."""

    def confirm_login_allowed(self, user: User) -> None:
        AuthenticationForm.confirm_login_allowed(self, user)


class ConsoleSite(UnfoldAdminSite):  # type: ignore[misc]  # unfold ships no types
    """Every page a person sees, behind one sign-in."""

    login_form = SignInForm

    def has_permission(self, request: HttpRequest) -> bool:
        return request.user.is_authenticated and request.user.is_active

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        return home.show(request, self.each_context(request))

    def page(self, view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
        """A view behind the sign-in, with CSRF checked, that is handed the context of the site's frame."""

        def framed(request: HttpRequest, **arguments: Any) -> HttpResponse:
            return view(request, self.each_context(request), **arguments)

        return self.admin_view(framed)  # type: ignore[no-any-return]

    def get_urls(self) -> list[URLPattern | URLResolver]:
        one_promotion, one_deployment = "promotions/<uuid:promotion_id>/", "deployments/<uuid:deployment_id>/"
        own = [
            path(one_promotion, self.page(promotion.show), name="promotion"),
            path(f"{one_promotion}approve/", self.page(promotion.approve), name="promotion_approve"),
            path(f"{one_promotion}reject/", self.page(promotion.reject), name="promotion_reject"),
            path(one_deployment, self.page(deployment.show), name="deployment"),
            path(f"{one_deployment}roll-back/", self.page(deployment.roll_back), name="deployment_roll_back"),
        ]
        return [*own, *super().get_urls()]
