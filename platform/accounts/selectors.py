"""What may be read of tenancy: live keys for gateways, a person's role and projects, and what a role
allows."""

from dataclasses import dataclass

from accounts.models import ApiKey, Member, Organization, Project, Role, User
from audit.actions import Actor


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """A key that is not revoked, as a gateway keeps it in memory. Ids are strings, as in
    `release.routing`."""

    digest: bytes
    key_id: str
    project_id: str
    organization_id: str
    is_opted_out: bool


def live_keys() -> list[KeyEntry]:
    """Every key of the installation that may call, in one query."""
    rows = ApiKey.objects.filter(revoked_at=None).values_list(
        "digest", "id", "project_id", "project__organization_id", "is_opted_out"
    )
    return [
        KeyEntry(bytes(digest), str(key_id), str(project_id), str(organization_id), is_opted_out)
        for digest, key_id, project_id, organization_id, is_opted_out in rows
    ]


def role_of(user: User, organization: Organization) -> Role | None:
    """The user's role in the organization; None for a stranger and for an account that was switched off."""
    role = Member.objects.filter(
        user=user, organization_id=organization.pk, user__is_active=True
    ).values_list("role", flat=True)
    return next((Role(value) for value in role), None)


def projects_of(user: User) -> list[Project]:
    """The projects of every organization the user belongs to, by organization and name, in one query."""
    return list(
        Project.objects.filter(organization__members__user=user, organization__members__user__is_active=True)
        .select_related("organization")
        .order_by("organization__name", "name")
    )


def can_operate(role: Role | None) -> bool:
    """Make keys and specs, start training, propose, roll back."""
    return role in {Role.OPERATOR, Role.APPROVER, Role.ADMIN}


def can_approve(role: Role | None) -> bool:
    """Decide on promotions that somebody else requested."""
    return role in {Role.APPROVER, Role.ADMIN}


def can_administer(role: Role | None) -> bool:
    """Add members and change upstreams."""
    return role == Role.ADMIN


def actor_of(user: User, role: Role | None) -> Actor:
    """The user as the ledger names people, with the role held at this moment."""
    return Actor.user(id=user.pk, name=user.username, role=role.value if role else "")
