"""Who asks: a project's API key as bearer token gives read access to that project, and to nothing else."""

from django.conf import settings
from django.http import HttpRequest
from ninja.security import HttpBearer

from accounts import keys
from accounts.models import ApiKey, Project


class ProjectKey(HttpBearer):
    """Looks the key up by its digest. A key that is unknown, revoked or mistyped is refused alike."""

    def authenticate(self, request: HttpRequest, token: str) -> Project | None:
        if not keys.well_formed(token):
            return None
        digest = keys.digest(token, settings.KEYRING.key_pepper)
        key = ApiKey.objects.select_related("project").filter(digest=digest, revoked_at=None).first()
        return key.project if key else None
