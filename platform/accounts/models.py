"""Tables of tenancy: organizations, projects, people with roles, API keys. Fields and constraints only."""

from django.contrib.auth.models import AbstractUser
from django.db import models
from django.db.models import Q

from kernel.ids import uuid7


class Role(models.TextChoices):
    """What a member may do; each role includes the ones before it, except that only approvers approve."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    APPROVER = "approver"
    ADMIN = "admin"


class User(AbstractUser):
    """A person who signs in to the console."""


class Organization(models.Model):
    """A customer. Owns its ledger."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    name = models.CharField(max_length=200, unique=True)
    created_at = models.DateTimeField()

    def __str__(self) -> str:
        return self.name


class Project(models.Model):
    """One agent product of an organization; every row of data belongs to exactly one project."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="projects")
    name = models.CharField(max_length=200)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(name="project_name_unique", fields=["organization", "name"])]

    def __str__(self) -> str:
        return self.name


class Member(models.Model):
    """A user's role in an organization."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="members")
    user = models.ForeignKey(User, on_delete=models.PROTECT, related_name="memberships")
    role = models.CharField(max_length=20, choices=Role)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(name="one_role_per_organization", fields=["organization", "user"]),
            models.CheckConstraint(name="member_role_known", condition=Q(role__in=Role.values)),
        ]

    def __str__(self) -> str:
        return f"{self.user} ({self.role})"


class ApiKey(models.Model):
    """A key of a project. The key itself is shown once; only its HMAC is stored."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.ForeignKey(Project, on_delete=models.PROTECT, related_name="api_keys")
    name = models.CharField(max_length=200)
    prefix = models.CharField(max_length=20)
    """The first characters of the key, enough for a person to recognise it."""
    digest = models.BinaryField(max_length=32, unique=True)
    """HMAC-SHA-256 of the whole key under the installation's pepper."""
    is_opted_out = models.BooleanField(default=False)
    """Nothing may be learnt from what this key calls."""
    created_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name = "API key"
        indexes = [models.Index(fields=["project", "created_at"])]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"
