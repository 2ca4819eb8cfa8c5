"""Tenancy through its services: each change with its event, keys that stop, roles that hold."""

from datetime import UTC, datetime
from typing import Any

import pytest
from django.conf import settings
from django.db import IntegrityError, connection, transaction

from accounts import keys, selectors, services
from accounts.models import ApiKey, Member, Organization, Project, Role, User
from audit import selectors as ledger
from audit.actions import Actor
from kernel.notify import ROUTES_CHANGED

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
BY = Actor.service("test")


@pytest.fixture
def project(db: None) -> Project:
    organization = services.create_organization(name="Acme", actor=BY, now=NOW)
    return services.create_project(organization=organization, name="desk", actor=BY, now=NOW)


def actions(type: str, id: Any) -> list[str]:
    return [row.action.value for row in ledger.events_of(type=type, id=id)]


def test_beginnings_are_recorded(project: Project) -> None:
    assert actions("organization", project.organization_id) == ["organization.created"]
    (row,) = ledger.events_of(type="project", id=project.pk)
    assert (row.project_id, row.data) == (project.pk, {"name": "desk"})


@pytest.mark.django_db
def test_a_name_that_is_taken_leaves_no_trace(project: Project) -> None:
    before = len(ledger.events_page(organization_ids=[project.organization_id]))
    with pytest.raises(IntegrityError), transaction.atomic():
        services.create_project(organization=project.organization, name="desk", actor=BY, now=NOW)
    assert len(ledger.events_page(organization_ids=[project.organization_id])) == before


def test_a_key_is_kept_as_a_digest_only(project: Project) -> None:
    row, text = services.create_api_key(project=project, name="ci", actor=BY, now=NOW)
    assert keys.well_formed(text)
    (entry,) = selectors.live_keys()
    assert entry.digest == keys.digest(text, settings.KEYRING.key_pepper)
    assert (entry.key_id, entry.project_id) == (str(row.pk), str(project.pk))
    assert entry.organization_id == str(project.organization_id)
    kept = str(list(ApiKey.objects.values())) + str(
        ledger.events_page(organization_ids=[project.organization_id])
    )
    assert text not in kept
    assert keys.prefix(text) in kept


def test_a_revoked_key_is_gone_and_stays_gone(project: Project) -> None:
    row, _ = services.create_api_key(project=project, name="ci", actor=BY, now=NOW)
    _, other = services.create_api_key(project=project, name="ci", actor=BY, now=NOW)
    services.revoke_api_key(key=row, actor=BY, now=NOW)
    assert [entry.digest for entry in selectors.live_keys()] == [
        keys.digest(other, settings.KEYRING.key_pepper)
    ]
    assert actions("api_key", row.pk) == ["api_key.created", "api_key.revoked"]
    with pytest.raises(services.KeyRevoked):
        services.revoke_api_key(key=row, actor=BY, now=NOW)
    assert actions("api_key", row.pk) == ["api_key.created", "api_key.revoked"]


@pytest.mark.django_db(transaction=True)
def test_gateways_hear_of_keys_at_the_commit(project: Project) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"LISTEN {ROUTES_CHANGED}")
    wire = connection.connection
    row, _ = services.create_api_key(project=project, name="ci", actor=BY, now=NOW)
    assert len(list(wire.notifies(timeout=2, stop_after=1))) == 1
    services.revoke_api_key(key=row, actor=BY, now=NOW)
    assert len(list(wire.notifies(timeout=2, stop_after=1))) == 1
    with transaction.atomic():
        services.create_api_key(project=project, name="never", actor=BY, now=NOW)
        transaction.set_rollback(True)
    assert list(wire.notifies(timeout=0.05)) == []
    with connection.cursor() as cursor:
        cursor.execute(f"UNLISTEN {ROUTES_CHANGED}")


def test_roles_belong_to_one_organization(project: Project) -> None:
    other = services.create_organization(name="Other", actor=BY, now=NOW)
    user = User.objects.create(username="omar")
    member = services.add_member(
        organization=project.organization, user=user, role=Role.APPROVER, actor=BY, now=NOW
    )
    assert selectors.role_of(user, project.organization) == Role.APPROVER
    assert selectors.role_of(user, other) is None
    assert selectors.projects_of(user) == [project]
    assert actions("member", member.pk) == ["member.added"]
    with pytest.raises(services.AlreadyMember, match="omar is approver in Acme"):
        services.add_member(organization=project.organization, user=user, role=Role.ADMIN, actor=BY, now=NOW)
    assert Member.objects.get().role == Role.APPROVER


def test_a_switched_off_account_has_no_role_and_no_projects(project: Project) -> None:
    user = User.objects.create(username="omar")
    services.add_member(organization=project.organization, user=user, role=Role.ADMIN, actor=BY, now=NOW)
    user.is_active = False
    user.save()
    assert selectors.role_of(user, project.organization) is None
    assert selectors.projects_of(user) == []


@pytest.mark.parametrize(
    ("role", "operate", "approve", "administer"),
    [
        (None, False, False, False),
        (Role.VIEWER, False, False, False),
        (Role.OPERATOR, True, False, False),
        (Role.APPROVER, True, True, False),
        (Role.ADMIN, True, True, True),
    ],
)
def test_what_a_role_allows(role: Role | None, operate: bool, approve: bool, administer: bool) -> None:
    allowed = selectors.can_operate(role), selectors.can_approve(role), selectors.can_administer(role)
    assert allowed == (operate, approve, administer)


@pytest.mark.django_db
def test_live_keys_is_one_query(project: Project, django_assert_num_queries: Any) -> None:
    for _ in range(3):
        services.create_api_key(project=project, name="ci", actor=BY, now=NOW)
    assert Organization.objects.count() == 1
    with django_assert_num_queries(1):
        assert len(selectors.live_keys()) == 3
