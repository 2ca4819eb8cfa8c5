"""Who sees what: the only place where the console narrows a query to the viewer's organizations.

A superuser runs the installation and sees all of it; everybody else sees the organizations they are a
member of.
What a role may do is `accounts.selectors`' answer; this file adds only how a request asks."""

from typing import TypeVar
from uuid import UUID

from django.contrib.auth.models import AnonymousUser
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from accounts.models import Organization, Project, User

Row = TypeVar("Row", bound=Model)


def viewer(request: HttpRequest) -> User:
    """The person who signed in. Pages behind the sign-in only; the site turns everybody else away first."""
    user: User | AnonymousUser = request.user
    if not isinstance(user, User):
        raise TypeError("a page behind the sign-in was reached without it")
    return user


def organizations(user: User) -> QuerySet[Organization]:
    """The organizations a user sees."""
    rows = Organization.objects.all()
    return rows if user.is_superuser else rows.filter(members__user=user)


def projects(user: User) -> QuerySet[Project]:
    """The projects a user sees."""
    rows = Project.objects.all()
    return rows if user.is_superuser else rows.filter(organization__in=organizations(user))


def narrow(rows: QuerySet[Row], user: User, *, to: str) -> QuerySet[Row]:
    """Keep the rows whose project (or organization) the user sees; `to` is the lookup that leads there."""
    if user.is_superuser:
        return rows
    visible = organizations(user) if to.endswith(("organization", "organization_id")) else projects(user)
    return rows.filter(**{f"{to}__in": visible.values("pk")})


def one_project(user: User, wanted: str) -> UUID | None:
    """The id of a project the user sees, from text of a query string; None for anything else."""
    try:
        wanted_id = UUID(wanted)
    except ValueError:
        return None
    return projects(user).filter(pk=wanted_id).values_list("pk", flat=True).first()
