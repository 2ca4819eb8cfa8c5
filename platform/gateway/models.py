"""The gateway's own table: where a project's calls go when the model is not one of ours."""

from django.db import models

from accounts.models import Project
from kernel.ids import uuid7


class Upstream(models.Model):
    """An OpenAI-compatible provider of a project."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    project = models.OneToOneField(Project, on_delete=models.PROTECT, related_name="upstream")
    base_url = models.CharField(max_length=500)
    """Ends in `/v1`; the provider's own base URL."""
    credential = models.BinaryField(blank=True)
    """The provider's key, encrypted (Fernet) under the installation's key; empty when it needs none."""
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()

    def __str__(self) -> str:
        return self.base_url
