"""Changes to where a project's calls go. Reading it is `gateway.snapshot`'s business."""

from datetime import datetime
from urllib.parse import urlsplit

from cryptography.fernet import Fernet
from django.conf import settings
from django.db import transaction

from accounts.models import Project
from audit import ledger
from audit.actions import Action, Actor, ObjectRef
from gateway.models import Upstream
from kernel.notify import ROUTES_CHANGED, notify

MAX_URL_CHARACTERS = 500


class InvalidUpstream(ValueError):
    """The URL cannot be an OpenAI-compatible provider's base URL; the sentence says why."""


@transaction.atomic
def set_upstream(
    *, project: Project, base_url: str, credential: str, actor: Actor, now: datetime
) -> Upstream:
    """Send the project's calls to `base_url` from now on, with `credential` as the bearer token ("" for
    none).

    Gateways hear of it at the commit. The ledger gets the URL, never the credential. Raises
    InvalidUpstream."""
    url = checked_base_url(base_url)
    credential = credential.strip()
    if not credential.isascii() or not credential.isprintable():
        raise InvalidUpstream("the upstream's credential holds characters that no HTTP header can carry")
    sealed = Fernet(settings.KEYRING.credential_key).encrypt(credential.encode()) if credential else b""
    upstream, _ = Upstream.objects.update_or_create(
        project=project,
        defaults={"base_url": url, "credential": sealed, "updated_at": now},
        create_defaults={"base_url": url, "credential": sealed, "created_at": now, "updated_at": now},
    )
    ledger.record(
        Action.UPSTREAM_SET,
        actor=actor,
        organization_id=project.organization_id,
        project_id=project.id,
        obj=ObjectRef("upstream", upstream.id),
        at=now,
        data={"base_url": url},
    )
    notify(ROUTES_CHANGED)
    return upstream


def checked_base_url(text: str) -> str:
    """The URL without a trailing slash. Raises InvalidUpstream."""
    text = text.strip()
    try:
        parts = urlsplit(text)
        port_is_odd = parts.port == 0
    except ValueError as error:
        raise InvalidUpstream(f"the upstream's URL cannot be read: {error}") from None
    if parts.username is not None or parts.password is not None:
        # Checked first, and the URL is not repeated: it holds a secret.
        raise InvalidUpstream("the upstream's URL holds a credential: give it separately")
    if parts.scheme not in {"http", "https"}:
        raise InvalidUpstream(f"the upstream's URL must begin with https:// or http://, not {text!r}")
    if not parts.hostname or port_is_odd or any(character.isspace() for character in text):
        raise InvalidUpstream(f"the upstream's URL must name a host, not {text!r}")
    if parts.query or parts.fragment:
        raise InvalidUpstream(
            "the upstream's URL must end with its path: leave out everything from ? or # on"
        )
    if not parts.path.strip("/"):
        raise InvalidUpstream(
            f"the upstream's URL must include the API's path, usually {text.rstrip('/')}/v1"
        )
    if len(text) > MAX_URL_CHARACTERS:
        raise InvalidUpstream(f"the upstream's URL may have {MAX_URL_CHARACTERS} characters, not {len(text)}")
    return text.rstrip("/")
