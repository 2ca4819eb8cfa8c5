"""Changes to tenancy: organizations, projects, members, API keys. Each is one transaction with its audit
event."""

from datetime import datetime

from django.conf import settings
from django.db import transaction

from accounts import keys
from accounts.models import ApiKey, Member, Organization, Project, Role, User
from audit import ledger
from audit.actions import Action, Actor, ObjectRef
from kernel.notify import ROUTES_CHANGED, notify


class AlreadyMember(ValueError):
    """The user has a role in this organization."""


class KeyRevoked(ValueError):
    """The key was revoked before."""


@transaction.atomic
def create_organization(*, name: str, actor: Actor, now: datetime) -> Organization:
    """Make an organization and with it an empty ledger. Raises IntegrityError when the name is taken."""
    organization = Organization.objects.create(name=name, created_at=now)
    ledger.record(
        Action.ORGANIZATION_CREATED,
        actor=actor,
        organization_id=organization.id,
        project_id=None,
        obj=ObjectRef("organization", organization.id),
        at=now,
        data={"name": name},
    )
    return organization


@transaction.atomic
def create_project(*, organization: Organization, name: str, actor: Actor, now: datetime) -> Project:
    """Make a project. Raises IntegrityError when the organization has one of that name."""
    project = Project.objects.create(organization=organization, name=name, created_at=now)
    ledger.record(
        Action.PROJECT_CREATED,
        actor=actor,
        organization_id=organization.id,
        project_id=project.id,
        obj=ObjectRef("project", project.id),
        at=now,
        data={"name": name},
    )
    return project


@transaction.atomic
def add_member(*, organization: Organization, user: User, role: Role, actor: Actor, now: datetime) -> Member:
    """Give `user` a role in the organization. Raises AlreadyMember."""
    member, made = Member.objects.get_or_create(
        organization=organization, user=user, defaults={"role": role, "created_at": now}
    )
    if not made:
        raise AlreadyMember(f"{user.username} is {member.role} in {organization.name} already")
    ledger.record(
        Action.MEMBER_ADDED,
        actor=actor,
        organization_id=organization.id,
        project_id=None,
        obj=ObjectRef("member", member.id),
        at=now,
        data={"user": str(user.pk), "name": user.username, "role": role.value},
    )
    return member


@transaction.atomic
def create_api_key(*, project: Project, name: str, actor: Actor, now: datetime) -> tuple[ApiKey, str]:
    """Mint a key; the text that is returned is kept nowhere."""
    text = keys.mint()
    key = ApiKey.objects.create(
        project=project,
        name=name,
        prefix=keys.prefix(text),
        digest=keys.digest(text, settings.KEYRING.key_pepper),
        created_at=now,
    )
    _record_key(Action.API_KEY_CREATED, key, actor=actor, now=now)
    notify(ROUTES_CHANGED)
    return key, text


@transaction.atomic
def revoke_api_key(*, key: ApiKey, actor: Actor, now: datetime) -> ApiKey:
    """Stop a key; gateways hear of it when this commits. Raises KeyRevoked when it was stopped before."""
    if ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=now) != 1:
        raise KeyRevoked(f"key {key.prefix}… is revoked already")
    key.revoked_at = now
    _record_key(Action.API_KEY_REVOKED, key, actor=actor, now=now)
    notify(ROUTES_CHANGED)
    return key


@transaction.atomic
def set_training_opt_out(*, key: ApiKey, is_opted_out: bool, actor: Actor, now: datetime) -> ApiKey:
    """Say whether anything may be learnt from what this key calls; gateways hear of it when this commits. Setting
    what is set changes nothing."""
    changed = ApiKey.objects.filter(pk=key.pk).exclude(is_opted_out=is_opted_out)
    if changed.update(is_opted_out=is_opted_out) == 1:
        key.is_opted_out = is_opted_out
        _record_key(Action.API_KEY_TRAINING_SET, key, actor=actor, now=now, is_opted_out=is_opted_out)
        notify(ROUTES_CHANGED)
    return key


def _record_key(action: Action, key: ApiKey, *, actor: Actor, now: datetime, **facts: bool) -> None:
    ledger.record(
        action,
        actor=actor,
        organization_id=key.project.organization_id,
        project_id=key.project_id,
        obj=ObjectRef("api_key", key.id),
        at=now,
        data={"name": key.name, "prefix": key.prefix, **facts},
    )
