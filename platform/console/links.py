"""Addresses of the console's pages, by what they show."""

from django.db.models import Model
from django.urls import reverse


def url_of(kind: type[Model], pk: object) -> str:
    """The detail page of a row."""
    return reverse(f"admin:{kind._meta.app_label}_{kind._meta.model_name}_change", args=[pk])


def list_url(kind: type[Model]) -> str:
    """The list page of a table."""
    return reverse(f"admin:{kind._meta.app_label}_{kind._meta.model_name}_changelist")


def promotion_url(pk: object) -> str:
    """The review page of a promotion."""
    return reverse("admin:promotion", args=[pk])


def deployment_url(pk: object) -> str:
    """The page of a deployment, with the way back."""
    return reverse("admin:deployment", args=[pk])
