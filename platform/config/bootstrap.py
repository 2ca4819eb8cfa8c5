"""What a newcomer gets on the first `make run`: a login, a project with a key, and a model that answers.

Done once; later starts only say where things are. Passwords and keys are shown here and kept nowhere."""

import secrets
from datetime import datetime

from django.db import transaction

from accounts import services as accounts
from accounts.models import Project, Role, User
from audit.actions import Actor
from config.environment import Environment
from gateway.models import Upstream
from learning.artifacts import directory_digest
from release import registry, rollout, serving

BY = Actor.service("first-start")
ALIAS = "support-desk"
EXAMPLE = (
    f'{{"model": "{ALIAS}", "messages": [{{"role": "user", "content": "Order 4817: my lamp is broken."}}]}}'
)


def first_steps(env: Environment, *, now: datetime) -> list[str]:
    """Set up the first login, project, key and model if there is nobody yet; the lines that a newcomer needs."""
    digest = directory_digest(env.base_model)
    base = str(env.base_model)
    serving.register_node(name=serving.EMBEDDED, base_url=env.policy_url, base_model=base, base_sha256=digest)
    lines = ["", f"Dashboard   {env.console_url}", f"Base URL    {env.gateway_url}/v1"]
    if User.objects.filter(is_superuser=True).exists():
        lines += ["Login       as before (forgotten: manage.py changepassword admin)"]
    else:
        password, key = _set_up(base, digest, now=now)
        lines += ["Login       admin", f"Password    {password}", f"API key     {key}   (project `default`)"]
        lines += ["", "Shown once: the password and the key are not stored.", "", "Try it:"]
        lines += [
            f"  curl {env.gateway_url}/v1/chat/completions -H 'Authorization: Bearer {key}' \\",
            "    -H 'Content-Type: application/json' \\",
            f"    -d '{EXAMPLE}'",
        ]
    without = Project.objects.exclude(id__in=Upstream.objects.values("project"))
    if not Upstream.objects.exists() and without.exists():
        lines += [
            "",
            "No upstream yet: only our own models answer. For your provider behind a project of your own:",
            "  .venv/bin/python manage.py create_project NAME --upstream URL [--upstream-key-env VARIABLE]",
        ]
    return [*lines, "", "Ctrl-C stops everything."]


@transaction.atomic
def _set_up(base: str, digest: str, *, now: datetime) -> tuple[str, str]:
    password = secrets.token_urlsafe(12)
    user = User.objects.create_superuser("admin", password=password)
    organization = accounts.create_organization(name="Default", actor=BY, now=now)
    accounts.add_member(organization=organization, user=user, role=Role.ADMIN, actor=BY, now=now)
    project = accounts.create_project(organization=organization, name="default", actor=BY, now=now)
    _, key = accounts.create_api_key(project=project, name="first key", actor=BY, now=now)
    version = registry.register_base(
        project=project, line=ALIAS, base_model=base, base_sha256=digest, actor=BY, now=now
    )
    rollout.create_deployment(project=project, alias=ALIAS, champion=version, actor=BY, now=now)
    return password, key
